//! One worker.

use std::sync::Arc;

use smg_base::{Timestamp, WorkerId};

use crate::{
    Breaker, BreakerConfig, ClusterVerdict, DirectPath, Engine, EngineProfile, EngineSource, Health, HealthConfig,
    HealthVote, KvEventsSpec, Load, LoadGuard, ModelCard, Offer, Origin, Path, PeerLoad, Rates, Reach, Relaying,
    Status, Ticket, Via, WorkerSpec, path::Paths,
};

/// One revision of a worker: what was said of it and found out about it, and the state it shares with its other
/// revisions. It never changes; a change makes the next one.
#[derive(Debug)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Counts the changes of specifications in this fleet, so that news about an older one is recognised.
    pub revision: u64,
    /// What was said of it.
    pub spec: WorkerSpec,
    /// Who said so.
    pub origin: Origin,
    /// What its engine says of itself; absent until it was asked.
    pub profile: Option<EngineProfile>,
    /// How it is probed.
    pub health: HealthConfig,
    /// What changes while it works.
    pub state: Arc<WorkerState>,
    models: Vec<ModelCard>,
    share: f64,
    max_running_requests: Option<u32>,
}

/// What changes while a worker works. Everything in it is read without waiting.
///
/// A decision looks at every worker, and to fetch this from memory is most of what that costs: so all that decisions read lies
/// together at the beginning, in this order, and fills two lines of the processor's cache; a third is read where there are peers.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct WorkerState {
    /// Whether its probes succeed.
    pub health: Health,
    /// Whether requests on the direct path succeed.
    pub breaker: Breaker,
    /// How fast it is.
    pub rates: Rates,
    /// What it has to do.
    pub load: Load,
    pub(crate) paths: Paths,
}

impl WorkerState {
    pub(crate) fn new(health: &HealthConfig, breaker: BreakerConfig, now: Timestamp) -> Self {
        Self {
            health: Health::new(health, now),
            breaker: Breaker::new(breaker),
            rates: Rates::default(),
            paths: Paths::new(breaker),
            load: Load::default(),
        }
    }

    /// Takes on what the nodes together know.
    pub(crate) fn set_reach(&self, reach: Reach) {
        self.paths.set_reach(reach);
        self.health.note_outlook();
    }

    /// Takes down what the other gateways have there.
    pub(crate) fn set_peers(&self, load: PeerLoad, now: Timestamp) {
        self.load.set_peers(load, now);
        if load != PeerLoad::default() {
            self.health.note_outlook();
        }
    }

    /// Says whether this node may use the worker itself.
    pub(crate) fn set_direct(&self, direct: DirectPath) {
        if direct != self.paths.outlook().direct() {
            self.paths.set_direct(direct);
            self.health.note_outlook();
        }
    }

    /// The breaker of a path.
    pub fn breaker_of(&self, path: Path) -> &Breaker {
        match path {
            Path::Direct => &self.breaker,
            Path::Via(_) => &self.paths.breaker,
        }
    }

    /// Which way a request would take now, if any; [`Worker::path`] names the peer.
    #[inline]
    pub fn way(&self, relaying: Relaying, now: Timestamp) -> Option<Way> {
        if self.health.is_plainly_ready() {
            return self.breaker.would_admit(now).then_some(Way::Direct);
        }
        if self.health.has_outlook() { self.way_of_many(relaying, now) } else { None }
    }

    /// What peers add to a decision for a request that goes this way.
    #[inline]
    pub fn beyond(&self, way: Way) -> Beyond {
        if !self.health.has_outlook() {
            return Beyond::default();
        }
        let path_seconds = match way {
            Way::Direct => 0.0,
            Way::Via => self.paths.outlook().rtt().map_or(0.0, |rtt| rtt.as_secs_f32()),
        };
        Beyond { path_seconds, load: self.load.peers() }
    }

    /// Requests that this gateway and the others have there.
    #[inline]
    pub fn requests(&self) -> u32 {
        let own = self.load.in_flight();
        if self.health.has_outlook() { own.saturating_add(self.load.peers().requests) } else { own }
    }

