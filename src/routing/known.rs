//! What is known of the workers' caches, in one space.
//!
//! Of most workers this gateway predicts alone what they hold, from what it sent there. Of others it is told, by the node
//! that follows their engine; then what this gateway has just sent there is remembered for a while beside that, because
//! nobody can tell of it yet, and the prompts of one burst would be spread over workers that each compute the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smg_base::{Timestamp, WorkerId, map::StableMap};
use smg_prefix::{Change, Claim, Found, Held, PrefixIndex};

/// How it is known what a worker's cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// This gateway predicts it alone, from what it sends there.
    #[default]
    Own,
    /// It is told, as its engine reports it.
    Fed,
    /// It is told, as some node predicts it from what all nodes send there and claim.
    FedAndClaimed,
}

impl Source {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Fed => "events",
            Self::FedAndClaimed => "predicted",
        }
    }
}

/// Knowledge of one space.
#[derive(Debug)]
pub(crate) struct Known {
    index: PrefixIndex,
    /// The workers of which this gateway is told; others are predicted.
    sources: ArcSwap<StableMap<WorkerId, Source>>,
    changing: Mutex<()>,
    recent: Recent,
    claims: Mutex<Vec<(WorkerId, Claim)>>,
    dropped: AtomicU64,
}

/// Claims kept until they are taken.
const CLAIMS_MAX: usize = 8_192;

