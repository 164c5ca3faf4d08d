//! A model of QUIC connections between processes, seen from above: handshakes, frames, idle timeouts, resets.
//!
//! A frame on an open connection is never lost: loss and cuts make it late, and it is gone only with its connection. Frames of the
//! long stream arrive in order; every other frame is alone on its stream and overtakes freely. A side that hears nothing for
//! [`IDLE`] takes its connection for dead; a side that speaks to a process which does not know the connection is told so at once
//! (stateless reset). Nobody learns of a crash by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use smg_base::Timestamp;
use smg_mesh_proto::{Class, CloseCode, ConnectionId, Gone};

use crate::{
    agenda::{Agenda, Dial, Frame, Happening},
    links::Links,
    reached::{Mark, Reached},
};

/// The transport's timeout of silence.
const IDLE: Duration = Duration::from_secs(8);
/// The transport's pause between two signs of life.
const KEEP_ALIVE: Duration = Duration::from_millis(2_500);
/// How long a handshake may take.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(1);
/// Longest wait for the probe that finds out that a cut is over.
const PROBE_MAX: Duration = Duration::from_secs(2);
/// Frames that wait on one side of a connection, beyond which the transport drops new ones.
const STUCK_MAX: usize = 4_096;

/// A process as the network sees it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) is_running: bool,
    pub(crate) is_paused: bool,
}

/// What a place has sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    /// Packets, if frames to one peer at one moment share theirs up to its size.
    pub(crate) packets: u64,
    pub(crate) received: u64,
    pub(crate) lane_bytes: u64,
    pub(crate) bulk_bytes: u64,
    pub(crate) dials: u64,
    pub(crate) keep_alives: u64,
}

/// All connections.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) links: Links,
    pub(crate) standings: Vec<Standing>,
    pub(crate) traffic: Vec<Traffic>,
    connections: Vec<Connection>,
    live: BTreeSet<usize>,
}

#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    accepted_at: Timestamp,
    /// When either side sent something last.
    used: Timestamp,
}

#[derive(Debug)]
struct End {
    place: usize,
    state: EndState,
    /// Frames that cannot leave because the link is cut.
    stuck: Vec<Frame>,
    stuck_since: Option<Timestamp>,
    sent_lane: u64,
    received_lane: u64,
    early: BTreeMap<u64, Bytes>,
    silent_since: Option<Timestamp>,
    reset_due: bool,
    last_arrival: Timestamp,
    last_sent: Timestamp,
    packet_left: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndState {
    /// The handshake is not done on this side.
    Opening,
    Open,
    Closed,
}

/// Payload that fits a packet.
const PACKET_BYTES: usize = 1_150;

/// Where one side of a connection is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    pub(crate) connection: usize,
    pub(crate) side: usize,
}

impl Side {
    pub(crate) fn id(self) -> ConnectionId {
        ConnectionId(2 * self.connection as u64 + self.side as u64)
    }

    pub(crate) fn of(id: ConnectionId) -> Self {
        Self { connection: usize::try_from(id.0 / 2).unwrap_or(usize::MAX), side: (id.0 % 2) as usize }
    }
}

impl Network {
    pub(crate) fn new(places: usize, links: Links) -> Self {
        Self {
            links,
            standings: vec![Standing::default(); places],
            traffic: vec![Traffic::default(); places],
            connections: Vec::new(),
            live: BTreeSet::new(),
        }
    }

    /// Begins a handshake.
    pub(crate) fn dial(&mut self, now: Timestamp, dial: Dial, agenda: &mut Agenda) {
        self.traffic[dial.place].dials += 1;
        let there = self.links.delay(now, dial.place, dial.target, 1_200);
        let back = self.links.delay(now + there, dial.target, dial.place, 1_200);
        agenda.at(now + (there + back).min(HANDSHAKE), Happening::Handshake(dial));
    }

    /// Whether the handshake that now ends, ends well.
    pub(crate) fn answers(&self, now: Timestamp, dial: &Dial) -> bool {
        let there = self.standings[dial.target];
        let in_time = now.since(dial.begun) < HANDSHAKE;
        in_time && there.is_running && !there.is_paused && self.links.are_open(dial.place, dial.target)
    }

