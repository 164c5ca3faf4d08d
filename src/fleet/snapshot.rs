//! What requests see of the fleet.

use std::{collections::BTreeMap, num::NonZeroU32, sync::Arc};

use smg_base::{ModelId, Timestamp, WorkerId, map::StableMap};

use crate::{ModelCard, Worker, WorkerState};

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
    /// What they say of the model: the longest context, and of everything else the first word. Its aliases are the
    /// names that lead here, configured ones included.
    pub card: ModelCard,
    members: Vec<Member>,
    shares: Shares,
    has_one_priority: bool,
}

/// The shares of some workers together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shares {
    /// Their sum.
    pub sum: f64,
    /// Whether all are equal.
    pub are_equal: bool,
}

impl Shares {
    /// Of these.
    #[expect(clippy::cast_precision_loss, reason = "a number of workers")]
    pub fn of(shares: impl ExactSizeIterator<Item = f32> + Clone) -> Self {
        let first = shares.clone().next().unwrap_or(1.0);
        let are_equal = shares.clone().all(|share| share.to_bits() == first.to_bits());
        let sum = match are_equal {
            true => f64::from(first) * shares.len() as f64,
            false => shares.map(f64::from).sum(),
        };
        Self { sum, are_equal }
    }
}

/// What every decision looks at of a worker, side by side with the others': a [`Worker`] is too large to look at each.
#[derive(Debug)]
pub struct Member {
    /// The worker's id.
    pub id: WorkerId,
    /// What changes while it works.
    pub state: Arc<WorkerState>,
    /// Its priority.
    pub priority: u32,
    /// Its share of the traffic relative to others.
    pub share: f32,
    /// How many requests it runs at once, if that is known and not zero.
    pub running_max: Option<NonZeroU32>,
}

impl Pool {
    /// Stands in [`Pool::model`] where no single model is meant. Never to be written into a request.
    pub const ANY: &'static str = "*";

    fn new(model: ModelId, workers: Vec<Arc<Worker>>) -> Self {
        let mut card = ModelCard::new(model.clone());
        for said in workers.iter().flat_map(|worker| worker.models()).filter(|said| said.id == model) {
            card.merge(said);
        }
        let members: Vec<Member> = workers.iter().map(|worker| Member::of(worker)).collect();
        let shares = Shares::of(members.iter().map(|member| member.share));
        let has_one_priority = members.windows(2).all(|two| two[0].priority == two[1].priority);
        Self { model, workers, card, members, shares, has_one_priority }
    }

    /// What decisions look at of the workers, in their order.
    #[inline]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The shares of all.
    #[inline]
    pub fn shares(&self) -> Shares {
        self.shares
    }

