//! A policy: one of the kinds, with its state.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;
use smallvec::SmallVec;
use smg_base::{Timestamp, WorkerId};
use smg_fleet::{Pool, Worker, WorkerState};
use smg_prefix::{Change, Chunker, Claim, PromptKey, Source, Space, TOKEN_BYTES};

use crate::{
    Ask, AssignmentMode, Explanation, NoChoice, Overrides, PolicyConfig, PolicyKind, Reason, Seen, Standing,
    bucket::Buckets,
    cache_aware::CacheAware,
    candidates::{Candidate, Candidates, Offers, standing},
    cost::{Cached, Costs, Estimate},
    known::Known,
    learned::BytesPerToken,
    pick::{self, Choice, Rendezvous},
    sticky::{Kept, Sticky},
    target,
};

/// How the workers of one model are chosen, and what has been learned for it. Shared between threads.
#[derive(Debug)]
pub struct Policy {
    kind: PolicyKind,
    config: PolicyConfig,
    bytes_per_token: BytesPerToken,
    turn: AtomicU64,
    load: Estimate,
    overrides: ArcSwap<Overrides>,
    sticky: Option<Sticky>,
    buckets: Option<Buckets>,
    caches: Option<Box<CacheAware>>,
}

/// What a policy keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Routing keys, or chunks of prompts.
    pub entries: usize,
    /// Memory, estimated.
    pub bytes: usize,
}

impl Policy {
    /// A policy that has learned nothing yet.
    pub fn new(kind: PolicyKind, config: &PolicyConfig) -> Self {
        let sticks = !config.shared_keys && (kind == PolicyKind::Manual || config.routing_key_override);
        Self {
            kind,
            bytes_per_token: BytesPerToken::default(),
            turn: AtomicU64::new(0),
            load: Estimate::of_load(config),
            overrides: ArcSwap::default(),
            sticky: sticks.then(|| Sticky::new(config)),
            buckets: (kind == PolicyKind::Bucket).then(|| Buckets::new(config)),
            caches: (kind == PolicyKind::CacheAware).then(|| Box::new(CacheAware::new(config))),
            config: config.clone(),
        }
    }

    /// Which of the kinds it is.
    pub fn kind(&self) -> PolicyKind {
        self.kind
    }

    /// Replaces the routing keys that an operator has given a worker.
    pub fn set_overrides(&self, overrides: Overrides) {
        if **self.overrides.load() != overrides {
            self.overrides.store(std::sync::Arc::new(overrides));
        }
    }

    /// Whether [`Ask::prompt`] makes a difference.
    pub fn wants_text(&self) -> bool {
        matches!(self.kind, PolicyKind::CacheAware | PolicyKind::PrefixHash)
    }

    /// Hashes a prompt as this policy wants it. `salt` stands for whatever beside the prompt must be equal for two
    /// prompts to share a cache ([`smg_prefix::Namespace`]).
    pub fn chunker(&self, space: Space, salt: u64) -> Chunker {
        match (self.kind, space) {
            (PolicyKind::CacheAware, Space::Text) => self.config.chunker(salt),
            (PolicyKind::CacheAware, Space::Tokens) => Chunker::of_tokens(salt),
            (_, space) => self.config.head_chunker(space, salt),
        }
    }

