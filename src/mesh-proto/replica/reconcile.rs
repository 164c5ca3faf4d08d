//! Anti-entropy: two nodes compare one number, then one for each kind, then the lanes of the kinds that differ, and fetch what the other
//! has further. A node serves any writer's lane, so that news goes around a broken link.

use std::collections::BTreeSet;

use smg_base::{Random, Timestamp};

use super::{
    Replica,
    outgoing::{Outgoing, Purpose},
    peer::Have,
};
use crate::{
    Kind, NodeId,
    lanes::{Lane, Position},
    wire::{HaveRow, LaneFrame, LaneRow, Pull, Rows},
};

impl Replica {
    /// A session begins: says what we have of the peer's lanes, and compares everything.
    pub(super) fn greet(&mut self, now: Timestamp, peer: NodeId) {
        let own = Kind::ALL.into_iter().filter_map(|kind| Some((kind, self.lanes.lane(peer, kind)?)));
        let rows = own.map(|(kind, lane)| {
            let Position { epoch, version } = lane.position();
            HaveRow { kind: kind as u8, epoch, version, hash: lane.hash() }
        });
        let rows = rows.collect();
        self.send(peer, LaneFrame::Have(rows));
        self.send(peer, LaneFrame::Root(self.lanes.root().0));
        self.schedule.digest = self.schedule.digest.max(now);
    }

    /// Compares everything with one peer; with those first with which that has not yet succeeded.
    pub(super) fn ask_somebody(&mut self, now: Timestamp) {
        let unsynced: Vec<NodeId> = self.peers.keys().copied().filter(|peer| !self.is_synced(*peer)).collect();
        let others: Vec<NodeId> = self.peers.keys().copied().collect();
        let candidates = if unsynced.is_empty() { others } else { unsynced };
        let count = u64::try_from(candidates.len()).unwrap_or(u64::MAX);
        let drawn = usize::try_from(self.random.below(count)).unwrap_or_default();
        if let Some(peer) = candidates.get(drawn) {
            self.send(*peer, LaneFrame::Root(self.lanes.root().0));
        }
        let stale = now - self.timers.resend * 2;
        for peer in self.peers.values_mut() {
            peer.pulls.retain(|_, at| *at > stale);
        }
    }

