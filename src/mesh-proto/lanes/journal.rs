//! What is still to be written to disk: the newest word on each entry only, so that a slow disk costs no more memory than the lanes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Lane, Part};
use crate::{Kind, NodeId, Record};

/// Changes that are not yet in a batch.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    boot: Option<u64>,
    lanes: BTreeMap<(NodeId, Kind), PendingLane>,
}

#[derive(Debug, Default)]
struct PendingLane {
    begins: Option<Begin>,
    entries: BTreeMap<Bytes, Written>,
    collected: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Begin {
    Anew(Header),
    Dropped,
}

#[derive(Clone, Copy, Debug)]
struct Header {
    epoch: u64,
    version: u64,
    collected: u64,
}

#[derive(Debug)]
struct Written {
    version: u64,
    value: Option<Bytes>,
}

impl Pending {
    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.boot.is_none() && self.lanes.is_empty()
    }

    /// The boot number changes.
    pub(crate) fn boot(&mut self, boot: u64) {
        self.boot = Some(boot);
    }

    /// A lane begins anew, as it now is.
    pub(crate) fn begin(&mut self, writer: NodeId, kind: Kind, lane: &Lane) {
        let pending = self.lanes.entry((writer, kind)).or_default();
        let position = lane.position();
        let header = Header { epoch: position.epoch, version: position.version, collected: lane.collected() };
        *pending = PendingLane { begins: Some(Begin::Anew(header)), ..PendingLane::default() };
        for (version, key, value) in lane.newer_than(0) {
            pending.entries.insert(key.clone(), Written { version, value: value.cloned() });
        }
    }

    /// An entry is set.
    pub(crate) fn entry(&mut self, writer: NodeId, kind: Kind, part: Part) {
        let pending = self.lanes.entry((writer, kind)).or_default();
        pending.entries.insert(part.key, Written { version: part.version, value: part.value });
    }

    /// Tombstones go.
    pub(crate) fn collect(&mut self, writer: NodeId, kind: Kind, collected: u64) {
        self.lanes.entry((writer, kind)).or_default().collected = Some(collected);
    }

    /// A lane goes.
    pub(crate) fn drop_lane(&mut self, writer: NodeId, kind: Kind) {
        let dropped = PendingLane { begins: Some(Begin::Dropped), ..PendingLane::default() };
        self.lanes.insert((writer, kind), dropped);
    }

    /// Takes everything, in the order in which it is to be written.
    pub(crate) fn take(&mut self) -> Vec<Record> {
        let mut records: Vec<Record> = self.boot.take().map(Record::Boot).into_iter().collect();
        for ((writer, kind), pending) in std::mem::take(&mut self.lanes) {
            match pending.begins {
                Some(Begin::Anew(Header { epoch, version, collected })) => {
                    records.push(Record::Lane { writer, kind, epoch, collected, version });
                }
                Some(Begin::Dropped) => records.push(Record::Drop { writer, kind }),
                None => {}
            }
            let mut entries: Vec<(Bytes, Written)> = pending.entries.into_iter().collect();
            entries.sort_by_key(|(_, written)| written.version);
            records.extend(entries.into_iter().map(|(key, Written { version, value })| Record::Entry {
                writer,
                kind,
                key,
                version,
                value,
            }));
            records.extend(pending.collected.map(|collected| Record::Collect { writer, kind, collected }));
        }
        records
    }
}
