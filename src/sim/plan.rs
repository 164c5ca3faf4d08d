//! A run as data: who takes part, what goes wrong when, and what is asked of whom. A plan is made from a seed, written as JSON,
//! replayed, and made smaller.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_mesh_proto::Profile;

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Of everything the run draws while it goes.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// Simulated length, seconds.
    pub seconds: u64,
    /// How much of it, at the end, is without faults and operations.
    pub heal_seconds: u64,
    /// Timers of the nodes.
    pub pace: Pace,
    /// How long a writer is down before others adopt what it wrote, milliseconds.
    pub adopt_after_ms: u64,
    /// One way over a link without faults, microseconds.
    pub link_us: u64,
    /// Beyond that, at most, microseconds.
    pub link_spread_us: u64,
    /// How fast each node's clock goes wrong: parts per million.
    pub drift_ppm: Vec<i64>,
    /// When each node starts, milliseconds.
    pub starts_ms: Vec<u64>,
    /// The seeds each node knows: numbers of nodes.
    pub seeds: Vec<Vec<usize>>,
    /// How long a write to disk takes, at most, milliseconds.
    pub disk_ms: u64,
    /// Workers there are.
    pub workers: usize,
    /// Workers that each node's flags declare: numbers of workers.
    pub declared: Vec<Vec<usize>>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// What is asked.
    pub operations: Vec<Operation>,
}

/// Timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// [`Profile::Lan`].
    Lan,
    /// [`Profile::Fast`].
    Fast,
    /// [`Profile::Wan`].
    Wan,
}

impl Pace {
    /// The profile.
    pub const fn profile(self) -> Profile {
        match self {
            Self::Lan => Profile::Lan,
            Self::Fast => Profile::Fast,
            Self::Wan => Profile::Wan,
        }
    }
}

/// Something goes wrong for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// From when, milliseconds.
    pub at_ms: u64,
    /// For how long, milliseconds.
    pub for_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: Harm,
}

impl Fault {
    /// When it is over.
    pub const fn end_ms(&self) -> u64 {
        self.at_ms + self.for_ms
    }
}

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "harm")]
pub enum Harm {
    /// Packets are lost, each by itself.
    Loss {
        /// Where.
        links: Links,
        /// How many of a hundred.
        percent: u8,
    },
    /// All packets are lost for moments (Gilbert, 1960).
    Bursts {
        /// Where.
        links: Links,
        /// Time between two such moments, on average, milliseconds.
        every_ms: u64,
        /// Length of one, on average, milliseconds.
        length_ms: u64,
    },
    /// Packets take longer.
    Delay {
        /// Where.
        links: Links,
        /// By how much, milliseconds.
        millis: u64,
        /// And by how much more at most, each frame by itself, so that streams overtake each other, milliseconds.
        jitter_ms: u64,
    },
    /// Nothing arrives.
    Cut {
        /// Where.
        links: Links,
    },
    /// Two groups of nodes do not hear each other.
    Split {
        /// One group; the others are the other.
        side: Vec<usize>,
    },
    /// Frames are delivered twice.
    Duplicate {
        /// How many of a hundred.
        percent: u8,
    },
    /// A process stands still, and then finds what came meanwhile.
    Pause {
        /// Whose.
        node: usize,
    },
    /// A process dies without a word and is started again when the fault is over.
    Crash {
        /// Whose.
        node: usize,
        /// What it then finds on its disk.
        disk: DiskFate,
    },
    /// A node leaves, and comes back when the fault is over.
    Leave {
        /// Which.
        node: usize,
    },
    /// Writes to disk are slow.
    SlowDisk {
        /// Whose.
        node: usize,
        /// At most, milliseconds.
        millis: u64,
    },
    /// A node also sends frames that only a later release would.
    Skew {
        /// Which.
        node: usize,
    },
    /// A process with a valid certificate sends what no node would.
    Hostile {
        /// In whose name.
        node: usize,
        /// To whom.
        victim: usize,
    },
    /// A second process is started under a name that is taken.
    Twin {
        /// Whose.
        node: usize,
    },
}

impl Harm {
    /// The word in tables and coverage.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Loss { .. } => "loss",
            Self::Bursts { .. } => "bursts",
            Self::Delay { .. } => "delay",
            Self::Cut { .. } => "cut",
            Self::Split { .. } => "split",
            Self::Duplicate { .. } => "duplicate",
            Self::Pause { .. } => "pause",
            Self::Crash { disk: DiskFate::Kept, .. } => "crash",
            Self::Crash { disk: DiskFate::Old, .. } => "old disk",
            Self::Crash { disk: DiskFate::Wiped, .. } => "wiped disk",
            Self::Leave { .. } => "leave",
            Self::SlowDisk { .. } => "slow disk",
            Self::Skew { .. } => "skew",
            Self::Hostile { .. } => "hostile",
            Self::Twin { .. } => "twin",
        }
    }
}

