//! One worker.

use std::sync::Arc;

use smg_base::{Timestamp, WorkerId};

use crate::{
    Breaker, BreakerConfig, Engine, EngineProfile, Health, HealthConfig, Load, LoadGuard, ModelCard, Offer, Origin,
    Rates, Status, Ticket, WorkerSpec,
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
}

/// What changes while a worker works. Everything in it is read without waiting.
#[derive(Debug)]
pub struct WorkerState {
    /// What it has to do.
    pub load: Load,
    /// Whether its probes succeed.
    pub health: Health,
    /// Whether its requests succeed.
    pub breaker: Breaker,
    /// How fast it is.
    pub rates: Rates,
}

impl WorkerState {
    pub(crate) fn new(health: &HealthConfig, breaker: BreakerConfig, now: Timestamp) -> Self {
        Self {
            load: Load::default(),
            health: Health::new(health, now),
            breaker: Breaker::new(breaker),
            rates: Rates::default(),
        }
    }

    /// Counts a request with a prompt of `tokens` uncached tokens, until the guard is dropped.
    pub fn begin(self: &Arc<Self>, tokens: u64) -> LoadGuard {
        LoadGuard::begin(Arc::clone(self), tokens)
    }
}

impl Worker {
    /// The next revision of a worker, in which what follows from the specification and the profile is worked out.
    pub(crate) fn new(
        id: WorkerId,
        revision: u64,
        (spec, origin): (WorkerSpec, Origin),
        profile: Option<EngineProfile>,
        health: HealthConfig,
        state: Arc<WorkerState>,
    ) -> Self {
        let models = models_of(&spec, profile.as_ref());
        let share = spec.weight / spec.cost;
        Self { id, revision, spec, origin, profile, health, state, models, share }
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

    /// How many requests it runs at once.
    pub fn max_running_requests(&self) -> Option<u32> {
        let label = || self.spec.labels.get("max_running_requests")?.parse().ok();
        self.spec.max_running_requests.or_else(label).or_else(|| self.profile.as_ref()?.max_running_requests)
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

    /// Whether it may be given a request now: it is ready and its breaker would let the request through.
    #[inline]
    pub fn is_available(&self, now: Timestamp) -> bool {
        self.status() == Status::Ready && self.state.breaker.would_admit(now)
    }

    /// Permission to send it one request. None if it may not be used, or if another request has just become the
    /// probe of its half-open breaker: choose again without it.
    pub fn admit(&self, now: Timestamp) -> Option<Ticket> {
        if self.status() != Status::Ready {
            return None;
        }
        Ticket::new(Arc::clone(&self.state), now)
    }

    /// Whether none of this gateway's requests is there.
    pub fn is_idle(&self) -> bool {
        self.state.load.in_flight() == 0
    }
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
