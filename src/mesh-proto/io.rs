//! What goes into the state machine and what comes out of it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use smg_base::{Timestamp, WorkerId};

use crate::{ConnectionId, EngineFigures, Kind, Ledger, NodeId, Op, Ticket, Verdict, Vote};

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A connection stands, and its certificate says that `peer` is at the other end.
    Connected {
        /// Its number.
        connection: ConnectionId,
        /// Who is there.
        peer: NodeId,
        /// From where, or to where.
        address: SocketAddr,
        /// Who opened it.
        direction: Direction,
    },
    /// A connection has ended.
    Disconnected {
        /// Its number.
        connection: ConnectionId,
        /// Why.
        gone: Gone,
    },
    /// No connection could be made.
    DialFailed {
        /// To where.
        address: SocketAddr,
    },
    /// A frame came, whole.
    Frame {
        /// Over which connection.
        connection: ConnectionId,
        /// Its bytes.
        bytes: Bytes,
    },
    /// What the transport measured on a connection; about once a second.
    Vitals {
        /// Over which connection.
        connection: ConnectionId,
        /// Round trip time.
        rtt: Duration,
        /// Share of packets lost lately, in `0.0..=1.0`.
        loss: f32,
    },
    /// A request could not be forwarded to a peer.
    ForwardFailed {
        /// The peer.
        peer: NodeId,
    },
    /// The peers through which workers are reached; they are probed twice a second. At most eight are kept.
    RelayCandidates(
        /// Who.
        Vec<NodeId>,
    ),
    /// The addresses of all seeds, as now resolved. They replace those before.
    Seeds(
        /// Where.
        Vec<SocketAddr>,
    ),
    /// This node changes something.
    Write {
        /// Under which its outcome is reported.
        ticket: Option<Ticket>,
        /// What.
        op: Op,
    },
    /// A batch has been written to disk.
    Persisted {
        /// Its number.
        sequence: u64,
    },
    /// Leave the cluster for good; what is still to be sent is sent.
    Leave,
    /// Time has passed: to be given at [`crate::Mesh::next_tick`].
    Tick,
}

/// Who opened a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// We did.
    Dialled,
    /// The peer did.
    Accepted,
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// It timed out or broke.
    Lost,
    /// The other side, or we, closed it with this code.
    Closed(
        /// The code.
        CloseCode,
    ),
}

/// Why a connection is closed, as the other side sees it; the numbers are QUIC application error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CloseCode {
    /// No reason that concerns the other side, or one that it does not know.
    Other = 0,
    /// Another connection between the two is kept.
    Redundant = 1,
    /// This node leaves the cluster.
    Leaving = 2,
    /// The other side belongs to another cluster.
    WrongCluster = 3,
    /// A live node has the same name.
    NameInUse = 4,
    /// No version of the protocol is spoken by both.
    NoCommonVersion = 5,
    /// What came breaks the protocol or its limits.
    Misbehaved = 6,
    /// There are as many members as are allowed.
    Full = 7,
}

impl CloseCode {
    /// The code of this number.
    pub fn of(number: u64) -> Self {
        match number {
            1 => Self::Redundant,
            2 => Self::Leaving,
            3 => Self::WrongCluster,
            4 => Self::NameInUse,
            5 => Self::NoCommonVersion,
            6 => Self::Misbehaved,
            7 => Self::Full,
            _ => Self::Other,
        }
    }
}

/// Something is to be done.
#[derive(Clone, Debug)]
pub enum Output {
    /// Connect to an address.
    Dial {
        /// Where.
        address: SocketAddr,
        /// Who is expected there; none for a seed.
        expect: Option<NodeId>,
    },
    /// Send a frame. It may be lost with its connection, and dropped if the connection's queue is full.
    Send {
        /// Over which connection.
        connection: ConnectionId,
        /// How it is to travel.
        class: Class,
        /// Its bytes.
        bytes: Bytes,
    },
    /// Close a connection, after what was sent on it is out.
    Close {
        /// Which.
        connection: ConnectionId,
        /// Why.
        code: CloseCode,
    },
    /// Write to disk, in this order, and say so.
    Persist(
        /// What.
        Batch,
    ),
    /// News for the node.
    Event(
        /// What happened.
        Event,
    ),
}

/// How a frame travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// On a short stream of its own, before everything else: membership, hello, echo.
    Swim,
    /// On the one long stream of its connection, in order.
    Lane,
    /// On a stream of its own, after everything else: snapshots.
    Bulk,
}

/// Records that reach the disk together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Counts the batches of this run, from 1.
    pub sequence: u64,
    /// What to write.
    pub records: Vec<Record>,
}

/// A change of what is on disk. The journal holds, for each (writer, kind), an epoch and its entries by key; and one number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// This node's boot number.
    Boot(
        /// The number.
        u64,
    ),
    /// A lane begins anew, under whatever epoch: what the journal held of it is dropped.
    Lane {
        /// Who writes it.
        writer: NodeId,
        /// What it is about.
        kind: Kind,
        /// Its epoch.
        epoch: u64,
        /// Tombstones up to this version are gone.
        collected: u64,
        /// Its newest version.
        version: u64,
    },
    /// An entry is set; a value of none is a tombstone.
    Entry {
        /// Whose lane.
        writer: NodeId,
        /// Which of it.
        kind: Kind,
        /// The key.
        key: Bytes,
        /// The version that set it.
        version: u64,
        /// The value.
        value: Option<Bytes>,
    },
    /// Tombstones up to `collected` are dropped.
    Collect {
        /// Whose lane.
        writer: NodeId,
        /// Which of it.
        kind: Kind,
        /// The version.
        collected: u64,
    },
    /// A lane is dropped.
    Drop {
        /// Whose lane.
        writer: NodeId,
        /// Which of it.
        kind: Kind,
    },
}