    /// Prompt tokens of the requests of all gateways whose first token has not come.
    #[inline]
    pub fn pending_tokens(&self) -> u64 {
        let own = self.load.pending_tokens();
        if self.health.has_outlook() { own.saturating_add(self.load.peers().pending_tokens) } else { own }
    }

    #[inline]
    fn way_of_many(&self, relaying: Relaying, now: Timestamp) -> Option<Way> {
        let status = self.health.status();
        let outlook = self.paths.outlook();
        if outlook.is_down() || status == Status::Draining {
            return None;
        }
        let is_ready = status == Status::Ready && outlook.direct() == DirectPath::Allowed;
        if is_ready && self.breaker.would_admit(now) {
            return Some(Way::Direct);
        }
        let is_relayed = outlook.has_via() && relaying == Relaying::Allowed;
        (is_relayed && self.paths.breaker.would_admit(now)).then_some(Way::Via)
    }

    /// Counts a request with a prompt of `tokens` uncached tokens, until the guard is dropped.
    pub fn begin(self: &Arc<Self>, tokens: u64, now: Timestamp) -> LoadGuard {
        LoadGuard::begin(Arc::clone(self), tokens, now)
    }

    /// Counts a request that a peer sent here to be passed on, until the guard is dropped.
    pub fn begin_relayed(self: &Arc<Self>) -> LoadGuard {
        LoadGuard::begin_relayed(Arc::clone(self))
    }
}

impl Worker {
    /// A worker as it was described, before its engine was asked.
    pub(crate) fn new(
        id: WorkerId,
        spec: WorkerSpec,
        origin: Origin,
        health: HealthConfig,
        state: Arc<WorkerState>,
    ) -> Self {
        let share = spec.weight / spec.cost;
        let models = models_of(&spec, None);
        let max_running_requests = max_running_of(&spec, None);
        Self { id, revision: 0, spec, origin, profile: None, health, state, models, share, max_running_requests }
    }

    /// The same as revision number `revision`, with what its engine says of itself.
    pub(crate) fn revised(mut self, revision: u64, profile: Option<EngineProfile>) -> Self {
        self.revision = revision;
        self.models = models_of(&self.spec, profile.as_ref());
        self.max_running_requests = max_running_of(&self.spec, profile.as_ref());
        self.profile = profile;
        self
    }

    /// The models it serves: those of its specification, else those its engine lists. Empty if neither says any:
    /// see [`Worker::is_wildcard`].
    pub fn models(&self) -> &[ModelCard] {
        &self.models
    }

    /// Whether it takes every model: its engine was asked and lists none, and its specification neither. A worker
    /// that was not asked yet is not one, lest it be sent what it does not serve.
    pub fn is_wildcard(&self) -> bool {
        self.models.is_empty() && self.profile.is_some()
    }

    /// Its share of the traffic relative to other workers.
    #[inline]
    pub fn share(&self) -> f64 {
        self.share
    }

    /// The engine: as specified, else as detected.
    pub fn engine(&self) -> Engine {
        match self.spec.runtime_type {
            Some(engine) if engine != Engine::Unknown => engine,
            _ => self.profile.as_ref().map_or(Engine::Unknown, |profile| profile.engine),
        }
    }

    /// Whether it serves `path`, such as `/v1/rerank`.
    pub fn offers(&self, path: &str) -> Offer {
        match self.profile.as_ref().and_then(|profile| profile.offers.as_ref()) {
            None => Offer::Unknown,
            Some(offers) if offers.contains(path) => Offer::Yes,
            Some(_) => Offer::No,
        }
    }

    /// How many tokens its KV cache holds.
    pub fn kv_capacity_tokens(&self) -> Option<u64> {
        self.spec.kv_capacity_tokens.or_else(|| self.profile.as_ref()?.kv_capacity_tokens)
    }

    /// Where its engine tells what its KV cache holds: as specified, else as detected.
    pub fn kv_events(&self) -> Option<&KvEventsSpec> {
        self.spec.kv_events.as_ref().or_else(|| self.profile.as_ref()?.kv_events.as_ref())
    }

    /// How many requests it runs at once.
    #[inline]
    pub fn max_running_requests(&self) -> Option<u32> {
        self.max_running_requests
    }

    /// The longest context of its models.
    pub fn context_length(&self) -> Option<u64> {
        let longest = self.models.iter().filter_map(|card| card.context_length).max();
        longest.or_else(|| self.profile.as_ref()?.context_length)
    }

