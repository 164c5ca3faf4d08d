//! The journal of the mesh's durable lanes, on the store: the same rows in other words.

use smg_mesh::{Journal, JournalError};
use smg_mesh_proto::{Batch, Kind, NodeId, Record};
use smg_store::Row;

/// A journal in the store.
pub(crate) struct Stored(pub(crate) smg_store::Journal);

impl Journal for Stored {
    fn load(&mut self) -> Result<Vec<Record>, JournalError> {
        let rows = self.0.load().map_err(|error| JournalError(error.into()))?;
        // A kind of a newer version is left where it is.
        Ok(rows.into_iter().filter_map(record).collect())
    }

    fn append(&mut self, batch: &Batch) -> Result<(), JournalError> {
        let rows: Vec<Row> = batch.records.iter().cloned().map(row).collect();
        self.0.append(&rows).map_err(|error| JournalError(error.into()))
    }
}

fn row(record: Record) -> Row {
    match record {
        Record::Boot(boot) => Row::Boot(boot),
        Record::Lane { writer, kind, epoch, collected, version } => {
            Row::Lane { writer: writer.as_u128(), kind: kind as u8, epoch, collected, version }
        }
        Record::Entry { writer, kind, key, version, value } => {
            Row::Entry { writer: writer.as_u128(), kind: kind as u8, key, version, value }
        }
        Record::Collect { writer, kind, collected } => {
            Row::Collect { writer: writer.as_u128(), kind: kind as u8, collected }
        }
        Record::Drop { writer, kind } => Row::Drop { writer: writer.as_u128(), kind: kind as u8 },
    }
}

fn record(row: Row) -> Option<Record> {
    let node = NodeId::from_u128;
    Some(match row {
        Row::Boot(boot) => Record::Boot(boot),
        Row::Lane { writer, kind, epoch, collected, version } => {
            Record::Lane { writer: node(writer), kind: Kind::of(kind)?, epoch, collected, version }
        }
        Row::Entry { writer, kind, key, version, value } => {
            Record::Entry { writer: node(writer), kind: Kind::of(kind)?, key, version, value }
        }
        Row::Collect { writer, kind, collected } => {
            Record::Collect { writer: node(writer), kind: Kind::of(kind)?, collected }
        }
        Row::Drop { writer, kind } => Record::Drop { writer: node(writer), kind: Kind::of(kind)? },
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_was_written_is_read_back_after_a_restart() {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let open = || Stored(smg_store::Journal::open(folder.path()).expect("the folder is ours"));
        let writer = NodeId::of("a");
        let lane = |version| Record::Lane { writer, kind: Kind::Workers, epoch: 3, collected: 0, version };
        let entry = |key: &'static str, version, value: Option<&'static str>| Record::Entry {
            writer,
            kind: Kind::Workers,
            key: Bytes::from_static(key.as_bytes()),
            version,
            value: value.map(|value| Bytes::from_static(value.as_bytes())),
        };
        let records = vec![Record::Boot(7), lane(2), entry("k", 1, Some("v")), entry("l", 2, None)];
        open().append(&Batch { sequence: 1, records: records.clone() }).expect("the disk takes it");
        assert_eq!(open().load().expect("it reads"), records);
    }
}
