//! Parts of a transfer that wait for the rest: a lane moves from one version to another in one step, or not at all.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    Limits,
    lanes::{Part, Patch, Position},
    wire::{Chunk, Last, Misbehaviour},
};

/// What durable lanes put before a key: a tag, and the node whose word it is.
const KEY_OVERHEAD: usize = 17;

/// What has arrived of a transfer.
#[derive(Debug)]
pub(super) struct Stage {
    transfer: u64,
    epoch: u64,
    since: u64,
    indices: BTreeSet<u32>,
    last: Option<End>,
    parts: BTreeMap<Bytes, Value>,
    bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct End {
    index: u32,
    last: Last,
}

#[derive(Debug)]
struct Value {
    version: u64,
    value: Option<Bytes>,
}

impl Stage {
    /// Waits for the rest of the transfer this part is of.
    pub(super) fn of(chunk: &Chunk) -> Self {
        Self {
            transfer: chunk.transfer,
            epoch: chunk.epoch,
            since: chunk.since,
            indices: BTreeSet::new(),
            last: None,
            parts: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// Numbers the transfer.
    pub(super) fn transfer(&self) -> u64 {
        self.transfer
    }

    /// Bytes of keys and values.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a part; those of one transfer agree on where it leads from.
    pub(super) fn add(&mut self, chunk: Chunk, limits: &Limits) -> Result<(), Misbehaviour> {
        if chunk.epoch != self.epoch || chunk.since != self.since {
            return Err(Misbehaviour::Order);
        }
        if !self.indices.insert(chunk.index) {
            return Ok(());
        }
        if let Some(last) = chunk.last {
            self.last = Some(End { index: chunk.index, last });
        }
        for entry in chunk.entries {
            let newer = self.parts.get(&entry.key).is_none_or(|known| known.version < entry.version);
            if newer {
                // Copied, so that one small entry does not keep the whole frame in memory.
                let key = Bytes::copy_from_slice(&entry.key);
                let value = entry.value.as_deref().map(Bytes::copy_from_slice);
                self.bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
                self.parts.insert(key, Value { version: entry.version, value });
            }
        }
        let too_many = self.parts.len() > limits.lane_entries_max || self.bytes > limits.writer_bytes_max;
        if too_many { Err(Misbehaviour::Limit) } else { Ok(()) }
    }

    /// Whether nothing is missing.
    pub(super) fn is_whole(&self) -> bool {
        self.last.is_some_and(|end| {
            u32::try_from(self.indices.len()).ok() == end.index.checked_add(1)
                && self.indices.last() == Some(&end.index)
        })
    }

    /// What it comes to.
    pub(super) fn into_patch(self) -> Option<Patch> {
        let last = self.last?.last;
        let mut parts: Vec<Part> =
            self.parts.into_iter().map(|(key, Value { version, value })| Part { version, key, value }).collect();
        parts.sort_by_key(|part| part.version);
        Some(Patch {
            to: Position { epoch: self.epoch, version: last.version },
            since: self.since,
            collected: last.collected,
            base: Position { epoch: last.base_epoch, version: last.base_version },
            parts,
        })
    }
}

/// Whether a part keeps the rules that hold for every part.
pub(super) fn check(chunk: &Chunk, limits: &Limits) -> Result<(), Misbehaviour> {
    let mut before = chunk.since;
    for entry in &chunk.entries {
        // What a key is kept under is a little longer than the key.
        if entry.key.len() > limits.key_bytes_max + KEY_OVERHEAD
            || entry.value.as_ref().is_some_and(|value| value.len() > limits.value_bytes_max)
        {
            return Err(Misbehaviour::Limit);
        }
        if entry.version <= before {
            return Err(Misbehaviour::Order);
        }
        before = entry.version;
    }
    let ends_before = chunk.last.is_some_and(|last| last.version < before || last.collected >= last.version);
    let numbers_wrong = chunk.epoch == 0 || before > u64::MAX / 2 || chunk.epoch > u64::MAX / 2;
    if ends_before || numbers_wrong { Err(Misbehaviour::Order) } else { Ok(()) }
}