    /// Where it stands.
    #[inline]
    pub fn status(&self) -> Status {
        self.state.health.status()
    }

    /// Whether it may be given a request now, on whatever path.
    #[inline]
    pub fn is_available(&self, now: Timestamp) -> bool {
        self.can_take(Relaying::Allowed, now)
    }

    /// The same for a request that may be handed to a peer, or not.
    #[inline]
    pub fn can_take(&self, relaying: Relaying, now: Timestamp) -> bool {
        self.state.way(relaying, now).is_some()
    }

    /// The path a request would take now: the direct one if the worker is ready and the breaker there would let it
    /// through, else through the peer that reaches it. None if neither may be used, or if all nodes together say that
    /// nobody is to use the worker.
    pub fn path(&self, now: Timestamp) -> Option<Path> {
        self.path_of(self.state.way(Relaying::Allowed, now)?)
    }

    /// What peers add to a decision; nothing where they have nothing to do with the worker.
    #[inline]
    pub fn beyond(&self, now: Timestamp) -> Beyond {
        self.state.beyond(self.state.way(Relaying::Allowed, now).unwrap_or(Way::Direct))
    }

    /// Requests that this gateway and the others have there.
    #[inline]
    pub fn requests(&self) -> u32 {
        self.state.requests()
    }

    /// Prompt tokens of the requests of all gateways whose first token has not come.
    #[inline]
    pub fn pending_tokens(&self) -> u64 {
        self.state.pending_tokens()
    }

    /// Permission to send it one request. None if it may not be used, or if another request has just become the
    /// probe of its half-open breaker: choose again without it.
    pub fn admit(&self, now: Timestamp) -> Option<Ticket> {
        self.admit_by(Relaying::Allowed, now)
    }

    /// The same for a request that may be handed to a peer, or not.
    pub fn admit_by(&self, relaying: Relaying, now: Timestamp) -> Option<Ticket> {
        let path = self.path_of(self.state.way(relaying, now)?)?;
        Ticket::new(Arc::clone(&self.state), path, now)
    }

    /// The peer through which it is best reached, if any.
    pub fn via(&self) -> Option<Via> {
        self.state.paths.via()
    }

    /// What all nodes together found out about it.
    pub fn verdict(&self) -> ClusterVerdict {
        self.state.paths.outlook().verdict()
    }

    /// Whether this node may use it itself.
    pub fn direct(&self) -> DirectPath {
        self.state.paths.outlook().direct()
    }

    /// Where its engine's figures come from.
    pub fn engine_source(&self) -> EngineSource {
        self.state.paths.outlook().engine_source()
    }

    /// What this node's probes say of it; none as long as they say nothing.
    pub fn vote(&self) -> Option<HealthVote> {
        match self.direct() {
            DirectPath::Allowed => self.state.health.vote(),
            DirectPath::Forbidden => None,
        }
    }

    fn path_of(&self, way: Way) -> Option<Path> {
        match way {
            Way::Direct => Some(Path::Direct),
            // It may have gone since the look at the word.
            Way::Via => self.via().map(Path::Via),
        }
    }

    /// Whether no request is there that this gateway sent, be it for a peer.
    pub fn is_idle(&self) -> bool {
        self.state.load.in_flight() == 0 && self.state.load.relayed() == 0
    }
}

/// What peers add to a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Beyond {
    /// Seconds that the way there adds to each request; zero where it is the direct one, or where there is none.
    pub path_seconds: f32,
    /// What the other gateways have there.
    pub load: PeerLoad,
}

/// A path without its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From here.
    Direct,
    /// Through the peer that reaches the worker best.
    Via,
}

/// How many requests a worker runs at once: as specified, else as labelled, else as its engine says.
fn max_running_of(spec: &WorkerSpec, profile: Option<&EngineProfile>) -> Option<u32> {
    let label = || spec.labels.get("max_running_requests")?.parse().ok();
    spec.max_running_requests.or_else(label).or_else(|| profile?.max_running_requests)
}

