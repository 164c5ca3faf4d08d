//! What this node changes, and when that counts as done.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use smg_base::{Timestamp, WorkerId};

use super::{Peer, Replica, ReplicaOutput, outgoing::Outgoing};
use crate::{
    Batch, ConfigValue, Dot, EngineFigures, Event, Kind, Ledger, Op, Ticket, WorkerAdd, WriteError,
    lanes::{WorkersKey, owned},
    planes::{INFO_KEY, LoadKey, Removal, is_revocation, worker_key},
    wire::encode_value,
};

/// Writes that wait, and batches on their way to disk.
#[derive(Debug, Default)]
pub(super) struct Writes {
    started: Started,
    /// Durable changes that wait until the node has joined: before that it may not know its own past.
    queued: VecDeque<Queued>,
    /// Durable changes that wait for the disk and a peer, by version.
    waiting: BTreeMap<Kind, VecDeque<Waiting>>,
    batch: u64,
    persisted: u64,
    fresh_dots: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Started {
    #[default]
    No,
    Yes,
}

#[derive(Debug)]
struct Queued {
    ticket: Option<Ticket>,
    op: Op,
}

#[derive(Clone, Copy, Debug)]
struct Waiting {
    ticket: Ticket,
    version: u64,
    batch: u64,
}

impl Writes {
    /// Whether every batch has reached the disk.
    pub(super) fn is_on_disk(&self) -> bool {
        self.persisted == self.batch
    }

    fn count(&self) -> usize {
        self.queued.len() + self.waiting.values().map(VecDeque::len).sum::<usize>()
    }
}

impl Replica {
    /// This node changes something.
    pub(crate) fn write(&mut self, now: Timestamp, ticket: Option<Ticket>, op: Op) {
        let durable = op_kind(&op).is_durable();
        if durable && self.writes.count() >= self.limits.tickets_max {
            return self.written(ticket, Err(WriteError::Busy));
        }
        if durable && self.writes.started == Started::No {
            self.writes.queued.push_back(Queued { ticket, op });
            return;
        }
        self.carry_out(now, ticket, op);
    }

    /// The node has joined: durable writes may go.
    pub(crate) fn joined(&mut self, now: Timestamp) {
        self.writes.started = Started::Yes;
        for Queued { ticket, op } in std::mem::take(&mut self.writes.queued) {
            self.carry_out(now, ticket, op);
        }
    }

    /// Whether durable changes may be made.
    pub(super) fn has_started(&self) -> bool {
        self.writes.started == Started::Yes
    }

    /// A batch is on disk.
    pub(crate) fn persisted(&mut self, sequence: u64) {
        self.writes.persisted = self.writes.persisted.max(sequence.min(self.writes.batch));
        self.resolve();
    }

    /// Hands what changed to the disk, one batch at a time: while one is being written, the next gathers.
    pub(super) fn persist(&mut self) {
        if self.lanes.pending.is_empty() || !self.writes.is_on_disk() {
            return;
        }
        self.writes.batch += 1;
        let batch = Batch { sequence: self.writes.batch, records: self.lanes.pending.take() };
        self.out.push(ReplicaOutput::Persist(batch));
    }

    fn carry_out(&mut self, now: Timestamp, ticket: Option<Ticket>, op: Op) {
        let kind = op_kind(&op);
        match self.change(now, op) {
            Ok(()) if kind.is_durable() => self.wait(ticket, kind),
            outcome => self.written(ticket, outcome),
        }
    }

    fn wait(&mut self, ticket: Option<Ticket>, kind: Kind) {
        if let Some(ticket) = ticket {
            let next = u64::from(!self.lanes.pending.is_empty());
            let version = self.lanes.position(self.me, kind).version;
            let waiting = Waiting { ticket, version, batch: self.writes.batch + next };
            self.writes.waiting.entry(kind).or_default().push_back(waiting);
            self.resolve();
        }
    }

    /// A durable lane begins anew: what waited for a version of it waits for all of it.
    pub(super) fn wait_for_all(&mut self, kind: Kind) {
        let version = self.lanes.position(self.me, kind).version;
        let batch = self.writes.batch + 1;
        for waiting in self.writes.waiting.entry(kind).or_default() {
            (waiting.version, waiting.batch) = (version, batch);
        }
    }

