//! Membership: who is there, over which connection, and what is thought of them.
//!
//! SWIM (Das et al., 2002) by foca says who lives. Around it stand what foca leaves to its user: sessions with their Hello, whom to
//! dial, an exchange of member lists that repairs what gossip missed, and two verdicts that are faster than probes: a soft doubt
//! that only routing heeds, and the death of a member whom two others have lost.

mod dialer;
mod doubts;
mod exchange;
mod hello;
mod identity;
mod lost;
mod packet;
mod roster;
mod sessions;
mod swim;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use smg_base::{Random as _, SplitMix, Timestamp, hash};

pub(crate) use identity::Identity;
pub(crate) use sessions::Connection;

use self::{
    dialer::{Dialer, jittered},
    doubts::Doubts,
    lost::Lost,
    roster::{Link, Roster, Turn},
    sessions::Sessions,
    swim::{Pace, Swim},
};
use crate::{
    Class, CloseCode, Config, ConnectionId, Event, Gone, Member, MemberState, NodeId, NodeInfo, Output, Refusal,
    replica::Alive,
    wire::{self, Confirm, ConfirmReply, Decoded, Echo, Frame, Heard, Holds, LaneFrame, Leaving, Start},
};

/// How often everything is looked at that needs no exact time, and how often where nothing is open: all members have sessions,
/// and all sessions are with members.
const BEAT: Duration = Duration::from_millis(100);
const CALM_BEAT: Duration = Duration::from_secs(1);
/// How long the dead are remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(24 * 3_600);
/// Others that are asked whether they too have lost a member.
const CONFIRMERS_MAX: usize = 3;
/// Silence after which this node no longer vouches for a member.
const HEARD_LATELY: Duration = Duration::from_secs(1);
/// Returns from the dead within a while, after which this node no longer heeds who calls it dead.
const RETURNS_MAX: usize = 5;
const RETURNS_WITHIN: Duration = Duration::from_secs(1);
/// A connection that loses this much is a lossy one, until it loses less than the second figure.
const LOSSY: (f32, f32) = (0.05, 0.03);

/// The membership of one node.
pub(crate) struct Membership {
    me: NodeId,
    config: Config,
    started: Timestamp,
    random: SplitMix,
    swim: Swim,
    roster: Roster,
    sessions: Sessions,
    dialer: Dialer,
    doubts: Doubts,
    lost: Lost,
    effects: Vec<Effect>,
    start: Start,
    stage: Stage,
    next_beat: Timestamp,
    next_exchange: Timestamp,
    next_announce: Timestamp,
    /// A node of the same name makes us outbid it; not too often.
    next_outbid: Timestamp,
    returns: Returns,
    /// Frames so far that only a newer program understands.
    skipped_frames: u64,
}

/// How often this node took a new identity lately, because it was called dead. One return heals a split. More within a second are a
/// quarrel with another node of its name, and would go on as fast as packets travel.
#[derive(Default)]
struct Returns {
    since: Timestamp,
    count: usize,
}

impl Returns {
    fn add(&mut self, now: Timestamp) {
        if now.since(self.since) >= RETURNS_WITHIN {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
    }

    fn are_many(&self, now: Timestamp) -> bool {
        self.count >= RETURNS_MAX && now.since(self.since) < RETURNS_WITHIN
    }
}

/// How a node's membership ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Here,
    /// It has left, or the cluster refuses it.
    Gone(MemberState),
}

/// What follows outside of membership.
pub(crate) enum Effect {
    Output(Output),
    /// This run goes on under another boot number.
    Boot(u64),
    /// What a peer holds of this node's own lanes.
    Told(Holds),
    Up(NodeId),
    Down(NodeId),
    Alive {
        node: NodeId,
        alive: Alive,
    },
    Lane {
        from: NodeId,
        connection: ConnectionId,
        frame: LaneFrame,
    },
}