fn models_of(spec: &WorkerSpec, profile: Option<&EngineProfile>) -> Vec<ModelCard> {
    let detected = profile.map_or(&[][..], |profile| &profile.models);
    let mut models = match (spec.models.as_slice(), spec.labels.get("model_id")) {
        ([], Some(id)) if !id.is_empty() => vec![ModelCard::new(id.as_str())],
        ([], _) => detected.to_vec(),
        (listed, _) => listed.to_vec(),
    };
    for card in &mut models {
        if let Some(found) = detected.iter().find(|found| found.id == card.id) {
            card.merge(found);
        }
        card.context_length = card.context_length.or(profile.and_then(|profile| profile.context_length));
    }
    models
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        BreakerConfig,
        testing::{at, profile, spec, trusted_worker},
    };

    fn worker(spec: WorkerSpec, profile: Option<EngineProfile>) -> Worker {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        Worker::new(spec.url.id(None), spec, Origin::Api, HealthConfig::default(), state).revised(1, profile)
    }

    #[test]
    fn the_specification_speaks_before_the_engine() {
        let mut found = profile(&["m"]);
        found.engine = Engine::Sglang;
        found.kv_capacity_tokens = Some(10);
        found.max_running_requests = Some(20);
        found.context_length = Some(30);
        let plain = worker(spec("a", &[]), Some(found.clone()));
        assert_eq!(plain.engine(), Engine::Sglang);
        assert_eq!((plain.kv_capacity_tokens(), plain.max_running_requests()), (Some(10), Some(20)));
        assert_eq!((plain.context_length(), plain.models()[0].context_length), (Some(30), Some(30)));

        let mut said = spec("a", &[]);
        said.labels.insert("max_running_requests".to_owned(), "7".to_owned());
        said.runtime_type = Some(Engine::Vllm);
        said.kv_capacity_tokens = Some(1);
        said.cost = 4.0;
        said.weight = 2.0;
        let told = worker(said.clone(), Some(found.clone()));
        assert_eq!((told.engine(), told.kv_capacity_tokens()), (Engine::Vllm, Some(1)));
        assert_eq!((told.max_running_requests(), told.share()), (Some(7), 0.5));
        said.max_running_requests = Some(6);
        said.runtime_type = Some(Engine::Unknown);
        let told = worker(said, Some(found));
        assert_eq!((told.max_running_requests(), told.engine()), (Some(6), Engine::Sglang));
    }

    #[test]
    fn a_listed_model_takes_from_detection_what_it_does_not_say() {
        let mut found = profile(&["m", "n"]);
        found.models[0].context_length = Some(8);
        found.models[0].aliases = vec!["root".into()];
        let told = worker(spec("a", &["m"]), Some(found));
        assert_eq!(told.models().len(), 1);
        assert_eq!(told.models()[0].context_length, Some(8));
        assert_eq!(told.models()[0].aliases, ["root".into()]);
    }

    #[test]
    fn what_it_offers_is_known_only_if_it_says_so() {
        let unasked = worker(spec("a", &[]), None);
        assert_eq!((unasked.offers("/v1/rerank"), unasked.is_wildcard()), (Offer::Unknown, false));
        let mute = worker(spec("a", &[]), Some(profile(&[])));
        assert_eq!((mute.offers("/v1/rerank"), mute.is_wildcard()), (Offer::Unknown, true));
        let offers = Some(["/v1/rerank".to_owned()].into());
        let clear = worker(spec("a", &[]), Some(EngineProfile { offers, ..profile(&["m"]) }));
        assert_eq!((clear.offers("/v1/rerank"), clear.offers("/v1/score")), (Offer::Yes, Offer::No));
    }

    #[test]
    fn what_decisions_read_lies_together() {
        use std::mem::offset_of;
        assert_eq!(offset_of!(WorkerState, load), 64, "health, breaker and rates");
        assert_eq!(Load::READ_BY_DECISIONS_BYTES, 56, "what there is to do");
    }

    #[test]
    fn only_a_ready_worker_is_available() {
        let trusted = trusted_worker(BreakerConfig::default());
        assert!(trusted.is_available(at(0)) && trusted.admit(at(0)).is_some());
        trusted.state.health.set_draining(crate::health::Draining::Yes);
        assert!(!trusted.is_available(at(0)) && trusted.admit(at(0)).is_none());
    }
}