impl Known {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            index: PrefixIndex::new(bytes_max),
            sources: ArcSwap::default(),
            changing: Mutex::new(()),
            recent: Recent::default(),
            claims: Mutex::default(),
            dropped: AtomicU64::new(0),
        }
    }

    pub(crate) fn index(&self) -> &PrefixIndex {
        &self.index
    }

    pub(crate) fn source(&self, worker: WorkerId) -> Source {
        self.sources.load().get(&worker).copied().unwrap_or_default()
    }

    /// Changes how a worker is known. What was known of it in another way is forgotten.
    pub(crate) fn set_source(&self, worker: WorkerId, source: Source) {
        let _one_at_a_time = self.changing.lock();
        let sources = self.sources.load();
        if sources.get(&worker).copied().unwrap_or_default() == source {
            return;
        }
        let mut next = StableMap::clone(&sources);
        match source {
            Source::Own => drop(next.remove(&worker)),
            Source::Fed | Source::FedAndClaimed => drop(next.insert(worker, source)),
        }
        self.sources.store(Arc::new(next));
        self.index.forget(worker);
    }

    /// Takes on what is told of a worker; says how many chunks could not be placed. Nothing is taken on of workers that are
    /// predicted here.
    pub(crate) fn apply(&self, worker: WorkerId, change: &Change) -> u64 {
        match (self.source(worker), change) {
            (Source::Own, Change::Held { chunks, .. }) => chunks.len() as u64,
            (Source::Own, _) => 0,
            _ => self.index.apply(worker, change),
        }
    }

    /// How much of a prompt each of `workers` holds.
    pub(crate) fn lookup(
        &self,
        chunks: &[u64],
        workers: impl Iterator<Item = WorkerId> + Clone,
        now: Timestamp,
        found: &mut Found,
    ) {
        self.index.lookup(chunks, workers.clone(), found);
        self.recent.add(chunks, workers, now, found);
    }

    /// A prompt went to `worker`, which can hold `capacity` chunks.
    pub(crate) fn dispatched(&self, worker: WorkerId, chunks: &[u64], capacity: u64, now: Timestamp) {
        let source = self.source(worker);
        if source == Source::Own {
            self.index.insert(worker, chunks, capacity);
            return;
        }
        let one = || std::iter::once(worker);
        let recent = self.recent.held(chunks, worker, now);
        if recent < chunks.len() && source == Source::FedAndClaimed {
            let mut found = Found::default();
            self.index.lookup(chunks, one(), &mut found);
            let told = found.holders.first().map_or(0, |held| held.chunks as usize);
            self.claim(worker, chunks, told.max(recent).min(chunks.len()));
        }
        self.recent.insert(worker, chunks, now);
    }

    /// Hands out what was claimed since the last time.
    pub(crate) fn take_claims(&self, take: &mut dyn FnMut(WorkerId, Claim)) {
        let claims = std::mem::take(&mut *self.claims.lock());
        for (worker, claim) in claims {
            take(worker, claim);
        }
    }

    /// How many claims nobody took in time.
    pub(crate) fn claims_dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    pub(crate) fn forget(&self, worker: WorkerId) {
        self.index.forget(worker);
        self.recent.forget(worker);
        let _one_at_a_time = self.changing.lock();
        let sources = self.sources.load();
        if sources.contains_key(&worker) {
            let mut next = StableMap::clone(&sources);
            next.remove(&worker);
            self.sources.store(Arc::new(next));
        }
    }

    pub(crate) fn sweep(&self, now: Timestamp) {
        self.index.sweep();
        self.recent.turn(now);
    }

    fn claim(&self, worker: WorkerId, chunks: &[u64], held: usize) {
        let after = held.checked_sub(1).map(|last| chunks[last]);
        let claim = Claim { after, chunks: chunks[held..].to_vec() };
        let mut claims = self.claims.lock();
        if claims.len() < CLAIMS_MAX {
            claims.push((worker, claim));
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// What was sent lately to workers of which this gateway is told: in two parts, of which the older is dropped whole, so that
/// forgetting costs nothing.
#[derive(Debug, Default)]
struct Recent {
    parts: ArcSwap<Parts>,
    turning: Mutex<()>,
}

#[derive(Debug, Default)]
struct Parts {
    /// What was sent since `since`, and in the time before.
    newer: Option<Arc<PrefixIndex>>,
    older: Option<Arc<PrefixIndex>>,
    since: Timestamp,
}

impl Recent {
    /// How long a part is filled. What was sent is remembered for one to two times that: long enough for a request that
    /// waits in an engine's queue, and for the news of it to come back.
    const PART: Duration = Duration::from_secs(10);
    /// Memory of one part; what is sent beyond that pushes out what was sent before.
    const PART_BYTES: usize = 16 << 20;

    /// Adds what is remembered to what was found.
    fn add(&self, chunks: &[u64], workers: impl Iterator<Item = WorkerId> + Clone, now: Timestamp, found: &mut Found) {
        let parts = self.parts.load();
        for part in parts.at(now) {
            let mut recent = Found::default();
            part.lookup(chunks, workers.clone(), &mut recent);
            if recent.holders.is_empty() {
                continue;
            }
            if found.holders.is_empty() {
                found.holders.extend(recent.holders.iter().map(|_| Held::default()));
            }
            for (held, recent) in found.holders.iter_mut().zip(&recent.holders) {
                if recent.chunks > held.chunks {
                    held.chunks = recent.chunks;
                }
            }
            found.branch = found.branch.or(recent.branch);
        }
    }

    /// How much of a prompt is remembered as sent to `worker`.
    fn held(&self, chunks: &[u64], worker: WorkerId, now: Timestamp) -> usize {
        let mut found = Found::default();
        self.add(chunks, std::iter::once(worker), now, &mut found);
        found.holders.first().map_or(0, |held| held.chunks as usize)
    }

    fn insert(&self, worker: WorkerId, chunks: &[u64], now: Timestamp) {
        let part = match &**self.parts.load() {
            Parts { newer: Some(newer), since, .. } if now.since(*since) < Self::PART => newer.clone(),
            _ => self.begin(now),
        };
        part.insert(worker, chunks, u64::from(u32::MAX));
    }

    fn begin(&self, now: Timestamp) -> Arc<PrefixIndex> {
        let _one_at_a_time = self.turning.lock();
        let parts = self.parts.load();
        if let Parts { newer: Some(newer), since, .. } = &**parts
            && now.since(*since) < Self::PART
        {
            return newer.clone();
        }
        let newer = Arc::new(PrefixIndex::new(Self::PART_BYTES));
        let older = parts.newer.clone().filter(|_| now.since(parts.since) < 2 * Self::PART);
        self.parts.store(Arc::new(Parts { newer: Some(newer.clone()), older, since: now }));
        newer
    }

    /// Drops what has had its time, while nothing is sent.
    fn turn(&self, now: Timestamp) {
        let _one_at_a_time = self.turning.lock();
        let parts = self.parts.load();
        let age = now.since(parts.since);
        if parts.newer.is_some() && age >= 2 * Self::PART {
            self.parts.store(Arc::default());
        } else if parts.older.is_some() && age >= Self::PART {
            self.parts.store(Arc::new(Parts { newer: parts.newer.clone(), older: None, since: parts.since }));
        }
    }

    fn forget(&self, worker: WorkerId) {
        let parts = self.parts.load();
        for part in [&parts.newer, &parts.older].into_iter().flatten() {
            part.forget(worker);
        }
    }
}

impl Parts {
    /// Those that still count.
    fn at(&self, now: Timestamp) -> impl Iterator<Item = &PrefixIndex> {
        let age = now.since(self.since);
        let newer = self.newer.as_deref().filter(|_| age < 2 * Recent::PART);
        let older = self.older.as_deref().filter(|_| age < Recent::PART);
        newer.into_iter().chain(older)
    }
}