impl Membership {
    pub(crate) fn new(config: Config, boot: u64, now: Timestamp) -> Self {
        let identity = Identity::of(&config, boot);
        let random = SplitMix::new(hash::mix(config.seed, config.instance));
        let first_beat = now + BEAT.mul_f64(random.unit());
        Self {
            me: identity.node,
            started: now,
            swim: Swim::new(identity, &config.timers, random.next_u64()),
            roster: Roster::default(),
            sessions: Sessions::default(),
            dialer: Dialer::new(identity.node, config.advertise, config.timers, &config.limits),
            doubts: Doubts::default(),
            lost: Lost::default(),
            effects: Vec::new(),
            start: Start::Joining,
            stage: Stage::Here,
            next_beat: first_beat,
            next_exchange: now + config.timers.exchange.mul_f64(random.unit()),
            next_announce: now + config.timers.announce_down.mul_f64(random.unit()),
            next_outbid: now,
            returns: Returns::default(),
            skipped_frames: 0,
            random,
            config,
        }
    }

    pub(crate) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(crate) fn set_seeds(&mut self, now: Timestamp, addresses: Vec<SocketAddr>) {
        self.dialer.set_seeds(now, addresses);
        self.dial(now);
        self.beat_soon(now);
    }

    pub(crate) fn has_no_seeds(&self) -> bool {
        self.dialer.has_no_seeds()
    }

    /// The node belongs to a cluster of more than itself.
    pub(crate) fn set_joined(&mut self) {
        self.start = Start::Joined;
    }

