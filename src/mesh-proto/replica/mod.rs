//! Replication of one node: its own lanes out to every peer, everybody's lanes in, what is missing fetched from whoever has it.

use std::collections::BTreeMap;

use bytes::Bytes;
use smg_base::{Timestamp, WorkerId};

use crate::{
    Batch, Class, Config, Digest, Event, Ledger, NodeId, NodeInfo, Op, PlaneStatus, Reach, Restored, Ticket, WorkerRow,
    wire::{Holds, LaneFrame, Misbehaviour},
};

/// Something is to be done for replication.
#[derive(Clone, Debug)]
pub(crate) enum ReplicaOutput {
    /// Send a frame to a peer, over the session that stands.
    Send {
        /// To whom.
        peer: NodeId,
        /// How it travels.
        class: Class,
        /// The frame's bytes.
        bytes: Bytes,
    },
    /// Write to disk.
    Persist(Batch),
    /// News for the node.
    Event(Event),
    /// What a node says of itself changed: its `Member` is to be shown anew.
    Info(NodeId),
}

/// What SWIM thinks of a member, as far as its word counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alive {
    /// It counts.
    Yes,
    /// It does not.
    No,
}

/// Replication of one node.
pub(crate) struct Replica {
    me: NodeId,
    boot: u64,
}

#[expect(unused_variables, clippy::unused_self, clippy::needless_pass_by_ref_mut, reason = "bodies follow")]
impl Replica {
    /// Replication of the node `me`, with what its disk held.
    pub(crate) fn new(me: NodeId, config: &Config, restored: Restored) -> Self {
        Self { me, boot: 0 }
    }

    /// This node's boot number; before [`Self::set_boot`] that of the run before, 0 if there was none.
    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    /// Begins a run under this number: journals it and restarts the ephemeral lanes under it.
    pub(crate) fn set_boot(&mut self, boot: u64) {
        self.boot = boot;
    }

    /// The greatest numbers known for a node; none if nothing is known of it.
    pub(crate) fn holds(&self, node: NodeId) -> Option<Holds> {
        None
    }

    /// A peer says what it holds of this node's lanes.
    pub(crate) fn told(&mut self, now: Timestamp, peer: NodeId, holds: Holds) {}

    /// A session with a peer stands.
    pub(crate) fn session_up(&mut self, now: Timestamp, peer: NodeId) {}

    /// It has ended.
    pub(crate) fn session_down(&mut self, now: Timestamp, peer: NodeId) {}

    /// SWIM says whether a node's word counts.
    pub(crate) fn set_alive(&mut self, now: Timestamp, node: NodeId, alive: Alive) {}

    /// A frame came from a peer with a session.
    pub(crate) fn frame(&mut self, now: Timestamp, from: NodeId, frame: LaneFrame) -> Result<(), Misbehaviour> {
        Ok(())
    }

    /// This node changes something.
    pub(crate) fn write(&mut self, now: Timestamp, ticket: Option<Ticket>, op: Op) {}

    /// A batch is on disk.
    pub(crate) fn persisted(&mut self, now: Timestamp, sequence: u64) {}

    /// The node has joined: durable writes may go.
    pub(crate) fn joined(&mut self, now: Timestamp) {}

    /// Whether everything this peer had when it was asked has arrived here.
    pub(crate) fn is_synced(&self, peer: NodeId) -> bool {
        true
    }

    /// Whether every peer with a session has acknowledged all of this node's lanes, and the disk has them too: it may leave.
    pub(crate) fn is_flushed(&self) -> bool {
        true
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Timestamp) {}

    /// When [`Self::tick`] is due.
    pub(crate) fn next_tick(&self) -> Timestamp {
        Timestamp::from_nanos(u64::MAX)
    }

    /// Takes what is to be done.
    pub(crate) fn drain(&mut self, out: &mut Vec<ReplicaOutput>) {}

    /// What a node says of itself.
    pub(crate) fn info(&self, node: NodeId) -> Option<NodeInfo> {
        None
    }

    /// All workers of which an assertion stands.
    pub(crate) fn workers(&self) -> BTreeMap<WorkerId, WorkerRow> {
        BTreeMap::new()
    }

    /// How a worker stands with the nodes.
    pub(crate) fn reach(&self, worker: WorkerId) -> Reach {
        Reach {
            verdict: crate::Verdict::Unknown,
            via: Vec::new(),
            votes: Vec::new(),
            home: None,
            standby: None,
            probed_here: false,
        }
    }

    /// What all alive others have at a worker.
    pub(crate) fn peer_load(&self, worker: WorkerId) -> Ledger {
        Ledger::default()
    }

    /// A value of shared configuration.
    pub(crate) fn config_value(&self, key: &str) -> Option<Bytes> {
        None
    }

    /// The keys of shared configuration that have a value.
    pub(crate) fn config_keys(&self) -> Vec<String> {
        Vec::new()
    }

    /// All planes that have lanes.
    pub(crate) fn planes(&self) -> Vec<PlaneStatus> {
        Vec::new()
    }

    /// One digest over all planes.
    pub(crate) fn digest(&self) -> Digest {
        Digest(0)
    }
}
