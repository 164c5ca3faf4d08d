//! The index as others use it.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, MutexGuard};
use smg_base::{WorkerId, hash};

use crate::{
    Change, Found,
    directory::Directory,
    ledger::{Ledger, Order, Seat},
    run::Runs,
};

/// Which worker holds which prefix. Shared between threads; a lookup neither waits nor allocates (for up to 128 workers).
///
/// A worker is either predicted ([`PrefixIndex::insert`]) or told ([`PrefixIndex::apply`]); which, can change when it is
/// cleared or forgotten. Of one that is told nothing is forgotten for its own capacity, only for the index's: what was
/// used longest ago goes first, and of such a worker the last use known is when it was told to hold a chunk or one after it.
#[derive(Debug)]
pub struct PrefixIndex {
    runs: Runs,
    ledger: Mutex<Ledger>,
    directory: ArcSwap<Directory>,
    /// How often a slot was given to another worker than before.
    reuses: AtomicU64,
    slots: AtomicUsize,
    used: AtomicUsize,
    bytes_max: usize,
}

/// How much an index holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexSize {
    /// Workers known.
    pub workers: usize,
    /// Stretches without a branch.
    pub runs: usize,
    /// Chunks held, counted once for each worker that holds them.
    pub chunks: u64,
    /// Memory, estimated from what is stored.
    pub bytes: usize,
    /// The part of it that finds a chunk by its hash; none as long as workers are only predicted.
    pub bytes_of_places: usize,
}

impl PrefixIndex {
    /// Holds of forgotten workers released by each write.
    const BURIALS_PER_WRITE: usize = 8;
    /// Holds of forgotten workers released by each turn of a sweep, between which writers get in.
    const BURIALS_PER_TURN: usize = 256;
    /// Weight of the newest observation in a worker's trust.
    const TRUST_STEP: f32 = 0.1;
    /// An engine without a cache keeps a little trust, or it could never regain any.
    const TRUST_MIN: f32 = 0.05;
    /// Below this trust a worker's capacity is not cut further.
    const CAPACITY_TRUST_MIN: f32 = 0.25;

    /// An empty index that forgets what was used longest ago once it takes more than `bytes_max`.
    pub fn new(bytes_max: usize) -> Self {
        Self {
            runs: Runs::default(),
            ledger: Mutex::default(),
            directory: ArcSwap::default(),
            reuses: AtomicU64::new(0),
            slots: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
            bytes_max,
        }
    }

    /// How much of a text, given as [`crate::PromptKey::chunks`], each of `workers` holds. Fastest if they come by ascending id.
    pub fn lookup(&self, chunks: &[u64], workers: impl ExactSizeIterator<Item = WorkerId>, found: &mut Found) {
        if !chunks.first().is_some_and(|first| self.runs.roots.may_have(*first)) {
            found.nothing(chunks);
            return;
        }
        if let Some(directory) = self.find(chunks, found) {
            found.assign(&directory, workers);
        }
    }

    /// Notes that a text was dispatched to `worker`, which can hold `capacity` chunks in all.
    pub fn insert(&self, worker: WorkerId, chunks: &[u64], capacity: u64) {
        let capacity = self.trusted_capacity(worker, capacity);
        let chunks = &chunks[..chunks.len().min(usize::try_from(capacity).unwrap_or(usize::MAX))];
        let mut ledger = self.ledger.lock();
        let Some(slot) = self.slot(&mut ledger, worker) else { return };
        let runs = self.runs.pin();
        ledger.claim(&runs, slot, None, chunks, Order::OfChunks);
        ledger.fit(&runs, slot, capacity);
        self.finish(ledger);
    }

    /// Notes what became of a worker's cache, as its home tells it; says how many chunks could not be placed because what
    /// they follow is not known to be held.
    pub fn apply(&self, worker: WorkerId, change: &Change) -> u64 {
        let mut ledger = self.ledger.lock();
        let runs = self.runs.pin();
        let mut unplaced = 0;
        match change {
            Change::Held { after, chunks } => {
                let Some(slot) = self.slot(&mut ledger, worker) else { return chunks.len() as u64 };
                let place = after.map(|after| ledger.place(slot, after));
                unplaced = match place {
                    Some(None) => chunks.len(),
                    place => ledger.claim(&runs, slot, place.flatten(), chunks, Order::OfRuns),
                };
            }
            Change::Dropped { chunks } => {
                if let Some(slot) = ledger.slot(worker) {
                    ledger.release(&runs, slot, chunks);
                }
            }
            Change::Cleared => {
                if ledger.slot(worker).is_some_and(|slot| ledger.chunks(slot) > 0) {
                    ledger.dismiss(&runs, worker);
                    self.admit(&mut ledger, worker);
                }
            }
        }
        self.finish(ledger);
        unplaced as u64
    }

    /// A hash of the chunks that `worker` holds, whatever their order: equal where the same chunks are held.
    pub fn digest(&self, worker: WorkerId) -> u64 {
        let ledger = self.ledger.lock();
        ledger.slot(worker).map_or(0, |slot| match ledger.chunks(slot) {
            0 => 0,
            chunks => hash::mix(ledger.sum(slot), chunks),
        })
    }

