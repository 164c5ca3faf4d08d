//! The index as others use it.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;
use smg_base::{WorkerId, hash, map::StableMap};

use crate::{Change, ledger::Ledger, run::Runs};

/// Which worker holds which prefix. Shared between threads; a lookup allocates nothing for up to 128 workers and waits for
/// a writer only while that changes a run on its way.
#[derive(Debug)]
pub struct PrefixIndex {
    runs: Runs,
    ledger: Mutex<Ledger>,
    /// The workers known, by ascending id.
    directory: RwLock<Vec<Member>>,
    /// What fed workers hold: for each chunk, the one before it.
    fed: Mutex<StableMap<WorkerId, StableMap<u64, Option<u64>>>>,
    slots: AtomicUsize,
    used: AtomicUsize,
    bytes_max: usize,
}

#[derive(Debug)]
struct Member {
    id: WorkerId,
    slot: u16,
    /// An `f32` by its bits.
    trust: AtomicU32,
}

/// What a lookup found. Reuse it, or make one on the stack.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// For each worker asked about, in the order asked.
    pub holders: SmallVec<[Held; 128]>,
    /// Names the branch of the tree that the text is on: what follows the last point where dispatched texts part. The
    /// turns of one conversation share it, and two conversations after one system prompt do not. Nothing for a text
    /// without a whole chunk.
    pub branch: Option<u64>,
    /// By slot.
    depths: SmallVec<[u32; 128]>,
}

/// What one worker holds of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// How many of the text's first chunks.
    pub chunks: u32,
    /// How far the worker's engine has borne out such predictions, in `0.0..=1.0`.
    pub trust: f32,
}

