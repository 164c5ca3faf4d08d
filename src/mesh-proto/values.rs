//! What lanes carry: kinds of lanes, and the values that the planes understand.

use bincode::{Decode, Encode};
use bytes::Bytes;
use smg_base::WorkerId;

/// What a lane is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// What a node says of itself: [`NodeInfo`].
    Node = 0,
    /// Which workers exist: [`WorkerAdd`]s and removals.
    Workers = 1,
    /// Shared configuration: [`ConfigValue`]s.
    Config = 2,
    /// Votes on workers' health: [`Vote`]s.
    Health = 3,
    /// Requests a node has at workers ([`Ledger`]), and engines' figures from their homes ([`EngineFigures`]).
    Load = 4,
    /// Which worker holds which prefix; opaque here.
    Prefixes = 5,
    /// Limits that may be forgotten; opaque here.
    Limits = 6,
    /// Budgets that may not; opaque here.
    Budgets = 7,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 8] = [
        Self::Node,
        Self::Workers,
        Self::Config,
        Self::Health,
        Self::Load,
        Self::Prefixes,
        Self::Limits,
        Self::Budgets,
    ];

    /// The kind of this number.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Whether lanes of this kind are journalled and outlive their writer.
    pub const fn is_durable(self) -> bool {
        matches!(self, Self::Workers | Self::Config | Self::Budgets)
    }

    /// The name in metrics, logs and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Workers => "workers",
            Self::Config => "config",
            Self::Health => "health",
            Self::Load => "load",
            Self::Prefixes => "prefixes",
            Self::Limits => "limits",
            Self::Budgets => "budgets",
        }
    }
}

/// What a node says of itself to all others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct NodeInfo {
    /// Its name.
    pub name: String,
    /// Its failure domain.
    pub zone: String,
    /// Its region.
    pub region: String,
    /// Where clients reach it; may be empty.
    pub traffic_url: String,
    /// Version of its program.
    pub software: String,
    /// Whether it is about to leave: others send it no more requests.
    pub draining: bool,
}

/// An assertion that a worker exists.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct WorkerAdd {
    /// The worker.
    pub worker: u128,
    /// Its specification, in a form the mesh does not read.
    pub spec: Vec<u8>,
    /// Greater than that of every assertion of the same worker its writer had seen: of two specifications the later wins
    /// (Lamport, 1978), and of two with the same the one with the greater dot.
    pub lamport: u64,
}

impl WorkerAdd {
    /// The worker's id.
    pub fn id(&self) -> u128 {
        self.worker
    }
}

/// What one node found out about a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Vote {
    /// It answers well.
    Up,
    /// It answers, and badly.
    Sick,
    /// This node cannot reach it; that says nothing about the worker.
    Unreachable,
}

impl Vote {
    /// The word in logs and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Sick => "sick",
            Self::Unreachable => "unreachable",
        }
    }
}

/// What all alive nodes together found out about a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nobody alive has voted.
    Unknown,
    /// It may be used by those who reach it.
    Up,
    /// No alive node says up, or those who reach it say sick by majority (of two, both).
    Down,
}

impl Verdict {
    /// The word in logs and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// What one node has at a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Ledger {
    /// Requests sent and not finished.
    pub requests: u32,
    /// Of those, how many decode.
    pub decoding: u32,
    /// Prompt tokens of those whose first token has not come.
    pub pending_tokens: u64,
}

impl Ledger {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            decoding: self.decoding.saturating_add(other.decoding),
            pending_tokens: self.pending_tokens.saturating_add(other.pending_tokens),
        }
    }
}

/// What an engine says of itself, passed on by its home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Encode, Decode)]
pub struct EngineFigures {
    /// Requests being worked on.
    pub running: u32,
    /// Requests waiting in the engine.
    pub waiting: u32,
    /// Of both, those that no node of the mesh sent: the figure less all ledgers at the time of the sample.
    pub foreign: u32,
    /// Used share of the KV cache.
    pub kv_usage: f32,
    /// Tokens generated per second.
    pub generation_tokens_per_second: f32,
}

/// A value of shared configuration; none is a deletion that later writes override.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ConfigValue {
    /// Greater than that of every value of the key its writer had seen.
    pub lamport: u64,
    /// The value.
    pub value: Option<Vec<u8>>,
}

/// The state of one plane on one node: equal on two nodes exactly if they know the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Digest(pub u128);

/// A change that this node makes.
#[derive(Clone, Debug)]
pub enum Op {
    /// Asserts that a worker exists. With `declared`, the dot follows from the worker and its specification.
    AddWorker {
        /// The worker.
        worker: WorkerId,
        /// Its specification.
        spec: Bytes,
        /// Whether flags or a file say so.
        declared: bool,
    },
    /// Takes back what this node itself asserts of a worker, because its flags or file no longer say so; what others assert stands.
    WithdrawWorker {
        /// The worker.
        worker: WorkerId,
    },
    /// Removes a worker: covers every assertion this node has seen, by whomever.
    RemoveWorker {
        /// The worker.
        worker: WorkerId,
    },
    /// Sets this node's vote on a worker; none takes it back.
    Vote {
        /// The worker.
        worker: WorkerId,
        /// The vote.
        vote: Option<Vote>,
    },
    /// Says what this node has at a worker; nothing at all is forgotten.
    Ledger {
        /// The worker.
        worker: WorkerId,
        /// The figures.
        ledger: Ledger,
    },
    /// Passes on what an engine says; only its home does so. None takes it back.
    Engine {
        /// The worker.
        worker: WorkerId,
        /// The figures.
        figures: Option<EngineFigures>,
    },
    /// Sets a value of shared configuration, or deletes it. Keys under `revoked/` can be set and never deleted.
    Config {
        /// The key, such as `alias/gpt-4`.
        key: String,
        /// The value.
        value: Option<Bytes>,
    },
    /// Says that this node is about to leave, or takes that back.
    Draining(
        /// Whether it is.
        bool,
    ),
    /// Writes an entry of this node's lane of a kind that is opaque here; none deletes it.
    Entry {
        /// The kind: prefixes, limits or budgets.
        kind: Kind,
        /// The key.
        key: Bytes,
        /// The value.
        value: Option<Bytes>,
    },
}
