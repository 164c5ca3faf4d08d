//! One gateway: the fleet and the policy that a node has, with requests that it only pretends to send.

use std::{sync::Arc, time::Duration};

use smg_base::{Random, Timestamp, WorkerId};
use smg_fleet::{
    EngineLoad, Fleet, FleetConfig, HealthConfig, LoadGuard, Origin, PeerLoad, Pool, Relaying, WorkerSpec,
};
use smg_prefix::{Change, Claim, Source, Space};
use smg_routing::{Ask, Explanation, NoChoice, Policy, PolicyConfig, PolicyKind, Seen};

use super::{
    engine::{EngineConfig, Gauges},
    heard::Busy,
    workload::Prompt,
};

/// A node as far as it chooses.
pub(super) struct Gateway {
    fleet: Fleet,
    policy: Policy,
    pool: Arc<Pool>,
    /// By place in the pool, the engine; and the reverse.
    engines: Vec<usize>,
    places: Vec<usize>,
}

/// A request that is at an engine.
pub(super) struct Sent {
    pub(super) engine: usize,
    pub(super) uncached_tokens: u32,
    load: LoadGuard,
    predicted_tokens: u64,
    at: Timestamp,
    /// Known from the first token on.
    cached_tokens: u32,
    ttft: Duration,
}

impl Gateway {
    pub(super) fn new(kind: PolicyKind, config: &PolicyConfig, engines: usize, engine: &EngineConfig) -> Self {
        let health = HealthConfig { enabled: false, ..HealthConfig::default() };
        let fleet = Fleet::new(FleetConfig { health, ..FleetConfig::default() });
        let mut ids = Vec::new();
        for number in 0..engines {
            let url = format!("http://engine-{number}:8000").parse().expect("the URL is sound");
            let mut spec = WorkerSpec::new(url);
            spec.kv_capacity_tokens = Some(engine.capacity_tokens);
            let added = fleet.add(spec, Origin::Flag, Timestamp::ORIGIN).expect("its URL is new");
            ids.push(added.worker.id);
        }
        let pool = Arc::clone(fleet.snapshot().any());
        let place = |id: &WorkerId| pool.workers.iter().position(|worker| worker.id == *id);
        let places: Vec<usize> = ids.iter().map(|id| place(id).expect("it was added")).collect();
        let mut numbers = vec![0; engines];
        for (engine, place) in places.iter().enumerate() {
            numbers[*place] = engine;
        }
        Self { fleet, policy: Policy::new(kind, config), pool, engines: numbers, places }
    }

    /// From here on others tell what the engines hold.
    pub(super) fn set_source(&self, source: Source) {
        for worker in &self.pool.workers {
            self.policy.set_source(worker.id, Space::Tokens, source);
        }
    }

    /// How many chunks this node takes an engine to have room for.
    pub(super) fn capacity_chunks(&self, engine: usize) -> u64 {
        self.policy.capacity_chunks(&self.pool.workers[self.places[engine]], Space::Tokens)
    }

    /// Hears what the other gateways have at an engine.
    pub(super) fn hear_peers(&self, engine: usize, peers: Busy, now: Timestamp) {
        let load = PeerLoad {
            requests: u32::try_from(peers.requests).unwrap_or(0),
            decoding: u32::try_from(peers.decoding).unwrap_or(0),
            pending_tokens: u64::try_from(peers.pending_tokens).unwrap_or(0),
        };
        self.fleet.set_peer_load(self.pool.workers[self.places[engine]].id, load, now);
    }

    /// Hears what an engine said of itself.
    pub(super) fn hear_engine(&self, engine: usize, gauges: Gauges, at: Timestamp) {
        let Gauges { running, waiting, kv_usage } = gauges;
        let load = EngineLoad { running, waiting, kv_usage, generation_tokens_per_second: 0.0, at };
        // All requests are the gateways', so none comes from elsewhere.
        self.fleet.set_engine_heard(self.pool.workers[self.places[engine]].id, load, 0);
    }

    /// Hears what became of an engine's cache; says how much of it made no sense.
    pub(super) fn hear_change(&self, engine: usize, change: &Change, now: Timestamp) -> u64 {
        let worker = &self.pool.workers[self.places[engine]];
        if let Change::Held { chunks, .. } = change {
            worker.state.rates.hear_taken_in(self.policy.tokens_of_chunks(chunks.len(), Space::Tokens), now);
        }
        self.policy.apply(worker.id, Space::Tokens, change)
    }

    /// What it has to say of the prompts it sent.
    pub(super) fn take_claims(&self, take: &mut dyn FnMut(usize, Claim)) {
        self.policy.take_claims(&mut |worker, _, claim| {
            if let Ok(place) = self.pool.workers.binary_search_by_key(&worker, |worker| worker.id) {
                take(self.engines[place], claim);
            }
        });
    }

    /// Claims that it had no room for.
    pub(super) fn claims_dropped(&self) -> u64 {
        self.policy.claims_dropped()
    }

    /// Chooses an engine and sends the request there.
    pub(super) fn send(&self, prompt: &Prompt, now: Timestamp, random: &dyn Random) -> Result<Sent, NoChoice> {
        let ask = Ask {
            prompt: Some(&prompt.key),
            input_tokens: u64::from(prompt.input_tokens),
            routing_key: None,
            target: None,
            session: None,
            excluded: &[],
            paths: &[],
            relaying: Relaying::Allowed,
            now,
            random,
        };
        let mut why = Explanation::default();
        let place = self.policy.choose(&self.pool, &ask, &mut why)?;
        let worker = &self.pool.workers[place];
        let uncached = why.uncached_tokens();
        let load = worker.state.begin(uncached, now);
        self.policy.dispatched(worker, &ask);
        let uncached_tokens = u32::try_from(uncached).unwrap_or(prompt.input_tokens);
        let predicted_tokens = why.predicted_tokens();
        let (cached_tokens, ttft) = (0, Duration::ZERO);
        Ok(Sent { engine: self.engines[place], uncached_tokens, load, predicted_tokens, at: now, cached_tokens, ttft })
    }

    /// The first token of an answer came.
    pub(super) fn first_token(sent: &mut Sent, cached_tokens: u32, now: Timestamp) {
        sent.load.first_token(now);
        sent.cached_tokens = cached_tokens;
        sent.ttft = now.since(sent.at);
    }

    /// The answer ended, `gap` between its tokens: what it says of the engine is learned from, and it is at the engine no more.
    pub(super) fn finished(&self, sent: Sent, prompt: &Prompt, gap: Option<Duration>) {
        let worker = &self.pool.workers[self.places[sent.engine]];
        let uncached = u64::from(prompt.input_tokens - sent.cached_tokens);
        worker.state.rates.observe_ttft(uncached, sent.load.tokens_ahead(), sent.ttft);
        if let Some(gap) = gap {
            worker.state.rates.observe_gap(gap);
        }
        let seen = Seen {
            predicted_tokens: sent.predicted_tokens,
            input_tokens: Some(u64::from(prompt.input_tokens)),
            cached_tokens: Some(u64::from(sent.cached_tokens)),
            text_bytes: 0,
            space: Space::Tokens,
        };
        self.policy.observed(worker, &seen);
    }
}
