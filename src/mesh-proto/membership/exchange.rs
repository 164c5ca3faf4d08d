//! What members tell each other of the members: foca's packets, and the exchange of lists that repairs what those missed.
//!
//! Gossip repeats each piece of news a few times and then never again, so some nodes would learn of a death only by their own
//! probes. Every two seconds a node compares a digest of its list with one peer, and both send their lists if they differ.

use foca::{Message, State};
use smg_base::Timestamp;

use super::{Membership, Stage, identity::Identity, packet, swim::Spread};
use crate::{
    CloseCode, ConnectionId, MemberState, NodeId,
    wire::{Answer, Frame, Members, Roll, Seen, SeenState, Start},
};

/// Dead members that are written to in one go.
const DEAD_AT_ONCE: usize = 3;

impl Membership {
    /// Takes a packet of foca's from a peer.
    pub(super) fn packet(&mut self, now: Timestamp, peer: NodeId, id: ConnectionId, bytes: &[u8]) {
        let mut rest = bytes;
        let Ok(header) = packet::read_header(&mut rest) else { return self.close(now, id, CloseCode::Misbehaved) };
        if header.src.node != peer {
            return self.close(now, id, CloseCode::Misbehaved);
        }
        let quiet = packet::updates(rest) == 0
            && self.roster.entry(peer).is_some_and(|entry| {
                entry.state == MemberState::Alive
                    && entry.identity == header.src
                    && entry.incarnation == header.src_incarnation
            });
        if !quiet && self.is_too_much(&header.src, rest) {
            return;
        }
        if header.message == Message::TurnUndead && self.returns.are_many(now) {
            return;
        }
        if self.swim.packet(now, bytes).is_err() {
            return self.close(now, id, CloseCode::Misbehaved);
        }
        if !quiet {
            self.sync(now);
        }
        // Who says of itself that it is dead is leaving.
        if packet::read_updates(rest).any(|member| *member.id() == header.src && member.state() == State::Down) {
            self.roster.note_left(now, header.src);
        }
    }

    /// Compares lists with one peer.
    pub(super) fn exchange(&mut self, now: Timestamp) {
        for peer in self.some_peers(1, |_| true) {
            let hash = Some(self.digest(now, peer));
            self.send_roll(peer, hash);
        }
    }

    /// Tells a peer whose session has just come to stand who is who. Lists are compared if it is new, or was dead, to this node.
    pub(super) fn call_roll(&mut self, now: Timestamp, peer: NodeId) {
        let known = self.roster.is_alive(peer);
        let hash = (!known).then(|| self.digest(now, peer));
        self.send_roll(peer, hash);
    }

    /// Tells all peers the identity under which this node goes on.
    pub(super) fn announce_self(&mut self, now: Timestamp) {
        self.sync(now);
        let peers: Vec<NodeId> = self.sessions.peers().collect();
        for peer in peers {
            self.send_roll(peer, None);
        }
    }

    /// Lets some of the dead that can be reached know what is thought of them.
    pub(super) fn announce_to_dead(&mut self, now: Timestamp) {
        for peer in self.some_peers(DEAD_AT_ONCE, |peer| !self.roster.is_alive(peer)) {
            if let Some(entry) = self.roster.entry(peer) {
                self.swim.announce(now, entry.identity);
            }
            self.send_roll(peer, None);
        }
    }

    /// A peer calls the roll.
    pub(super) fn roll(&mut self, now: Timestamp, peer: NodeId, id: ConnectionId, roll: &Roll) {
        let about_us = roll.you.is_none_or(|you| you.identity.node == self.me);
        if roll.me.identity.node != peer || !about_us {
            return self.close(now, id, CloseCode::Misbehaved);
        }
        let before = self.swim.identity();
        self.roster.reboot(roll.me.identity);
        self.learn(now, roll.you.iter().chain([&roll.me]), Spread::Gossip);
        let mine = self.own_seen();
        let mistaken = roll.you.is_none_or(|you| you.identity != mine.identity || you.state != SeenState::Alive);
        // A changed identity has just been told to all.
        if mine.identity == before && (mistaken && roll.you.is_some() || !self.roster.is_alive(peer)) {
            self.send_roll(peer, None);
        }
        if roll.hash.is_some_and(|hash| hash != self.digest(now, peer)) {
            self.send_list(now, peer, Answer::Wanted);
        }
    }

    /// A peer tells whom it knows.
    pub(super) fn member_list(&mut self, now: Timestamp, peer: NodeId, list: &Members) {
        let spread = if self.start == Start::Joined { Spread::Gossip } else { Spread::Quiet };
        self.learn(now, &list.members, spread);
        if list.answer == Answer::Wanted {
            self.send_list(now, peer, Answer::NotWanted);
        }
    }

