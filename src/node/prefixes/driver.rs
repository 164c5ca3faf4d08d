//! The plane of prefixes at work: follows engines, feeds policies, writes and reads lanes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use smg_base::{Clock, ModelId, Timestamp, WorkerId, hash};
use smg_fleet::{Fleet, KvEndpoint, KvEventsSpec, Snapshot};
use smg_gateway::{Gateway, Standing};
use smg_mesh_proto::{Kind, Op};
use smg_prefix::{
    Change,
    plane::{Effect, Events, Plane, Stream},
};
use smg_routing::Policy;
use smg_runtime::{Phase, Receiver, Sender, TaskKind, Tasks};
use smg_upstream::{
    Upstream,
    kv::{KvNews, KvSource, follow},
};
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep_until},
};

use super::{inbox::Inbox, metrics::PrefixMetrics, peer_of};
use crate::mesh::{Known, Link};

/// How long nothing is looked at while nobody says that there is something.
const REST: Duration = Duration::from_secs(2);

/// Looks at workers and policies are at least this far apart.
const PACE: Duration = Duration::from_millis(50);

/// News of engines taken in one go.
const NEWS_MAX: usize = 256;

/// How often the room that predicted workers have is looked at, while there are requests.
const RESIZE_EVERY: Duration = Duration::from_secs(5);

/// The least trust in a prediction.
const TRUST_MIN: f64 = 0.25;

/// The way to the other nodes.
#[derive(Clone)]
pub(crate) struct Others {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) known: Arc<Known>,
}

/// What a worker's engine tells of its KV cache, or what became of asking it.
pub(crate) type News = (WorkerId, KvNews);

/// What it is built from.
pub(crate) struct Parts {
    pub(crate) plane: Arc<Mutex<Plane>>,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) others: Option<Others>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) upstream: Upstream,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tasks: Tasks,
    pub(crate) metrics: Arc<PrefixMetrics>,
    pub(crate) news: (Sender<News>, Receiver<News>),
}

/// The driver.
pub(crate) struct Driver {
    parts: Parts,
    /// Whose events are followed, by what words.
    followed: BTreeMap<WorkerId, (KvEventsSpec, AbortHandle)>,
    policies: Vec<Fed>,
    /// Of which fleet and which policies the tables are.
    seen: Option<(u64, u64)>,
    resized: Timestamp,
    /// When it was last looked who finds out about which worker.
    placed: Timestamp,
}

/// A policy, and the workers of which it knows all that is known.
struct Fed {
    model: ModelId,
    policy: Arc<Policy>,
    workers: BTreeSet<WorkerId>,
}