/// Directed links between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Links {
    /// Every one.
    All,
    /// Those to and from a node.
    Of(usize),
    /// Those from a node.
    From(usize),
    /// Those to a node.
    To(usize),
    /// Both between two nodes.
    Between(usize, usize),
    /// From the one to the other.
    Directed(usize, usize),
}

impl Links {
    /// Whether the link between two nodes is among them.
    pub const fn contain(self, from: usize, to: usize) -> bool {
        match self {
            Self::All => true,
            Self::Of(node) => from == node || to == node,
            Self::From(node) => from == node,
            Self::To(node) => to == node,
            Self::Between(one, other) => (from == one && to == other) || (from == other && to == one),
            Self::Directed(one, other) => from == one && to == other,
        }
    }

    /// The greatest number of a node in it.
    pub(crate) fn greatest(self) -> usize {
        match self {
            Self::All => 0,
            Self::Of(node) | Self::From(node) | Self::To(node) => node,
            Self::Between(one, other) | Self::Directed(one, other) => one.max(other),
        }
    }
}

/// What a process finds on its disk when it starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFate {
    /// What was written.
    Kept,
    /// What was there some time before.
    Old,
    /// Nothing.
    Wiped,
}

/// Something is asked of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    /// When, milliseconds.
    pub at_ms: u64,
    /// Of whom.
    pub node: usize,
    /// What.
    #[serde(flatten)]
    pub what: Ask,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub enum Ask {
    /// Register a worker by the API.
    Add {
        /// Which.
        worker: usize,
    },
    /// Remove a worker.
    Remove {
        /// Which.
        worker: usize,
    },
    /// Take back the node's own assertion of a worker.
    Withdraw {
        /// Which.
        worker: usize,
    },
    /// From now on the node finds a worker so.
    Truth {
        /// Which worker.
        worker: usize,
        /// How.
        health: Health,
    },
    /// The node has so many requests at a worker.
    Ledger {
        /// Which worker.
        worker: usize,
        /// How many.
        requests: u32,
    },
    /// Set a value of shared configuration, or delete it.
    Config {
        /// Which key.
        key: usize,
        /// The value.
        value: Option<u32>,
    },
    /// Revoke a key.
    Revoke {
        /// Which.
        key: usize,
    },
    /// Write so many entries of a kind that the mesh does not read, or delete them.
    Entries {
        /// The first.
        first: u32,
        /// How many.
        count: u32,
        /// Whether they are written.
        live: bool,
    },
    /// Say whether the node drains.
    Draining {
        /// Whether.
        on: bool,
    },
    /// Say that a request could not be forwarded to a peer.
    ForwardFailed {
        /// Which.
        peer: usize,
    },
}

/// How a node finds a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Well.
    Up,
    /// Ill.
    Sick,
    /// Not at all.
    Unreachable,
}

impl Plan {
    /// When faults and operations end.
    pub const fn chaos(&self) -> Duration {
        Duration::from_secs(self.seconds.saturating_sub(self.heal_seconds))
    }

    /// Its length.
    pub const fn length(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }

    /// Whether some fault matches.
    pub(crate) fn has(&self, matches: impl Fn(&Harm) -> bool) -> bool {
        self.faults.iter().any(|fault| matches(&fault.what))
    }

    /// The nodes a fault speaks of all take part.
    pub fn is_sound(&self) -> bool {
        let named = |harm: &Harm| match harm {
            Harm::Loss { links, .. } | Harm::Bursts { links, .. } | Harm::Delay { links, .. } | Harm::Cut { links } => {
                links.greatest()
            }
            Harm::Split { side } => side.iter().copied().max().unwrap_or(0),
            Harm::Duplicate { .. } => 0,
            Harm::Hostile { node, victim } => *node.max(victim),
            Harm::Pause { node }
            | Harm::Crash { node, .. }
            | Harm::Leave { node }
            | Harm::SlowDisk { node, .. }
            | Harm::Skew { node }
            | Harm::Twin { node } => *node,
        };
        let lists = [self.drift_ppm.len(), self.starts_ms.len(), self.seeds.len(), self.declared.len()];
        let workers = self.operations.iter().all(|operation| match operation.what {
            Ask::Add { worker }
            | Ask::Remove { worker }
            | Ask::Withdraw { worker }
            | Ask::Truth { worker, .. }
            | Ask::Ledger { worker, .. } => worker < self.workers,
            Ask::ForwardFailed { peer } => peer < self.nodes,
            Ask::Config { .. } | Ask::Revoke { .. } | Ask::Entries { .. } | Ask::Draining { .. } => true,
        });
        self.nodes > 0
            && lists.iter().all(|length| *length == self.nodes)
            && self.faults.iter().all(|fault| named(&fault.what) < self.nodes)
            && self.operations.iter().all(|operation| operation.node < self.nodes)
            && self.seeds.iter().flatten().all(|seed| *seed < self.nodes)
            && self.declared.iter().flatten().all(|worker| *worker < self.workers)
            && workers
    }
}
