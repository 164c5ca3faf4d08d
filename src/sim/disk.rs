//! What a node's disk holds: the journal as a map, with the meaning that `smg-store` gives its rows.

use std::collections::BTreeMap;

use bytes::Bytes;
use smg_mesh_proto::{Kind, NodeId, Record, Restored};

/// A journal that can be copied, kept for later, or lost.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    boot: Option<u64>,
    lanes: BTreeMap<(NodeId, Kind), Lane>,
}

#[derive(Clone, Debug)]
struct Lane {
    epoch: u64,
    collected: u64,
    version: u64,
    entries: BTreeMap<Bytes, Stored>,
}

#[derive(Clone, Debug)]
struct Stored {
    version: u64,
    value: Option<Bytes>,
}

/// A record that the real journal would refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an entry of a lane that was never begun")]
pub(crate) struct UnknownLane;

impl Disk {
    /// Writes a batch: all of it or nothing.
    pub(crate) fn append(&mut self, records: &[Record]) -> Result<(), UnknownLane> {
        let mut known: Vec<(NodeId, Kind)> = Vec::new();
        for record in records {
            match record {
                Record::Lane { writer, kind, .. } => known.push((*writer, *kind)),
                Record::Entry { writer, kind, .. } => {
                    if !known.contains(&(*writer, *kind)) && !self.lanes.contains_key(&(*writer, *kind)) {
                        return Err(UnknownLane);
                    }
                }
                Record::Drop { writer, kind } => known.retain(|lane| *lane != (*writer, *kind)),
                Record::Boot(_) | Record::Collect { .. } => {}
            }
        }
        records.iter().for_each(|record| self.apply(record));
        Ok(())
    }

    /// The records that, applied in order, make it.
    pub(crate) fn restored(&self) -> Restored {
        let mut records: Restored = self.boot.map(Record::Boot).into_iter().collect();
        for (&(writer, kind), lane) in &self.lanes {
            let newest = lane.entries.values().map(|stored| stored.version).max().unwrap_or(0);
            let version = lane.version.max(lane.collected).max(newest);
            records.push(Record::Lane { writer, kind, epoch: lane.epoch, collected: lane.collected, version });
            let mut entries: Vec<_> = lane.entries.iter().collect();
            entries.sort_by_key(|(_, stored)| stored.version);
            records.extend(entries.into_iter().map(|(key, stored)| Record::Entry {
                writer,
                kind,
                key: key.clone(),
                version: stored.version,
                value: stored.value.clone(),
            }));
        }
        records
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Boot(boot) => self.boot = Some(*boot),
            Record::Lane { writer, kind, epoch, collected, version } => {
                // The whole lane follows, whether or not its epoch is new.
                let lane = Lane { epoch: *epoch, collected: *collected, version: *version, entries: BTreeMap::new() };
                self.lanes.insert((*writer, *kind), lane);
            }
            Record::Entry { writer, kind, key, version, value } => {
                if let Some(lane) = self.lanes.get_mut(&(*writer, *kind)) {
                    lane.entries.insert(key.clone(), Stored { version: *version, value: value.clone() });
                }
            }
            Record::Collect { writer, kind, collected } => {
                if let Some(lane) = self.lanes.get_mut(&(*writer, *kind)) {
                    lane.collected = *collected;
                    lane.entries.retain(|_, stored| stored.value.is_some() || stored.version > *collected);
                }
            }
            Record::Drop { writer, kind } => {
                self.lanes.remove(&(*writer, *kind));
            }
        }
    }
}
