//! The table of workers and everything that changes it.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, MutexGuard};

use smg_base::{ModelId, Timestamp, WorkerId};

use crate::{
    BreakerConfig, EngineProfile, FleetError, HealthConfig, Origin, Snapshot, Status, Worker, WorkerPatch, WorkerSpec,
    WorkerState, WorkerUrl, health::Draining,
};

/// Settings of the fleet; a worker's own stand in its specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetConfig {
    /// How workers are probed.
    pub health: HealthConfig,
    /// When their breakers open and close.
    pub breaker: BreakerConfig,
    /// The name of this node, which tells its loopback workers from those of others.
    pub scope: Option<String>,
    /// The most workers that are kept.
    pub workers_max: usize,
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self { health: HealthConfig::default(), breaker: BreakerConfig::default(), scope: None, workers_max: 4_096 }
    }
}

/// The workers of this gateway.
#[derive(Debug)]
pub struct Fleet {
    snapshot: ArcSwap<Snapshot>,
    table: Mutex<Table>,
}

/// What came of adding a worker.
#[derive(Clone, Debug)]
pub struct Added {
    /// The worker as it now is.
    pub worker: Arc<Worker>,
    /// What that changed.
    pub change: Change,
}

/// What adding a worker changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    New,
    /// It was there and is now described differently, or is no longer draining. Its load, health and breaker go on.
    Replaced,
    /// It was there, just so.
    Unchanged,
}

/// What the reload of a list of workers changed.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// New workers, and those described differently.
    pub added: Vec<Arc<Worker>>,
    /// Workers that are no longer listed: drain, then remove them.
    pub removed: Vec<WorkerId>,
    /// What could not be taken in, and why; the rest was.
    pub refused: Vec<(WorkerUrl, FleetError)>,
}

impl Fleet {
    /// A fleet without workers.
    pub fn new(config: FleetConfig) -> Self {
        let table = Table {
            config,
            entries: BTreeMap::new(),
            aliases: BTreeMap::new(),
            declared: BTreeMap::new(),
            revision: 0,
            version: 0,
        };
        Self { snapshot: ArcSwap::from_pointee(table.snapshot()), table: Mutex::new(table) }
    }

    /// The fleet as it is now, for one request; neither waits nor allocates.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The id that a worker at `url` has here.
    pub fn id_of(&self, url: &WorkerUrl) -> WorkerId {
        self.table.lock().id_of(url)
    }

    /// Adds a worker, or describes one that is there anew.
    pub fn add(&self, spec: WorkerSpec, origin: Origin, now: Timestamp) -> Result<Added, FleetError> {
        let mut table = self.table.lock();
        let added = table.put(spec, origin, now)?;
        if origin != Origin::Api {
            let declared = table.declared.entry(origin).or_default();
            declared.insert(added.worker.id, added.worker.spec.clone());
        }
        self.publish(table);
        Ok(added)
    }

    /// Adds a worker that is not there yet.
    pub fn add_new(&self, spec: WorkerSpec, origin: Origin, now: Timestamp) -> Result<Added, FleetError> {
        let mut table = self.table.lock();
        let id = table.id_of(&spec.url);
        if table.entries.contains_key(&id) {
            return Err(FleetError::AlreadyExists(id));
        }
        let added = table.put(spec, origin, now)?;
        self.publish(table);
        Ok(added)
    }

    /// Changes some settings of a worker. Its origin stays, so the list it came from still rules whether it exists.
    pub fn patch(&self, id: WorkerId, patch: WorkerPatch) -> Result<Arc<Worker>, FleetError> {
        let mut table = self.table.lock();
        let worker = Arc::clone(&table.entries.get(&id).ok_or(FleetError::UnknownWorker(id))?.worker);
        let spec = patch.apply(&worker.spec)?;
        let worker = table.revise(&worker, spec, worker.origin);
        self.publish(table);
        Ok(worker)
    }

    /// Takes down what a worker's engine says of itself; false if the worker has gone or changed since `revision`.
    pub fn describe(&self, id: WorkerId, revision: u64, profile: EngineProfile) -> bool {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.get_mut(&id).filter(|entry| entry.worker.revision == revision) else {
            return false;
        };
        if entry.worker.profile.as_ref() == Some(&profile) {
            return true;
        }
        let old = Arc::clone(&entry.worker);
        let said = (old.spec.clone(), old.origin);
        let worker = Worker::new(id, revision, said, Some(profile), old.health.clone(), Arc::clone(&old.state));
        entry.worker = Arc::new(worker);
        self.publish(table);
        true
    }

