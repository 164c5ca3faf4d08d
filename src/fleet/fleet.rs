//! The table of workers and everything that changes it.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, MutexGuard};

use smg_base::{ModelId, Timestamp, WorkerId};

use crate::{
    Bell, BreakerConfig, DirectPath, EngineLoad, EngineProfile, EngineSource, FleetError, HealthConfig, Origin,
    PeerLoad, ProbeDuty, Reach, Snapshot, Status, Worker, WorkerPatch, WorkerSpec, WorkerState, WorkerUrl,
    health::Draining,
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
    changed: Bell,
    to_tell: Arc<Bell>,
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
        let to_tell = Arc::new(Bell::default());
        let table = Table {
            config,
            to_tell: Arc::clone(&to_tell),
            entries: BTreeMap::new(),
            aliases: BTreeMap::new(),
            declared: BTreeMap::new(),
            revision: 0,
            version: 0,
        };
        let snapshot = ArcSwap::from_pointee(table.snapshot());
        Self { snapshot, table: Mutex::new(table), changed: Bell::default(), to_tell }
    }

    /// Rings when other workers may be due to be probed than before, or be probed otherwise.
    pub fn changed(&self) -> &Bell {
        &self.changed
    }

    /// Rings when there may be something to tell other nodes of a worker: where there was nothing in flight, a request begins;
    /// its engine has said something; this node thinks otherwise of it; workers come and go.
    pub fn to_tell(&self) -> &Bell {
        &self.to_tell
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
        if matches!(origin, Origin::Flag | Origin::File) {
            let declared = table.declared.entry(origin).or_default();
            declared.insert(added.worker.id, added.worker.spec.clone());
        }
        if added.change != Change::Unchanged {
            self.publish(table);
        }
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

    /// Adds a worker that another node knows, or describes one that is there as that node does; its origin stays then, and
    /// a drain is called off. The id is given, because a URL that means another machine's own would have a different one here.
    pub fn import(
        &self,
        id: WorkerId,
        spec: WorkerSpec,
        direct: DirectPath,
        now: Timestamp,
    ) -> Result<Added, FleetError> {
        let mut table = self.table.lock();
        let origin = table.entries.get(&id).map_or(Origin::Mesh, |entry| entry.worker.origin);
        let added = table.put_as(id, spec, origin, now)?;
        added.worker.state.set_direct(direct);
        if added.change != Change::Unchanged {
            self.publish(table);
        }
        self.changed.ring();
        Ok(added)
    }

    /// Takes down what the nodes together know of a worker; nothing if it is not there.
    pub fn set_reach(&self, id: WorkerId, reach: Reach) {
        let mut table = self.table.lock();
        let Some(entry) = table.entries.get_mut(&id) else { return };
        let state = &entry.worker.state;
        if state.paths.outlook().duty() == ProbeDuty::Light && reach.duty == ProbeDuty::Full {
            // Nobody else may be looking any more.
            entry.next_probe = Timestamp::ORIGIN;
        }
        state.set_reach(reach);
        self.changed.ring();
    }

    /// Takes down what the other gateways have at a worker; nothing if it is not there.
    pub fn set_peer_load(&self, id: WorkerId, load: PeerLoad, now: Timestamp) {
        if let Some(worker) = self.snapshot().worker(id) {
            worker.state.set_peers(load, now);
        }
    }

    /// Says who asks a worker's engine how busy it is. As long as nothing was heard from there, nothing is known.
    pub fn set_engine_source(&self, id: WorkerId, source: EngineSource) {
        if let Some(worker) = self.snapshot().worker(id)
            && worker.engine_source() != source
        {
            worker.state.paths.set_engine_source(source);
            worker.state.load.clear_engine();
        }
    }

    /// Takes down an engine's figures as another node asked for them, with the number of requests that came from none of
    /// the nodes.
    pub fn set_engine_heard(&self, id: WorkerId, engine: EngineLoad, foreign: u32) {
        if let Some(worker) = self.snapshot().worker(id) {
            worker.state.load.set_engine_heard(engine, foreign);
        }
    }

    /// Forgets them, because the node that asked no longer tells.
    pub fn clear_engine(&self, id: WorkerId) {
        if let Some(worker) = self.snapshot().worker(id) {
            worker.state.load.clear_engine();
        }
    }

    /// Changes some settings of a worker. Its origin stays, so the list it came from still rules whether it exists.
    pub fn patch(&self, id: WorkerId, patch: WorkerPatch) -> Result<Arc<Worker>, FleetError> {
        let mut table = self.table.lock();
        let worker = Arc::clone(&table.entries.get(&id).ok_or(FleetError::UnknownWorker(id))?.worker);
        let spec = patch.apply(&worker.spec)?;
        if spec == worker.spec {
            return Ok(worker);
        }
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
        let old = &entry.worker;
        let state = Arc::clone(&old.state);
        let worker = Worker::new(id, old.spec.clone(), old.origin, old.health.clone(), state);
        entry.worker = Arc::new(worker.revised(revision, Some(profile)));
        self.publish(table);
        true
    }

    /// Stops giving a worker new requests; false if it is not there or draining already.
    pub fn drain(&self, id: WorkerId) -> bool {
        let table = self.table.lock();
        let changed = table.entries.get(&id).is_some_and(|entry| entry.worker.state.health.set_draining(Draining::Yes));
        self.to_tell.ring();
        changed
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

    /// Removes a worker that is draining, whether or not it has become idle: for when patience with its requests has
    /// run out. None if it was added again meanwhile.
    pub fn abandon_drain(&self, id: WorkerId) -> Option<Arc<Worker>> {
        let table = self.table.lock();
        if table.entries.get(&id)?.worker.status() != Status::Draining {
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
                        // What was declared before stands.
                        delta.refused.push((spec.url, error));
                        declared.extend(before.get(&id).map(|spec| (id, spec.clone())));
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

    /// Takes on new settings, for workers that are there as well; those of a worker's own stay in front.
    pub fn reconfigure(&self, health: HealthConfig, breaker: BreakerConfig) {
        let mut table = self.table.lock();
        if table.config.health == health && table.config.breaker == breaker {
            return;
        }
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
        self.changed.ring();
        self.to_tell.ring();
    }
}

/// What is behind the lock.
#[derive(Debug)]
pub(crate) struct Table {
    config: FleetConfig,
    to_tell: Arc<Bell>,
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
        self.put_as(self.id_of(&spec.url), spec, origin, now)
    }

    fn put_as(&mut self, id: WorkerId, spec: WorkerSpec, origin: Origin, now: Timestamp) -> Result<Added, FleetError> {
        let spec = spec.checked()?;
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
        state.load.announce_to(&self.to_tell);
        let worker = Arc::new(Worker::new(id, spec, origin, health, state).revised(self.revision, None));
        self.entries.insert(id, Entry { worker: Arc::clone(&worker), next_probe: now, probes: 0 });
        Ok(worker)
    }

    /// The next revision of a worker, with its state. It is probed at once, because the result of a probe that is
    /// under way now will not count.
    fn revise(&mut self, old: &Worker, spec: WorkerSpec, origin: Origin) -> Arc<Worker> {
        self.revision += 1;
        let health = spec.health.over(&self.config.health);
        old.state.health.reconfigure(&health);
        let breaker = spec.resilience.over(&self.config.breaker);
        old.state.breaker.reconfigure(breaker);
        old.state.paths.breaker.reconfigure(breaker);
        let worker = Worker::new(old.id, spec, origin, health, Arc::clone(&old.state));
        let worker = Arc::new(worker.revised(self.revision, old.profile.clone()));
        if let Some(entry) = self.entries.get_mut(&old.id) {
            entry.worker = Arc::clone(&worker);
            entry.next_probe = Timestamp::ORIGIN;
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

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::testing::{at, profile, spec, trusting_fleet};

    fn fleet() -> Fleet {
        trusting_fleet(BreakerConfig::default())
    }

    fn add(fleet: &Fleet, spec: WorkerSpec, origin: Origin) -> Added {
        fleet.add(spec, origin, at(0)).unwrap()
    }

    fn urls(fleet: &Fleet) -> Vec<String> {
        let mut urls: Vec<_> = fleet.snapshot().workers().iter().map(|worker| worker.spec.url.to_string()).collect();
        urls.sort_unstable();
        urls
    }

    #[test]
    fn a_worker_added_again_keeps_its_state() {
        let fleet = fleet();
        let first = add(&fleet, spec("a:1", &["m"]), Origin::Flag);
        assert_eq!(first.change, Change::New);
        assert!(fleet.describe(first.worker.id, first.worker.revision, profile(&["x"])));
        let guard = first.worker.state.begin(5, at(0));
        assert_eq!(add(&fleet, spec("http://A:1/", &["m"]), Origin::Flag).change, Change::Unchanged);
        let second = add(&fleet, spec("a:1", &["n"]), Origin::Flag);
        assert_eq!((second.change, second.worker.id), (Change::Replaced, first.worker.id));
        assert!(second.worker.revision > first.worker.revision);
        assert!(!second.worker.is_idle());
        assert_eq!(second.worker.profile, Some(profile(&["x"])));
        drop(guard);
        assert!(second.worker.is_idle());
        assert_eq!(urls(&fleet), ["http://a:1"]);
        assert!(fleet.snapshot().pool("m").is_none());
    }

    #[test]
    fn refusals_leave_the_fleet_as_it_was() {
        let fleet = Fleet::new(FleetConfig { workers_max: 1, ..FleetConfig::default() });
        let first = add(&fleet, spec("a", &["m"]), Origin::Api);
        let version = fleet.snapshot().version;
        let check = |result: Result<Added, FleetError>, error| assert_eq!(result.map(|added| added.change), Err(error));
        check(fleet.add(spec("b", &[]), Origin::Api, at(0)), FleetError::TooManyWorkers { workers_max: 1 });
        check(fleet.add_new(spec("a", &[]), Origin::Api, at(0)), FleetError::AlreadyExists(first.worker.id));
        let bad = WorkerSpec { weight: f64::NAN, ..spec("a", &[]) };
        assert!(matches!(fleet.add(bad, Origin::Api, at(0)), Err(FleetError::InvalidSpec { field: "weight", .. })));
        let nobody = WorkerId::of("nobody", None);
        let patched = fleet.patch(nobody, WorkerPatch::default());
        assert_eq!(patched.map(|worker| worker.id), Err(FleetError::UnknownWorker(nobody)));
        assert!(!fleet.drain(nobody) && fleet.remove(nobody).is_none() && fleet.is_idle(nobody));
        assert!(!fleet.describe(first.worker.id, first.worker.revision + 1, profile(&["x"])));
        assert_eq!(fleet.snapshot().version, version);
        assert_eq!(fleet.snapshot().worker(first.worker.id).unwrap().models()[0].id.as_str(), "m");
    }

    #[test]
    fn a_drain_ends_when_the_last_request_has() {
        let fleet = fleet();
        let worker = add(&fleet, spec("a", &["m"]), Origin::Api).worker;
        assert!(fleet.finish_drain(worker.id).is_none(), "nobody asked for it");
        let guard = worker.state.begin(5, at(0));
        assert!(fleet.drain(worker.id) && !fleet.drain(worker.id));
        assert!(!worker.is_available(at(0)));
        assert!(!fleet.is_idle(worker.id) && fleet.finish_drain(worker.id).is_none());
        drop(guard);
        assert!(fleet.is_idle(worker.id));
        assert_eq!(fleet.finish_drain(worker.id).map(|worker| worker.id), Some(worker.id));
        assert!(fleet.snapshot().workers().is_empty());
    }

    #[test]
    fn adding_a_draining_worker_again_calls_the_drain_off() {
        let fleet = fleet();
        let worker = add(&fleet, spec("a", &["m"]), Origin::Api).worker;
        fleet.drain(worker.id);
        let again = add(&fleet, spec("a", &["m"]), Origin::Api);
        assert_eq!(again.change, Change::Replaced);
        assert!(again.worker.is_available(at(0)));
        assert!(fleet.finish_drain(worker.id).is_none() && fleet.abandon_drain(worker.id).is_none());
        assert_eq!(urls(&fleet), ["http://a"]);
    }

    #[test]
    fn a_reload_that_lists_a_draining_worker_again_keeps_it() {
        let fleet = fleet();
        let list = || vec![spec("a", &["m"])];
        let id = fleet.replace_origin(Origin::File, list(), at(0)).added[0].id;
        assert_eq!(fleet.replace_origin(Origin::File, vec![], at(0)).removed, [id]);
        fleet.drain(id);
        let back = fleet.replace_origin(Origin::File, list(), at(0));
        assert_eq!(back.added.len(), 1);
        assert!(fleet.abandon_drain(id).is_none() && back.added[0].is_available(at(0)));
    }

    #[test]
    fn a_drain_can_be_abandoned_with_requests_under_way() {
        let fleet = fleet();
        let worker = add(&fleet, spec("a", &["m"]), Origin::Api).worker;
        let guard = worker.state.begin(5, at(0));
        fleet.drain(worker.id);
        assert!(fleet.finish_drain(worker.id).is_none());
        assert!(fleet.abandon_drain(worker.id).is_some());
        drop(guard);
        assert!(worker.is_idle());
    }

    #[test]
    fn who_still_sees_a_removed_worker_may_not_use_it() {
        let fleet = fleet();
        let worker = add(&fleet, spec("a", &["m"]), Origin::Api).worker;
        let stale = Arc::clone(&fleet.snapshot());
        fleet.remove(worker.id);
        assert!(stale.worker(worker.id).unwrap().admit(at(0)).is_none());
        let fresh = add(&fleet, spec("a", &["m"]), Origin::Api);
        assert_eq!(fresh.change, Change::New);
        assert!(fresh.worker.admit(at(0)).is_some(), "the new one has a state of its own");
    }

    #[test]
    fn a_patch_makes_a_revision_and_keeps_the_rest() {
        let fleet = fleet();
        let worker = add(&fleet, spec("a", &["m"]), Origin::File).worker;
        assert_eq!(fleet.patch(worker.id, WorkerPatch::default()).unwrap().revision, worker.revision);
        let patch = WorkerPatch { priority: Some(9), ..WorkerPatch::default() };
        let patched = fleet.patch(worker.id, patch).unwrap();
        assert_eq!((patched.spec.priority, patched.origin), (9, Origin::File));
        assert!(patched.revision > worker.revision && Arc::ptr_eq(&patched.state, &worker.state));
        assert_eq!(fleet.snapshot().worker(worker.id).unwrap().spec.priority, 9);
    }

    #[test]
    fn aliases_that_cannot_mean_one_model_are_refused() {
        let fleet = fleet();
        let mut with_alias = spec("a", &["m"]);
        with_alias.models[0].aliases = vec!["x".into()];
        add(&fleet, with_alias.clone(), Origin::Flag);
        let set = |pairs: &[(&str, &str)]| {
            fleet.set_aliases(pairs.iter().map(|(alias, model)| ((*alias).into(), (*model).into())).collect())
        };
        let taken = |alias: &str, taken_by: &str, wanted_by: &str| {
            let (alias, taken_by, wanted_by) = (alias.into(), taken_by.into(), wanted_by.into());
            FleetError::AliasTaken { alias, taken_by, wanted_by }
        };
        assert_eq!(set(&[("m", "m")]), Err(FleetError::AliasIsModel("m".into())));
        let chain = FleetError::AliasOfAlias { alias: "a".into(), target: "b".into() };
        assert_eq!(set(&[("a", "b"), ("b", "m")]), Err(chain));
        assert_eq!(set(&[("x", "other")]), Err(taken("x", "m", "other")));
        assert_eq!(set(&[("x", "m"), ("y", "m")]), Ok(()));

        with_alias.url = "b".parse().unwrap();
        assert_eq!(add(&fleet, with_alias.clone(), Origin::Flag).change, Change::New, "both mean m by x");
        with_alias.url = "c".parse().unwrap();
        with_alias.models[0].id = "n".into();
        let refused = fleet.add(with_alias.clone(), Origin::Flag, at(0)).unwrap_err();
        assert_eq!(refused, taken("x", "m", "n"));
        with_alias.models[0].aliases = vec!["y".into()];
        assert_eq!(fleet.add(with_alias, Origin::Flag, at(0)).unwrap_err(), taken("y", "m", "n"), "it is configured");
    }

    #[test]
    fn a_reload_touches_only_what_the_list_changed() {
        let fleet = fleet();
        let list = |hosts: &[&str]| hosts.iter().map(|host| spec(host, &["m"])).collect::<Vec<_>>();
        let reload = |specs| {
            let delta = fleet.replace_origin(Origin::File, specs, at(0));
            assert_eq!(delta.refused, []);
            let mut added: Vec<_> = delta.added.iter().map(|worker| worker.spec.url.host().to_owned()).collect();
            added.sort_unstable();
            (added, delta.removed)
        };
        let id = |host: &str| fleet.id_of(&host.parse().unwrap());
        add(&fleet, spec("api", &["m"]), Origin::Api);
        assert_eq!(reload(list(&["a", "b", "c"])).0, ["a", "b", "c"]);
        assert_eq!(reload(list(&["c", "b", "a"])), (vec![], vec![]));

        fleet.remove(id("a"));
        fleet.patch(id("b"), WorkerPatch { priority: Some(1), ..WorkerPatch::default() }).unwrap();
        assert_eq!(reload(list(&["a", "b", "c"])), (vec![], vec![]), "what the api did stands");
        assert_eq!(urls(&fleet), ["http://api", "http://b", "http://c"]);

        let mut changed = list(&["a", "b"]);
        changed.iter_mut().for_each(|spec| spec.priority = 7);
        let (added, removed) = reload(changed);
        assert_eq!((added, removed), (vec!["a".to_owned(), "b".to_owned()], vec![id("c")]));
        assert_eq!(fleet.snapshot().worker(id("b")).unwrap().spec.priority, 7);
        assert!(fleet.snapshot().worker(id("c")).is_some(), "it is for the caller to drain");
        let mut rest = vec![id("a"), id("b")];
        rest.sort_unstable();
        assert_eq!(reload(vec![]).1, rest);
    }

    #[test]
    fn a_worker_that_two_lists_name_stays_while_one_does() {
        let fleet = fleet();
        let flagged = WorkerSpec { priority: 1, ..spec("a", &["m"]) };
        add(&fleet, flagged.clone(), Origin::Flag);
        let filed = WorkerSpec { priority: 2, ..spec("a", &["m"]) };
        fleet.replace_origin(Origin::File, vec![filed], at(0));
        let delta = fleet.replace_origin(Origin::File, vec![], at(0));
        assert_eq!((delta.removed, delta.added.len()), (vec![], 1));
        let worker = Arc::clone(fleet.snapshot().worker(delta.added[0].id).unwrap());
        assert_eq!((worker.spec.clone(), worker.origin), (flagged, Origin::Flag));
        assert_eq!(fleet.replace_origin(Origin::Flag, vec![], at(0)).removed, [worker.id]);
    }

    #[test]
    fn what_a_reload_refuses_stays_as_it_was() {
        let fleet = fleet();
        fleet.replace_origin(Origin::File, vec![spec("a", &["m"]), spec("b", &["m"])], at(0));
        let bad = WorkerSpec { cost: -1.0, ..spec("a", &["m"]) };
        let delta = fleet.replace_origin(Origin::File, vec![bad, spec("b", &["m"]), spec("http://b/", &["n"])], at(0));
        let refused: Vec<_> = delta.refused.iter().map(|(url, _)| url.host()).collect();
        assert_eq!((refused, delta.added.len(), delta.removed.len()), (vec!["a", "b"], 0, 0));
        assert_eq!(urls(&fleet), ["http://a", "http://b"]);
        let delta = fleet.replace_origin(Origin::File, vec![spec("b", &["m"])], at(0));
        assert_eq!(delta.removed, [fleet.id_of(&"a".parse().unwrap())]);
    }

    #[test]
    fn readers_see_whole_snapshots_while_writers_write() {
        let fleet = fleet();
        thread::scope(|scope| {
            for writer in 0..2 {
                let fleet = &fleet;
                scope.spawn(move || {
                    for turn in 0..200 {
                        let added = add(fleet, spec(&format!("w{writer}x{}", turn % 7), &["m"]), Origin::Api);
                        if turn % 3 == 0 {
                            fleet.remove(added.worker.id);
                        }
                    }
                });
            }
            scope.spawn(|| {
                let mut version = 0;
                for _ in 0..2_000 {
                    let snapshot = fleet.snapshot();
                    assert!(snapshot.version >= version, "snapshots never go back");
                    version = snapshot.version;
                    let pooled = snapshot.pool("m").map_or(0, |pool| pool.workers.len());
                    assert_eq!(pooled, snapshot.workers().len());
                }
            });
        });
        assert!(fleet.snapshot().version > 2 * 67);
    }
}
