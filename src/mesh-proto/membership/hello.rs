//! Connections become sessions: who is there, which of two connections stays, and which of two nodes with one name.

use std::{cmp::Reverse, net::SocketAddr, time::Duration};

use smg_base::{Random as _, Timestamp};

use super::{
    Effect, Membership, Stage,
    identity::Identity,
    sessions::{Connection, Contest},
};
use crate::{
    CloseCode, ConnectionId, Direction, NodeId,
    wire::{Echo, Frame, Hello, Holds, NameTaken, PROTOCOL, Start},
};

/// How long a session may take to show that it lives, when another connection would replace it.
const CONTEST_FOR: Duration = Duration::from_millis(600);
/// Least time between two attempts to outbid another node of the same name.
const OUTBID_EVERY: Duration = Duration::from_secs(1);

impl Membership {
    /// A connection stands; `holds` is what is known of the peer's lanes.
    pub(crate) fn connected(&mut self, now: Timestamp, id: ConnectionId, connection: Connection, holds: Option<Holds>) {
        let Connection { peer, address, direction, .. } = connection;
        let connections_max = self.config.limits.members_max.saturating_mul(2);
        self.sessions.open(id, connection);
        if self.stage != Stage::Here {
            return self.close(now, id, CloseCode::Leaving);
        }
        if self.sessions.connections() > connections_max {
            return self.close(now, id, CloseCode::Full);
        }
        if direction == Direction::Dialled {
            self.dialer.answered(address, peer);
        }
        let hello = self.own_hello(now, peer, holds);
        self.send_over(id, &Frame::Hello(hello));
    }

    /// Somebody said who it is.
    pub(super) fn hello(&mut self, now: Timestamp, id: ConnectionId, hello: Hello) {
        let Some(connection) = self.sessions.connection_mut(id) else { return };
        let peer = connection.peer;
        connection.hello = Some(hello.clone());
        if let Some(code) = self.objection(peer, &hello) {
            return self.close(now, id, code);
        }
        if peer == self.me {
            return self.met_namesake(now, id, &hello);
        }
        if let Some(holds) = hello.holds {
            let anothers = hello.holds_instance.is_some_and(|instance| instance != self.config.instance);
            let own = self.swim.identity().boot;
            if holds.boot > own || (holds.boot == own && anothers) {
                self.outbid(now, holds.boot);
            }
            self.effects.push(Effect::Told(holds));
        }
        match self.sessions.with(peer) {
            None => self.stand(now, id, CloseCode::Other),
            Some(before) => self.second_connection(now, peer, before, id),
        }
    }

    /// Makes a connection the session with its peer; one that it replaces is closed with `code`.
    pub(super) fn stand(&mut self, now: Timestamp, id: ConnectionId, code: CloseCode) {
        let Some(connection) = self.sessions.connection_mut(id) else { return };
        let (peer, early) = (connection.peer, connection.take_early());
        let Some(hello) = connection.hello.clone() else { return };
        self.beat_soon(now);
        if let Some(before) = self.sessions.stand(peer, id) {
            self.effects.push(Effect::Down(peer));
            self.close(now, before, code);
        }
        self.lost.close(peer);
        self.roster.introduce(&hello);
        self.effects.push(Effect::Up(peer));
        self.call_roll(now, peer);
        for frame in early {
            self.frame(now, id, frame);
        }
    }

    /// The session showed that it lives.
    pub(super) fn contest_answered(&mut self, now: Timestamp, peer: NodeId, nonce: u64) {
        let Some(contest) = self.sessions.contest_with(peer).filter(|contest| contest.nonce == nonce) else { return };
        self.sessions.take_contest(peer);
        let hello = |id| self.sessions.connection(id).and_then(|connection: &Connection| connection.hello.clone());
        let Some(challenger) = hello(contest.challenger) else { return };
        let Some(holder) = self.sessions.with(peer).and_then(hello) else { return };
        if holder.instance == challenger.instance {
            return self.close(now, contest.challenger, CloseCode::Redundant);
        }
        // Two nodes of one name live. Mostly the second has just started. If it belongs to a cluster already, two parts of it that
        // were apart have met; all members must turn away the same one then, and the run that is the older stays.
        let older =
            (Reverse(challenger.age_ms), challenger.instance) < (Reverse(self.age(now, &holder)), holder.instance);
        if challenger.start == Start::Joined && older {
            if let Some(before) = self.sessions.with(peer) {
                self.send_over(before, &Frame::NameTaken(NameTaken { address: challenger.advertise }));
            }
            self.stand(now, contest.challenger, CloseCode::NameInUse);
        } else {
            self.turn_away(now, contest.challenger, holder.advertise);
        }
    }

    /// The session did not show that it lives.
    pub(super) fn contest_lost(&mut self, now: Timestamp, peer: NodeId) {
        if let Some(contest) = self.sessions.take_contest(peer) {
            self.stand(now, contest.challenger, CloseCode::Other);
        }
    }

    /// Takes a boot number greater than one that another run of this name had.
    pub(super) fn outbid(&mut self, now: Timestamp, boot: u64) {
        self.raise_boot(now, boot.saturating_add(1));
    }

