//! What requests see of the fleet.

use std::{collections::BTreeMap, sync::Arc};

use smg_base::{ModelId, Timestamp, WorkerId, map::StableMap};

use crate::{ModelCard, Worker};

/// The fleet as it was at one moment. Nothing in it changes but the atomics of [`crate::WorkerState`].
#[derive(Debug)]
pub struct Snapshot {
    /// Counts the snapshots.
    pub version: u64,
    workers: Vec<Arc<Worker>>,
    pools: Vec<Arc<Pool>>,
    names: StableMap<ModelId, Arc<Pool>>,
    any: Arc<Pool>,
    open: Arc<Pool>,
}

/// The workers among which a request is routed.
#[derive(Debug)]
pub struct Pool {
    /// The model they serve; [`Pool::ANY`] where no single model is meant.
    pub model: ModelId,
    /// The workers, by ascending id.
    pub workers: Vec<Arc<Worker>>,
    /// What they say of the model: all aliases, the longest context, and of everything else the first word.
    pub card: ModelCard,
}

impl Pool {
    /// Stands in [`Pool::model`] where no single model is meant. Never to be written into a request.
    pub const ANY: &'static str = "*";

    fn new(model: ModelId, workers: Vec<Arc<Worker>>) -> Self {
        let mut card = ModelCard::new(model.clone());
        for said in workers.iter().flat_map(|worker| worker.models()).filter(|said| said.id == model) {
            card.merge(said);
        }
        Self { model, workers, card }
    }

    /// Whether this is the pool of one model.
    pub fn is_named(&self) -> bool {
        self.model.as_str() != Self::ANY
    }

    /// How many of the workers may be used now.
    pub fn available(&self, now: Timestamp) -> usize {
        self.workers.iter().filter(|worker| worker.is_available(now)).count()
    }
}

impl Snapshot {
    /// Workers must come by ascending id.
    pub(crate) fn new(version: u64, workers: Vec<Arc<Worker>>, aliases: &BTreeMap<ModelId, ModelId>) -> Self {
        let is_wildcard = |worker: &&Arc<Worker>| worker.is_wildcard();
        let is_open = |worker: &&Arc<Worker>| worker.models().is_empty();
        let mut members: BTreeMap<&ModelId, Vec<Arc<Worker>>> = BTreeMap::new();
        for worker in &workers {
            for card in worker.models() {
                let pool = members.entry(&card.id).or_default();
                // A worker that lists a model twice is in its pool once.
                if pool.last().is_none_or(|last| last.id != worker.id) {
                    pool.push(Arc::clone(worker));
                }
            }
        }
        for pool in members.values_mut() {
            pool.extend(workers.iter().filter(is_wildcard).cloned());
            pool.sort_unstable_by_key(|worker| worker.id);
        }
        let open: Vec<_> = workers.iter().filter(is_open).cloned().collect();
        for target in aliases.values().filter(|_| !open.is_empty()) {
            members.entry(target).or_insert_with(|| open.clone());
        }
        let pools: Vec<_> =
            members.into_iter().map(|(model, workers)| Arc::new(Pool::new(model.clone(), workers))).collect();
        let names = names_of(&pools, aliases);
        let any = Arc::new(Pool::new(Pool::ANY.into(), workers.clone()));
        let open = Arc::new(Pool::new(Pool::ANY.into(), open));
        Self { version, workers, pools, names, any, open }
    }

    /// All workers, by ascending id.
    pub fn workers(&self) -> &[Arc<Worker>] {
        &self.workers
    }

    /// The worker of this id.
    pub fn worker(&self, id: WorkerId) -> Option<&Arc<Worker>> {
        let at = self.workers.binary_search_by_key(&id, |worker| worker.id).ok()?;
        self.workers.get(at)
    }

    /// The workers of a model, named by its id or by an alias: those that list it, and the wildcards. None if no
    /// worker lists it; then [`Snapshot::open`] may still take it.
    pub fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.names.get(name)
    }

    /// All workers, for a request that names no model.
    pub fn any(&self) -> &Arc<Pool> {
        &self.any
    }

    /// The workers that may serve a model nobody lists: wildcards, and workers that were not asked yet. Empty when
    /// every worker says what it serves.
    pub fn open(&self) -> &Arc<Pool> {
        &self.open
    }

    /// The pools of all models, by ascending id.
    pub fn models(&self) -> impl ExactSizeIterator<Item = &Arc<Pool>> {
        self.pools.iter()
    }
}

/// What each name stands for. A model's own id beats an alias, a configured alias one that a worker brings, and of
/// two that workers bring that of the lesser model id.
fn names_of(pools: &[Arc<Pool>], aliases: &BTreeMap<ModelId, ModelId>) -> StableMap<ModelId, Arc<Pool>> {
    let mut names = StableMap::default();
    for pool in pools {
        names.insert(pool.model.clone(), Arc::clone(pool));
    }
    for (alias, target) in aliases {
        if let Ok(at) = pools.binary_search_by_key(&target, |pool| &pool.model) {
            names.entry(alias.clone()).or_insert_with(|| Arc::clone(&pools[at]));
        }
    }
    for pool in pools {
        for alias in &pool.card.aliases {
            names.entry(alias.clone()).or_insert_with(|| Arc::clone(pool));
        }
    }
    names
}