    /// All peers with a session.
    pub(crate) fn peers(&self) -> impl ExactSizeIterator<Item = NodeId> + '_ {
        self.sessions.peers()
    }

    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        if node == self.me { self.stage == Stage::Here } else { self.roster.is_alive(node) }
    }

    pub(crate) fn skipped_frames(&self) -> u64 {
        self.skipped_frames
    }

    pub(crate) fn is_stretched(&self) -> bool {
        self.swim.pace() == Pace::Stretched
    }

    /// A frame came.
    pub(crate) fn frame(&mut self, now: Timestamp, id: ConnectionId, bytes: Bytes) {
        let Some(connection) = self.sessions.connection_mut(id) else { return };
        connection.heard = now;
        let (peer, greeted) = (connection.peer, connection.hello.is_some());
        let stands = self.sessions.stands(id);
        match wire::decode(&bytes, self.config.limits.frame_bytes_max) {
            Err(_) => self.close(now, id, CloseCode::Misbehaved),
            Ok(Decoded::Skipped) => self.skipped_frames += 1,
            Ok(Decoded::Frame(Frame::Hello(hello))) if !greeted => self.hello(now, id, hello),
            Ok(Decoded::Frame(Frame::Hello(_))) => {}
            Ok(Decoded::Frame(Frame::NameTaken(taken))) => self.refuse(now, taken.address),
            Ok(Decoded::Frame(frame)) if stands => self.session_frame(now, peer, id, frame),
            Ok(Decoded::Frame(_)) => {
                if let Some(connection) = self.sessions.connection_mut(id) {
                    connection.keep(bytes);
                }
            }
        }
    }

    /// What the transport measured.
    pub(crate) fn vitals(&mut self, id: ConnectionId, rtt: Duration, loss: f32) {
        let Some(connection) = self.sessions.connection_mut(id) else { return };
        connection.rtt = Some(rtt);
        connection.loss = loss;
        let peer = connection.peer;
        self.roster.touch(peer);
        let sessions = self.sessions.peers().len();
        let pace = match self.swim.pace() {
            _ if sessions == 0 => Pace::Normal,
            Pace::Normal if self.sessions.losing(LOSSY.0) * 2 >= sessions => Pace::Stretched,
            Pace::Stretched if self.sessions.losing(LOSSY.1) * 2 < sessions => Pace::Normal,
            pace => pace,
        };
        self.swim.set_pace(pace);
    }

    pub(crate) fn set_candidates(&mut self, now: Timestamp, peers: Vec<NodeId>) {
        let peers = peers.into_iter().filter(|peer| *peer != self.me).collect();
        for node in self.doubts.set_candidates(now, peers) {
            self.roster.touch(node);
        }
        self.echo(now);
    }

    pub(crate) fn forward_failed(&mut self, now: Timestamp, peer: NodeId) {
        if self.roster.entry(peer).is_some() {
            self.doubts.failed(now, peer);
            self.roster.touch(peer);
            self.echo(now);
        }
    }

    /// Nobody answered at an address.
    pub(crate) fn dial_failed(&mut self, now: Timestamp, address: SocketAddr) {
        let lost: Vec<NodeId> = self.roster.at(address).filter(|node| self.lost.is_redialling(*node)).collect();
        for node in lost {
            let asked = self.some_peers(CONFIRMERS_MAX, |peer| peer != node && self.roster.is_alive(peer));
            for peer in &asked {
                self.send_to(*peer, &Frame::Confirm(Confirm { about: node }));
            }
            self.lost.ask(now, node, asked);
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Timestamp) {
        if self.stage != Stage::Here {
            return;
        }
        if self.swim.next_tick().is_some_and(|due| due <= now) {
            self.swim.tick(now);
            let dead = self.sync(now);
            self.tell_of_deaths(&dead);
        }
        for peer in self.sessions.contests_over(now) {
            self.contest_lost(now, peer);
        }
        self.echo(now);
        for identity in self.lost.tick(now) {
            self.take_for_dead(now, identity);
        }
        if self.next_beat <= now {
            self.beat(now);
            self.next_beat = self.beat_after(now);
        }
    }

    /// When [`Self::tick`] is due.
    pub(crate) fn next_tick(&self) -> Timestamp {
        if self.stage != Stage::Here {
            return Timestamp::from_nanos(u64::MAX);
        }
        let exact = [
            self.swim.next_tick(),
            self.sessions.next_contest(),
            self.doubts.next_tick(|node| self.rtt(node)),
            self.lost.next_tick(),
        ];
        exact.into_iter().flatten().fold(self.next_beat, Timestamp::min)
    }

    /// Sends what SWIM wants to say. Packets to members without a session are lost, as on any network.
    pub(crate) fn flush(&mut self, now: Timestamp) {
        if self.swim.take_rejoined() {
            self.returns.add(now);
            self.announce_self(now);
        }
        while let Some(packet) = self.swim.take_packet() {
            self.send_to(packet.to, &Frame::Swim(packet.bytes));
        }
    }

    /// Leaves the cluster for good.
    pub(crate) fn depart(&mut self, now: Timestamp) {
        let peers: Vec<NodeId> = self.sessions.peers().collect();
        let leaving = Frame::Leaving(Leaving { boot: self.swim.identity().boot });
        for peer in peers {
            self.send_to(peer, &leaving);
        }
        self.swim.leave(now);
        self.flush(now);
        self.end(now, MemberState::Left, CloseCode::Leaving);
    }

    /// Sends a frame over the session with a peer, if there is one.
    pub(crate) fn send_bytes(&mut self, peer: NodeId, class: Class, bytes: Bytes) {
        if let Some(connection) = self.sessions.with(peer) {
            self.effects.push(Effect::Output(Output::Send { connection, class, bytes }));
        }
    }

    /// Closes a connection.
    pub(crate) fn close(&mut self, now: Timestamp, id: ConnectionId, code: CloseCode) {
        self.effects.push(Effect::Output(Output::Close { connection: id, code }));
        self.gone(now, id, None);
    }

    /// A connection has ended; with a reason, if that came from outside.
    pub(crate) fn gone(&mut self, now: Timestamp, id: ConnectionId, why: Option<&Gone>) {
        let Some(removed) = self.sessions.remove(id) else { return };
        self.beat_soon(now);
        let peer = removed.connection.peer;
        if why == Some(&Gone::Closed(CloseCode::NameInUse)) {
            self.refuse(now, removed.connection.address);
        }
        let challenger = self.sessions.contest_with(peer).map(|contest| contest.challenger);
        if challenger == Some(id) {
            self.sessions.take_contest(peer);
        }
        if !removed.stood {
            return;
        }
        self.effects.push(Effect::Down(peer));
        self.roster.touch(peer);
        self.doubts.lost(peer);
        if let Some(challenger) = challenger {
            self.sessions.take_contest(peer);
            return self.stand(now, challenger, CloseCode::Other);
        }
        match why {
            Some(Gone::Closed(CloseCode::Leaving)) => self.peer_left(now, peer),
            Some(Gone::Lost) => self.session_lost(now, peer),
            _ => {}
        }
    }

    /// Members of whom something that is shown changed.
    pub(crate) fn news(&mut self, info: impl Fn(NodeId) -> Option<NodeInfo>) -> Vec<Arc<Member>> {
        let mut news = Vec::new();
        for node in self.roster.take_touched() {
            let link = self.link(node);
            news.extend(self.roster.show(node, &link, info(node)));
        }
        news
    }

    pub(crate) fn touch(&mut self, node: NodeId) {
        self.roster.touch(node);
    }

    /// All members, this node included.
    pub(crate) fn members(&self, info: impl Fn(NodeId) -> Option<NodeInfo>) -> Vec<Arc<Member>> {
        let mut members = vec![Arc::new(self.myself(info(self.me)))];
        for (node, _) in self.roster.iter() {
            members.extend(self.roster.member(node, &self.link(node), info(node)).map(Arc::new));
        }
        members.sort_by(|a, b| (&a.name, a.node).cmp(&(&b.name, b.node)));
        members
    }

    /// This node as a member.
    pub(crate) fn myself(&self, info: Option<NodeInfo>) -> Member {
        let identity = self.swim.identity();
        let state = match self.stage {
            Stage::Here => MemberState::Alive,
            Stage::Gone(state) => state,
        };
        Member {
            node: self.me,
            name: self.config.name.clone(),
            address: self.config.advertise,
            traffic_url: self.config.traffic_url.clone(),
            zone: self.config.zone.clone(),
            region: self.config.region.clone(),
            software: self.config.software.clone(),
            boot: identity.boot,
            state,
            doubted: false,
            draining: info.is_some_and(|info| info.draining),
            connected: true,
            rtt: None,
            since: self.started,
            is_self: true,
        }
    }

    /// Something has changed that may need looking after.
    fn beat_soon(&mut self, now: Timestamp) {
        self.next_beat = self.next_beat.min(now + BEAT / 2);
    }

    fn beat_after(&self, now: Timestamp) -> Timestamp {
        let is_open = self.sessions.connections() != self.sessions.peers().len()
            || self.sessions.peers().any(|peer| !self.roster.is_alive(peer));
        if is_open {
            return now + BEAT;
        }
        let due = self.dialer.next_tick().into_iter().fold(self.next_exchange, Timestamp::min);
        due.clamp(now + BEAT, now + CALM_BEAT)
    }

    fn beat(&mut self, now: Timestamp) {
        for id in self.sessions.mute(now) {
            self.close(now, id, CloseCode::Other);
        }
        // The transport takes seconds longer to notice, and a new connection is tried only where there is none.
        for id in self.sessions.silent(now, HEARD_LATELY, |peer| !self.roster.is_alive(peer)) {
            self.close(now, id, CloseCode::Other);
        }
        self.dial(now);
        if self.next_exchange <= now {
            self.next_exchange = now + jittered(self.config.timers.exchange, &self.random);
            self.exchange(now);
            self.forget_long_dead(now);
        }
        if self.next_announce <= now {
            self.next_announce = now + jittered(self.config.timers.announce_down, &self.random);
            self.announce_to_dead(now);
        }
    }

    fn dial(&mut self, now: Timestamp) {
        if self.stage != Stage::Here {
            return;
        }
        for dial in self.dialer.due(now, &self.roster, &self.sessions, &self.random) {
            self.effects.push(Effect::Output(Output::Dial { address: dial.address, expect: dial.expect }));
        }
    }

    /// Echoes that are due, and answers that are late.
    fn echo(&mut self, now: Timestamp) {
        let sessions = &self.sessions;
        let late = self.doubts.late(now, |node| sessions.session(node).and_then(|session| session.rtt));
        for node in late {
            self.roster.touch(node);
        }
        for node in self.doubts.due(now) {
            let nonce = self.sessions.with(node).map(|_| self.random.next_u64());
            if let Some(nonce) = nonce {
                self.send_to(node, &Frame::Echo(Echo { nonce }));
            }
            if self.doubts.asked(now, node, nonce) {
                self.roster.touch(node);
            }
        }
    }

    fn session_frame(&mut self, now: Timestamp, peer: NodeId, id: ConnectionId, frame: Frame) {
        match frame {
            Frame::Swim(packet) => self.packet(now, peer, id, &packet),
            Frame::Roll(roll) => self.roll(now, peer, id, &roll),
            Frame::Members(members) => self.member_list(now, peer, &members),
            Frame::Echo(echo) => self.send_to(peer, &Frame::EchoReply(echo)),
            Frame::EchoReply(echo) => {
                self.contest_answered(now, peer, echo.nonce);
                if self.doubts.answered(now, peer, echo.nonce) {
                    self.roster.touch(peer);
                }
            }
            Frame::Confirm(confirm) => {
                let heard = self.heard(now, confirm.about);
                self.send_to(peer, &Frame::ConfirmReply(ConfirmReply { about: confirm.about, heard }));
            }
            Frame::ConfirmReply(reply) => {
                if let Some(identity) = self.lost.answer(reply.about, peer, reply.heard) {
                    self.take_for_dead(now, identity);
                }
            }
            Frame::Leaving(_) => self.peer_left(now, peer),
            Frame::Lane(frame) => self.effects.push(Effect::Lane { from: peer, connection: id, frame }),
            // Taken care of before, whatever the state of the connection.
            Frame::Hello(_) | Frame::NameTaken(_) => {}
        }
    }

    fn heard(&self, now: Timestamp, node: NodeId) -> Heard {
        match self.sessions.session(node) {
            Some(session) if now.since(session.heard) < HEARD_LATELY => Heard::Lately,
            None if self.lost.is_lost(now, node) => Heard::Lost,
            _ => Heard::Unsure,
        }
    }

    fn session_lost(&mut self, now: Timestamp, peer: NodeId) {
        let Some(entry) = self.roster.entry(peer).filter(|entry| entry.state.is_alive()) else { return };
        self.lost.open(now, entry.identity);
        self.dialer.dialled(now, peer, &self.random);
        let dial = Output::Dial { address: entry.identity.address, expect: Some(peer) };
        self.effects.push(Effect::Output(dial));
    }

    fn turn(&mut self, now: Timestamp, turn: Turn) {
        self.beat_soon(now);
        let alive = if turn.state.is_alive() { Alive::Yes } else { Alive::No };
        if alive == Alive::No {
            self.lost.close(turn.node);
        }
        self.effects.push(Effect::Alive { node: turn.node, alive });
    }

    fn forget_long_dead(&mut self, now: Timestamp) {
        let mut dead: Vec<(Timestamp, Identity)> = self
            .roster
            .iter()
            .filter(|(_, entry)| !entry.state.is_alive())
            .map(|(_, entry)| (entry.since, entry.identity))
            .collect();
        dead.sort_by_key(|(since, _)| *since);
        let mut excess = (self.roster.len() + 1).saturating_sub(self.config.limits.members_max);
        for (since, identity) in dead {
            if now.since(since) < REMEMBERED_FOR && excess == 0 {
                break;
            }
            excess = excess.saturating_sub(1);
            self.swim.forget(now, identity);
            self.roster.forget(identity.node);
            self.doubts.forget(identity.node);
            self.effects.push(Effect::Output(Output::Event(Event::Forgotten(identity.node))));
        }
    }

    /// The cluster will not have this node.
    fn refuse(&mut self, now: Timestamp, address: SocketAddr) {
        if self.stage != Stage::Here {
            return;
        }
        let refusal = Refusal::NameInUse { name: self.config.name.clone(), address };
        self.effects.push(Effect::Output(Output::Event(Event::Refused(refusal))));
        self.end(now, MemberState::Down, CloseCode::Other);
    }

    fn end(&mut self, now: Timestamp, state: MemberState, code: CloseCode) {
        self.stage = Stage::Gone(state);
        for id in self.sessions.ids() {
            self.effects.push(Effect::Output(Output::Close { connection: id, code }));
            self.gone(now, id, None);
        }
    }

    fn link(&self, node: NodeId) -> Link {
        let session = self.sessions.session(node);
        Link {
            connected: session.is_some(),
            rtt: session.and_then(|session| session.rtt),
            doubted: self.doubts.is_doubted(node),
        }
    }

    fn rtt(&self, node: NodeId) -> Option<Duration> {
        self.sessions.session(node).and_then(|session| session.rtt)
    }

    fn send_to(&mut self, peer: NodeId, frame: &Frame) {
        self.send_bytes(peer, Class::Swim, wire::encode(frame));
    }

    fn send_over(&mut self, connection: ConnectionId, frame: &Frame) {
        let bytes = wire::encode(frame);
        self.effects.push(Effect::Output(Output::Send { connection, class: Class::Swim, bytes }));
    }

    /// Some peers with a session, drawn at random.
    fn some_peers(&self, count: usize, picks: impl Fn(NodeId) -> bool) -> Vec<NodeId> {
        let mut peers: Vec<NodeId> = self.sessions.peers().filter(|peer| picks(*peer)).collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !peers.is_empty() {
            let at = self.random.below(peers.len() as u64);
            chosen.push(peers.swap_remove(usize::try_from(at).expect("below a length")));
        }
        chosen
    }
}