    /// A member said that it leaves.
    pub(super) fn peer_left(&mut self, now: Timestamp, peer: NodeId) {
        let Some(entry) = self.roster.entry(peer) else { return };
        let left = Seen { state: SeenState::Left, ..entry.seen() };
        self.learn(now, [&left], Spread::Gossip);
    }

    /// A member is dead without a probe having said so.
    pub(super) fn take_for_dead(&mut self, now: Timestamp, identity: Identity) {
        if let Some(entry) = self.roster.entry(identity.node).filter(|entry| entry.identity == identity) {
            let dead = Seen { state: SeenState::Down, ..entry.seen() };
            self.learn(now, [&dead], Spread::Gossip);
            self.tell_of_deaths(&[identity.node]);
        }
    }

    /// Tells all peers of deaths that this node found out itself. Gossip would reach most of them as fast, and the last one seconds
    /// later now and then.
    pub(super) fn tell_of_deaths(&mut self, dead: &[NodeId]) {
        let seen = |node: &NodeId| self.roster.entry(*node).map(super::roster::Entry::seen);
        let members: Vec<Seen> = dead.iter().filter_map(seen).filter(|seen| seen.state == SeenState::Down).collect();
        if members.is_empty() {
            return;
        }
        let peers: Vec<NodeId> = self.sessions.peers().filter(|peer| self.roster.is_alive(*peer)).collect();
        let frame = Frame::Members(Members { members, answer: Answer::NotWanted });
        for peer in peers {
            self.send_to(peer, &frame);
        }
    }

    /// Takes over into the roster what foca knows. Returns who is dead now and was not before.
    pub(super) fn sync(&mut self, now: Timestamp) -> Vec<NodeId> {
        let mut turns = Vec::new();
        let mut namesake = None;
        for member in self.swim.members() {
            if member.id().node == self.me {
                namesake = Some(*member.id());
            } else if let Some(turn) = self.roster.learn(now, member) {
                turns.push(turn);
            }
        }
        let dead = turns.iter().filter(|turn| !turn.state.is_alive()).map(|turn| turn.node).collect();
        for turn in turns {
            self.turn(now, turn);
        }
        if let Some(namesake) = namesake.filter(|other| other.age() > self.swim.identity().age()) {
            self.outbid_in_time(now, namesake.boot);
        }
        dead
    }

    fn learn<'a>(&mut self, now: Timestamp, seen: impl IntoIterator<Item = &'a Seen>, spread: Spread) {
        if self.stage != Stage::Here {
            return;
        }
        let mut room = self.config.limits.members_max.saturating_sub(self.roster.len() + 1);
        let mut members = Vec::new();
        let mut left = Vec::new();
        for one in seen {
            let node = one.identity.node;
            if node != self.me && self.roster.entry(node).is_none() {
                if room == 0 {
                    continue;
                }
                room -= 1;
            }
            let state = match one.state {
                SeenState::Alive => State::Alive,
                SeenState::Suspect => State::Suspect,
                SeenState::Down | SeenState::Left => State::Down,
            };
            if one.state == SeenState::Left {
                left.push(one.identity);
            }
            members.push(foca::Member::new(one.identity, one.incarnation, state));
        }
        self.swim.apply(now, members, spread);
        self.sync(now);
        for identity in left {
            self.roster.note_left(now, identity);
        }
    }

    fn send_roll(&mut self, peer: NodeId, hash: Option<u128>) {
        let you = self.roster.entry(peer).map(super::roster::Entry::seen);
        let roll = Roll { hash, me: self.own_seen(), you };
        self.send_to(peer, &Frame::Roll(roll));
    }

    fn own_seen(&self) -> Seen {
        let state = if self.stage == Stage::Here { SeenState::Alive } else { SeenState::Left };
        Seen { identity: self.swim.identity(), incarnation: self.swim.incarnation(), state }
    }

    fn send_list(&mut self, now: Timestamp, peer: NodeId, answer: Answer) {
        let members = self.roster.seen(now, self.config.timers.redial_for).chain([self.own_seen()]).collect();
        self.send_to(peer, &Frame::Members(Members { members, answer }));
    }

    fn digest(&self, now: Timestamp, peer: NodeId) -> u128 {
        self.roster.digest(now, self.config.timers.redial_for, peer)
    }

    /// Whether a packet would make this node know more members than are allowed.
    fn is_too_much(&self, src: &Identity, updates: &[u8]) -> bool {
        let room = self.config.limits.members_max.saturating_sub(self.roster.len() + 1);
        let unknown = |node: NodeId| node != self.me && self.roster.entry(node).is_none();
        packet::updates(updates) >= room && {
            let told = packet::read_updates(updates).filter(|member| unknown(member.id().node)).count();
            told + usize::from(unknown(src.node)) > room
        }
    }
}
