//! How the large vectors grow: by an eighth, not by doubling, because what they cost a block is counted.

/// Makes room for one more, and for a few beyond if that takes a new piece of memory.
pub(crate) fn reserve_some<T>(vector: &mut Vec<T>) {
    if vector.len() == vector.capacity() {
        vector.reserve_exact(vector.len() / 8 + 4);
    }
}

/// What an entry of such a vector takes on the average.
pub(crate) const fn mean_bytes(bytes: usize) -> usize {
    bytes + bytes / 16
}
