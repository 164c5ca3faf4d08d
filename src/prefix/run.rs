//! One edge of the compressed tree as readers see it, and the table of them.

use std::{
    hash::{BuildHasherDefault, Hasher},
    sync::{
        Arc,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

/// Slots in one word of a mask.
pub(crate) const WORD_SLOTS: usize = u64::BITS as usize;

/// Words of a mask inside the run: 128 slots.
pub(crate) const WORDS_INLINE: usize = 2;

/// A stretch of consecutive chunk hashes without a branch. What is in it stays; a run that changes is replaced. Only
/// who holds it whole, and how many runs follow, changes in place, each in one step.
#[derive(Debug)]
pub(crate) struct Run {
    /// The hashes; never empty. The run is found under the first.
    pub(crate) hashes: Arc<[u64]>,
    /// The last of them, so that a path that goes through is followed without a look at the others.
    last: u64,
    /// Its number among the writers' records.
    pub(crate) id: u32,
    /// How many runs come next after it.
    followers: AtomicU32,
    /// Which slots hold all of it.
    whole: [AtomicU64; WORDS_INLINE],
    /// The same for slots beyond.
    whole_beyond: Box<[AtomicU64]>,
    /// Who holds only its beginning, by ascending slot.
    pub(crate) parts: Box<[Part]>,
}

/// A worker's hold on the beginning of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The worker.
    pub(crate) slot: u16,
    /// How many of the run's first chunks it holds; at least one.
    pub(crate) depth: u32,
}

impl Run {
    /// A run with `holds`, by ascending slot.
    pub(crate) fn new(id: u32, hashes: Arc<[u64]>, followers: u32, holds: impl Iterator<Item = Part> + Clone) -> Self {
        let length = hashes.len();
        let is_part = |hold: &Part| (hold.depth as usize) < length;
        let words = holds.clone().map(|hold| word_of(hold.slot).0 + 1).max().unwrap_or(0);
        let run = Self {
            last: hashes.last().copied().unwrap_or(0),
            hashes,
            id,
            followers: AtomicU32::new(followers),
            whole: Default::default(),
            whole_beyond: (WORDS_INLINE..words).map(|_| AtomicU64::new(0)).collect(),
            parts: holds.clone().filter(is_part).collect(),
        };
        for hold in holds.filter(|hold| !is_part(hold)) {
            run.admit(hold.slot);
        }
        run
    }

    /// How many chunks the run and `query` share from their beginnings on.
    pub(crate) fn matched(&self, query: &[u64]) -> usize {
        let length = self.hashes.len();
        if query.get(length - 1) == Some(&self.last) { length } else { agreement(&self.hashes, query) }
    }

    /// Who holds all of it, of the 64 slots of a word.
    #[inline]
    pub(crate) fn whole(&self, word: usize) -> u64 {
        self.word(word).map_or(0, |word| word.load(Acquire))
    }

    /// How many runs come next after it.
    pub(crate) fn followers(&self) -> u32 {
        self.followers.load(Acquire)
    }

    /// Notes how many runs come next after it.
    pub(crate) fn set_followers(&self, followers: u32) {
        self.followers.store(followers, Release);
    }

    /// Lets `slot` hold all of it; false if there is no room for that slot.
    pub(crate) fn admit(&self, slot: u16) -> bool {
        let (word, bit) = word_of(slot);
        self.word(word).is_some_and(|word| {
            word.fetch_or(bit, Release);
            true
        })
    }

    /// Takes that away.
    pub(crate) fn dismiss(&self, slot: u16) {
        let (word, bit) = word_of(slot);
        if let Some(word) = self.word(word) {
            word.fetch_and(!bit, Release);
        }
    }

    /// Whether `slot` holds only a part of it.
    pub(crate) fn is_part(&self, slot: u16) -> bool {
        self.parts.binary_search_by_key(&slot, |part| part.slot).is_ok()
    }

    #[inline]
    fn word(&self, word: usize) -> Option<&AtomicU64> {
        if word < WORDS_INLINE { self.whole.get(word) } else { self.whole_beyond.get(word - WORDS_INLINE) }
    }
}

fn word_of(slot: u16) -> (usize, u64) {
    (usize::from(slot) / WORD_SLOTS, 1 << (usize::from(slot) % WORD_SLOTS))
}

/// How many hashes two chains share from their beginnings on. Being chained, hashes that are equal at a place are equal up
/// to it, so the end can be found by bisection.
pub(crate) fn agreement(one: &[u64], other: &[u64]) -> usize {
    let shared = one.len().min(other.len());
    if shared == 0 || one[shared - 1] == other[shared - 1] {
        return shared;
    }
    let (mut equal, mut different) = (0, shared - 1);
    while equal < different {
        let middle = equal.midpoint(different);
        if one[middle] == other[middle] { equal = middle + 1 } else { different = middle }
    }
    equal
}

/// The runs by their first hash. Readers never wait; what they hold on to is freed after them.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    table: Table,
    /// What the runs that nothing comes before begin with.
    pub(crate) roots: Roots,
}

type Table = papaya::HashMap<u64, Run, BuildHasherDefault<Unhashed>>;