    /// Stops giving a worker new requests; false if it is not there or draining already.
    pub fn drain(&self, id: WorkerId) -> bool {
        let table = self.table.lock();
        table.entries.get(&id).is_some_and(|entry| entry.worker.state.health.set_draining(Draining::Yes))
    }

    /// Whether a worker has none of this gateway's requests, or is not there.
    pub fn is_idle(&self, id: WorkerId) -> bool {
        self.table.lock().entries.get(&id).is_none_or(|entry| entry.worker.is_idle())
    }

    /// Removes a worker that is draining and has become idle; none if it is busy, or was added again meanwhile.
    pub fn finish_drain(&self, id: WorkerId) -> Option<Arc<Worker>> {
        let table = self.table.lock();
        let worker = &table.entries.get(&id)?.worker;
        if worker.status() != Status::Draining || !worker.is_idle() {
            return None;
        }
        self.take(table, id)
    }

    /// Removes a worker at once. Requests that are there go on; who still sees it in an older snapshot gets no
    /// permission to use it.
    pub fn remove(&self, id: WorkerId) -> Option<Arc<Worker>> {
        self.take(self.table.lock(), id)
    }

    /// Replaces all configured aliases (alias to model).
    pub fn set_aliases(&self, aliases: BTreeMap<ModelId, ModelId>) -> Result<(), FleetError> {
        let mut table = self.table.lock();
        for (alias, target) in &aliases {
            if alias == target {
                return Err(FleetError::AliasIsModel(alias.clone()));
            }
            if aliases.contains_key(target) {
                return Err(FleetError::AliasOfAlias { alias: alias.clone(), target: target.clone() });
            }
            table.check_alias(alias, target, None)?;
        }
        table.aliases = aliases;
        self.publish(table);
        Ok(())
    }

    /// Replaces the list of workers that an origin declares. Only what differs from the list it declared before is
    /// touched: a worker that the admin API has changed or removed since stays so until its entry changes. A worker
    /// that another origin also declares goes back to that one.
    pub fn replace_origin(&self, origin: Origin, specs: Vec<WorkerSpec>, now: Timestamp) -> Delta {
        let mut table = self.table.lock();
        let mut delta = Delta::default();
        let before = table.declared.remove(&origin).unwrap_or_default();
        let mut declared = BTreeMap::new();
        for spec in specs {
            let id = table.id_of(&spec.url);
            if declared.contains_key(&id) {
                delta.refused.push((spec.url, FleetError::ListedTwice(id)));
                continue;
            }
            if before.get(&id) != Some(&spec) {
                match table.put(spec.clone(), origin, now) {
                    Ok(Added { change: Change::Unchanged, .. }) => {}
                    Ok(Added { worker, .. }) => delta.added.push(worker),
                    Err(error) => {
                        delta.refused.push((spec.url, error));
                        continue;
                    }
                }
            }
            declared.insert(id, spec);
        }
        for id in before.into_keys().filter(|id| !declared.contains_key(id)) {
            table.withdraw(id, origin, now, &mut delta);
        }
        table.declared.insert(origin, declared);
        self.publish(table);
        delta
    }

    /// Takes on new settings, for workers that are there as well.
    pub fn reconfigure(&self, health: HealthConfig, breaker: BreakerConfig) {
        let mut table = self.table.lock();
        table.config.health = health;
        table.config.breaker = breaker;
        let workers: Vec<_> = table.entries.values().map(|entry| Arc::clone(&entry.worker)).collect();
        for worker in workers {
            table.revise(&worker, worker.spec.clone(), worker.origin);
        }
        self.publish(table);
    }

    /// The table, for the part of the fleet that schedules probes.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    fn take(&self, mut table: MutexGuard<'_, Table>, id: WorkerId) -> Option<Arc<Worker>> {
        let worker = table.entries.remove(&id)?.worker;
        worker.state.health.set_draining(Draining::Yes);
        self.publish(table);
        Some(worker)
    }

    /// Makes the table's new state visible. Takes the lock with it, so that snapshots appear in their order.
    fn publish(&self, mut table: MutexGuard<'_, Table>) {
        table.version += 1;
        self.snapshot.store(Arc::new(table.snapshot()));
    }
}

