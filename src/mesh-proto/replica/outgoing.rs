//! One lane on its way to one peer: what the peer acknowledged, and what is in flight beyond that. Nothing is kept of what was sent:
//! after a loss the lane itself is asked again for what is newer.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    Class, Kind, NodeId,
    lanes::{Lane, Position},
    wire::{AckRow, ChunkRef, EntryRef, Last, Outcome, encode_chunk},
};

/// Bytes of keys and values in one part of a transfer, before the last entry.
const CHUNK_BYTES: usize = 48 << 10;

/// Why a lane is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is this node's own: every change follows.
    Push,
    /// The peer asked for it: once is enough.
    Pull,
}

/// A lane on its way to a peer.
#[derive(Debug)]
pub(super) struct Outgoing {
    purpose: Purpose,
    epoch: u64,
    /// What the peer has, whole.
    acked: u64,
    /// Up to where transfers lead that were sent to their end.
    sent: u64,
    sending: Option<Sending>,
    /// Bytes of the parts that are not acknowledged, by transfer and index.
    flights: BTreeMap<(u64, u32), usize>,
    /// What is said of transfers before this one no longer counts.
    floor: u64,
}

#[derive(Clone, Copy, Debug)]
struct Sending {
    transfer: u64,
    since: u64,
    cursor: u64,
    index: u32,
}

/// What all transfers of a node share.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    last: u64,
    /// Changes that go to several peers at once are encoded once; emptied after each flush.
    shared: BTreeMap<(Kind, NodeId, u64, Position), Encoded>,
}

#[derive(Clone, Debug)]
struct Encoded {
    transfer: u64,
    bytes: Bytes,
}

impl Transfers {
    /// Forgets what several peers shared.
    pub(super) fn forget_shared(&mut self) {
        self.shared.clear();
    }
}

/// A part of a transfer, ready to be sent.
#[derive(Debug)]
pub(super) struct Part {
    /// How it travels.
    pub(super) class: Class,
    /// The frame.
    pub(super) bytes: Bytes,
}

impl Outgoing {
    /// A peer has a lane of this epoch up to `version`.
    pub(super) fn new(purpose: Purpose, epoch: u64, version: u64) -> Self {
        Self { purpose, epoch, acked: version, sent: version, sending: None, flights: BTreeMap::new(), floor: 0 }
    }

    /// What the peer has, whole.
    pub(super) fn acked(&self) -> Position {
        Position { epoch: self.epoch, version: self.acked }
    }

    /// Whether nothing more will come of it.
    pub(super) fn is_done(&self, lane: &Lane) -> bool {
        let all_sent = self.sending.is_none() && self.sent == lane.position().version;
        self.purpose == Purpose::Pull && self.flights.is_empty() && all_sent
    }

    /// Whether something is not acknowledged.
    pub(super) fn is_in_flight(&self) -> bool {
        !self.flights.is_empty()
    }

    /// The next part, if there is one to send now. Adds to `unacked` what it weighs.
    pub(super) fn next(
        &mut self,
        writer: NodeId,
        kind: Kind,
        lane: &Lane,
        transfers: &mut Transfers,
        unacked: &mut usize,
    ) -> Option<Part> {
        let position = lane.position();
        if position.epoch != self.epoch {
            *unacked -= self.rewind(transfers.last + 1);
            (self.epoch, self.acked, self.sent) = (position.epoch, 0, 0);
        }
        let sending = self.begin(lane, transfers)?;
        let shared = (kind, writer, sending.since, position);
        if sending.index == 0
            && sending.cursor == sending.since
            && let Some(encoded) = transfers.shared.get(&shared)
        {
            self.sending = None;
            self.sent = position.version;
            self.flights.insert((encoded.transfer, 0), encoded.bytes.len());
            *unacked += encoded.bytes.len();
            return Some(Part { class: Class::Lane, bytes: encoded.bytes.clone() });
        }
        let mut entries = Vec::new();
        let (mut weight, mut cursor) = (0, sending.cursor);
        for (version, key, value) in lane.newer_than(sending.cursor) {
            if weight >= CHUNK_BYTES {
                break;
            }
            weight += key.len() + value.map_or(0, Bytes::len);
            cursor = version;
            entries.push(EntryRef { version, key, value: value.map(|value| &**value) });
        }
        let is_last = lane.newer_than(cursor).next().is_none();
        let base = lane.base();
        let last = is_last.then(|| Last {
            version: position.version,
            collected: lane.collected(),
            base_epoch: base.epoch,
            base_version: base.version,
        });
        let Sending { transfer, since, index, .. } = sending;
        let bytes = encode_chunk(&ChunkRef {
            writer,
            kind: kind as u8,
            epoch: self.epoch,
            since,
            transfer,
            index,
            last,
            entries,
        });
        let class = if is_last && index == 0 { Class::Lane } else { Class::Bulk };
        if is_last {
            self.sending = None;
            self.sent = position.version;
            if index == 0 {
                transfers.shared.insert(shared, Encoded { transfer, bytes: bytes.clone() });
            }
        } else {
            self.sending = Some(Sending { cursor, index: index + 1, ..sending });
        }
        self.flights.insert((transfer, index), bytes.len());
        *unacked += bytes.len();
        Some(Part { class, bytes })
    }

    /// The transfer that goes on, or the one that begins; none if there is nothing to send yet.
    fn begin(&self, lane: &Lane, transfers: &mut Transfers) -> Option<Sending> {
        let fresh = |since: u64, transfers: &mut Transfers| {
            transfers.last += 1;
            Some(Sending { transfer: transfers.last, since, cursor: since, index: 0 })
        };
        if let Some(sending) = self.sending {
            // The tombstones it still had to send may be gone: then only the whole lane is right.
            let stale = sending.since != 0 && lane.collected() > sending.since;
            return if stale { fresh(0, transfers) } else { Some(sending) };
        }
        // Parts of a long transfer may be overtaken by what follows it, which would then lead from nowhere.
        let long_in_flight = self.flights.keys().any(|(_, index)| *index > 0);
        if self.sent >= lane.position().version || long_in_flight {
            return None;
        }
        fresh(if self.sent < lane.collected() { 0 } else { self.sent }, transfers)
    }

    /// The peer says what became of a part. Returns the bytes that are no longer in flight.
    pub(super) fn acknowledge(&mut self, row: &AckRow, lane: &Lane, transfers: &Transfers) -> usize {
        let mut freed = self.flights.remove(&(row.transfer, row.index)).unwrap_or_default();
        if row.epoch == self.epoch {
            self.acked = self.acked.max(row.version.min(lane.position().version));
            self.sent = self.sent.max(self.acked);
        }
        if row.outcome == Outcome::Gap && row.transfer >= self.floor {
            self.acked = if row.epoch == self.epoch { row.version.min(lane.position().version) } else { 0 };
            freed += self.rewind(transfers.last + 1);
        }
        freed
    }

    /// The peer shows that it has this much.
    pub(super) fn learn(&mut self, position: Position) {
        if position.epoch == self.epoch {
            self.acked = self.acked.max(position.version);
            self.sent = self.sent.max(self.acked);
        }
    }

    /// Begins again from what was acknowledged. Returns the bytes that are no longer in flight.
    pub(super) fn rewind(&mut self, floor: u64) -> usize {
        self.floor = floor;
        self.sending = None;
        self.sent = self.acked;
        std::mem::take(&mut self.flights).into_values().sum()
    }

    /// The same after nothing was heard for too long.
    pub(super) fn time_out(&mut self, transfers: &Transfers) -> usize {
        self.rewind(transfers.last + 1)
    }
}
