//! What nodes tell each other of a worker's cache.

/// A worker's cache holds something that it did not, or the reverse. Applied in order, changes make its content: at every
/// moment whoever holds a chunk holds everything before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These chunks, each after the one before, are held too.
    Held {
        /// The chunk that the first of them follows; none if it begins a prompt.
        after: Option<u64>,
        /// Their hashes; not empty.
        chunks: Vec<u64>,
    },
    /// These chunks are held no longer. A chunk is given up after those that follow it, earlier in the same list or before.
    Dropped {
        /// Their hashes; not empty.
        chunks: Vec<u64>,
    },
    /// Nothing is held any more: the engine restarted, or its cache was flushed.
    Cleared,
}

/// A prompt was sent to a worker whose content others work out: its beginning up to `after` was taken to be there already,
/// and is used anew; the rest will be there soon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The last chunk that was there; none if nothing was.
    pub after: Option<u64>,
    /// The chunks that follow it; may be empty.
    pub chunks: Vec<u64>,
}