    /// The peer says what it has of our lanes.
    pub(super) fn on_have(&mut self, now: Timestamp, from: NodeId, rows: &[HaveRow]) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.have = Have::Known;
        }
        for row in rows {
            if let Some(kind) = Kind::of(row.kind) {
                let position = Position { epoch: row.epoch, version: row.version };
                self.learn(now, from, kind, position, row.hash);
            }
        }
        self.resolve();
        self.push(now, from);
    }

    /// A peer shows how far it is with one of our own lanes.
    fn learn(&mut self, now: Timestamp, from: NodeId, kind: Kind, theirs: Position, hash: u128) {
        let ours = self.lanes.position(self.me, kind);
        let lane = self.lanes.lane(self.me, kind);
        let differs = theirs == ours && lane.is_some_and(|lane| lane.hash() != hash);
        let base = lane.map(Lane::base).unwrap_or_default();
        let lost = kind.is_durable() && theirs.epoch < ours.epoch && theirs > base;
        if theirs > ours || differs || lost {
            return self.ask_for_own(now, from, kind, theirs);
        }
        if theirs.epoch == ours.epoch
            && let Some(peer) = self.peers.get_mut(&from)
        {
            let known = || Outgoing::new(Purpose::Push, theirs.epoch, theirs.version);
            peer.outgoing.entry((kind, self.me)).or_insert_with(known).learn(theirs);
        }
    }

    /// A peer has more of one of our own lanes than we have.
    pub(super) fn ask_for_own(&mut self, now: Timestamp, from: NodeId, kind: Kind, theirs: Position) {
        if self.has_begun_anew_too_often(now) {
            return;
        }
        if kind.is_durable() {
            self.pull(now, from, self.me, kind);
        } else if theirs.epoch >= self.boot {
            // An earlier run had the same number: this one takes a greater, and its lanes begin anew.
            self.note_anew(now);
            self.set_boot(theirs.epoch + 1);
        }
    }

    /// The peer's digest of everything.
    pub(super) fn on_root(&mut self, now: Timestamp, from: NodeId, root: u128) {
        if root == self.lanes.root().0 {
            self.send(from, LaneFrame::Equal(root));
            self.on_equal(now, from, root);
        } else {
            let kinds = Kind::ALL.into_iter().map(|kind| (kind as u8, self.lanes.digest(kind)));
            let kinds = kinds.filter(|(_, sum)| *sum != 0).collect();
            self.send(from, LaneFrame::Kinds(kinds));
        }
    }

    /// The peer had the same as we when we asked.
    pub(super) fn on_equal(&mut self, now: Timestamp, from: NodeId, root: u128) {
        let same = root == self.lanes.root().0;
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.sync.equal();
            if same {
                peer.matched.extend(Kind::ALL.into_iter().map(|kind| (kind, now)));
            }
        }
    }

    /// The peer's digests by kind.
    pub(super) fn on_kinds(&mut self, now: Timestamp, from: NodeId, kinds: &[(u8, u128)]) {
        let theirs = |kind: Kind| kinds.iter().find(|(number, _)| *number == kind as u8).map_or(0, |(_, sum)| *sum);
        let differ: BTreeSet<Kind> =
            Kind::ALL.into_iter().filter(|kind| theirs(*kind) != self.lanes.digest(*kind)).collect();
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let equal = Kind::ALL.into_iter().filter(|kind| !differ.contains(kind));
        peer.matched.extend(equal.map(|kind| (kind, now)));
        peer.sync.differ(differ.clone());
        for kind in differ {
            let rows = self.lanes.of_kind(kind).map(|(writer, lane)| row(writer, lane)).collect();
            self.send(from, LaneFrame::Rows(Rows { kind: kind as u8, rows, ask: true }));
        }
    }

    /// The peer's lanes of a kind.
    pub(super) fn on_rows(&mut self, now: Timestamp, from: NodeId, rows: &Rows) {
        let Some(kind) = Kind::of(rows.kind) else { return };
        let mut targets = Vec::new();
        for row in &rows.rows {
            let theirs = Position { epoch: row.epoch, version: row.version };
            if row.writer == self.me {
                self.learn(now, from, kind, theirs, row.hash);
            } else {
                self.compare(now, from, kind, row);
            }
            if theirs > self.lanes.position(row.writer, kind) {
                targets.push((row.writer, theirs));
            }
        }
        if rows.ask {
            self.answer(now, from, kind, &rows.rows);
        } else if let Some(peer) = self.peers.get_mut(&from) {
            peer.sync.rows(kind, targets);
        }
    }

    /// Answers with those of our rows that the peer lacks, or has less far, or otherwise.
    fn answer(&mut self, now: Timestamp, to: NodeId, kind: Kind, theirs: &[LaneRow]) {
        let known = |writer: NodeId| theirs.iter().find(|row| row.writer == writer);
        let news = self.lanes.of_kind(kind).map(|(writer, lane)| row(writer, lane)).filter(|ours| {
            known(ours.writer).is_none_or(|theirs| {
                let (ours_at, theirs_at) = ((ours.epoch, ours.version), (theirs.epoch, theirs.version));
                ours_at > theirs_at || (ours_at == theirs_at && ours.hash != theirs.hash)
            })
        });
        let rows = news.collect();
        self.send(to, LaneFrame::Rows(Rows { kind: kind as u8, rows, ask: false }));
        // Its list is complete, so it also says what it has of ours.
        if self.lanes.lane(self.me, kind).is_some() && known(self.me).is_none() {
            self.learn(now, to, kind, Position::default(), 0);
        }
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.have = Have::Known;
        }
        self.push(now, to);
    }

    /// Fetches a lane that the peer has further than we, unless its writer is about to send it.
    fn compare(&mut self, now: Timestamp, from: NodeId, kind: Kind, row: &LaneRow) {
        let (writer, theirs) = (row.writer, Position { epoch: row.epoch, version: row.version });
        let ours = self.lanes.position(writer, kind);
        let hash = self.lanes.lane(writer, kind).map(Lane::hash).unwrap_or_default();
        if theirs == ours && row.hash > hash && !self.planes.alive().contains(&writer) {
            return self.pull_from(now, from, writer, kind, Position::default());
        }
        if theirs <= ours || self.lanes.is_dead(writer, kind, theirs) {
            return;
        }
        let since = *self.behind.entry((kind, writer)).or_insert(now);
        let is_coming = self.peers.contains_key(&writer) && now.since(since) < self.timers.digest * 2;
        if !is_coming && self.may_hold(writer) {
            self.pull(now, from, writer, kind);
        }
    }

    /// Whether lanes of this writer may take up memory here.
    fn may_hold(&self, writer: NodeId) -> bool {
        self.lanes.has_writer(writer) || self.lanes.writers().count() < self.limits.members_max
    }

    fn pull(&mut self, now: Timestamp, from: NodeId, writer: NodeId, kind: Kind) {
        // Of our own lane the peer's copy is wanted whole, to be laid over ours.
        let ours = if writer == self.me { Position::default() } else { self.lanes.position(writer, kind) };
        self.pull_from(now, from, writer, kind, ours);
    }

    fn pull_from(&mut self, now: Timestamp, from: NodeId, writer: NodeId, kind: Kind, since: Position) {
        let is_asked = self.peers.values().any(|peer| peer.pulls.contains_key(&(kind, writer)));
        let Some(peer) = self.peers.get_mut(&from).filter(|_| !is_asked) else { return };
        peer.pulls.insert((kind, writer), now);
        let pull = Pull { writer, kind: kind as u8, epoch: since.epoch, since: since.version };
        self.send(from, LaneFrame::Pull(pull));
    }

    /// The peer asks for a lane.
    pub(super) fn on_pull(&mut self, now: Timestamp, from: NodeId, pull: Pull) {
        let Some(kind) = Kind::of(pull.kind) else { return };
        let position = self.lanes.position(pull.writer, kind);
        if position.version == 0 {
            return;
        }
        let same = pull.epoch == position.epoch && pull.since <= position.version;
        let purpose = if pull.writer == self.me { Purpose::Push } else { Purpose::Pull };
        let outgoing = Outgoing::new(purpose, position.epoch, if same { pull.since } else { 0 });
        self.serve(now, from, pull.writer, kind, outgoing);
    }
}

fn row(writer: NodeId, lane: &Lane) -> LaneRow {
    let Position { epoch, version } = lane.position();
    LaneRow { writer, epoch, version, hash: lane.hash() }
}
