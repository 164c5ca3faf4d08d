//! What is written, in plain types: who uses the journal knows what they mean.

use bytes::Bytes;

/// A change of what is on disk. For each (writer, kind) the journal holds an epoch and its entries by key; and one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// The node's boot number.
    Boot(
        /// The number.
        u64,
    ),
    /// A lane begins anew, under whatever epoch: what was there of it is dropped.
    Lane {
        /// Who writes it.
        writer: u128,
        /// What it is about.
        kind: u8,
        /// Its epoch.
        epoch: u64,
        /// Tombstones up to this version are gone.
        collected: u64,
        /// Its newest version.
        version: u64,
    },
    /// An entry is set, in a lane that is there; a value of none is a tombstone.
    Entry {
        /// Whose lane.
        writer: u128,
        /// Which of it.
        kind: u8,
        /// The key.
        key: Bytes,
        /// The version that set it.
        version: u64,
        /// The value.
        value: Option<Bytes>,
    },
    /// Tombstones up to `collected` are dropped.
    Collect {
        /// Whose lane.
        writer: u128,
        /// Which of it.
        kind: u8,
        /// The version.
        collected: u64,
    },
    /// A lane is dropped.
    Drop {
        /// Whose lane.
        writer: u128,
        /// Which of it.
        kind: u8,
    },
}