/// The table, kept from freeing what is looked at.
pub(crate) struct Pinned<'a> {
    table: papaya::HashMapRef<'a, u64, Run, BuildHasherDefault<Unhashed>, papaya::LocalGuard<'a>>,
    /// See [`Runs::roots`].
    pub(crate) roots: &'a Roots,
}

impl Runs {
    /// Memory of a run in the table: its entry, a pointer to that and a byte beside it at a mean load of two thirds.
    pub(crate) const ENTRY_BYTES: usize = size_of::<(u64, Run)>() + (size_of::<usize>() + 1) * 3 / 2;

    pub(crate) fn pin(&self) -> Pinned<'_> {
        Pinned { table: self.table.pin(), roots: &self.roots }
    }

    /// How many runs there are.
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }
}

impl Pinned<'_> {
    /// The run that begins with `head`.
    pub(crate) fn get(&self, head: u64) -> Option<&Run> {
        #[cfg(test)]
        interleaving::step();
        self.table.get(&head)
    }

    /// Puts a run in the place of the one that begins like it, if there is one.
    pub(crate) fn put(&self, run: Run) {
        #[cfg(test)]
        interleaving::step();
        self.table.insert(run.hashes[0], run);
    }

    /// Takes out the run that begins with `head`.
    pub(crate) fn remove(&self, head: u64) {
        #[cfg(test)]
        interleaving::step();
        self.table.remove(&head);
    }

    #[cfg(test)]
    pub(crate) fn for_each(&self, mut visit: impl FnMut(u64, &Run)) {
        for (head, run) in &self.table {
            visit(*head, run);
        }
    }
}

/// A set of hashes that errs only by holding too many: most prompts that nobody has seen are known for that by one look, at
/// memory that stays in the processor's cache.
#[derive(Debug)]
pub(crate) struct Roots {
    cells: Box<[AtomicU64]>,
}

impl Roots {
    const CELLS: usize = 1 << 14;

    /// Whether `hash` may be in the set.
    #[inline]
    pub(crate) fn may_have(&self, hash: u64) -> bool {
        let (word, bit) = word_of_cell(Self::cell(hash));
        self.cells.get(word).is_some_and(|cells| cells.load(Acquire) & bit != 0)
    }

    fn cell(hash: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "some bits of a hash")]
        let low = hash as usize;
        low % Self::CELLS
    }
}

impl Default for Roots {
    fn default() -> Self {
        Self { cells: (0..Self::CELLS / WORD_SLOTS).map(|_| AtomicU64::new(0)).collect() }
    }
}

/// The writers' part of [`Roots`]: how many hashes each cell stands for.
#[derive(Debug)]
pub(crate) struct RootCounts(Box<[u32]>);

impl Default for RootCounts {
    fn default() -> Self {
        Self(vec![0; Roots::CELLS].into())
    }
}

impl RootCounts {
    /// Adds a hash.
    pub(crate) fn add(&mut self, roots: &Roots, hash: u64) {
        let cell = Roots::cell(hash);
        self.0[cell] += 1;
        let (word, bit) = word_of_cell(cell);
        roots.cells[word].fetch_or(bit, Release);
    }

    /// Takes out a hash that was added.
    pub(crate) fn remove(&mut self, roots: &Roots, hash: u64) {
        let cell = Roots::cell(hash);
        self.0[cell] -= 1;
        if self.0[cell] == 0 {
            let (word, bit) = word_of_cell(cell);
            roots.cells[word].fetch_and(!bit, Release);
        }
    }
}

fn word_of_cell(cell: usize) -> (usize, u64) {
    (cell / WORD_SLOTS, 1 << (cell % WORD_SLOTS))
}

/// The keys are hashes already, seeded with what a cluster keeps to itself.
#[derive(Debug, Default)]
pub(crate) struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// Lets a test choose what happens between any two looks at the table.
#[cfg(test)]
pub(crate) mod interleaving {
    use std::cell::Cell;

    thread_local! {
        static STEP: Cell<Option<fn()>> = const { Cell::new(None) };
    }

    /// Sets what happens at each step of this thread.
    pub(crate) fn at_each_step(then: Option<fn()>) {
        STEP.set(then);
    }

    pub(crate) fn step() {
        if let Some(then) = STEP.get() {
            then();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_agreement_is_found_wherever_it_is() {
        for length in 1..40_u64 {
            let run = Run::new(0, (1..=length).collect(), 0, std::iter::empty());
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
    fn holders_are_whole_or_parts() {
        let holds = [(3, 10), (64, 4), (255, 10), (900, 10)].map(|(slot, depth)| Part { slot, depth });
        let run = Run::new(0, (1..=10).collect(), 0, holds.into_iter());
        let whole = |run: &Run| {
            (0..2_000).filter(|slot| run.whole(word_of(*slot).0) & word_of(*slot).1 != 0).collect::<Vec<u16>>()
        };
        assert_eq!(whole(&run), [3, 255, 900]);
        assert_eq!(&*run.parts, [Part { slot: 64, depth: 4 }]);
        assert!(run.is_part(64) && !run.is_part(3));
        assert!(run.admit(40) && run.admit(959) && !run.admit(960), "as far as its mask reaches");
        run.dismiss(255);
        run.dismiss(2_000);
        assert_eq!(whole(&run), [3, 40, 900, 959]);
    }
}