    /// Opens the connection that a handshake made; the dialler is side 0.
    pub(crate) fn open(&mut self, now: Timestamp, dial: &Dial, agenda: &mut Agenda) -> Side {
        let connection = self.connections.len();
        let accepted_at = now + self.links.delay(now, dial.place, dial.target, 1_200);
        let ends = [End::new(dial.place, EndState::Open, now), End::new(dial.target, EndState::Opening, now)];
        self.connections.push(Connection { ends, accepted_at, used: now });
        self.live.insert(connection);
        agenda.at(accepted_at, Happening::Accepted { connection });
        Side { connection, side: 0 }
    }

    /// The accepting side is done; no place if it no longer wants to be.
    pub(crate) fn accept(&mut self, connection: usize) -> Option<usize> {
        let end = &mut self.connections[connection].ends[1];
        if end.state != EndState::Opening {
            return None;
        }
        end.state = EndState::Open;
        Some(end.place)
    }

    /// Who is at a side.
    pub(crate) fn place(&self, side: Side) -> usize {
        self.connections[side.connection].ends[side.side].place
    }

    /// Who is at the other side.
    pub(crate) fn peer(&self, side: Side) -> usize {
        self.connections[side.connection].ends[1 - side.side].place
    }

    pub(crate) fn is_open(&self, side: Side) -> bool {
        let end = self.connections.get(side.connection).map(|connection| &connection.ends[side.side]);
        end.is_some_and(|end| end.state == EndState::Open)
    }

    /// The open sides at a place.
    pub(crate) fn sides(&self, place: usize) -> Vec<Side> {
        let both = |&connection: &usize| [Side { connection, side: 0 }, Side { connection, side: 1 }];
        let here = |side: &Side| self.is_open(*side) && self.place(*side) == place;
        self.live.iter().flat_map(both).filter(here).collect()
    }

    /// Sends a frame.
    pub(crate) fn send(&mut self, now: Timestamp, from: Side, class: Class, bytes: Bytes, agenda: &mut Agenda) {
        if !self.is_open(from) {
            return;
        }
        let (place, peer) = (self.place(from), self.peer(from));
        self.count(now, from, class, bytes.len());
        let connection = &mut self.connections[from.connection];
        let there = connection.ends[1 - from.side].state;
        let end = &mut connection.ends[from.side];
        let number = if class == Class::Lane {
            end.sent_lane += 1;
            end.sent_lane
        } else {
            0
        };
        let frame = Frame { class, number, bytes };
        if there == EndState::Closed {
            let rtt = self.links.rtt(place, peer);
            self.tell_reset(now + rtt, from, agenda);
        } else if self.links.link(place, peer).cut {
            end.hold(now, frame);
        } else {
            let at = now + self.links.delay(now, place, peer, frame.bytes.len());
            end.last_arrival = end.last_arrival.max(at);
            agenda.at(at, Happening::Arrive { connection: from.connection, side: 1 - from.side, frame });
        }
    }

    /// A frame is there: what the process is to be given now.
    pub(crate) fn arrive(&mut self, now: Timestamp, at: Side, frame: Frame, agenda: &mut Agenda) -> Vec<Bytes> {
        let sender = Side { connection: at.connection, side: 1 - at.side };
        let (place, peer) = (self.place(at), self.peer(at));
        let cut = self.links.link(peer, place).cut;
        let connection = &mut self.connections[at.connection];
        let accepted_at = connection.accepted_at;
        match connection.ends[at.side].state {
            EndState::Closed => {
                let rtt = self.links.rtt(place, peer);
                self.tell_reset(now + rtt, sender, agenda);
                return Vec::new();
            }
            EndState::Opening => {
                let later = accepted_at.max(now) + Duration::from_micros(1);
                agenda.at(later, Happening::Arrive { connection: at.connection, side: at.side, frame });
                return Vec::new();
            }
            EndState::Open => {}
        }
        // What is still under way when a link is cut is not acknowledged, and sent again after it.
        if cut {
            let end = &mut connection.ends[sender.side];
            if end.state == EndState::Open {
                end.hold(now, frame);
            }
            return Vec::new();
        }
        let end = &mut connection.ends[at.side];
        if frame.class != Class::Lane {
            return vec![frame.bytes];
        }
        end.early.insert(frame.number, frame.bytes);
        let mut ready = Vec::new();
        while let Some(bytes) = end.early.remove(&(end.received_lane + 1)) {
            end.received_lane += 1;
            ready.push(bytes);
        }
        ready
    }