    /// Reports the writes that are on disk and known to a peer, if there is any.
    pub(super) fn resolve(&mut self) {
        let mut done = Vec::new();
        for (kind, waiting) in &mut self.writes.waiting {
            let epoch = self.lanes.position(self.me, *kind).epoch;
            let acked = |peer: &Peer| {
                let acked = peer.outgoing.get(&(*kind, self.me)).map(Outgoing::acked).unwrap_or_default();
                if acked.epoch == epoch { acked.version } else { 0 }
            };
            let alone = self.peers.is_empty().then_some(u64::MAX);
            let known = alone.or_else(|| self.peers.values().map(acked).max()).unwrap_or_default();
            while let Some(first) = waiting.front()
                && first.version <= known
                && first.batch <= self.writes.persisted
            {
                done.extend(waiting.pop_front().map(|waiting| waiting.ticket));
            }
        }
        for ticket in done {
            self.written(Some(ticket), Ok(()));
        }
    }

    fn written(&mut self, ticket: Option<Ticket>, outcome: Result<(), WriteError>) {
        if let Some(ticket) = ticket {
            self.out.push(ReplicaOutput::Event(Event::Written { ticket, outcome }));
        }
    }

    fn change(&mut self, now: Timestamp, op: Op) -> Result<(), WriteError> {
        match op {
            Op::AddWorker { worker, spec, declared: true } => self.declare(now, worker, &spec),
            Op::AddWorker { worker, spec, declared: false } => self.add(now, worker, &spec),
            Op::WithdrawWorker { worker } => {
                self.drop_own(now, worker, Dot::is_declared, None);
                Ok(())
            }
            Op::RemoveWorker { worker } => self.remove(now, worker),
            Op::Vote { worker, vote } => {
                self.put(now, Kind::Health, worker_key(worker), vote.map(|vote| encode_value(&vote)))
            }
            Op::Ledger { worker, ledger } => {
                let value = (ledger != Ledger::default()).then(|| encode_value(&ledger));
                self.put(now, Kind::Load, LoadKey::Ledger(worker).bytes(), value)
            }
            Op::Engine { worker, figures } => {
                let value = figures.map(|figures: EngineFigures| encode_value(&figures));
                self.put(now, Kind::Load, LoadKey::Engine(worker).bytes(), value)
            }
            Op::Config { key, value } => self.configure(now, &key, value.as_deref()),
            Op::Draining(draining) => {
                self.info.draining = draining;
                self.put(now, Kind::Node, Bytes::from_static(INFO_KEY), Some(encode_value(&self.info)))
            }
            Op::Entry { kind, key, value } => match kind {
                Kind::Budgets => self.put(now, kind, owned(&key), value),
                Kind::Prefixes | Kind::Limits => self.put(now, kind, key, value),
                // The other kinds are understood here, and have operations of their own.
                _ => Err(WriteError::TooLarge),
            },
        }
    }

    fn declare(&mut self, now: Timestamp, worker: WorkerId, spec: &[u8]) -> Result<(), WriteError> {
        let dot = Dot::declared(worker, spec);
        if self.planes.workers.is_removed(dot) {
            self.planes.tell_worker(worker);
            self.stir(now);
            return Ok(());
        }
        // A node that declares what others declare says nothing new, and does not override what came later.
        let known = self.planes.workers.lamport_of(worker, dot);
        let lamport = known.unwrap_or_else(|| self.planes.workers.lamport(worker) + 1);
        let key = owned(&WorkersKey::Add(dot).bytes());
        if self.lanes.lane(self.me, Kind::Workers).is_none_or(|lane| lane.value(&key).is_none()) {
            let add = WorkerAdd { worker: worker.as_u128(), spec: spec.to_vec(), lamport };
            self.put(now, Kind::Workers, key, Some(encode_value(&add)))?;
        } else {
            // Said again, though nothing changes: a copy of this lane that comes later must not take it back.
            self.written.insert((Kind::Workers, key));
        }
        self.drop_own(now, worker, Dot::is_declared, Some(dot));
        Ok(())
    }

    fn add(&mut self, now: Timestamp, worker: WorkerId, spec: &[u8]) -> Result<(), WriteError> {
        self.writes.fresh_dots += 1;
        let dot = Dot::fresh(self.me, self.instance, self.writes.fresh_dots);
        let lamport = self.planes.workers.lamport(worker) + 1;
        let add = WorkerAdd { worker: worker.as_u128(), spec: spec.to_vec(), lamport };
        self.put(now, Kind::Workers, owned(&WorkersKey::Add(dot).bytes()), Some(encode_value(&add)))?;
        self.drop_own(now, worker, |dot| !dot.is_declared(), Some(dot));
        Ok(())
    }