    /// Whether all have the same priority.
    #[inline]
    pub fn has_one_priority(&self) -> bool {
        self.has_one_priority
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

impl Member {
    #[expect(clippy::cast_possible_truncation, reason = "a share needs no more than seven digits")]
    fn of(worker: &Worker) -> Self {
        Self {
            id: worker.id,
            state: Arc::clone(&worker.state),
            priority: worker.spec.priority,
            share: worker.share() as f32,
            running_max: worker.max_running_requests().and_then(NonZeroU32::new),
        }
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
        let mut pools: Vec<Pool> =
            members.into_iter().map(|(model, workers)| Pool::new(model.clone(), workers)).collect();
        let places = places_of(&pools, aliases);
        for pool in &mut pools {
            pool.card.aliases.clear();
        }
        for (name, &place) in &places {
            if *name != pools[place].model {
                pools[place].card.aliases.push(name.clone());
            }
        }
        let pools: Vec<_> = pools.into_iter().map(Arc::new).collect();
        let names = places.into_iter().map(|(name, place)| (name, Arc::clone(&pools[place]))).collect();
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

/// Which of the pools each name leads to. A model's own id beats an alias, a configured alias one that a worker
/// brings, and of two that workers bring that of the lesser model id.
fn places_of(pools: &[Pool], aliases: &BTreeMap<ModelId, ModelId>) -> BTreeMap<ModelId, usize> {
    let mut places: BTreeMap<_, _> =
        pools.iter().enumerate().map(|(place, pool)| (pool.model.clone(), place)).collect();
    for (alias, target) in aliases {
        if let Ok(place) = pools.binary_search_by_key(&target, |pool| &pool.model) {
            places.entry(alias.clone()).or_insert(place);
        }
    }
    for (place, pool) in pools.iter().enumerate() {
        for alias in &pool.card.aliases {
            places.entry(alias.clone()).or_insert(place);
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BreakerConfig, Fleet, Origin, WorkerSpec,
        testing::{at, profile, spec, trusting_fleet},
    };

    /// Adds a worker for each (host, models listed in its specification).
    fn fleet_of(workers: &[(&str, &[&str])]) -> Fleet {
        let fleet = trusting_fleet(BreakerConfig::default());
        for (host, models) in workers {
            fleet.add(spec(host, models), Origin::Flag, at(0)).unwrap();
        }
        fleet
    }

    /// Tells the fleet what the engine at `host` says of its models.
    fn describe(fleet: &Fleet, host: &str, models: &[&str]) {
        let id = fleet.id_of(&host.parse().unwrap());
        let revision = fleet.snapshot().worker(id).unwrap().revision;
        assert!(fleet.describe(id, revision, profile(models)));
    }

    fn hosts(pool: &Pool) -> Vec<&str> {
        assert!(pool.workers.is_sorted_by_key(|worker| worker.id));
        let mut hosts: Vec<_> = pool.workers.iter().map(|worker| worker.spec.url.host()).collect();
        hosts.sort_unstable();
        hosts
    }

    fn pool(fleet: &Fleet, name: &str) -> Option<(String, Vec<String>)> {
        let snapshot = fleet.snapshot();
        let pool = snapshot.pool(name)?;
        Some((pool.model.to_string(), hosts(pool).into_iter().map(str::to_owned).collect()))
    }

    fn found(model: &str, hosts: &[&str]) -> Option<(String, Vec<String>)> {
        Some((model.to_owned(), hosts.iter().map(|host| (*host).to_owned()).collect()))
    }

    #[test]
    fn workers_are_pooled_by_every_model_they_serve() {
        let fleet = fleet_of(&[("a", &["m", "n"]), ("b", &["n", "n"]), ("c", &["o"])]);
        assert_eq!(pool(&fleet, "m"), found("m", &["a"]));
        assert_eq!(pool(&fleet, "n"), found("n", &["a", "b"]));
        assert_eq!(pool(&fleet, "p"), None);
        let snapshot = fleet.snapshot();
        let models: Vec<_> = snapshot.models().map(|pool| pool.model.as_str()).collect();
        assert_eq!(models, ["m", "n", "o"]);
        assert_eq!(hosts(snapshot.any()), ["a", "b", "c"]);
        assert!(snapshot.open().workers.is_empty() && !snapshot.open().is_named());
        assert!(snapshot.workers().is_sorted_by_key(|worker| worker.id));
        for worker in snapshot.workers() {
            assert_eq!(snapshot.worker(worker.id).unwrap().id, worker.id);
        }
        assert_eq!(snapshot.any().available(at(0)), 3);
    }

    #[test]
    fn a_worker_joins_its_pools_once_it_says_what_it_serves() {
        let fleet = fleet_of(&[("a", &["m"]), ("b", &[])]);
        assert_eq!(pool(&fleet, "m"), found("m", &["a"]), "unasked, b may serve anything or nothing");
        assert_eq!(hosts(fleet.snapshot().open()), ["b"]);
        assert_eq!(hosts(fleet.snapshot().any()), ["a", "b"]);
        describe(&fleet, "b", &["m", "n"]);
        assert_eq!(pool(&fleet, "m"), found("m", &["a", "b"]));
        assert_eq!(pool(&fleet, "n"), found("n", &["b"]));
        assert!(fleet.snapshot().open().workers.is_empty());
    }

    #[test]
    fn a_wildcard_is_in_every_pool() {
        let fleet = fleet_of(&[("a", &["m"]), ("b", &["n"]), ("w", &[])]);
        describe(&fleet, "w", &[]);
        assert_eq!(pool(&fleet, "m"), found("m", &["a", "w"]));
        assert_eq!(pool(&fleet, "n"), found("n", &["b", "w"]));
        assert_eq!(pool(&fleet, "other"), None);
        assert_eq!(hosts(fleet.snapshot().open()), ["w"]);
    }

    #[test]
    fn pools_are_in_the_order_of_ids_wherever_the_wildcards_fall() {
        let fleet = fleet_of(&[]);
        for number in 0..16 {
            let host = format!("w{number}");
            let models: &[&str] = if number % 2 == 0 { &["m"] } else { &[] };
            fleet.add(spec(&host, models), Origin::Flag, at(0)).unwrap();
            describe(&fleet, &host, &[]);
        }
        let snapshot = fleet.snapshot();
        assert_eq!(hosts(snapshot.pool("m").unwrap()).len(), 16);
        let kinds: Vec<_> = snapshot.workers().iter().map(|worker| worker.is_wildcard()).collect();
        assert!(!kinds.is_sorted(), "else the order proves nothing");
    }

    #[test]
    fn what_is_specified_beats_what_is_detected() {
        let fleet = fleet_of(&[("a", &["m"])]);
        describe(&fleet, "a", &["n"]);
        assert_eq!((pool(&fleet, "m"), pool(&fleet, "n")), (found("m", &["a"]), None));
        let mut labelled = spec("b", &[]);
        labelled.labels.insert("model_id".to_owned(), "l".to_owned());
        fleet.add(labelled, Origin::Flag, at(0)).unwrap();
        describe(&fleet, "b", &["n"]);
        assert_eq!((pool(&fleet, "l"), pool(&fleet, "n")), (found("l", &["b"]), None));
    }

    fn aliases(pairs: &[(&str, &str)]) -> BTreeMap<ModelId, ModelId> {
        pairs.iter().map(|(alias, model)| ((*alias).into(), (*model).into())).collect()
    }

    #[test]
    fn aliases_lead_to_the_pool_of_their_model() {
        let mut with_alias = spec("b", &["n"]);
        with_alias.models[0].aliases = vec!["nn".into(), "m".into(), "gpt".into()];
        let fleet = fleet_of(&[("a", &["m"])]);
        fleet.set_aliases(aliases(&[("mm", "m"), ("ghost", "gone")])).unwrap();
        fleet.add(with_alias, Origin::Flag, at(0)).unwrap();
        assert_eq!(pool(&fleet, "mm"), found("m", &["a"]));
        assert_eq!(pool(&fleet, "nn"), found("n", &["b"]));
        assert_eq!(pool(&fleet, "m"), found("m", &["a"]), "an id beats an alias");
        assert_eq!(pool(&fleet, "ghost"), None, "nobody serves it");
        let shown: Vec<Vec<String>> =
            fleet.snapshot().models().map(|pool| pool.card.aliases.iter().map(ToString::to_string).collect()).collect();
        assert_eq!(shown, [vec!["mm"], vec!["gpt", "nn"]], "exactly the names that lead there");
        assert_eq!(fleet.snapshot().models().len(), 2, "an alias is no model");
        fleet.set_aliases(BTreeMap::new()).unwrap();
        assert_eq!(pool(&fleet, "mm"), None);
    }

    #[test]
    fn a_configured_alias_of_an_unlisted_model_is_served_by_who_may_have_it() {
        let fleet = fleet_of(&[("w", &[])]);
        fleet.set_aliases(aliases(&[("gpt", "llama")])).unwrap();
        assert_eq!(pool(&fleet, "gpt"), found("llama", &["w"]));
        assert_eq!(pool(&fleet, "llama"), found("llama", &["w"]));
    }

    #[test]
    fn the_card_of_a_pool_joins_what_its_workers_say() {
        let card = |context| ModelCard { context_length: Some(context), ..ModelCard::new("m") };
        let fleet = trusting_fleet(BreakerConfig::default());
        for (host, context) in [("a", 4_096), ("b", 32_768), ("c", 8_192)] {
            let spec = WorkerSpec { models: vec![card(context)], ..spec(host, &[]) };
            fleet.add(spec, Origin::Flag, at(0)).unwrap();
        }
        let snapshot = fleet.snapshot();
        assert_eq!(snapshot.pool("m").unwrap().card.context_length, Some(32_768));
    }
}