    /// One side closes; the other hears of it after everything that was sent.
    pub(crate) fn close(&mut self, now: Timestamp, side: Side, code: CloseCode, agenda: &mut Agenda) {
        if !self.is_open(side) {
            return;
        }
        let (place, peer) = (self.place(side), self.peer(side));
        let delay = self.links.delay(now, place, peer, 50);
        let end = &mut self.connections[side.connection].ends[side.side];
        end.state = EndState::Closed;
        end.stuck.clear();
        let at = end.last_arrival.max(now + delay) + Duration::from_nanos(1);
        let gone = Gone::Closed(code);
        agenda.at(at, Happening::Ended { connection: side.connection, side: 1 - side.side, gone });
    }

    /// One side learns that the connection has ended; whether that is news to it.
    pub(crate) fn end(&mut self, side: Side, gone: &Gone) -> bool {
        // A close that cannot get through is lost; silence says the same later.
        let is_word = matches!(gone, Gone::Closed(_));
        if is_word && self.links.link(self.peer(side), self.place(side)).cut {
            return false;
        }
        let end = &mut self.connections[side.connection].ends[side.side];
        let was_open = end.state == EndState::Open;
        end.state = EndState::Closed;
        end.stuck.clear();
        was_open
    }

    /// Whether one side has now been silent for too long.
    pub(crate) fn is_idle(&self, side: Side, since: Timestamp) -> bool {
        let end = &self.connections[side.connection].ends[side.side];
        end.state == EndState::Open && end.silent_since == Some(since)
    }

    /// Whether a reset gets through.
    pub(crate) fn is_reset(&mut self, side: Side) -> bool {
        let (place, peer) = (self.place(side), self.peer(side));
        let open = self.links.are_open(place, peer);
        let there = self.standings[peer];
        let connection = &mut self.connections[side.connection];
        connection.ends[side.side].reset_due = false;
        let is_unknown = connection.ends[1 - side.side].state == EndState::Closed;
        let is_told = open && there.is_running && !there.is_paused && is_unknown;
        is_told && connection.ends[side.side].state == EndState::Open
    }

    /// A process is gone, and with it its side of every connection.
    pub(crate) fn forget(&mut self, place: usize) {
        for connection in &self.live {
            for end in self.connections[*connection].ends.iter_mut().filter(|end| end.place == place) {
                end.state = EndState::Closed;
                end.stuck.clear();
            }
        }
    }

    /// Looks at every connection again after links or processes changed.
    pub(crate) fn refresh(&mut self, now: Timestamp, agenda: &mut Agenda, reached: &mut Reached) {
        for connection in self.live.iter().copied().collect::<Vec<_>>() {
            self.refresh_one(now, connection, agenda, reached);
        }
    }

    /// Looks at a connection again after one of its sides changed.
    pub(crate) fn refresh_one(
        &mut self,
        now: Timestamp,
        connection: usize,
        agenda: &mut Agenda,
        reached: &mut Reached,
    ) {
        let states = [0, 1].map(|side| self.connections[connection].ends[side].state);
        if states == [EndState::Closed; 2] {
            self.live.remove(&connection);
            return;
        }
        for side in [0, 1].into_iter().filter(|side| states[*side] != EndState::Closed) {
            self.refresh_side(now, Side { connection, side }, agenda, reached);
        }
    }

