//! Frames of replication.

use bincode::{BorrowDecode, Decode, Encode};
use bytes::Bytes;

use crate::NodeId;

/// What nodes say to each other about lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LaneFrame {
    /// What the sender has of the receiver's own lanes; the receiver sends what is newer.
    Have(Vec<HaveRow>),
    /// A part of a transfer.
    Chunk(Chunk),
    /// What arrived.
    Ack(Vec<AckRow>),
    /// The sender's root digest.
    Root(u128),
    /// The answer, if the receiver's is the same.
    Equal(u128),
    /// The answer, if not: the sender's digest of each kind that has lanes.
    Kinds(Vec<(u8, u128)>),
    /// The sender's lanes of one kind.
    Rows(Rows),
    /// Send what is newer of this lane.
    Pull(Pull),
}

/// How far the sender is with one of the receiver's own lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct HaveRow {
    /// Which.
    pub(crate) kind: u8,
    /// Its epoch; 0 if the sender has none.
    pub(crate) epoch: u64,
    /// Its version.
    pub(crate) version: u64,
    /// The rolling hash of its live entries.
    pub(crate) hash: u128,
}

/// A part of a transfer: of everything in a lane that is newer than `since`. The parts may arrive in any order; together they lead
/// from `since` to the version that the last one names, and are applied at once, so that no node ever shows a lane as it never was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Whose lane.
    pub(crate) writer: NodeId,
    /// Which of it.
    pub(crate) kind: u8,
    /// Its epoch.
    pub(crate) epoch: u64,
    /// The version from which it leads; 0 replaces what the receiver has.
    pub(crate) since: u64,
    /// Numbers the sender's transfers.
    pub(crate) transfer: u64,
    /// Numbers the parts, from 0.
    pub(crate) index: u32,
    /// What the last part says; none in the others.
    pub(crate) last: Option<Last>,
    /// Entries by version.
    pub(crate) entries: Vec<Entry>,
}

/// Where a transfer leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Last {
    /// The version.
    pub(crate) version: u64,
    /// Tombstones up to this version are gone.
    pub(crate) collected: u64,
    /// Epoch of the newest older copy that this epoch of the lane began with.
    pub(crate) base_epoch: u64,
    /// Version of that copy.
    pub(crate) base_version: u64,
}

impl Chunk {
    /// The same, borrowed.
    pub(crate) fn borrowed(&self) -> ChunkRef<'_> {
        let Self { writer, kind, epoch, since, transfer, index, last, entries } = self;
        let entries = entries.iter().map(|entry| EntryRef {
            version: entry.version,
            key: &entry.key,
            value: entry.value.as_deref(),
        });
        ChunkRef {
            writer: *writer,
            kind: *kind,
            epoch: *epoch,
            since: *since,
            transfer: *transfer,
            index: *index,
            last: *last,
            entries: entries.collect(),
        }
    }
}

/// A [`Chunk`] as it is on the wire: its sender copies no entry, and its receiver none before it knows that it wants them.
#[derive(Clone, Debug, Encode, BorrowDecode)]
pub(crate) struct ChunkRef<'a> {
    /// Whose lane.
    pub(crate) writer: NodeId,
    /// Which of it.
    pub(crate) kind: u8,
    /// Its epoch.
    pub(crate) epoch: u64,
    /// The version from which it leads.
    pub(crate) since: u64,
    /// Numbers the sender's transfers.
    pub(crate) transfer: u64,
    /// Numbers the parts.
    pub(crate) index: u32,
    /// What the last part says.
    pub(crate) last: Option<Last>,
    /// Entries by version.
    pub(crate) entries: Vec<EntryRef<'a>>,
}

impl ChunkRef<'_> {
    /// The chunk, its entries still parts of the frame that it was read from.
    pub(crate) fn within(self, frame: &Bytes) -> Chunk {
        let Self { writer, kind, epoch, since, transfer, index, last, entries } = self;
        let entries = entries.into_iter().map(|entry| Entry {
            version: entry.version,
            key: frame.slice_ref(entry.key),
            value: entry.value.map(|value| frame.slice_ref(value)),
        });
        Chunk { writer, kind, epoch, since, transfer, index, last, entries: entries.collect() }
    }
}

/// An [`Entry`] as it is on the wire.
#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
pub(crate) struct EntryRef<'a> {
    /// The version that set it.
    pub(crate) version: u64,
    /// Its key.
    pub(crate) key: &'a [u8],
    /// Its value.
    pub(crate) value: Option<&'a [u8]>,
}

/// An entry of a lane. Its bytes are part of a frame: whoever keeps it copies them, or else keeps the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The version that set it.
    pub(crate) version: u64,
    /// Its key.
    pub(crate) key: Bytes,
    /// Its value; none is a tombstone.
    pub(crate) value: Option<Bytes>,
}

/// What became of a part of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct AckRow {
    /// Whose lane.
    pub(crate) writer: NodeId,
    /// Which of it.
    pub(crate) kind: u8,
    /// The transfer.
    pub(crate) transfer: u64,
    /// The part.
    pub(crate) index: u32,
    /// What became of it.
    pub(crate) outcome: Outcome,
    /// The epoch the receiver now has.
    pub(crate) epoch: u64,
    /// The version it now has, whole.
    pub(crate) version: u64,
}

/// What became of a part of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Outcome {
    /// Applied, or kept until the rest arrives, or old.
    Taken,
    /// It leads from where the receiver is not: send again, from where it is.
    Gap,
    /// The receiver has more of an older epoch than the sender began this one with: ask for it first.
    Ahead,
    /// Lanes of the writer up to this epoch are given up for good: it must begin anew beyond it.
    Dead,
}

/// The lanes of one kind that a node has.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Rows {
    /// The kind.
    pub(crate) kind: u8,
    /// Its lanes.
    pub(crate) rows: Vec<LaneRow>,
    /// Whether the receiver is to answer with those of its rows that are newer or missing here.
    pub(crate) ask: bool,
}

/// How far a node is with a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct LaneRow {
    /// Whose.
    pub(crate) writer: NodeId,
    /// Its epoch.
    pub(crate) epoch: u64,
    /// Its version.
    pub(crate) version: u64,
    /// The rolling hash of its live entries.
    pub(crate) hash: u128,
}

/// Asks for what is newer of a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Pull {
    /// Whose lane.
    pub(crate) writer: NodeId,
    /// Which of it.
    pub(crate) kind: u8,
    /// The epoch the sender has; 0 if it has none of it.
    pub(crate) epoch: u64,
    /// The version it has.
    pub(crate) since: u64,
}
