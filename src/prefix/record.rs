//! A run as writers see it.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::{
    memory::mean_bytes,
    run::{Part, Run, Runs, WORD_SLOTS, WORDS_INLINE},
};

/// No run.
pub(crate) const NONE: u32 = u32::MAX;

/// What writers know of a run. A reader's [`Run`] is made from it.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// The hashes; empty only if the number is not in use.
    pub(crate) hashes: Arc<[u64]>,
    /// The run before this one, or [`NONE`].
    pub(crate) parent: u32,
    /// How many runs come next after it.
    pub(crate) followers: u32,
    /// Who holds how much of it, by ascending slot; never empty while in use.
    pub(crate) holds: SmallVec<[Hold; 2]>,
}

/// A worker's hold on a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    /// The worker.
    pub(crate) slot: u16,
    /// How many of the run's first chunks it holds; at least one.
    pub(crate) depth: u32,
    /// The run's place in the worker's order of use.
    pub(crate) entry: u32,
    /// How many of the runs that follow it holds too.
    pub(crate) below: u32,
}

impl Record {
    /// Memory of a run without its hashes, with a part or two; of these, more are counted with the holds.
    const BYTES: usize = Runs::ENTRY_BYTES + mean_bytes(size_of::<Self>()) + 2 * size_of::<usize>() + size_of::<Part>();

    /// Where `slot` is, or would be, among the holds.
    pub(crate) fn find(&self, slot: u16) -> Result<usize, usize> {
        match self.holds.as_slice() {
            [only] if only.slot == slot => Ok(0),
            holds => holds.binary_search_by_key(&slot, |hold| hold.slot),
        }
    }

    /// What `slot` holds of it.
    pub(crate) fn hold(&self, slot: u16) -> Option<&Hold> {
        self.find(slot).ok().map(|at| &self.holds[at])
    }

    /// How many chunks `slot` holds of it.
    pub(crate) fn depth(&self, slot: u16) -> usize {
        self.hold(slot).map_or(0, |hold| hold.depth as usize)
    }

    /// The most that anybody holds of it.
    pub(crate) fn deepest(&self) -> usize {
        self.holds.iter().map(|hold| hold.depth as usize).max().unwrap_or(0)
    }

    /// Memory taken by this run outside the order of use.
    pub(crate) fn bytes(&self) -> usize {
        let spilled = if self.holds.spilled() { self.holds.capacity() } else { 0 };
        let words = self.holds.last().map_or(0, |hold| usize::from(hold.slot) / WORD_SLOTS + 1);
        let beyond = words.saturating_sub(WORDS_INLINE) * size_of::<u64>();
        Self::BYTES + self.hashes.len() * size_of::<u64>() + spilled * (size_of::<Hold>() + size_of::<Part>()) + beyond
    }

    /// The same for readers.
    pub(crate) fn published(&self, id: u32) -> Run {
        let holds = self.holds.iter().map(|hold| Part { slot: hold.slot, depth: hold.depth });
        Run::new(id, Arc::clone(&self.hashes), self.followers, holds)
    }
}