    /// Takes back what this node itself asserts of a worker, but for one assertion.
    fn drop_own(&mut self, now: Timestamp, worker: WorkerId, which: impl Fn(Dot) -> bool, except: Option<Dot>) {
        for (dot, place) in self.planes.workers.held_by(self.me, worker) {
            if place.author == self.me && which(dot) && Some(dot) != except {
                self.erase(now, Kind::Workers, &owned(&WorkersKey::Add(dot).bytes()));
            }
        }
    }

    fn remove(&mut self, now: Timestamp, worker: WorkerId) -> Result<(), WriteError> {
        let dots = self.planes.workers.standing_dots(worker);
        if dots.is_empty() {
            return Err(WriteError::UnknownWorker);
        }
        let room = self.limits.lane_entries_max.saturating_sub(self.own_entries(Kind::Workers));
        if dots.len() > room {
            return Err(WriteError::TooLarge);
        }
        for dot in dots {
            let key = owned(&WorkersKey::Remove(dot).bytes());
            let removal = Removal { worker: worker.as_u128(), authors: self.planes.workers.authors(worker, dot) };
            self.put(now, Kind::Workers, key, Some(encode_value(&removal)))?;
        }
        Ok(())
    }

    fn configure(&mut self, now: Timestamp, key: &str, value: Option<&[u8]>) -> Result<(), WriteError> {
        if value.is_none() && is_revocation(key) {
            return Err(WriteError::Revoked);
        }
        let lamport = self.planes.config.lamport(key);
        let before = self.planes.config.value(key);
        if before.as_deref() == value || (before.is_some() && is_revocation(key)) {
            return Ok(());
        }
        let value = ConfigValue { lamport: lamport + 1, value: value.map(<[u8]>::to_vec) };
        self.put(now, Kind::Config, owned(key.as_bytes()), Some(encode_value(&value)))
    }

    fn own_entries(&self, kind: Kind) -> usize {
        self.lanes.lane(self.me, kind).map_or(0, crate::lanes::Lane::len)
    }

    /// Sets or deletes an entry of our own lane, within its limits; what changes nothing is not written.
    pub(super) fn put(
        &mut self,
        now: Timestamp,
        kind: Kind,
        key: Bytes,
        value: Option<Bytes>,
    ) -> Result<(), WriteError> {
        let lane = self.lanes.lane(self.me, kind);
        if lane.and_then(|lane| lane.value(&key)) == value.as_ref() {
            return Ok(());
        }
        let weight = key.len() + value.as_ref().map_or(0, Bytes::len);
        let is_new = lane.is_none_or(|lane| lane.version_of(&key).is_none());
        if key.len() > self.limits.key_bytes_max
            || weight - key.len() > self.limits.value_bytes_max
            || (is_new && self.own_entries(kind) >= self.limits.lane_entries_max)
            || (value.is_some() && self.lanes.writer_bytes(self.me) + weight > self.limits.writer_bytes_max)
        {
            return Err(WriteError::TooLarge);
        }
        if kind.is_durable() {
            self.written.insert((kind, key.clone()));
        }
        let epoch = self.own_epoch(kind);
        let change = self.lanes.set(self.me, kind, epoch, key, value);
        self.absorb(now, self.me, kind, &[change]);
        Ok(())
    }

    /// Deletes an entry of our own lane, if it is there.
    pub(super) fn erase(&mut self, now: Timestamp, kind: Kind, key: &Bytes) {
        if self.lanes.lane(self.me, kind).is_some_and(|lane| lane.value(key).is_some()) {
            let epoch = self.own_epoch(kind);
            let change = self.lanes.set(self.me, kind, epoch, key.clone(), None);
            if kind.is_durable() {
                self.written.insert((kind, key.clone()));
            }
            self.absorb(now, self.me, kind, &[change]);
        }
    }
}

/// The kind of lane that an operation changes.
fn op_kind(op: &Op) -> Kind {
    match op {
        Op::AddWorker { .. } | Op::WithdrawWorker { .. } | Op::RemoveWorker { .. } => Kind::Workers,
        Op::Vote { .. } => Kind::Health,
        Op::Ledger { .. } | Op::Engine { .. } => Kind::Load,
        Op::Config { .. } => Kind::Config,
        Op::Draining(_) => Kind::Node,
        Op::Entry { kind, .. } => *kind,
    }
}
