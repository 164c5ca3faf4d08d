//! Connections, and which of them is the session with a peer.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use bytes::Bytes;
use smg_base::Timestamp;

use crate::{ConnectionId, Direction, NodeId, wire::Hello};

/// How long a connection may be silent about who is there.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Frames that are kept until their connection's Hello has come: short streams may overtake it.
const EARLY_MAX: usize = 32;

/// All connections.
#[derive(Default)]
pub(crate) struct Sessions {
    connections: BTreeMap<ConnectionId, Connection>,
    standing: BTreeMap<NodeId, ConnectionId>,
    contests: BTreeMap<NodeId, Contest>,
}

/// A connection.
pub(crate) struct Connection {
    pub(crate) peer: NodeId,
    pub(crate) address: SocketAddr,
    pub(crate) direction: Direction,
    pub(crate) opened: Timestamp,
    /// When something last came over it.
    pub(crate) heard: Timestamp,
    pub(crate) rtt: Option<Duration>,
    pub(crate) loss: f32,
    pub(crate) hello: Option<Hello>,
    early: Vec<Bytes>,
}

/// A second connection from a peer that has a session: the first has a little time to show that it lives.
#[derive(Clone, Copy)]
pub(crate) struct Contest {
    pub(crate) challenger: ConnectionId,
    pub(crate) nonce: u64,
    pub(crate) until: Timestamp,
}

impl Connection {
    pub(crate) fn new(now: Timestamp, peer: NodeId, address: SocketAddr, direction: Direction) -> Self {
        Self { peer, address, direction, opened: now, heard: now, rtt: None, loss: 0.0, hello: None, early: Vec::new() }
    }

    /// Keeps a frame for later, if there is room.
    pub(crate) fn keep(&mut self, frame: Bytes) {
        if self.early.len() < EARLY_MAX {
            self.early.push(frame);
        }
    }

    pub(crate) fn take_early(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.early)
    }
}

impl Sessions {
    pub(crate) fn open(&mut self, id: ConnectionId, connection: Connection) {
        self.connections.insert(id, connection);
    }

    pub(crate) fn connection(&self, id: ConnectionId) -> Option<&Connection> {
        self.connections.get(&id)
    }

    pub(crate) fn connection_mut(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.len()
    }

    pub(crate) fn ids(&self) -> Vec<ConnectionId> {
        self.connections.keys().copied().collect()
    }

    /// The connection that is the session with a peer.
    pub(crate) fn with(&self, peer: NodeId) -> Option<ConnectionId> {
        self.standing.get(&peer).copied()
    }

    pub(crate) fn session(&self, peer: NodeId) -> Option<&Connection> {
        self.connections.get(self.standing.get(&peer)?)
    }

    /// All peers with a session.
    pub(crate) fn peers(&self) -> impl ExactSizeIterator<Item = NodeId> + '_ {
        self.standing.keys().copied()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.standing.is_empty()
    }

    pub(crate) fn stands(&self, id: ConnectionId) -> bool {
        self.connections.get(&id).is_some_and(|connection| self.standing.get(&connection.peer) == Some(&id))
    }

    /// Makes a connection the session with its peer; returns the one it replaces.
    pub(crate) fn stand(&mut self, peer: NodeId, id: ConnectionId) -> Option<ConnectionId> {
        self.standing.insert(peer, id).filter(|before| *before != id)
    }

    /// Forgets a connection. Tells whether it was a session.
    pub(crate) fn remove(&mut self, id: ConnectionId) -> Option<Removed> {
        let connection = self.connections.remove(&id)?;
        let stood = self.standing.get(&connection.peer) == Some(&id);
        if stood {
            self.standing.remove(&connection.peer);
        }
        Some(Removed { connection, stood })
    }

    /// Whether there is a session, or a connection that may become one.
    pub(crate) fn covers(&self, peer: NodeId) -> bool {
        self.standing.contains_key(&peer) || self.connections.values().any(|connection| connection.peer == peer)
    }

    /// Whether a connection to this address is open.
    pub(crate) fn reaches(&self, address: SocketAddr) -> bool {
        self.connections
            .values()
            .any(|connection| connection.direction == Direction::Dialled && connection.address == address)
    }

    /// Connections over which no Hello came in time.
    pub(crate) fn mute(&self, now: Timestamp) -> Vec<ConnectionId> {
        self.connections
            .iter()
            .filter(|(_, connection)| connection.hello.is_none() && now.since(connection.opened) >= HELLO_WITHIN)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Sessions over which nothing came for a while, with some of the peers.
    pub(crate) fn silent(&self, now: Timestamp, least: Duration, picks: impl Fn(NodeId) -> bool) -> Vec<ConnectionId> {
        let silent = |id: &ConnectionId| self.connections.get(id).is_some_and(|one| now.since(one.heard) >= least);
        self.standing.iter().filter(|(peer, id)| picks(**peer) && silent(id)).map(|(_, id)| *id).collect()
    }

    /// Sets a contest; returns the challenger of the one before.
    pub(crate) fn contest(&mut self, peer: NodeId, contest: Contest) -> Option<ConnectionId> {
        let before = self.contests.insert(peer, contest)?;
        (before.challenger != contest.challenger).then_some(before.challenger)
    }

    pub(crate) fn take_contest(&mut self, peer: NodeId) -> Option<Contest> {
        self.contests.remove(&peer)
    }

    pub(crate) fn contest_with(&self, peer: NodeId) -> Option<Contest> {
        self.contests.get(&peer).copied()
    }

    /// Peers whose session did not answer in time.
    pub(crate) fn contests_over(&self, now: Timestamp) -> Vec<NodeId> {
        self.contests.iter().filter(|(_, contest)| contest.until <= now).map(|(peer, _)| *peer).collect()
    }

    /// When the first contest ends.
    pub(crate) fn next_contest(&self) -> Option<Timestamp> {
        self.contests.values().map(|contest| contest.until).min()
    }

    /// How many sessions lose at least this share of packets.
    pub(crate) fn losing(&self, share: f32) -> usize {
        self.standing.values().filter(|id| self.connections.get(id).is_some_and(|one| one.loss >= share)).count()
    }
}

/// A connection that is gone.
pub(crate) struct Removed {
    pub(crate) connection: Connection,
    pub(crate) stood: bool,
}