/// What is behind the lock.
#[derive(Debug)]
pub(crate) struct Table {
    config: FleetConfig,
    pub(crate) entries: BTreeMap<WorkerId, Entry>,
    aliases: BTreeMap<ModelId, ModelId>,
    /// What each origin listed last, whatever became of it since.
    declared: BTreeMap<Origin, BTreeMap<WorkerId, WorkerSpec>>,
    revision: u64,
    version: u64,
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) worker: Arc<Worker>,
    pub(crate) next_probe: Timestamp,
    pub(crate) probes: u64,
}

impl Table {
    fn id_of(&self, url: &WorkerUrl) -> WorkerId {
        url.id(self.config.scope.as_deref())
    }

    fn snapshot(&self) -> Snapshot {
        let workers = self.entries.values().map(|entry| Arc::clone(&entry.worker)).collect();
        Snapshot::new(self.version, workers, &self.aliases)
    }

    fn put(&mut self, spec: WorkerSpec, origin: Origin, now: Timestamp) -> Result<Added, FleetError> {
        let spec = spec.checked()?;
        let id = self.id_of(&spec.url);
        for card in &spec.models {
            for alias in &card.aliases {
                self.check_alias(alias, &card.id, Some(id))?;
            }
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            let worker = self.insert(id, spec, origin, now)?;
            return Ok(Added { worker, change: Change::New });
        };
        let was_draining = entry.worker.state.health.set_draining(Draining::No);
        let old = Arc::clone(&entry.worker);
        if old.spec == spec && old.origin == origin && !was_draining {
            return Ok(Added { worker: old, change: Change::Unchanged });
        }
        entry.next_probe = now;
        let worker = self.revise(&old, spec, origin);
        Ok(Added { worker, change: Change::Replaced })
    }

    fn insert(
        &mut self,
        id: WorkerId,
        spec: WorkerSpec,
        origin: Origin,
        now: Timestamp,
    ) -> Result<Arc<Worker>, FleetError> {
        let workers_max = self.config.workers_max;
        if self.entries.len() >= workers_max {
            return Err(FleetError::TooManyWorkers { workers_max });
        }
        self.revision += 1;
        let health = spec.health.over(&self.config.health);
        let breaker = spec.resilience.over(&self.config.breaker);
        let state = Arc::new(WorkerState::new(&health, breaker, now));
        let worker = Arc::new(Worker::new(id, self.revision, (spec, origin), None, health, state));
        self.entries.insert(id, Entry { worker: Arc::clone(&worker), next_probe: now, probes: 0 });
        Ok(worker)
    }

    /// The next revision of a worker, with its state.
    fn revise(&mut self, old: &Worker, spec: WorkerSpec, origin: Origin) -> Arc<Worker> {
        self.revision += 1;
        let health = spec.health.over(&self.config.health);
        old.state.health.reconfigure(&health);
        old.state.breaker.reconfigure(spec.resilience.over(&self.config.breaker));
        let state = Arc::clone(&old.state);
        let worker = Arc::new(Worker::new(old.id, self.revision, (spec, origin), old.profile.clone(), health, state));
        if let Some(entry) = self.entries.get_mut(&old.id) {
            entry.worker = Arc::clone(&worker);
        }
        worker
    }

    /// An origin no longer lists a worker.
    fn withdraw(&mut self, id: WorkerId, origin: Origin, now: Timestamp, delta: &mut Delta) {
        let is_ours = self.entries.get(&id).is_some_and(|entry| entry.worker.origin == origin);
        if !is_ours {
            return;
        }
        let other =
            self.declared.iter().find_map(|(origin, declared)| declared.get(&id).map(|spec| (*origin, spec.clone())));
        match other {
            None => delta.removed.push(id),
            Some((origin, spec)) => match self.put(spec.clone(), origin, now) {
                Ok(added) => delta.added.push(added.worker),
                Err(error) => delta.refused.push((spec.url, error)),
            },
        }
    }

    /// Whether `alias` may stand for `model`: no specification but `owner`'s, and no setting, gives it to another.
    fn check_alias(&self, alias: &ModelId, model: &ModelId, owner: Option<WorkerId>) -> Result<(), FleetError> {
        let configured = owner.and_then(|_| self.aliases.get(alias));
        let others = self.entries.values().filter(|entry| Some(entry.worker.id) != owner);
        let mut given = others
            .flat_map(|entry| &entry.worker.spec.models)
            .filter(|card| card.aliases.contains(alias))
            .map(|card| &card.id)
            .chain(configured);
        match given.find(|taken_by| *taken_by != model) {
            None => Ok(()),
            Some(taken_by) => Err(FleetError::AliasTaken {
                alias: alias.clone(),
                taken_by: taken_by.clone(),
                wanted_by: model.clone(),
            }),
        }
    }
}
