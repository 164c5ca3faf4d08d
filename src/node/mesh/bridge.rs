//! The bridge between the planes of the mesh and the fleet: what other nodes tell becomes workers, paths and load here, and
//! what this node finds out is told to them.
//!
//! Registrations of this node's own are in the fleet before anybody is told, so a node serves what it declares also while
//! nobody else is there. What the mesh then says of a worker wins: it may be described differently, or gone.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use smg_base::{Clock, ModelId, PeerId, Timestamp, WorkerId};
use smg_fleet::{
    ClusterVerdict, DirectPath, EngineLoad, EngineSource, Fleet, PeerLoad, ProbeDuty, Reach as FleetReach, Via,
    WorkerSpec,
};
use smg_gateway::{Gateway, Standing};
use smg_mesh_proto::{EngineFigures, Event, Kind, Ledger, Member, NodeId, Op, Reach, Verdict, WorkerRow, WriteError};
use smg_runtime::{Phase, Receiver, Shutdown};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until},
};

use super::{
    Inboxes,
    known::{Known, Row},
    link::Link,
    own::Reports,
    shared::{self, Shared},
    spec::{self, KeyState, Told},
};
use crate::live::Live;

/// Shortest time between two looks at what this node has to tell, and that while requests are in flight.
const PACE: Duration = Duration::from_millis(100);

/// The same while there is nothing to tell: the fleet says when there is.
const REST: Duration = Duration::from_secs(1);

/// Writes under way at once.
const WRITES_MAX: usize = 256;

/// How long after the acknowledgement of a declaration the mesh has said whether the worker stands.
const VERDICT_PATIENCE: Duration = Duration::from_secs(1);

/// How long after joining shared settings that nobody has ever set are taken from this node's own.
const SEED_DELAY: Duration = Duration::from_secs(1);

/// Events taken in one go, before shared settings are put together.
const EVENTS_MAX: usize = 256;

/// What flags and files of this node say, as far as all nodes are told of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Declared {
    /// The workers.
    pub(crate) workers: Vec<WorkerSpec>,
    /// The names clients may use, and the models they stand for.
    pub(crate) aliases: BTreeMap<ModelId, ModelId>,
}

/// When shared settings that nobody has ever set are taken from this node's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seeding {
    /// Not before this node has joined.
    Waits,
    /// When it knows what the others share.
    At(Timestamp),
    /// They are; further ones follow at once.
    Done,
}

/// What a bridge is built from.
pub(crate) struct Parts {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) known: Arc<Known>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) live: Arc<Live>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The machine that this node's loopback addresses mean.
    pub(crate) scope: String,
    pub(crate) declared: watch::Receiver<Declared>,
    /// Where what is about caches and limits goes.
    pub(crate) inboxes: Inboxes,
}

/// The bridge.
pub(crate) struct Bridge {
    parts: Parts,
    reports: Reports,
    /// What this node has asserted for its flags and files.
    asserted: BTreeMap<WorkerId, Bytes>,
    queue: VecDeque<Op>,
    writes: FuturesUnordered<BoxFuture<'static, (Op, Result<(), WriteError>)>>,
    /// Declarations that were acknowledged, and when the mesh will have said what it makes of them.
    unsettled: BTreeMap<WorkerId, Timestamp>,
    /// Workers on their way out because no assertion of them stands.
    retired: BTreeSet<WorkerId>,
    /// What other nodes have at workers, and what engines were heard to say, for those that come into the fleet later.
    loads: BTreeMap<WorkerId, Ledger>,
    engines: BTreeMap<WorkerId, EngineFigures>,
    seeding: Seeding,
    candidates: Vec<NodeId>,
    config_changed: bool,
    /// When it last was looked what there is to tell, and when that is next.
    looked: Instant,
    look: Instant,
}