    /// How many tokens a text is, going by this model's earlier prompts.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate of a positive number"
    )]
    pub fn tokens_of(&self, text_bytes: usize) -> u64 {
        (text_bytes as f64 / self.bytes_per_token.ratio()).ceil() as u64
    }

    /// Chooses a worker, as an index into the pool's workers, and says why. Call [`Policy::dispatched`] once the
    /// request goes there.
    pub fn choose(&self, pool: &Pool, ask: &Ask<'_>, why: &mut Explanation) -> Result<usize, NoChoice> {
        why.begin(self.kind, ask);
        let chosen = match (ask.target, self.sticky_for(ask)) {
            (Some(target), _) => target::find(pool, ask, target).inspect(|position| {
                why.settle(&pool.workers[*position], Reason::Target, ask.now);
            }),
            (None, sticky) => self.choose_freely(pool, ask, sticky, why),
        };
        chosen.inspect_err(|refusal| why.refuse(pool, ask, *refusal))
    }

    /// Chooses for a request that names no worker.
    fn choose_freely(
        &self,
        pool: &Pool,
        ask: &Ask<'_>,
        sticky: Option<(&Sticky, u128)>,
        why: &mut Explanation,
    ) -> Result<usize, NoChoice> {
        if let Some(position) = self.overridden(pool, ask) {
            why.settle(&pool.workers[position], Reason::Override, ask.now);
            return Ok(position);
        }
        match sticky {
            Some((sticky, key)) => self.keep(sticky, key, pool, ask, why),
            None => {
                let mut candidates = Candidates::default();
                let mut costs = Costs::default();
                let choice = decide(pool, ask, &mut candidates, |candidates| self.pick(candidates, ask, &mut costs))?;
                why.compare(pool, &candidates, choice, &costs);
                why.others(pool, &candidates, ask);
                Ok(choice.position)
            }
        }
    }

    /// The request goes to `worker`: what this says about its future is taken down.
    pub fn dispatched(&self, worker: &Worker, ask: &Ask<'_>) {
        if let Some(caches) = &self.caches {
            caches.dispatched(worker, ask, self.bytes_per_token.ratio());
        }
        if let Some(buckets) = &self.buckets {
            buckets.note(self.bytes_of(ask), ask.now);
        }
    }

    /// The answer came back from `worker`: it teaches how right the choice was.
    pub fn observed(&self, worker: &Worker, seen: &Seen) {
        self.bytes_per_token.learn(seen);
        if let Some(caches) = &self.caches {
            caches.observed(worker, seen);
        }
    }

    /// A worker is gone, or its cache is.
    pub fn forget(&self, worker: WorkerId) {
        for (_, known) in self.known() {
            known.forget(worker);
        }
    }

    /// Changes how it is known what a worker's cache holds. What was known of it in another way is forgotten.
    pub fn set_source(&self, worker: WorkerId, space: Space, source: Source) {
        if let Some(caches) = &self.caches {
            caches.known(space).set_source(worker, source);
        }
    }

    /// Takes on what is told of the cache of a worker that is fed; says how many chunks could not be placed.
    pub fn apply(&self, worker: WorkerId, space: Space, change: &Change) -> u64 {
        self.caches.as_ref().map_or(0, |caches| caches.known(space).apply(worker, change))
    }

    /// Hands out what was sent to workers whose content is predicted elsewhere ([`Source::FedAndClaimed`]) since the last
    /// time.
    pub fn take_claims(&self, take: &mut dyn FnMut(WorkerId, Space, Claim)) {
        for (space, known) in self.known() {
            known.claims().take(&mut |worker, claim| take(worker, space, claim));
        }
    }

    /// How many claims were dropped because nobody took them in time.
    pub fn claims_dropped(&self) -> u64 {
        self.known().map(|(_, known)| known.claims().dropped()).sum()
    }

    /// How many chunks `worker` is taken to have room for; zero where the policy does not look.
    pub fn capacity_chunks(&self, worker: &Worker, space: Space) -> u64 {
        let ratio = self.bytes_per_token.ratio();
        self.caches.as_ref().map_or(0, |caches| caches.capacity_chunks(worker, space, ratio))
    }

    /// About how many tokens so many chunks of prompts are; zero where the policy does not look.
    pub fn tokens_of_chunks(&self, chunks: usize, space: Space) -> u64 {
        let ratio = self.bytes_per_token.ratio();
        self.caches.as_ref().map_or(0, |caches| caches.tokens_of_chunks(chunks, space, ratio))
    }

    /// A hash of what `worker` is known to hold: equal on gateways that know the same.
    pub fn digest(&self, worker: WorkerId, space: Space) -> u64 {
        self.caches.as_ref().map_or(0, |caches| caches.known(space).index().digest(worker))
    }

    /// How many chunks `worker` is known to hold.
    pub fn chunks_held(&self, worker: WorkerId, space: Space) -> u64 {
        self.caches.as_ref().map_or(0, |caches| caches.known(space).index().chunks_held(worker))
    }

    /// How far a worker's engine bears out what is predicted of it, in `0.0..=1.0`.
    pub fn trust(&self, worker: WorkerId, space: Space) -> f32 {
        self.caches.as_ref().map_or(1.0, |caches| caches.known(space).index().trust(worker))
    }

    fn known(&self) -> impl Iterator<Item = (Space, &Known)> {
        self.caches.iter().flat_map(|caches| caches.spaces())
    }

    /// Lets go of what is old. To be called now and then.
    pub fn sweep(&self, now: Timestamp) {
        if let Some(sticky) = &self.sticky {
            sticky.sweep(now);
        }
        for (_, known) in self.known() {
            known.sweep(now);
        }
    }

    /// How much it keeps.
    pub fn usage(&self) -> Usage {
        let mut usage = Usage::default();
        if let Some(sticky) = &self.sticky {
            usage.entries += sticky.len();
            usage.bytes += sticky.used_bytes();
        }
        for (_, known) in self.known() {
            let size = known.index().size();
            usage.entries += usize::try_from(size.chunks).unwrap_or(usize::MAX);
            usage.bytes += known.used_bytes();
        }
        usage
    }

    /// The memory of routing keys and this request's key, if that is what decides.
    fn sticky_for(&self, ask: &Ask<'_>) -> Option<(&Sticky, u128)> {
        let sticky = self.sticky.as_ref()?;
        let by_key_only = match self.kind {
            PolicyKind::Manual => false,
            PolicyKind::ConsistentHashing => return None,
            _ => true,
        };
        if by_key_only && ask.routing_key.is_none() {
            return None;
        }
        Some((sticky, Sticky::key(ask)?))
    }

    fn keep(
        &self,
        sticky: &Sticky,
        key: u128,
        pool: &Pool,
        ask: &Ask<'_>,
        why: &mut Explanation,
    ) -> Result<usize, NoChoice> {
        let usable = |id: WorkerId| usable(pool, ask, id);
        let mut candidates = Candidates::default();
        let assign = || {
            let choice = decide(pool, ask, &mut candidates, |candidates| self.assign(candidates, ask))?;
            Ok((pool.workers[choice.position].id, choice))
        };
        match sticky.keep(key, ask.now, usable, assign)? {
            Kept::Found(position) => {
                why.settle(&pool.workers[position], Reason::Sticky, ask.now);
                Ok(position)
            }
            Kept::Assigned(choice) => {
                why.compare(pool, &candidates, choice, &Costs::default());
                why.others(pool, &candidates, ask);
                Ok(choice.position)
            }
        }
    }

    /// The place of the worker that an operator has given this request's routing key, if that can be used.
    fn overridden(&self, pool: &Pool, ask: &Ask<'_>) -> Option<usize> {
        usable(pool, ask, self.overrides.load().of(ask.routing_key?)?)
    }

    /// Whether the hash of this request's key decides because gateways that share their keys must agree.
    fn is_shared_key(&self, ask: &Ask<'_>) -> bool {
        let has_key = ask.routing_key.is_some();
        let is_manual = self.kind == PolicyKind::Manual;
        self.config.shared_keys
            && (is_manual && (has_key || ask.session.is_some()) || self.config.routing_key_override && has_key)
    }

    /// The worker for a routing key that has none.
    fn assign(&self, candidates: &Candidates<'_>, ask: &Ask<'_>) -> Choice {
        let fewest = |count: &dyn Fn(&WorkerState) -> u32| {
            pick::least(candidates, ask.random, |candidate| {
                f64::from(count(candidate.state())) / f64::from(candidate.share)
            })
        };
        let chosen = match self.config.assignment_mode {
            AssignmentMode::Random => pick::chance(candidates, ask.random),
            AssignmentMode::MinLoad => fewest(&WorkerState::requests),
            AssignmentMode::MinGroup => fewest(&|state| state.load.active_keys()),
        };
        chosen.because(Reason::Assigned)
    }

    fn pick(&self, candidates: &Candidates<'_>, ask: &Ask<'_>, costs: &mut Costs) -> Choice {
        if self.is_shared_key(ask) {
            return consistent_hashing(candidates, ask);
        }
        match self.kind {
            PolicyKind::Random => pick::chance(candidates, ask.random).because(Reason::Chance),
            PolicyKind::RoundRobin => pick::turn(candidates, self.turn.fetch_add(1, Relaxed)).because(Reason::Turn),
            PolicyKind::PowerOfTwo => better_of_two(candidates, ask),
            PolicyKind::LeastLoad => self.least_load(candidates, ask, costs),
            PolicyKind::ConsistentHashing => consistent_hashing(candidates, ask),
            PolicyKind::PrefixHash => self.prefix_hash(candidates, ask),
            PolicyKind::Manual => self.assign(candidates, ask),
            PolicyKind::Passthrough => candidates.at(0).because(Reason::First),
            PolicyKind::Bucket => match &self.buckets {
                Some(buckets) => buckets.pick(candidates, self.bytes_of(ask), self.bytes_per_token.ratio(), ask.random),
                None => pick::chance(candidates, ask.random).because(Reason::Chance),
            },
            PolicyKind::CacheAware => match &self.caches {
                Some(caches) => caches.pick(candidates, ask, costs),
                None => pick::chance(candidates, ask.random).because(Reason::Chance),
            },
        }
    }

    fn least_load(&self, candidates: &Candidates<'_>, ask: &Ask<'_>, costs: &mut Costs) -> Choice {
        self.load.costs(candidates, ask, Cached::NONE, costs);
        let least = pick::least(candidates, ask.random, |candidate| f64::from(costs.totals[candidate.index()]));
        least.because(Reason::LeastLoad)
    }

    /// The worker to which the prompt's beginning falls, or the next one that has no more than its part of the load
    /// (consistent hashing with bounded loads: Mirrokni, Thorup and Zadimoghaddam, 2018).
    fn prefix_hash(&self, candidates: &Candidates<'_>, ask: &Ask<'_>) -> Choice {
        let Some(text) = ask.prompt.filter(|text| text.bytes > 0) else {
            return consistent_hashing(candidates, ask);
        };
        let rendezvous = Rendezvous::new(text.head, candidates);
        let in_flight = |candidate: Candidate<'_>| f64::from(candidate.state().requests());
        let loads: SmallVec<[f64; 128]> = candidates.iter().map(in_flight).collect();
        let bound = (loads.iter().sum::<f64>() + 1.0) / candidates.shares() * self.config.prefix_hash_load_factor;
        let fits = candidates
            .iter()
            .zip(&loads)
            .filter(|(candidate, load)| **load <= bound * f64::from(candidate.share))
            .map(|(candidate, _)| candidate);
        let first = rendezvous.best(candidates.iter()).unwrap_or_else(|| candidates.at(0));
        match rendezvous.best(fits) {
            Some(next) if next.position != first.position => next.because(Reason::PrefixSpilled),
            _ => first.because(Reason::PrefixHash),
        }
    }

    /// The length of a prompt's text, as far as known.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate of a positive number"
    )]
    fn bytes_of(&self, ask: &Ask<'_>) -> u64 {
        match ask.prompt {
            Some(PromptKey { space: Space::Tokens, bytes, .. }) => {
                ((bytes / TOKEN_BYTES) as f64 * self.bytes_per_token.ratio()) as u64
            }
            Some(text) => text.bytes as u64,
            None => (ask.input_tokens as f64 * self.bytes_per_token.ratio()) as u64,
        }
    }
}