impl Driver {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            followed: BTreeMap::new(),
            policies: Vec::new(),
            seen: None,
            resized: Timestamp::ORIGIN,
            placed: Timestamp::ORIGIN,
        }
    }

    /// Works until the process stops.
    pub(crate) async fn run(mut self) {
        let shutdown = self.parts.tasks.shutdown().clone();
        let inbox = Arc::clone(&self.parts.inbox);
        if self.parts.others.is_none() {
            // In a mesh the bridge listens, and says so.
            let inbox = Arc::clone(&inbox);
            self.parts.fleet.to_tell().listen(move || inbox.nudge());
        }
        loop {
            if self.parts.others.is_none() {
                self.parts.fleet.to_tell().arm();
            }
            let wait = self.look();
            let soon = Instant::now() + PACE;
            let mut due = Instant::now() + wait;
            loop {
                tokio::select! {
                    () = shutdown.reached(Phase::Stopped) => return,
                    () = async { sleep_until(soon).await; inbox.filled().await } => break,
                    news = self.parts.news.1.recv() => match news {
                        Some(news) => {
                            self.take_news(news);
                            due = due.min(soon);
                        }
                        None => return,
                    },
                    () = sleep_until(due) => break,
                }
            }
        }
    }

    fn take_news(&mut self, first: News) {
        let now = self.parts.clock.now();
        let mut plane = self.parts.plane.lock();
        let mut next = Some(first);
        for _ in 0..NEWS_MAX {
            let Some((worker, news)) = next else { return };
            match news {
                KvNews::Batch(batch) => plane.take_batch(worker, batch, now),
                KvNews::Lost { rank } => plane.take_lost(worker, rank, now),
                KvNews::Connected => {
                    tracing::info!(%worker, "following the events of a worker's cache");
                    self.parts.metrics.connected(worker);
                }
                KvNews::Failed(reason) => {
                    tracing::warn!(%worker, reason, "the events of a worker's cache cannot be followed");
                    let url = self.parts.fleet.snapshot().worker(worker).map(|worker| worker.spec.url.to_string());
                    self.parts.metrics.failed(worker, url.as_deref().unwrap_or_default(), &reason);
                }
            }
            next = self.parts.news.1.try_recv().ok();
        }
        if let Some((worker, KvNews::Batch(batch))) = next {
            plane.take_batch(worker, batch, now);
        }
    }

    /// Does what there is to do, and says how long there is nothing else.
    fn look(&mut self) -> Duration {
        let now = self.parts.clock.now();
        let snapshot = self.parts.fleet.snapshot().clone();
        let plane = Arc::clone(&self.parts.plane);
        let mut plane = plane.lock();
        let seen = (snapshot.version, self.parts.gateway.prefix_generation());
        let has_changed = self.seen.replace(seen) != Some(seen);
        if has_changed {
            self.take_workers(&mut plane, &snapshot, now);
        }
        if self.parts.inbox.take_moved() || has_changed || now.since(self.placed) >= REST {
            self.placed = now;
            self.take_reach(&mut plane, &snapshot, now);
        }
        let told = self.parts.inbox.take().into_iter().map(|(writer, key, value)| (peer_of(writer), key, value));
        plane.take_entries(told.collect(), now);
        self.take_claims(&mut plane, &snapshot, now);
        plane.tick(now);
        for effect in plane.take_effects() {
            self.carry_out(effect, &snapshot);
        }
        if has_changed {
            self.introduce(&plane, &snapshot);
        }
        plane.due(now).map_or(REST, |due| due.since(now).clamp(Duration::from_millis(1), REST))
    }

    fn take_workers(&mut self, plane: &mut Plane, snapshot: &Snapshot, now: Timestamp) {
        let mut workers = BTreeMap::new();
        for worker in snapshot.workers() {
            let source = worker.kv_events().and_then(|spec| spec.source(&worker.spec.url).ok());
            let events = match source {
                None => Events::None,
                Some(KvEndpoint::Drain(_)) => Events::Drained,
                Some(_) => Events::Published,
            };
            workers.insert(worker.id, events);
        }
        let has_moved = |(id, (spec, _)): (&WorkerId, &(KvEventsSpec, AbortHandle))| {
            let now = snapshot.worker(*id).and_then(|worker| worker.kv_events());
            now.is_some_and(|now| now != spec).then_some(*id)
        };
        let moved: Vec<WorkerId> = self.followed.iter().filter_map(has_moved).collect();
        if !moved.is_empty() {
            let others = workers.iter().filter(|(id, _)| !moved.contains(id)).map(|(id, events)| (*id, *events));
            plane.set_workers(&others.collect(), now);
        }
        plane.set_workers(&workers, now);
    }

    /// Who lives, and who finds out about which worker. Before a node has joined it finds out nothing, for another may be at it.
    fn take_reach(&mut self, plane: &mut Plane, snapshot: &Snapshot, now: Timestamp) {
        let Some(others) = &self.parts.others else { return };
        let me = peer_of(others.link.node());
        match others.known.standing() {
            Standing::Joining => return,
            Standing::Left => {
                plane.set_alive(BTreeSet::from([me]), now);
                for worker in snapshot.workers() {
                    plane.set_reach(worker.id, Some(me), None, now);
                }
                return;
            }
            Standing::Joined | Standing::Alone | Standing::Draining => {}
        }
        let facts = others.known.facts();
        let alive = facts.members.values().filter(|member| member.state.is_alive()).map(|member| peer_of(member.node));
        plane.set_alive(alive.collect(), now);
        for (worker, reach) in &facts.reach {
            plane.set_reach(*worker, reach.home.map(peer_of), reach.standby.map(peer_of), now);
        }
    }

    fn take_claims(&mut self, plane: &mut Plane, snapshot: &Snapshot, now: Timestamp) {
        for Fed { model, policy, .. } in &self.policies {
            policy.take_claims(&mut |worker, space, claim| {
                plane.claim(Stream { worker, model: model_hash(model), space }, &claim, now);
            });
        }
        if now.since(self.resized) < RESIZE_EVERY {
            return;
        }
        self.resized = now;
        for stream in plane.predicted() {
            let fed = self.policies.iter().find(|fed| model_hash(&fed.model) == stream.model);
            if let (Some(Fed { policy, .. }), Some(worker)) = (fed, snapshot.worker(stream.worker)) {
                let room = policy.capacity_chunks(worker, stream.space);
                plane.resize(stream, trusted(room, policy.trust(stream.worker, stream.space)), now);
            }
        }
    }

    fn carry_out(&mut self, effect: Effect, snapshot: &Snapshot) {
        match effect {
            Effect::SetSource { .. } | Effect::Feed { .. } => {
                let mut taken_in = 0;
                for fed in &self.policies {
                    if fed.workers.contains(&worker_of(&effect)) {
                        taken_in = taken_in.max(fed.apply(&effect));
                    }
                }
                if let Some(worker) = snapshot.worker(worker_of(&effect)).filter(|_| taken_in > 0) {
                    worker.state.rates.hear_taken_in(taken_in, self.parts.clock.now());
                }
            }
            Effect::Write((key, value)) => {
                if let Some(others) = &self.parts.others {
                    others.link.post(Op::Entry { kind: Kind::Prefixes, key, value });
                }
            }
            Effect::Follow(id) => {
                let Some(worker) = snapshot.worker(id) else { return };
                let Some(spec) = worker.kv_events().cloned() else { return };
                let source = KvSource { worker: worker.clone(), spec: spec.clone() };
                let following = follow(self.parts.upstream.clone(), source, self.parts.news.0.clone());
                let task = self.parts.tasks.spawn(TaskKind::Background, "kv events", following);
                self.followed.insert(id, (spec, task));
            }
            Effect::Unfollow(worker) => {
                if let Some((_, task)) = self.followed.remove(&worker) {
                    task.abort();
                    self.parts.metrics.ended(worker);
                }
            }
        }
    }

    /// Tells policies of the workers that are new to them.
    fn introduce(&mut self, plane: &Plane, snapshot: &Snapshot) {
        let mut before = std::mem::take(&mut self.policies);
        for (model, policy) in self.parts.gateway.prefix_models() {
            let known = before.iter().position(|fed| Arc::ptr_eq(&fed.policy, &policy));
            let mut fed = match known {
                Some(at) => before.swap_remove(at),
                None => Fed { model, policy, workers: BTreeSet::new() },
            };
            let pool = snapshot.pool(fed.model.as_str());
            let serves: BTreeSet<WorkerId> =
                pool.map(|pool| pool.workers.iter().map(|worker| worker.id).collect()).unwrap_or_default();
            for worker in serves.difference(&fed.workers) {
                plane.show(*worker, &mut |effect| {
                    fed.apply(&effect);
                });
            }
            fed.workers = serves;
            self.policies.push(fed);
        }
    }
}

