//! One edge of the compressed tree, and the sharded table of them.

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use smallvec::SmallVec;
use smg_base::map::StableMap;

/// A stretch of consecutive chunk hashes without a branch.
#[derive(Debug)]
pub(crate) struct Run {
    /// The hashes; never empty. The run is found under the first.
    pub(crate) hashes: Vec<u64>,
    /// The last hash of the run before this one; zero where there is none.
    pub(crate) before: u64,
    /// Whether no run follows this one.
    pub(crate) leaf: bool,
    /// Who holds how much of it, by ascending slot; never empty.
    pub(crate) owners: SmallVec<[Owner; 2]>,
}

/// A worker's hold on a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    /// The worker.
    pub(crate) slot: u16,
    /// How many of the run's first chunks it holds; at least one.
    pub(crate) depth: u32,
    /// The run's place in the worker's order of use.
    pub(crate) entry: u32,
}

impl Run {
    /// How many chunks the run and `query` share from their beginnings on. The hashes are chained, so equality at a
    /// position means equality up to it, and the end of agreement can be found by bisection.
    pub(crate) fn matched(&self, query: &[u64]) -> usize {
        let shared = self.hashes.len().min(query.len());
        if shared == 0 || self.hashes[shared - 1] == query[shared - 1] {
            return shared;
        }
        let (mut equal, mut different) = (0, shared - 1);
        while equal < different {
            let middle = equal.midpoint(different);
            if self.hashes[middle] == query[middle] { equal = middle + 1 } else { different = middle }
        }
        equal
    }

    /// The last hash.
    pub(crate) fn tail(&self) -> u64 {
        self.hashes.last().copied().unwrap_or(0)
    }

    /// Where `slot` is, or would be, among the owners.
    pub(crate) fn owner(&self, slot: u16) -> Result<usize, usize> {
        match self.owners.as_slice() {
            [only] if only.slot == slot => Ok(0),
            owners => owners.binary_search_by_key(&slot, |owner| owner.slot),
        }
    }

    /// Drops the hashes that nobody holds any more. Only a leaf has such: what follows a run is held by somebody, who
    /// then holds the whole run too.
    pub(crate) fn trim(&mut self) {
        let deepest = self.owners.iter().map(|owner| owner.depth as usize).max().unwrap_or(0);
        if deepest < self.hashes.len() {
            self.hashes.truncate(deepest);
            if self.hashes.capacity() > 2 * deepest {
                self.hashes.shrink_to_fit();
            }
        }
    }

    /// Memory taken by this run outside the order of use: the table slot (at a mean load of two thirds), the hashes
    /// and the owners.
    pub(crate) fn bytes(&self) -> usize {
        let spilled = if self.owners.spilled() { self.owners.capacity() * size_of::<Owner>() } else { 0 };
        size_of::<(u64, Self)>() * 3 / 2 + self.hashes.capacity() * size_of::<u64>() + spilled
    }
}

/// The runs by their first hash, in shards so that a writer at one run holds up no reader of another.
#[derive(Debug)]
pub(crate) struct Runs {
    shards: Box<[Shard]>,
}

type Table = StableMap<u64, Run>;

/// On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard(RwLock<Table>);

impl Runs {
    const SHARD_BITS: u32 = 6;

    pub(crate) fn new() -> Self {
        Self { shards: (0..1 << Self::SHARD_BITS).map(|_| Shard::default()).collect() }
    }

    /// The shard that holds the run headed by `head`, for reading.
    pub(crate) fn read(&self, head: u64) -> RwLockReadGuard<'_, Table> {
        self.shard(head).read()
    }

    /// The same for writing. A caller holds one shard at a time.
    pub(crate) fn write(&self, head: u64) -> RwLockWriteGuard<'_, Table> {
        self.shard(head).write()
    }

    /// How many runs there are.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.read().len()).sum()
    }

    fn shard(&self, head: u64) -> &RwLock<Table> {
        &self.shards[(head >> (u64::BITS - Self::SHARD_BITS)) as usize].0
    }

    #[cfg(test)]
    pub(crate) fn for_each(&self, mut visit: impl FnMut(u64, &Run)) {
        for shard in &self.shards {
            for (head, run) in shard.0.read().iter() {
                visit(*head, run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn the_end_of_agreement_is_found_wherever_it_is() {
        for length in 1..40_u64 {
            let run = Run { hashes: (1..=length).collect(), before: 0, leaf: true, owners: SmallVec::new() };
            for agree in 0..=length {
                for query_length in agree..45 {
                    let query: Vec<u64> =
                        (1..=query_length).map(|at| if at <= agree { at } else { 1_000 + at }).collect();
                    assert_eq!(run.matched(&query), usize::try_from(agree).unwrap(), "{length} {query:?}");
                }
            }
        }
    }

    #[test]
    fn what_nobody_holds_is_dropped() {
        let owner = |slot, depth| Owner { slot, depth, entry: 0 };
        let mut run =
            Run { hashes: (1..=100).collect(), before: 0, leaf: true, owners: smallvec![owner(1, 7), owner(4, 9)] };
        run.trim();
        assert_eq!(run.hashes, (1..=9).collect::<Vec<_>>());
        assert!(run.hashes.capacity() <= 18);
        assert_eq!([run.owner(1), run.owner(2), run.owner(4), run.owner(5)], [Ok(0), Err(1), Ok(1), Err(2)]);
    }
}
