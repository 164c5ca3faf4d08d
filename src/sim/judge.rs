//! What is known about a run beyond what its nodes know: what was asked and acknowledged, and therefore what must hold.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::Serialize;
use smg_base::Timestamp;
use smg_mesh_proto::{Kind, NodeId, Ticket};

use crate::plan::Ask;

/// A promise that was not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// When, milliseconds.
    pub at_ms: u64,
    /// Which promise.
    pub promise: Promise,
    /// The particulars.
    pub what: String,
}

/// What the mesh promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    /// A version vector never goes back.
    Forward,
    /// Two nodes with the same version vector have the same digest.
    SameDigest,
    /// An acknowledged registration is not lost.
    Registered,
    /// A worker whose removal everybody knew does not come back.
    Removed,
    /// A worker that a node reaches and finds well is not down for that node, nor for those it is connected with.
    HealthyUp,
    /// A live node that is reachable is not declared down.
    AliveUp,
    /// A node that did not say so has not left.
    StayedIn,
    /// A revocation stays.
    Revoked,
    /// A node alone with its name is not refused.
    Welcome,
    /// A second node with a name is.
    OneOfAName,
    /// What honest nodes send is not called misbehaviour.
    Honest,
    /// Journals, frames and calls keep to their contract.
    Contract,
    /// Memory and traffic are bounded.
    Bounded,
    /// When faults end, all nodes soon know the same and each other.
    Heals,
    /// At the end everybody knows what was asked.
    Final,
    /// The same plan gives the same run.
    Repeatable,
}

/// What must be the case of a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Operations overlapped, or one failed: either may be.
    #[default]
    Open,
    /// A registration was acknowledged and nothing has been asked against it since.
    Present,
    /// A removal was acknowledged that had seen every assertion there was.
    Gone,
    /// Everybody knew that it is removed, at a moment when nothing was under way.
    Absent {
        /// Since when.
        since: Timestamp,
    },
}

/// The history of a worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) expected: Expected,
    /// When something was last asked of it, or answered.
    pub(crate) touched: Timestamp,
    /// How often anything was asked of it.
    pub(crate) asked: u64,
    /// How often something was asked against it: an add that was asked before does not make it present.
    pub(crate) against: u64,
    /// Whether it was ever asked to be removed: then a declaration need not bring it back.
    pub(crate) is_removal_asked: bool,
    /// Whether a removal covered its declaration: then a declaration does not bring it back.
    pub(crate) is_declaration_removed: bool,
    /// When a node last found it sick.
    pub(crate) sick: Option<Timestamp>,
    /// The specification whose registration was acknowledged.
    pub(crate) spec: Bytes,
    /// Processes that have shown that specification while it was expected: place and generation.
    pub(crate) shown: BTreeSet<(usize, u32)>,
}

/// An operation that waits for its acknowledgement.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) place: usize,
    pub(crate) generation: u32,
    pub(crate) ask: Ask,
    pub(crate) is_declared: bool,
    pub(crate) spec: Bytes,
    /// [`History::against`] when it was asked; of a write to configuration, its position among those to the key.
    pub(crate) against: u64,
    /// Of a removal: whether the node saw a declaration.
    pub(crate) saw_declaration: bool,
    /// Of a removal: whether the node saw all that anybody had asserted.
    pub(crate) saw_everything: bool,
    /// [`History::asked`] when it was asked.
    pub(crate) asked: u64,
}

/// A write to a key of shared configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConfigWrite {
    pub(crate) place: usize,
    pub(crate) value: Option<u32>,
    pub(crate) is_acknowledged: bool,
}

/// What is known of one process's lanes, to see that they only go forward: by kind and writer, epoch and version.
pub(crate) type Heads = BTreeMap<(Kind, NodeId), (u64, u64)>;

/// Everything the checks remember.
#[derive(Debug, Default)]
pub(crate) struct Judge {
    pub(crate) violations: Vec<Violation>,
    pub(crate) workers: Vec<History>,
    pub(crate) waiting: BTreeMap<Ticket, Waiting>,
    pub(crate) tickets: u64,
    pub(crate) heads: BTreeMap<(usize, u32), Heads>,
    /// By key: what was ever written to it.
    pub(crate) config: BTreeMap<usize, Vec<ConfigWrite>>,
    /// Keys whose revocation was acknowledged, with the processes that have shown it.
    pub(crate) revoked: BTreeMap<usize, BTreeSet<(usize, u32)>>,
    /// Since when a worker is down at a process although it should not be.
    pub(crate) wrongly_down: BTreeMap<(usize, u32, usize), Timestamp>,
    /// When the cluster was first found whole after the faults, and still is.
    pub(crate) whole_since: Option<Timestamp>,
    /// Since when it is not, or no longer.
    pub(crate) broken_since: Option<Timestamp>,
    /// Why it was last not whole.
    pub(crate) not_whole: String,
    pub(crate) has_lost_disks: bool,
    /// Frames each place had sent a second ago.
    pub(crate) frames: BTreeMap<usize, u64>,
}

/// Violations that are kept of a run: the first ones tell most.
const VIOLATIONS_MAX: usize = 8;

impl Judge {
    pub(crate) fn blame(&mut self, now: Timestamp, promise: Promise, what: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            let at_ms = now.as_nanos() / 1_000_000;
            self.violations.push(Violation { at_ms, promise, what });
        }
    }

    /// A process is gone: nothing it was asked will be answered. What it was asked against a worker may have been done at any
    /// moment until now.
    pub(crate) fn forget(&mut self, place: usize) {
        for waiting in self.waiting.values().filter(|waiting| waiting.place == place) {
            if let Ask::Remove { worker } | Ask::Withdraw { worker } = waiting.ask {
                self.workers[worker].against += 1;
            }
        }
        self.waiting.retain(|_, waiting| waiting.place != place);
        self.wrongly_down.retain(|(at, _, _), _| *at != place);
    }

    pub(crate) fn ticket(&mut self, waiting: Waiting) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.waiting.insert(ticket, waiting);
        ticket
    }
}

impl Waiting {
    /// Whether it may yet be done to a worker.
    pub(crate) fn is_against(&self, number: usize) -> bool {
        matches!(self.ask, Ask::Remove { worker } | Ask::Withdraw { worker } if worker == number)
    }

    /// Whether the outcome says something of a worker.
    pub(crate) fn is_about(&self, number: usize) -> bool {
        match self.ask {
            Ask::Add { worker } | Ask::Remove { worker } | Ask::Withdraw { worker } => worker == number,
            _ => false,
        }
    }
}