impl Default for Held {
    fn default() -> Self {
        Self { chunks: 0, trust: 1.0 }
    }
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
            runs: Runs::new(),
            ledger: Mutex::new(Ledger::new()),
            directory: RwLock::default(),
            fed: Mutex::default(),
            slots: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
            bytes_max,
        }
    }

    /// How much of a text, given as [`crate::PromptKey::chunks`], each of `workers` holds. Fastest if they come by ascending id.
    pub fn lookup(&self, chunks: &[u64], workers: impl Iterator<Item = WorkerId>, found: &mut Found) {
        found.depths.clear();
        found.depths.resize(self.slots.load(Relaxed), 0);
        found.branch = self.walk(chunks, &mut found.depths);
        found.holders.clear();
        let directory = self.directory.read();
        let mut next = 0;
        found.holders.extend(workers.map(|worker| {
            if directory.get(next).is_none_or(|member| member.id != worker) {
                match directory.binary_search_by_key(&worker, |member| member.id) {
                    Ok(at) => next = at,
                    Err(_) => return Held::default(),
                }
            }
            let member = &directory[next];
            next += 1;
            let chunks = found.depths.get(usize::from(member.slot)).copied().unwrap_or(0);
            Held { chunks, trust: f32::from_bits(member.trust.load(Relaxed)) }
        }));
    }

    /// Notes that a text was dispatched to `worker`, which can hold `capacity` chunks in all.
    pub fn insert(&self, worker: WorkerId, chunks: &[u64], capacity: u64) {
        let capacity = self.trusted_capacity(worker, capacity);
        let chunks = &chunks[..chunks.len().min(usize::try_from(capacity).unwrap_or(usize::MAX))];
        let mut ledger = self.ledger.lock();
        let Some(slot) = ledger.slot(worker).or_else(|| self.admit(&mut ledger, worker)) else { return };
        ledger.claim(&self.runs, slot, chunks);
        ledger.fit(&self.runs, slot, capacity);
        ledger.bury(&self.runs, Self::BURIALS_PER_WRITE);
        ledger.fit_bytes(&self.runs, self.bytes_max);
        self.used.store(ledger.used(), Relaxed);
    }

    /// Notes what became of a worker's cache, as its home tells it; says how many chunks could not be placed because what
    /// they follow is not known to be held.
    pub fn apply(&self, worker: WorkerId, change: &Change) -> u64 {
        let mut fed = self.fed.lock();
        let held = fed.entry(worker).or_default();
        match change {
            Change::Held { after, chunks } => {
                if after.is_some_and(|after| !held.contains_key(&after)) {
                    return chunks.len() as u64;
                }
                let mut before = *after;
                for chunk in chunks {
                    held.insert(*chunk, before);
                    before = Some(*chunk);
                }
                let mut path: Vec<u64> =
                    std::iter::successors(before, |chunk| held.get(chunk).copied().flatten()).collect();
                path.reverse();
                self.insert(worker, &path, u64::MAX);
            }
            Change::Dropped { chunks } => {
                for chunk in chunks {
                    held.remove(chunk);
                }
                self.dismiss(worker);
                let ends: Vec<u64> = held.keys().copied().collect();
                for end in ends {
                    let mut path: Vec<u64> =
                        std::iter::successors(Some(end), |chunk| held.get(chunk).copied().flatten()).collect();
                    path.reverse();
                    self.insert(worker, &path, u64::MAX);
                }
            }
            Change::Cleared => {
                held.clear();
                self.dismiss(worker);
            }
        }
        0
    }

    /// An order-free hash of the chunks that `worker` holds: equal wherever the same chunks are held.
    pub fn digest(&self, worker: WorkerId) -> u64 {
        let fed = self.fed.lock();
        let chunks = fed.get(&worker).into_iter().flat_map(|held| held.keys());
        chunks.fold(0, |sum, chunk| hash::mix(*chunk, 0).wrapping_add(sum))
    }

    /// Shows what `worker` holds, stretch by stretch: what it follows and its chunks. What comes before is shown before.
    pub fn holds(&self, worker: WorkerId, visit: &mut dyn FnMut(Option<u64>, &[u64])) {
        let fed = self.fed.lock();
        let Some(held) = fed.get(&worker) else { return };
        let mut shown: Vec<u64> = Vec::new();
        let mut ends: Vec<u64> = held.keys().copied().collect();
        ends.sort_unstable();
        for end in ends {
            let mut path: Vec<u64> = std::iter::successors(Some(end), |chunk| held.get(chunk).copied().flatten())
                .take_while(|chunk| !shown.contains(chunk))
                .collect();
            path.reverse();
            if let Some(first) = path.first() {
                visit(held.get(first).copied().flatten(), &path);
            }
            shown.extend(path);
        }
    }

    /// Learns from an answer: the index predicted that `predicted` tokens would be cached, and `actual` were. A worker's
    /// trust follows the ratio, and so does, down to a quarter, the capacity it is taken to have.
    pub fn calibrate(&self, worker: WorkerId, predicted: u64, actual: u64) {
        if predicted == 0 {
            return;
        }
        let directory = self.directory.read();
        let Ok(at) = directory.binary_search_by_key(&worker, |member| member.id) else { return };
        #[expect(clippy::cast_precision_loss, reason = "a ratio for an average")]
        let ratio = (actual as f32 / predicted as f32).min(1.0);
        // Two answers at once may count as one: an average bears that.
        let trust = f32::from_bits(directory[at].trust.load(Relaxed));
        let learned = (trust + Self::TRUST_STEP * (ratio - trust)).max(Self::TRUST_MIN);
        directory[at].trust.store(learned.to_bits(), Relaxed);
    }

    /// Forgets a worker: it was removed, restarted, or its cache flushed. Lookups stop finding it at once; its holds are
    /// released little by little with the next writes and sweeps.
    pub fn forget(&self, worker: WorkerId) {
        self.fed.lock().remove(&worker);
        self.dismiss(worker);
    }

    fn dismiss(&self, worker: WorkerId) {
        let mut ledger = self.ledger.lock();
        ledger.dismiss(worker);
        self.directory.write().retain(|member| member.id != worker);
    }

    /// Releases what forgotten workers still held.
    pub fn sweep(&self) {
        loop {
            let mut ledger = self.ledger.lock();
            let more = ledger.bury(&self.runs, Self::BURIALS_PER_TURN);
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

    /// How much there is. For metrics: it visits every shard.
    pub fn size(&self) -> IndexSize {
        let ledger = self.ledger.lock();
        IndexSize {
            workers: self.directory.read().len(),
            runs: self.runs.len(),
            chunks: ledger.chunks_total(),
            bytes: ledger.used(),
        }
    }

    /// Goes down the tree along `chunks`, notes how deep each slot holds them, and gives the branch.
    fn walk(&self, chunks: &[u64], depths: &mut [u32]) -> Option<u64> {
        let mut branch = chunks.first().copied();
        let mut base = 0;
        // At the end of a leaf the text goes on along the branch; at a fork it starts one of its own.
        let mut at_leaf = false;
        while let Some(&head) = chunks.get(base) {
            let shard = self.runs.read(head);
            let Some(run) = shard.get(&head) else {
                return if at_leaf { branch } else { Some(head) };
            };
            let matched = run.matched(&chunks[base..]);
            for owner in &run.owners {
                // Whoever does not hold everything before this run was caught in the middle of a write.
                if let Some(depth) = depths.get_mut(usize::from(owner.slot)).filter(|depth| **depth as usize == base) {
                    *depth += owner.depth.min(u32::try_from(matched).unwrap_or(u32::MAX));
                }
            }
            base += matched;
            branch = Some(head);
            if matched < run.hashes.len() {
                return chunks.get(base).copied().or(branch);
            }
            at_leaf = run.leaf;
        }
        branch
    }

    fn admit(&self, ledger: &mut Ledger, worker: WorkerId) -> Option<u16> {
        let slot = ledger.admit(worker)?;
        self.slots.store(ledger.slots(), Relaxed);
        let mut directory = self.directory.write();
        let at = directory.partition_point(|member| member.id < worker);
        directory.insert(at, Member { id: worker, slot, trust: AtomicU32::new(1.0_f32.to_bits()) });
        Some(slot)
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate scaled by a share in 0..=1"
    )]
    fn trusted_capacity(&self, worker: WorkerId, capacity: u64) -> u64 {
        let directory = self.directory.read();
        let trust = match directory.binary_search_by_key(&worker, |member| member.id) {
            Ok(at) => f32::from_bits(directory[at].trust.load(Relaxed)),
            Err(_) => 1.0,
        };
        let capacity = capacity.min(u64::from(u32::MAX - 1));
        if trust >= 1.0 { capacity } else { (capacity as f64 * f64::from(trust.max(Self::CAPACITY_TRUST_MIN))) as u64 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use smg_base::{Random, SplitMix, hash};

    use super::*;

    fn worker(number: u64) -> WorkerId {
        WorkerId::of(&number.to_string(), None)
    }

    /// The chained hashes of a text given as one symbol a chunk.
    fn chain(symbols: &[u64]) -> Vec<u64> {
        let mut link = 1;
        let chained = symbols.iter().map(|symbol| {
            link = hash::mix(link, *symbol);
            link
        });
        chained.collect()
    }

    /// Text `name`, `chunks` long.
    fn line(name: u64, chunks: u64) -> Vec<u64> {
        chain(&(0..chunks).map(|at| name * 1_000 + at).collect::<Vec<_>>())
    }

    fn depths(index: &PrefixIndex, chunks: &[u64], workers: &[WorkerId]) -> Vec<u32> {
        let mut found = Found::default();
        index.lookup(chunks, workers.iter().copied(), &mut found);
        found.holders.iter().map(|held| held.chunks).collect()
    }

    fn branch(index: &PrefixIndex, chunks: &[u64]) -> Option<u64> {
        let mut found = Found::default();
        index.lookup(chunks, std::iter::empty(), &mut found);
        found.branch
    }

    /// What an engine does with its cache: every chunk used again becomes the newest, the first of a path newer than the
    /// next, and the oldest go.
    #[derive(Default, Clone)]
    struct Engine(Vec<u64>);

    impl Engine {
        fn take(&mut self, path: &[u64], capacity: usize) {
            let path = &path[..path.len().min(capacity)];
            self.0.retain(|chunk| !path.contains(chunk));
            self.0.splice(0..0, path.iter().copied());
            self.0.truncate(capacity);
        }

        fn depth(&self, path: &[u64]) -> usize {
            path.iter().take_while(|chunk| self.0.contains(chunk)).count()
        }
    }

    /// Every hash and hold that the tree contains, and what they should add up to.
    fn audit(index: &PrefixIndex) {
        let (mut bytes_of_runs, mut chunks, mut tails) = (0, 0, Vec::new());
        index.runs.for_each(|head, run| {
            assert_eq!(run.hashes[0], head);
            assert!(run.owners.is_sorted_by(|one, other| one.slot < other.slot), "{run:?}");
            let deepest = run.owners.iter().map(|owner| owner.depth as usize).max();
            assert_eq!(deepest, Some(run.hashes.len()), "somebody holds all of it: {run:?}");
            bytes_of_runs += run.bytes();
            chunks += run.owners.iter().map(|owner| u64::from(owner.depth)).sum::<u64>();
            tails.push(run.before);
        });
        index.runs.for_each(|_, run| assert_eq!(run.leaf, !tails.contains(&run.tail()), "{run:?}"));
        let size = index.size();
        assert_eq!(size.chunks, chunks);
        assert_eq!(size.bytes, index.used_bytes());
        assert!(size.bytes >= bytes_of_runs);
    }

    fn play(seed: u64) {
        let random = SplitMix::new(seed);
        let draw = |bound: u64| random.below(bound);
        let index = PrefixIndex::new(usize::MAX);
        let workers: Vec<_> = (0..4).map(worker).collect();
        let capacities = [0, 3, 17, 60];
        let mut engines = vec![Engine::default(); workers.len()];
        let mut asked = vec![0; workers.len()];
        for step in 0..1_500 {
            let symbols: Vec<u64> = (0..draw(24)).map(|_| u64::from(draw(10) < 2)).collect();
            let path = chain(&symbols);
            let who = usize::try_from(draw(4)).unwrap();
            if draw(200) == 0 {
                index.forget(workers[who]);
                engines[who] = Engine::default();
            } else if draw(3) > 0 {
                index.insert(workers[who], &path, capacities[who]);
                engines[who].take(&path, usize::try_from(capacities[who]).unwrap());
                asked[who] += 1;
            }
            let expected: Vec<_> = engines.iter().map(|engine| u32::try_from(engine.depth(&path)).unwrap()).collect();
            assert_eq!(depths(&index, &path, &workers), expected, "seed {seed} step {step} path {symbols:?}");
            for (worker, engine) in workers.iter().zip(&engines) {
                assert_eq!(index.chunks_held(*worker), engine.0.len() as u64, "seed {seed} step {step}");
            }
            if step % 16 == 0 {
                audit(&index);
            }
        }
        assert!(asked.iter().all(|asked| *asked > 100));
        for worker in workers {
            index.forget(worker);
        }
        index.sweep();
        assert_eq!(index.size(), IndexSize::default(), "nothing is left, and nothing miscounted");
    }

    #[test]
    fn it_holds_what_an_engine_with_that_capacity_would_hold() {
        for seed in 0..12 {
            play(seed);
        }
    }

    #[test]
    fn memory_stays_within_its_limit_and_the_latest_texts_stay() {
        let limit = 200_000;
        let index = PrefixIndex::new(limit);
        for text in 0..3_000 {
            index.insert(worker(text % 5), &line(text, 40), u64::from(u32::MAX));
            assert!(index.used_bytes() <= limit, "{} bytes", index.used_bytes());
        }
        audit(&index);
        let workers: Vec<_> = (0..5).map(worker).collect();
        for text in 2_900..3_000 {
            let at = usize::try_from(text % 5).unwrap();
            assert_eq!(depths(&index, &line(text, 40), &workers)[at], 40, "text {text}");
        }
        assert_eq!(depths(&index, &line(0, 40), &workers), [0; 5]);
        assert!(index.size().chunks > 100 * 40);
    }

    #[test]
    fn a_forgotten_worker_is_gone_at_once_and_its_memory_follows() {
        let index = PrefixIndex::new(usize::MAX);
        let (lost, kept) = (worker(1), worker(2));
        for text in 0..500 {
            index.insert(lost, &line(text, 50), 1_000_000);
            index.insert(kept, &line(text, 10), 1_000_000);
        }
        let full = index.used_bytes();
        index.forget(lost);
        assert_eq!(depths(&index, &line(3, 20), &[lost, kept]), [0, 10]);
        index.insert(lost, &line(3, 15), 1_000_000);
        assert_eq!(depths(&index, &line(3, 20), &[lost, kept]), [15, 10], "a worker that returns starts anew");
        index.sweep();
        assert!(index.used_bytes() < full / 2, "{full} to {}", index.used_bytes());
        assert_eq!(index.size().chunks, 500 * 10 + 15);
        audit(&index);
    }

    #[test]
    fn a_branch_names_a_conversation_not_its_system_prompt() {
        let index = PrefixIndex::new(usize::MAX);
        let chat = |system: u64, topic: u64, turns: u64| {
            let mut symbols: Vec<u64> = (0..12).map(|at| system * 100 + at).collect();
            symbols.extend((0..turns).map(|at| topic * 10_000 + at));
            chain(&symbols)
        };
        assert_eq!(branch(&index, &[]), None);
        index.insert(worker(1), &chat(1, 1, 3), 1_000);
        index.insert(worker(1), &chat(1, 2, 3), 1_000);
        let mut branches = Vec::new();
        for topic in 3..20 {
            let first = branch(&index, &chat(1, topic, 2));
            for turns in 2..9 {
                assert_eq!(branch(&index, &chat(1, topic, turns)), first, "topic {topic} turn {turns}");
                index.insert(worker(topic % 3), &chat(1, topic, turns), 1_000);
            }
            branches.push(first);
        }
        branches.sort_unstable();
        branches.dedup();
        assert_eq!(branches.len(), 17, "conversations differ in their branches");
    }

    #[test]
    fn trust_follows_what_engines_report_and_shrinks_what_they_are_taken_to_hold() {
        let index = PrefixIndex::new(usize::MAX);
        let text = line(1, 100);
        let trust = |index: &PrefixIndex| {
            let mut found = Found::default();
            index.lookup(&text, std::iter::once(worker(1)), &mut found);
            found.holders[0].trust
        };
        index.calibrate(worker(1), 10, 0);
        index.insert(worker(1), &text, 100);
        assert!((trust(&index) - 1.0).abs() < 1e-6, "an unknown worker taught nothing");
        index.calibrate(worker(1), 0, 0);
        for _ in 0..50 {
            index.calibrate(worker(1), 1_000, 500);
        }
        assert!((trust(&index) - 0.5).abs() < 0.02, "{}", trust(&index));
        index.insert(worker(1), &line(2, 10), 100);
        assert!((48..=52).contains(&index.chunks_held(worker(1))), "{}", index.chunks_held(worker(1)));
        for _ in 0..100 {
            index.calibrate(worker(1), 1_000, 0);
        }
        assert!((0.04..0.06).contains(&trust(&index)));
        for _ in 0..100 {
            index.calibrate(worker(1), 1_000, 5_000);
        }
        assert!(trust(&index) > 0.99, "and no more than all of it is trusted: {}", trust(&index));
        assert!(trust(&index) <= 1.0);
    }

    #[test]
    fn readers_see_a_whole_path_while_writers_split_it() {
        let index = PrefixIndex::new(usize::MAX);
        let holder = worker(0);
        let path = line(1, 64);
        index.insert(holder, &path, 1_000_000);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let random = SplitMix::new(9);
                for text in 2..3_000 {
                    let shared = usize::try_from(random.below(65)).unwrap();
                    let mut other = path[..shared].to_vec();
                    other.extend(line(text, 3));
                    index.insert(worker(1 + text % 3), &other, 500);
                }
                done.store(true, Relaxed);
            });
            let mut lookups = 0;
            while !done.load(Relaxed) || lookups == 0 {
                assert_eq!(depths(&index, &path, &[holder]), [64]);
                lookups += 1;
            }
        });
        audit(&index);
    }
}