    fn refresh_side(&mut self, now: Timestamp, at: Side, agenda: &mut Agenda, reached: &mut Reached) {
        let (place, peer) = (self.place(at), self.peer(at));
        let there = self.standings[peer];
        let answers = there.is_running && !there.is_paused;
        let is_known = self.connections[at.connection].ends[1 - at.side].state != EndState::Closed;
        let is_audible = answers && is_known && !self.links.link(peer, place).cut;
        let since = self.connections[at.connection].ends[at.side].silent_since;
        if is_audible {
            self.connections[at.connection].ends[at.side].silent_since = None;
        } else if since.is_none() {
            let wait = IDLE.saturating_sub(self.links.up_to(KEEP_ALIVE));
            self.connections[at.connection].ends[at.side].silent_since = Some(now);
            agenda.at(now + wait, Happening::Idle { connection: at.connection, side: at.side, since: now });
        }
        if !is_known && answers && self.links.are_open(place, peer) {
            let at_latest = now + self.links.up_to(KEEP_ALIVE) + self.links.rtt(place, peer);
            self.tell_reset(at_latest, at, agenda);
        }
        if !self.links.link(place, peer).cut {
            self.release(now, at, agenda, reached);
        }
    }

    /// Sends what a cut held up.
    fn release(&mut self, now: Timestamp, at: Side, agenda: &mut Agenda, reached: &mut Reached) {
        let end = &mut self.connections[at.connection].ends[at.side];
        let Some(since) = end.stuck_since.take() else { return };
        let stuck = std::mem::take(&mut end.stuck);
        if !stuck.is_empty() {
            reached.mark(Mark::StuckFrames);
        }
        let (place, peer) = (self.place(at), self.peer(at));
        let probe = self.links.up_to(now.since(since).min(PROBE_MAX));
        for frame in stuck {
            let arrival = now + probe + self.links.delay(now + probe, place, peer, frame.bytes.len());
            let end = &mut self.connections[at.connection].ends[at.side];
            end.last_arrival = end.last_arrival.max(arrival);
            agenda.at(arrival, Happening::Arrive { connection: at.connection, side: 1 - at.side, frame });
        }
    }

    /// Counts the signs of life of connections that nobody has used up to now.
    pub(crate) fn settle_keep_alives(&mut self, now: Timestamp) {
        for connection in &self.live {
            let connection = &mut self.connections[*connection];
            let unused = now.since(connection.used).as_millis() / KEEP_ALIVE.as_millis();
            self.traffic[connection.ends[0].place].keep_alives += unused as u64;
            connection.used = now;
        }
    }

    fn tell_reset(&mut self, at: Timestamp, side: Side, agenda: &mut Agenda) {
        let end = &mut self.connections[side.connection].ends[side.side];
        if end.state != EndState::Open || end.reset_due {
            return;
        }
        end.reset_due = true;
        agenda.at(at, Happening::Reset { connection: side.connection, side: side.side });
    }

    fn count(&mut self, now: Timestamp, from: Side, class: Class, size: usize) {
        let (place, peer) = (self.place(from), self.peer(from));
        let unused = now.since(self.connections[from.connection].used);
        self.connections[from.connection].used = now;
        let end = &mut self.connections[from.connection].ends[from.side];
        let traffic = &mut self.traffic[place];
        traffic.frames += 1;
        traffic.bytes += size as u64;
        match class {
            Class::Swim => {}
            Class::Lane => traffic.lane_bytes += size as u64,
            Class::Bulk => traffic.bulk_bytes += size as u64,
        }
        let quiet = now.since(end.last_sent);
        traffic.keep_alives += (unused.as_millis() / KEEP_ALIVE.as_millis()) as u64;
        let mut packets = 0;
        if quiet > Duration::ZERO || end.packet_left < size {
            packets = size.div_ceil(PACKET_BYTES).max(1);
            end.packet_left = packets * PACKET_BYTES;
        }
        end.packet_left -= size.min(end.packet_left);
        end.last_sent = now;
        traffic.packets += packets as u64;
        self.traffic[peer].received += packets as u64;
    }
}

impl End {
    fn new(place: usize, state: EndState, now: Timestamp) -> Self {
        Self {
            place,
            state,
            stuck: Vec::new(),
            stuck_since: None,
            sent_lane: 0,
            received_lane: 0,
            early: BTreeMap::new(),
            silent_since: None,
            reset_due: false,
            last_arrival: now,
            last_sent: now,
            packet_left: 0,
        }
    }

    fn hold(&mut self, now: Timestamp, frame: Frame) {
        self.stuck_since.get_or_insert(now);
        // A gap in the long stream would never close: only frames that are alone may be dropped.
        if self.stuck.len() < STUCK_MAX || frame.class == Class::Lane {
            self.stuck.push(frame);
        }
    }
}