/// Picks among those who can take the request; again if it turns out that the picked one does not offer it.
fn decide<'a>(
    pool: &'a Pool,
    ask: &Ask<'_>,
    candidates: &mut Candidates<'a>,
    mut pick: impl FnMut(&Candidates<'a>) -> Choice,
) -> Result<Choice, NoChoice> {
    candidates.gather(pool, ask, Offers::Assumed)?;
    let choice = pick(candidates);
    if ask.is_offered_by(&pool.workers[choice.position]) {
        return Ok(choice);
    }
    candidates.gather(pool, ask, Offers::Checked)?;
    Ok(pick(candidates))
}

/// The place of a worker in the pool, if it can take the request.
fn usable(pool: &Pool, ask: &Ask<'_>, id: WorkerId) -> Option<usize> {
    let position = pool.workers.binary_search_by_key(&id, |worker| worker.id).ok()?;
    (standing(&pool.workers[position], ask, Offers::Checked) == Standing::Considered).then_some(position)
}

fn consistent_hashing(candidates: &Candidates<'_>, ask: &Ask<'_>) -> Choice {
    let (key, reason) = match (ask.routing_key, ask.session) {
        (Some(key), _) => (smg_base::hash::stable64(key.as_bytes()), Reason::RoutingKey),
        (None, Some(session)) => (session, Reason::Session),
        (None, None) => return pick::chance(candidates, ask.random).because(Reason::Chance),
    };
    let best = Rendezvous::new(key, candidates).best(candidates.iter());
    best.unwrap_or_else(|| candidates.at(0)).because(reason)
}

fn better_of_two(candidates: &Candidates<'_>, ask: &Ask<'_>) -> Choice {
    let (one, other) = pick::two(candidates, ask.random);
    let load = |candidate: Candidate<'_>| {
        let load = &candidate.state().load;
        let requests = candidate.state().requests().saturating_add(load.foreign_requests());
        let kv_usage = load.engine().map_or(0.0, |engine| f64::from(engine.kv_usage));
        (f64::from(requests) / f64::from(candidate.share), kv_usage)
    };
    let better = if load(other) < load(one) { other } else { one };
    better.because(Reason::BetterOfTwo)
}