impl Bridge {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            reports: Reports::default(),
            asserted: BTreeMap::new(),
            queue: VecDeque::new(),
            writes: FuturesUnordered::new(),
            unsettled: BTreeMap::new(),
            retired: BTreeSet::new(),
            loads: BTreeMap::new(),
            engines: BTreeMap::new(),
            seeding: Seeding::Waits,
            candidates: Vec::new(),
            config_changed: false,
            looked: Instant::now(),
            look: Instant::now(),
        }
    }

    /// Bridges until the process stops or the mesh ends for this node.
    pub(crate) async fn run(mut self, mut events: Receiver<Event>, shutdown: Shutdown) {
        let to_tell = Arc::new(Notify::new());
        self.parts.fleet.to_tell().listen({
            let to_tell = Arc::clone(&to_tell);
            move || to_tell.notify_one()
        });
        self.declare();
        loop {
            tokio::select! {
                () = shutdown.reached(Phase::Stopped) => break,
                event = events.recv() => match event {
                    Some(event) => self.take(event, &mut events),
                    None => break,
                },
                Ok(()) = self.parts.declared.changed() => self.declare(),
                Some((op, outcome)) = self.writes.next() => self.written(op, outcome),
                () = to_tell.notified() => {
                    self.parts.inboxes.prefixes.nudge();
                    self.look_soon();
                }
                () = sleep_until(self.look) => self.tell(),
            }
            if self.parts.known.standing() == Standing::Left {
                break;
            }
            if let Some(why) = self.parts.known.refusal() {
                tracing::error!(why, "the mesh refuses this node");
                shutdown.advance(Phase::Closing);
                break;
            }
        }
        self.detach();
    }

    fn take(&mut self, first: Event, events: &mut Receiver<Event>) {
        let mut next = Some(first);
        for _ in 0..EVENTS_MAX {
            let Some(event) = next else { break };
            self.on_event(event);
            next = events.try_recv().ok();
        }
        if let Some(event) = next {
            self.on_event(event);
        }
        if std::mem::take(&mut self.config_changed) {
            let shared = Shared::of(&self.parts.known.facts().config);
            self.parts.live.take_shared(shared);
        }
        self.advance_writes();
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Member(member) => self.on_member(member),
            Event::Forgotten(node) => {
                self.parts.known.facts().members.remove(&node);
            }
            Event::Joined { alone: true } => self.on_joined(Standing::Alone),
            Event::Joined { alone: false } => self.on_joined(Standing::Joined),
            Event::Worker { worker, row } => self.on_row(worker, row),
            Event::Reach { worker, reach } => self.on_reach(worker, reach),
            Event::PeerLoad { worker, ledger } => {
                if ledger == Ledger::default() {
                    self.loads.remove(&worker);
                } else {
                    self.loads.insert(worker, ledger);
                }
                self.parts.fleet.set_peer_load(worker, peer_load(ledger), self.parts.clock.now());
            }
            Event::Engine { worker, figures } => self.on_engine(worker, figures),
            Event::Config { key, value } => {
                self.config_changed = true;
                self.parts.known.facts().config.insert(key, value);
            }
            Event::Refused(refusal) => self.parts.known.refuse(refusal.to_string()),
            Event::Entry { writer, kind: Kind::Prefixes, key, value } => {
                self.parts.inboxes.prefixes.put(writer, key, value);
            }
            Event::Entry { writer, kind: kind @ (Kind::Limits | Kind::Budgets), key, value } => {
                self.parts.inboxes.limits.put(writer, kind, key, value);
            }
            Event::Entry { .. } | Event::Written { .. } | Event::Left => {}
        }
    }

    fn on_joined(&mut self, standing: Standing) {
        if self.seeding == Seeding::Waits {
            self.seeding = Seeding::At(self.parts.clock.now() + SEED_DELAY);
            self.look_soon();
        }
        self.parts.known.stand(standing);
        self.parts.inboxes.prefixes.moved();
        self.parts.inboxes.limits.moved();
        tracing::info!(standing = standing.as_str(), "in the mesh");
    }

    fn on_member(&mut self, member: Arc<Member>) {
        let known = self.parts.known.clone();
        let before = known.facts().members.insert(member.node, member.clone());
        if before.as_ref().is_none_or(|before| before.state != member.state) {
            self.parts.inboxes.prefixes.moved();
            self.parts.inboxes.limits.moved();
        }
        if before.as_ref().is_none_or(|before| before.state != member.state) && !member.is_self {
            tracing::info!(node = member.name, state = member.state.as_str(), address = %member.address, "mesh member");
        }
        let has_company = known.facts().has_company();
        match known.company() {
            Standing::Joined if !has_company => known.stand(Standing::Alone),
            Standing::Alone if has_company => known.stand(Standing::Joined),
            _ => {}
        }
        if before.is_none_or(|before| prospects(&before) != prospects(&member)) {
            let through: Vec<WorkerId> = {
                let facts = known.facts();
                let is_through = |reach: &Reach| reach.via.contains(&member.node);
                facts.reach.iter().filter(|(_, reach)| is_through(reach)).map(|(worker, _)| *worker).collect()
            };
            for worker in through {
                self.place(worker);
            }
        }
    }

    fn on_reach(&mut self, worker: WorkerId, reach: Reach) {
        let is_missed = reach.verdict == Verdict::Up && self.parts.fleet.snapshot().worker(worker).is_none();
        let row = {
            let mut facts = self.parts.known.facts();
            facts.reach.insert(worker, reach);
            facts.rows.get(&worker).filter(|_| is_missed).map(|row| row.told.clone())
        };
        match row {
            // A rule has removed it here, for this node's probes failed.
            Some(told) => self.import(worker, told),
            None => self.place(worker),
        }
    }

    /// What the nodes assert of a worker has changed.
    fn on_row(&mut self, worker: WorkerId, row: Option<WorkerRow>) {
        self.unsettled.remove(&worker);
        let Some(row) = row else { return self.gone(worker) };
        let mut told = match spec::decode(worker, &row.spec, &*self.parts.link) {
            Ok(told) => told,
            Err(error) => {
                tracing::warn!(%worker, %error, "a worker of the mesh cannot be used here");
                return;
            }
        };
        let there = self.parts.fleet.snapshot().worker(worker).cloned();
        if told.key == KeyState::Sealed {
            match &there {
                Some(there) => told.spec.api_key.clone_from(&there.spec.api_key),
                None => tracing::warn!(%worker, url = %told.spec.url, "the key of a worker cannot be read here"),
            }
        }
        let is_new = there.as_ref().is_none_or(|there| there.spec != told.spec);
        let is_back = self.retired.remove(&worker);
        let (writer, declared, assertions) = (row.writer, row.declared, row.assertions);
        let row = Row { told: told.clone(), writer, declared, assertions };
        self.parts.known.facts().rows.insert(worker, row);
        if is_new || is_back {
            self.import(worker, told);
        }
    }

    fn import(&mut self, worker: WorkerId, told: Told) {
        let is_ours = told.scope.as_ref().is_none_or(|scope| *scope == self.parts.scope);
        let direct = if is_ours { DirectPath::Allowed } else { DirectPath::Forbidden };
        let url = told.spec.url.clone();
        match self.parts.fleet.import(worker, told.spec, direct, self.parts.clock.now()) {
            Ok(added) => {
                self.parts.gateway.keep_worker(worker);
                tracing::info!(%worker, %url, change = ?added.change, "worker of the mesh");
            }
            Err(error) => return tracing::warn!(%worker, %url, %error, "a worker of the mesh cannot be taken"),
        }
        self.place(worker);
        let ledger = self.loads.get(&worker).copied().unwrap_or_default();
        self.parts.fleet.set_peer_load(worker, peer_load(ledger), self.parts.clock.now());
        if let Some(figures) = self.engines.get(&worker).copied() {
            self.on_engine(worker, Some(figures));
        }
    }

    /// No assertion of a worker stands any more.
    fn gone(&mut self, worker: WorkerId) {
        {
            let mut facts = self.parts.known.facts();
            facts.rows.remove(&worker);
            facts.reach.remove(&worker);
        }
        let there = self.parts.fleet.snapshot().worker(worker).cloned();
        if let Some(there) = there
            && self.retired.insert(worker)
        {
            tracing::info!(%worker, url = %there.spec.url, "worker removed from the mesh, draining");
            self.parts.gateway.retire_worker(worker);
        }
    }

    fn on_engine(&mut self, worker: WorkerId, figures: Option<EngineFigures>) {
        let Some(heard) = figures else {
            self.engines.remove(&worker);
            if self.reports.source(worker) == EngineSource::Heard {
                self.parts.fleet.clear_engine(worker);
            }
            return;
        };
        self.engines.insert(worker, heard);
        if self.reports.source(worker) == EngineSource::Heard {
            self.parts.fleet.set_engine_heard(worker, engine_load(heard, self.parts.clock.now()), heard.foreign);
        }
    }

    /// Works out how a worker is best reached from here.
    fn place(&mut self, worker: WorkerId) {
        let (reach, home) = {
            let facts = self.parts.known.facts();
            let Some(reach) = facts.reach.get(&worker) else { return };
            let via = reach.via.iter().filter_map(|node| facts.members.get(node)).filter(|member| is_usable(member));
            let via = via.min_by_key(|member| (member.doubted, member.rtt, member.node));
            let placed = FleetReach {
                verdict: match reach.verdict {
                    Verdict::Unknown => ClusterVerdict::Unknown,
                    Verdict::Up => ClusterVerdict::Up,
                    Verdict::Down => ClusterVerdict::Down,
                },
                via: via.map(|member| Via { peer: PeerId(member.node.as_u128()), rtt: member.rtt.unwrap_or_default() }),
                duty: if reach.probed_here { ProbeDuty::Full } else { ProbeDuty::Light },
            };
            (placed, reach.home)
        };
        self.parts.fleet.set_reach(worker, reach);
        self.parts.inboxes.prefixes.moved();
        self.look_soon();
        let is_elsewhere = home.is_some_and(|home| home != self.parts.link.node());
        let source = if is_elsewhere { EngineSource::Heard } else { EngineSource::Asked };
        if self.reports.set_source(worker, source) {
            self.parts.fleet.set_engine_source(worker, source);
            if let Some(figures) = self.engines.get(&worker).copied() {
                self.on_engine(worker, Some(figures));
            }
        }
    }

    /// Asserts what flags and files say now, and takes back what they no longer say.
    fn declare(&mut self) {
        let declared = self.parts.declared.borrow_and_update().clone();
        let mut now = BTreeMap::new();
        for worker in &declared.workers {
            let id = self.parts.fleet.id_of(&worker.url);
            now.insert(id, spec::encode(worker, &self.parts.scope, &*self.parts.link));
        }
        for worker in self.asserted.keys().filter(|worker| !now.contains_key(worker)) {
            self.queue.push_back(Op::WithdrawWorker { worker: *worker });
        }
        for (worker, spec) in now.iter().filter(|(worker, spec)| self.asserted.get(worker) != Some(spec)) {
            self.queue.push_back(Op::AddWorker { worker: *worker, spec: spec.clone(), declared: true });
        }
        if self.seeding == Seeding::Done {
            self.seed(&declared);
        }
        self.asserted = now;
        self.advance_writes();
    }

    /// Shares the aliases of this node that nobody has ever set or deleted.
    fn seed(&mut self, declared: &Declared) {
        let facts = self.parts.known.facts();
        for (alias, model) in &declared.aliases {
            let key = shared::alias_key(alias);
            if !facts.config.contains_key(&key) {
                self.queue.push_back(Op::Config { key, value: Some(shared::text(model.as_str())) });
            }
        }
    }

    /// Keeps a bounded number of writes under way.
    fn advance_writes(&mut self) {
        while self.writes.len() < WRITES_MAX
            && let Some(op) = self.queue.pop_front()
        {
            let written = self.parts.link.write(op.clone());
            self.writes.push(Box::pin(async move { (op, written.await) }));
        }
    }

    fn written(&mut self, op: Op, outcome: Result<(), WriteError>) {
        match (&op, outcome) {
            (Op::AddWorker { worker, .. }, Ok(())) => {
                if !self.parts.known.facts().rows.contains_key(worker) {
                    self.unsettled.insert(*worker, self.parts.clock.now() + VERDICT_PATIENCE);
                    self.look_soon();
                }
            }
            (_, Ok(()) | Err(WriteError::UnknownWorker | WriteError::Leaving)) => {}
            (_, Err(WriteError::Busy)) => self.queue.push_back(op),
            (_, Err(error)) => tracing::warn!(?op, %error, "the mesh did not take what this node declares"),
        }
        self.advance_writes();
    }

    /// There may be something to tell.
    fn look_soon(&mut self) {
        self.look = self.look.min(self.looked + PACE);
    }

    /// Tells what has changed here, and says when to look again.
    fn tell(&mut self) {
        // First, lest what comes to be during the look be missed.
        self.parts.fleet.to_tell().arm();
        self.tell_now();
        self.looked = Instant::now();
        if self.reports.is_busy() {
            // Prompts were sent that others are to be told of.
            self.parts.inboxes.prefixes.nudge();
        }
        let waits = !self.unsettled.is_empty() || matches!(self.seeding, Seeding::At(_)) || !self.queue.is_empty();
        self.look = self.looked + if waits || self.reports.is_busy() { PACE } else { REST };
    }

    fn tell_now(&mut self) {
        let now = self.parts.clock.now();
        self.advance_writes();
        self.settle(now);
        if matches!(self.seeding, Seeding::At(at) if at <= now) {
            self.seeding = Seeding::Done;
            let declared = self.parts.declared.borrow().clone();
            self.seed(&declared);
        }
        if self.parts.known.standing() == Standing::Left {
            return;
        }
        let company = self.parts.known.facts().members.values().filter(|one| one.state.is_alive()).count();
        let snapshot = self.parts.fleet.snapshot().clone();
        self.reports.tell(&snapshot, company, now, &*self.parts.link);
        let candidates = self.reports.candidates();
        if candidates != self.candidates {
            self.parts.link.relay_candidates(candidates.clone());
            self.candidates = candidates;
        }
        self.advance_writes();
    }

    /// Retires declared workers that the mesh has taken note of and yet does not list: they were removed before, and stay so
    /// until they are declared differently or added by hand.
    fn settle(&mut self, now: Timestamp) {
        let due: Vec<WorkerId> =
            self.unsettled.iter().filter(|(_, at)| **at <= now).map(|(worker, _)| *worker).collect();
        for worker in due {
            self.unsettled.remove(&worker);
            if !self.parts.known.facts().rows.contains_key(&worker) {
                self.gone(worker);
            }
        }
    }

    /// The mesh has ended for this node: what others said no longer counts.
    fn detach(&mut self) {
        if self.parts.known.standing() != Standing::Left {
            self.parts.known.stand(Standing::Alone);
        }
        for worker in self.parts.fleet.snapshot().workers() {
            self.parts.fleet.set_reach(worker.id, FleetReach::default());
            self.parts.fleet.set_peer_load(worker.id, PeerLoad::default(), self.parts.clock.now());
            self.parts.fleet.set_engine_source(worker.id, EngineSource::Asked);
        }
    }
}

/// Whether requests may be sent through this node.
fn is_usable(member: &Member) -> bool {
    !member.is_self && member.state.is_alive() && member.connected && !member.draining
}

/// What of a member decides whether and how gladly requests are sent through it. A time to it that changes little changes
/// nothing, because every change makes all workers behind it be placed anew.
fn prospects(member: &Member) -> (bool, bool, u32) {
    let micros = member.rtt.map_or(0, |rtt| rtt.as_micros()).max(1);
    (is_usable(member), member.doubted, micros.ilog2())
}

fn peer_load(ledger: Ledger) -> PeerLoad {
    PeerLoad { requests: ledger.requests, decoding: ledger.decoding, pending_tokens: ledger.pending_tokens }
}

fn engine_load(figures: EngineFigures, now: Timestamp) -> EngineLoad {
    EngineLoad {
        running: figures.running,
        waiting: figures.waiting,
        kv_usage: figures.kv_usage,
        generation_tokens_per_second: figures.generation_tokens_per_second,
        at: now,
    }
}

#[cfg(test)]
#[path = "bridge_tests.rs"]
mod tests;