/// What the disk held: as records that, applied in order, make it.
pub type Restored = Vec<Record>;

/// News for the node. Those about one thing replace each other; they come after at most [`crate::Timers::flush`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A member appeared or changed in what is shown of it.
    Member(
        /// It, as it now is.
        Arc<Member>,
    ),
    /// A member is forgotten.
    Forgotten(
        /// Who.
        NodeId,
    ),
    /// The node has joined and knows what its peers know, or acts alone because no peer came in time.
    Joined {
        /// Whether it acts alone.
        alone: bool,
    },
    /// A worker's row changed; none if no assertion of it stands.
    Worker {
        /// The worker.
        worker: WorkerId,
        /// What is asserted.
        row: Option<WorkerRow>,
    },
    /// Who reaches a worker, or what is thought of it, changed.
    Reach {
        /// The worker.
        worker: WorkerId,
        /// How it stands.
        reach: Reach,
    },
    /// The sum of what all other alive nodes have at a worker changed.
    PeerLoad {
        /// The worker.
        worker: WorkerId,
        /// The sum.
        ledger: Ledger,
    },
    /// What the engine's home says of it changed; never this node's own word.
    Engine {
        /// The worker.
        worker: WorkerId,
        /// The figures; none if nobody says anything.
        figures: Option<EngineFigures>,
    },
    /// A value of shared configuration changed.
    Config {
        /// The key.
        key: String,
        /// The value; none if there is none any more.
        value: Option<Bytes>,
    },
    /// An entry of somebody's lane of an opaque kind changed.
    Entry {
        /// Whose.
        writer: NodeId,
        /// What it is about.
        kind: Kind,
        /// The key.
        key: Bytes,
        /// The value; none if it is gone.
        value: Option<Bytes>,
    },
    /// A write is done.
    Written {
        /// Which.
        ticket: Ticket,
        /// How it went.
        outcome: Result<(), WriteError>,
    },
    /// Everything that was to be sent before leaving has been acknowledged, or nobody is there to do so.
    Left,
    /// The cluster refuses this node; it must end.
    Refused(
        /// Why.
        Refusal,
    ),
}

/// Why a write was not done. Nothing is changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The key or value is too long, or the lane is full.
    #[error("over the limits of a lane")]
    TooLarge,
    /// Too many writes wait for their acknowledgement.
    #[error("too many writes are waiting")]
    Busy,
    /// The worker is not known.
    #[error("no such worker in the mesh")]
    UnknownWorker,
    /// What was revoked stays so.
    #[error("a revocation cannot be taken back")]
    Revoked,
    /// The node is leaving.
    #[error("the node is leaving the mesh")]
    Leaving,
}

/// Why the cluster refuses a node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its name is taken by a live node.
    #[error("a live node called '{name}' is at {address}; every node needs its own --mesh-server-name")]
    NameInUse {
        /// The name.
        name: String,
        /// Where the other is.
        address: SocketAddr,
    },
}

/// What the members think of one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum MemberState {
    /// Alive.
    Alive,
    /// Its probes fail; it has a little time to show that it lives.
    Suspect,
    /// Taken for dead.
    Down,
    /// It said that it leaves.
    Left,
}

impl MemberState {
    /// The word in logs, metrics and the admin API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Down => "down",
            Self::Left => "left",
        }
    }

    /// Whether what it says counts.
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// A node of the cluster as this node sees it; itself included.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// Who.
    pub node: NodeId,
    /// Its name; its id as text until it has said it.
    pub name: String,
    /// Where its mesh port is.
    pub address: SocketAddr,
    /// Where clients reach it; may be empty.
    pub traffic_url: String,
    /// Its failure domain.
    pub zone: String,
    /// Its region.
    pub region: String,
    /// Version of its program.
    pub software: String,
    /// Counts its starts.
    pub boot: u64,
    /// What the members think of it.
    pub state: MemberState,
    /// Whether this node would rather not send requests through it: it is slow to answer, suspected, or a forward failed.
    pub doubted: bool,
    /// Whether it is about to leave.
    pub draining: bool,
    /// Whether a connection stands.
    pub connected: bool,
    /// Round trip time to it, if connected.
    pub rtt: Option<Duration>,
    /// Since when it is in this state, by this node's clock.
    pub since: Timestamp,
    /// Whether it is this node itself.
    pub is_self: bool,
}

/// What the assertions about a worker come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerRow {
    /// The specification that won.
    pub spec: Bytes,
    /// Who wrote it.
    pub writer: NodeId,
    /// Whether flags or a file of some node declare the worker.
    pub declared: bool,
    /// How many assertions stand.
    pub assertions: usize,
}

/// How a worker stands with the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// What all alive nodes together found out.
    pub verdict: Verdict,
    /// The alive other nodes that vote up, in rendezvous order: through these it can be reached.
    pub via: Vec<NodeId>,
    /// The votes of alive nodes, this one's included, by node.
    pub votes: Vec<(NodeId, Vote)>,
    /// Who speaks for its engine: the rendezvous-first alive node that votes up.
    pub home: Option<NodeId>,
    /// Who would next.
    pub standby: Option<NodeId>,
    /// Whether this node is among the (at most five) that probe it.
    pub probed_here: bool,
}
