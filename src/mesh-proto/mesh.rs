//! The state machine that a node drives: membership and replication together.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use smg_base::{Timestamp, WorkerId};

use crate::{
    CloseCode, Config, Event, Input, Ledger, NodeId, Output, Reach, Restored, Skipped, Status, Ticket, WorkerRow,
    WriteError,
    membership::{Connection, Effect, Membership},
    replica::{Replica, ReplicaOutput},
};

/// How long a leaving node waits for its last changes to be acknowledged.
const LEAVE_WITHIN: Duration = Duration::from_secs(1);
/// Rounds in which the two halves may answer each other within one call; two are common, more mean that something is wrong.
const ROUNDS_MAX: usize = 32;

/// One node's mesh.
pub struct Mesh {
    me: NodeId,
    config: Config,
    membership: Membership,
    replica: Replica,
    started: Timestamp,
    phase: Phase,
    /// Kept to be used again.
    outputs: Vec<ReplicaOutput>,
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// It learns what its peers know.
    Joining,
    /// It acts, and nobody else is there.
    Alone,
    /// It is one of several.
    Joined,
    /// It has said all it has to say by then.
    Leaving { until: Timestamp },
    /// It has left, or was refused.
    Gone,
}

impl Mesh {
    /// A node that starts now, with what its disk held.
    pub fn new(config: Config, restored: Restored, now: Timestamp) -> Self {
        let me = NodeId::of(&config.name);
        let mut replica = Replica::new(me, &config, restored);
        let boot = replica.boot().saturating_add(1);
        replica.set_boot(boot);
        let membership = Membership::new(config.clone(), boot, now);
        Self { me, config, membership, replica, started: now, phase: Phase::Joining, outputs: Vec::new() }
    }

