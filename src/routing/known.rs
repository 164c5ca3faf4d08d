//! What is known of the workers' caches, in one space.
//!
//! Of most workers this gateway predicts alone what they hold, from what it sent there. Of others it is told, by the node
//! that follows their engine; then what this gateway has just sent there is remembered for a while beside that, because
//! nobody can tell of it yet, and the prompts of one burst would be spread over workers that each compute the same.

use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::RwLock;
use smg_base::{Timestamp, WorkerId, map::StableMap};
use smg_prefix::{Change, Claim, Found, PrefixIndex, Source};

use crate::{claims::Claims, recent::Recent};

/// Knowledge of one space.
#[derive(Debug)]
pub(crate) struct Known {
    index: PrefixIndex,
    /// The workers of which this gateway is told; others are predicted.
    sources: ArcSwap<StableMap<WorkerId, Source>>,
    /// Held for writing while a source changes, so that no prediction gets into what a worker is told to hold.
    switching: RwLock<()>,
    recent: Recent,
    claims: Claims,
}

impl Known {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            index: PrefixIndex::new(bytes_max),
            sources: ArcSwap::default(),
            switching: RwLock::new(()),
            recent: Recent::default(),
            claims: Claims::default(),
        }
    }

    pub(crate) fn index(&self) -> &PrefixIndex {
        &self.index
    }

    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    pub(crate) fn source(&self, worker: WorkerId) -> Source {
        self.sources.load().get(&worker).copied().unwrap_or_default()
    }

    /// Changes how a worker is known. What was known of it in another way is forgotten.
    pub(crate) fn set_source(&self, worker: WorkerId, source: Source) {
        let _nobody_predicts = self.switching.write();
        if self.source(worker) != source {
            self.put(worker, source);
            self.index.forget(worker);
            self.recent.forget(worker);
        }
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

    /// How much of a prompt each of `workers` holds, or will hold soon because it was just sent there.
    pub(crate) fn lookup(
        &self,
        chunks: &[u64],
        workers: impl ExactSizeIterator<Item = WorkerId> + Clone,
        now: Timestamp,
        found: &mut Found,
    ) {
        self.index.lookup(chunks, workers.clone(), found);
        self.recent.add(chunks, workers, now, |worker| self.index.trust(worker), found);
    }

    /// A prompt went to `worker`, which can hold `capacity` chunks.
    pub(crate) fn dispatched(&self, worker: WorkerId, chunks: &[u64], capacity: u64, now: Timestamp) {
        let source = {
            let _no_switch = self.switching.read();
            let source = self.source(worker);
            if source == Source::Own {
                self.index.insert(worker, chunks, capacity);
                return;
            }
            source
        };
        let sent = self.recent.sent(chunks, worker, now);
        if sent.just_now >= chunks.len() {
            return;
        }
        if source == Source::FedAndClaimed {
            let held = self.told(worker, chunks).max(sent.chunks).min(chunks.len());
            let after = held.checked_sub(1).map(|last| chunks[last]);
            self.claims.push(worker, Claim { after, chunks: chunks[held..].to_vec() });
        }
        self.recent.insert(worker, chunks, now);
    }

    /// A worker is gone.
    pub(crate) fn forget(&self, worker: WorkerId) {
        let _nobody_predicts = self.switching.write();
        self.index.forget(worker);
        self.recent.forget(worker);
        if self.source(worker) != Source::Own {
            self.put(worker, Source::Own);
        }
    }

    pub(crate) fn sweep(&self, now: Timestamp) {
        self.index.sweep();
        self.recent.sweep(now);
    }

    /// Memory in use.
    pub(crate) fn used_bytes(&self) -> usize {
        self.index.used_bytes() + self.recent.used_bytes()
    }

    fn told(&self, worker: WorkerId, chunks: &[u64]) -> usize {
        let mut found = Found::default();
        self.index.lookup(chunks, std::iter::once(worker), &mut found);
        found.holders.first().map_or(0, |held| held.chunks as usize)
    }

    fn put(&self, worker: WorkerId, source: Source) {
        let mut next = StableMap::clone(&self.sources.load());
        match source {
            Source::Own => drop(next.remove(&worker)),
            Source::Fed | Source::FedAndClaimed => drop(next.insert(worker, source)),
        }
        self.sources.store(Arc::new(next));
    }
}