impl Fed {
    /// Lets the policy know; says how many tokens a cache took in by that.
    fn apply(&self, effect: &Effect) -> u64 {
        match effect {
            Effect::SetSource { worker, space, source } => self.policy.set_source(*worker, *space, *source),
            Effect::Feed { stream, change } if stream.model == 0 || stream.model == model_hash(&self.model) => {
                self.policy.apply(stream.worker, stream.space, change);
                if let Change::Held { chunks, .. } = change {
                    return self.policy.tokens_of_chunks(chunks.len(), stream.space);
                }
            }
            _ => {}
        }
        0
    }
}

fn worker_of(effect: &Effect) -> WorkerId {
    match effect {
        Effect::SetSource { worker, .. } | Effect::Follow(worker) | Effect::Unfollow(worker) => *worker,
        Effect::Feed { stream, .. } => stream.worker,
        Effect::Write(_) => WorkerId::from_u128(0),
    }
}

/// A model's name as lanes write it; zero means all models.
pub(super) fn model_hash(model: &ModelId) -> u64 {
    hash::stable64(model.as_str().as_bytes()).max(1)
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate of a positive number"
)]
fn trusted(room: u64, trust: f32) -> u64 {
    (room as f64 * f64::from(trust).clamp(TRUST_MIN, 1.0)) as u64
}