    /// Takes what happened; adds what is to be done.
    pub fn handle(&mut self, now: Timestamp, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Connected { connection, peer, address, direction } => {
                let holds = self.replica.holds(peer);
                self.membership.connected(now, connection, Connection::new(now, peer, address, direction), holds);
            }
            Input::Disconnected { connection, gone } => self.membership.gone(now, connection, Some(&gone)),
            Input::DialFailed { address } => self.membership.dial_failed(now, address),
            Input::Frame { connection, bytes } => self.membership.frame(now, connection, bytes),
            Input::Vitals { connection, rtt, loss } => self.membership.vitals(connection, rtt, loss),
            Input::ForwardFailed { peer } => self.membership.forward_failed(now, peer),
            Input::RelayCandidates(peers) => self.membership.set_candidates(now, peers),
            Input::Seeds(addresses) => self.membership.set_seeds(now, addresses),
            Input::Write { ticket, op } => match self.phase {
                Phase::Leaving { .. } | Phase::Gone => refuse_write(ticket, out),
                Phase::Joining | Phase::Alone | Phase::Joined => self.replica.write(now, ticket, op),
            },
            Input::Persisted { sequence } => self.replica.persisted(sequence),
            Input::Leave => self.leave(now),
            Input::Tick => self.membership.tick(now),
        }
        self.settle(now, out);
    }

    /// When [`Input::Tick`] is due.
    pub fn next_tick(&self) -> Timestamp {
        match self.phase {
            Phase::Gone => Timestamp::from_nanos(u64::MAX),
            Phase::Leaving { until } => self.membership.next_tick().min(self.replica.next_tick()).min(until),
            _ => self.membership.next_tick().min(self.replica.next_tick()),
        }
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.me
    }

    /// Everything that operators are told.
    pub fn status(&self) -> Status {
        Status {
            node: self.me,
            cluster: self.config.cluster.clone(),
            joined: matches!(self.phase, Phase::Alone | Phase::Joined),
            alone: self.phase == Phase::Alone,
            members: self.membership.members(|node| self.replica.info(node)),
            planes: self.replica.planes(),
            digest: self.replica.digest(),
            stretched: self.membership.is_stretched(),
            skipped: Skipped { frames: self.membership.skipped_frames(), entries: self.replica.skipped_entries() },
        }
    }

    /// Whether a node's word counts.
    pub fn is_alive(&self, node: NodeId) -> bool {
        self.membership.is_alive(node)
    }

    /// All workers of which an assertion stands.
    pub fn workers(&self) -> BTreeMap<WorkerId, WorkerRow> {
        self.replica.workers()
    }

    /// How a worker stands with the nodes.
    pub fn reach(&self, worker: WorkerId) -> Reach {
        self.replica.reach(worker)
    }

    /// What all alive others have at a worker.
    pub fn peer_load(&self, worker: WorkerId) -> Ledger {
        self.replica.peer_load(worker)
    }

    /// A value of shared configuration.
    pub fn config_value(&self, key: &str) -> Option<Bytes> {
        self.replica.config_value(key)
    }

    /// The keys of shared configuration that have a value.
    pub fn config_keys(&self) -> Vec<String> {
        self.replica.config_keys()
    }

    fn leave(&mut self, now: Timestamp) {
        if !matches!(self.phase, Phase::Leaving { .. } | Phase::Gone) {
            self.phase = Phase::Leaving { until: now + LEAVE_WITHIN };
        }
    }

    /// Lets the two halves act on each other until nothing more follows.
    fn settle(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        for _ in 0..ROUNDS_MAX {
            self.membership.flush(now);
            let effects = self.membership.take_effects();
            let was_quiet = effects.is_empty();
            for effect in effects {
                self.effect(now, effect, out);
            }
            if self.replica.next_tick() <= now {
                self.replica.tick(now);
            }
            let had_nothing = self.pass_on(out);
            // A lane of an earlier run, shown by a peer, may have made replication go on under a greater number.
            self.membership.raise_boot(now, self.replica.boot());
            if was_quiet && had_nothing && !self.advance(now, out) {
                break;
            }
        }
        let replica = &self.replica;
        for member in self.membership.news(|node| replica.info(node)) {
            out.push(Output::Event(Event::Member(member)));
        }
    }

    fn effect(&mut self, now: Timestamp, effect: Effect, out: &mut Vec<Output>) {
        match effect {
            Effect::Output(output) => {
                if matches!(output, Output::Event(Event::Refused(_))) {
                    self.phase = Phase::Gone;
                }
                out.push(output);
            }
            Effect::Boot(boot) => self.replica.set_boot(boot),
            Effect::Told(holds) => self.replica.told(holds),
            Effect::Up(peer) => self.replica.session_up(now, peer),
            Effect::Down(peer) => self.replica.session_down(now, peer),
            Effect::Alive { node, alive } => self.replica.set_alive(now, node, alive),
            Effect::Lane { from, connection, frame } => {
                if self.replica.frame(now, from, frame).is_err() {
                    self.membership.close(now, connection, CloseCode::Misbehaved);
                }
            }
        }
    }

    /// Passes on what replication wants done. Tells whether there was nothing.
    fn pass_on(&mut self, out: &mut Vec<Output>) -> bool {
        let mut outputs = std::mem::take(&mut self.outputs);
        self.replica.drain(&mut outputs);
        let had_nothing = outputs.is_empty();
        for output in outputs.drain(..) {
            match output {
                ReplicaOutput::Send { peer, class, bytes } => self.membership.send_bytes(peer, class, bytes),
                ReplicaOutput::Persist(batch) => out.push(Output::Persist(batch)),
                ReplicaOutput::Event(event) => out.push(Output::Event(event)),
                ReplicaOutput::Info(node) if node == self.me => {
                    let member = self.membership.myself(self.replica.info(node));
                    out.push(Output::Event(Event::Member(Arc::new(member))));
                }
                ReplicaOutput::Info(node) => self.membership.touch(node),
            }
        }
        self.outputs = outputs;
        had_nothing
    }

    /// Joins or leaves, when it is time to. Tells whether something happened.
    fn advance(&mut self, now: Timestamp, out: &mut Vec<Output>) -> bool {
        let next = match self.phase {
            Phase::Joining | Phase::Alone if self.is_synced() => Phase::Joined,
            Phase::Joining if self.acts_alone(now) => Phase::Alone,
            Phase::Leaving { until } if until <= now || self.replica.is_flushed() => Phase::Gone,
            _ => return false,
        };
        let before = std::mem::replace(&mut self.phase, next);
        match next {
            Phase::Gone => {
                self.membership.depart(now);
                for effect in self.membership.take_effects() {
                    self.effect(now, effect, out);
                }
                out.push(Output::Event(Event::Left));
            }
            Phase::Alone | Phase::Joined => {
                if next == Phase::Joined {
                    self.membership.set_joined();
                }
                if before == Phase::Joining {
                    self.replica.joined(now);
                }
                out.push(Output::Event(Event::Joined { alone: next == Phase::Alone }));
            }
            Phase::Joining | Phase::Leaving { .. } => {}
        }
        true
    }

    fn is_synced(&self) -> bool {
        self.membership.peers().any(|peer| self.replica.is_synced(peer))
    }

    fn acts_alone(&self, now: Timestamp) -> bool {
        let nobody = self.membership.peers().len() == 0;
        nobody && (self.membership.has_no_seeds() || now.since(self.started) >= self.config.timers.join_patience)
    }
}

fn refuse_write(ticket: Option<Ticket>, out: &mut Vec<Output>) {
    if let Some(ticket) = ticket {
        out.push(Output::Event(Event::Written { ticket, outcome: Err(WriteError::Leaving) }));
    }
}