    /// Shows what `worker` holds, stretch by stretch: the chunk before, if any, and the chunks. What comes before is shown
    /// before. It is what was held at one moment; writers do not wait for `visit`.
    pub fn holds(&self, worker: WorkerId, visit: &mut dyn FnMut(Option<u64>, &[u64])) {
        let ledger = self.ledger.lock();
        let Some(slot) = ledger.slot(worker) else { return };
        let held: Vec<_> =
            ledger.holds(slot).map(|(before, hashes, depth)| (before, Arc::clone(hashes), depth)).collect();
        drop(ledger);
        for (before, hashes, depth) in held {
            visit(before, &hashes[..depth]);
        }
    }

    /// Learns from an answer: the index predicted that `predicted` tokens would be cached, and `actual` were. A worker's
    /// trust follows the ratio, and so does, down to a quarter, the capacity it is taken to have.
    pub fn calibrate(&self, worker: WorkerId, predicted: u64, actual: u64) {
        if predicted == 0 {
            return;
        }
        let directory = self.directory.load();
        let Some(at) = directory.find(worker) else { return };
        #[expect(clippy::cast_precision_loss, reason = "a ratio for an average")]
        let ratio = (actual as f32 / predicted as f32).min(1.0);
        let trust = directory.seat(at).1;
        directory.set_trust(at, (trust + Self::TRUST_STEP * (ratio - trust)).max(Self::TRUST_MIN));
    }

    /// How far a worker's engine has borne out what was predicted, in `0.0..=1.0`.
    pub fn trust(&self, worker: WorkerId) -> f32 {
        let directory = self.directory.load();
        directory.find(worker).map_or(1.0, |at| directory.seat(at).1)
    }

    /// Forgets a worker: it was removed, restarted, or its cache flushed. Lookups stop finding it at once; its holds are
    /// released little by little with the next writes and sweeps.
    pub fn forget(&self, worker: WorkerId) {
        let mut ledger = self.ledger.lock();
        if ledger.slot(worker).is_some() {
            self.directory.store(Arc::new(self.directory.load().without(worker)));
            ledger.dismiss(&self.runs.pin(), worker);
        }
    }

    /// Releases what forgotten workers still held.
    pub fn sweep(&self) {
        loop {
            let mut ledger = self.ledger.lock();
            let more = ledger.bury(&self.runs.pin(), Self::BURIALS_PER_TURN);
            self.used.store(ledger.used(), Relaxed);
            if !more {
                return;
            }
        }
    }

    /// How many chunks `worker` is taken to hold.
    pub fn chunks_held(&self, worker: WorkerId) -> u64 {
        let ledger = self.ledger.lock();
        ledger.slot(worker).map_or(0, |slot| ledger.chunks(slot))
    }

    /// Memory in use, estimated from what is stored.
    pub fn used_bytes(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// How much there is, for metrics.
    pub fn size(&self) -> IndexSize {
        let ledger = self.ledger.lock();
        IndexSize {
            workers: self.directory.load().len(),
            runs: self.runs.len(),
            chunks: ledger.chunks_total(),
            bytes: ledger.used(),
            bytes_of_places: ledger.used_by_places(),
        }
    }

    /// Notes who holds what, by slot; gives the directory that tells whose the slots are, unless nobody holds anything.
    fn find(&self, chunks: &[u64], found: &mut Found) -> Option<Guard<Arc<Directory>>> {
        let runs = self.runs.pin();
        loop {
            let reuses = self.reuses.load(Acquire);
            #[cfg(test)]
            crate::run::interleaving::step();
            if !found.walk(&runs, chunks, self.slots.load(Acquire)) {
                return None;
            }
            #[cfg(test)]
            crate::run::interleaving::step();
            let directory = self.directory.load();
            // A slot that became another worker's on the way may have been read as either's.
            if self.reuses.load(Acquire) == reuses {
                return Some(directory);
            }
        }
    }

    /// The slot of a worker, old or new. Nothing if all are taken.
    fn slot(&self, ledger: &mut Ledger, worker: WorkerId) -> Option<u16> {
        ledger.slot(worker).or_else(|| self.admit(ledger, worker))
    }

    fn admit(&self, ledger: &mut Ledger, worker: WorkerId) -> Option<u16> {
        let seat = ledger.admit(worker)?;
        if let Seat::Reused(_) = seat {
            // Before anybody can see it hold anything: see `lookup`.
            self.reuses.fetch_add(1, Release);
        }
        self.slots.store(ledger.slots(), Release);
        self.directory.store(Arc::new(self.directory.load().with(worker, seat.slot())));
        Some(seat.slot())
    }

    /// What follows each write.
    fn finish(&self, mut ledger: MutexGuard<'_, Ledger>) {
        let runs = self.runs.pin();
        ledger.bury(&runs, Self::BURIALS_PER_WRITE);
        ledger.fit_bytes(&runs, self.bytes_max);
        self.used.store(ledger.used(), Relaxed);
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate scaled by a share in 0..=1"
    )]
    fn trusted_capacity(&self, worker: WorkerId, capacity: u64) -> u64 {
        let directory = self.directory.load();
        let trust = directory.find(worker).map_or(1.0, |at| directory.seat(at).1);
        let capacity = capacity.min(u64::from(u32::MAX - 1));
        if trust >= 1.0 { capacity } else { (capacity as f64 * f64::from(trust.max(Self::CAPACITY_TRUST_MIN))) as u64 }
    }

    #[cfg(test)]
    pub(crate) fn audited(&self, audit: impl FnOnce(&Ledger, &crate::run::Pinned<'_>)) {
        audit(&self.ledger.lock(), &self.runs.pin());
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "change_tests.rs"]
mod change_tests;

#[cfg(test)]
#[path = "concurrency_tests.rs"]
mod concurrency_tests;