    /// Goes on under this boot number, unless this run's is as great already.
    pub(crate) fn raise_boot(&mut self, now: Timestamp, boot: u64) {
        if boot <= self.swim.identity().boot || self.stage != Stage::Here {
            return;
        }
        let identity = Identity { boot, bump: 0, ..self.swim.identity() };
        self.swim.become_identity(now, identity);
        self.effects.push(Effect::Boot(boot));
        self.next_outbid = now + OUTBID_EVERY;
        self.announce_self(now);
    }

    /// Somebody goes on under a newer identity of this node than this node's own.
    pub(super) fn outbid_in_time(&mut self, now: Timestamp, boot: u64) {
        if self.next_outbid <= now {
            self.outbid(now, boot);
        }
    }

    fn own_hello(&self, now: Timestamp, peer: NodeId, holds: Option<Holds>) -> Hello {
        let known = self.roster.entry(peer).map(|entry| entry.identity.boot);
        let holds = match (known, holds) {
            (None, holds) => holds,
            (Some(boot), holds) => {
                let holds = holds.unwrap_or_default();
                Some(Holds { boot: holds.boot.max(boot), ..holds })
            }
        };
        Hello {
            protocol_min: PROTOCOL,
            protocol_max: PROTOCOL,
            capabilities: 0,
            cluster: self.config.cluster.clone(),
            name: self.config.name.clone(),
            node: self.me,
            instance: self.config.instance,
            boot: self.swim.identity().boot,
            advertise: self.config.advertise,
            zone: self.config.zone.clone(),
            region: self.config.region.clone(),
            software: self.config.software.clone(),
            start: self.start,
            age_ms: millis(now.since(self.started)),
            holds_instance: holds.and_then(|holds| self.roster.instance(peer, holds.boot)),
            holds,
        }
    }

    fn objection(&self, peer: NodeId, hello: &Hello) -> Option<CloseCode> {
        if hello.node != peer || NodeId::of(&hello.name) != peer {
            return Some(CloseCode::Misbehaved);
        }
        if hello.cluster != self.config.cluster {
            return Some(CloseCode::WrongCluster);
        }
        if hello.protocol_min > PROTOCOL || hello.protocol_max < PROTOCOL {
            return Some(CloseCode::NoCommonVersion);
        }
        let unknown = peer != self.me && self.roster.entry(peer).is_none();
        (unknown && self.roster.len() + 1 >= self.config.limits.members_max).then_some(CloseCode::Full)
    }

    /// This node's name is at the other end: itself, or another run with the same name.
    fn met_namesake(&mut self, now: Timestamp, id: ConnectionId, hello: &Hello) {
        if hello.instance == self.config.instance {
            return self.close(now, id, CloseCode::Other);
        }
        // The one that is not joined yet gives way, then the younger. Ages are compared as both sides sent them, so that both come
        // to the same result.
        let opened = self.sessions.connection(id).map_or(now, |connection| connection.opened);
        let own_age = millis(opened.since(self.started));
        let rank = |start, age, instance| (start == Start::Joining, Reverse(age), instance);
        if rank(hello.start, hello.age_ms, hello.instance) < rank(self.start, own_age, self.config.instance) {
            self.refuse(now, hello.advertise);
        } else {
            self.turn_away(now, id, self.config.advertise);
        }
    }

    /// A peer with a session has made another connection.
    fn second_connection(&mut self, now: Timestamp, peer: NodeId, before: ConnectionId, id: ConnectionId) {
        let (Some(old), Some(new)) = (self.sessions.connection(before), self.sessions.connection(id)) else { return };
        let instance = |connection: &Connection| connection.hello.as_ref().map(|hello| hello.instance);
        if instance(old) == instance(new) {
            // Both sides must keep the same one: that which the lower node dialled. If one side dialled twice, it has lost the first.
            if old.direction == new.direction || self.is_preferred(peer, new.direction) {
                return self.stand(now, id, CloseCode::Redundant);
            }
            if now.since(old.heard) < CONTEST_FOR && old.heard > old.opened {
                return self.close(now, id, CloseCode::Redundant);
            }
        }
        let nonce = self.random.next_u64();
        let contest = Contest { challenger: id, nonce, until: now + CONTEST_FOR };
        if let Some(outdone) = self.sessions.contest(peer, contest) {
            self.close(now, outdone, CloseCode::Redundant);
        }
        self.send_over(before, &Frame::Echo(Echo { nonce }));
    }

    fn is_preferred(&self, peer: NodeId, direction: Direction) -> bool {
        (self.me < peer) == (direction == Direction::Dialled)
    }

    fn turn_away(&mut self, now: Timestamp, id: ConnectionId, address: SocketAddr) {
        self.send_over(id, &Frame::NameTaken(NameTaken { address }));
        self.close(now, id, CloseCode::NameInUse);
    }

    /// How old a peer's run is by now.
    fn age(&self, now: Timestamp, hello: &Hello) -> u64 {
        let since = self.sessions.session(hello.node).map_or(Duration::ZERO, |session| now.since(session.opened));
        hello.age_ms.saturating_add(millis(since))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
