//! What is kept about one peer while a session with it stands, and how lanes travel over it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use smg_base::Timestamp;

use super::{
    Replica, ReplicaOutput,
    incoming::{Stage, check},
    outgoing::{Outgoing, Purpose},
};
use crate::{
    Kind, NodeId,
    lanes::{Lane, Part, Position},
    wire::{AckRow, Chunk, LaneFrame, Misbehaviour, Outcome},
};

/// Parts that are acknowledged together at most: a peer that sends a long transfer goes on before it has to wait.
const ACKS_MAX: usize = 8;

/// After so many time-outs in a row the pause between them grows no more.
const PATIENCE_MAX: u32 = 3;

/// A peer with a session.
#[derive(Debug)]
pub(super) struct Peer {
    /// Lanes on their way to it.
    pub(super) outgoing: BTreeMap<(Kind, NodeId), Outgoing>,
    /// Whether it has said what it has of our lanes: before that, it is sent none.
    pub(super) have: Have,
    /// Lanes it was asked for, and when that last came further.
    pub(super) pulls: BTreeMap<(Kind, NodeId), Timestamp>,
    /// How far the first comparison with it is.
    pub(super) sync: Sync,
    /// When a plane of it was last seen to equal ours, as ours then was.
    pub(super) matched: BTreeMap<Kind, Timestamp>,
    stages: BTreeMap<(Kind, NodeId), Stage>,
    acks: Vec<AckRow>,
    unacked: usize,
    progress: Timestamp,
    patience: u32,
}

/// What is known of what a peer has of our lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Have {
    /// Nothing yet.
    Unknown,
    /// It has said so.
    Known,
}

/// Whether what a peer had when it was asked has arrived.
#[derive(Debug, Default)]
pub(super) struct Sync {
    answered: bool,
    awaited: BTreeSet<Kind>,
    targets: BTreeMap<(Kind, NodeId), Position>,
}

impl Sync {
    /// Both have the same.
    pub(super) fn equal(&mut self) {
        *self = Self { answered: true, ..Self::default() };
    }

    /// These kinds differ; their rows are awaited.
    pub(super) fn differ(&mut self, kinds: BTreeSet<Kind>) {
        self.targets.retain(|(kind, _), _| kinds.contains(kind));
        (self.answered, self.awaited) = (true, kinds);
    }

    /// The rows of a kind are here: it has these lanes further.
    pub(super) fn rows(&mut self, kind: Kind, targets: impl IntoIterator<Item = (NodeId, Position)>) {
        self.awaited.remove(&kind);
        self.targets.retain(|(of, _), _| *of != kind);
        self.targets.extend(targets.into_iter().map(|(writer, position)| ((kind, writer), position)));
    }

    /// Whether it is known what is missing.
    pub(super) fn is_answered(&self) -> bool {
        self.answered && self.awaited.is_empty()
    }

    /// What was missing.
    pub(super) fn targets(&self) -> impl Iterator<Item = (&(Kind, NodeId), &Position)> {
        self.targets.iter()
    }
}

impl Peer {
    /// A peer whose session has just come to stand.
    pub(super) fn new(now: Timestamp) -> Self {
        Self {
            outgoing: BTreeMap::new(),
            have: Have::Unknown,
            pulls: BTreeMap::new(),
            sync: Sync::default(),
            matched: BTreeMap::new(),
            stages: BTreeMap::new(),
            acks: Vec::new(),
            unacked: 0,
            progress: now,
            patience: 0,
        }
    }

    /// When what is in flight counts as lost, or when it is assumed that the peer has nothing because it does not say what.
    pub(super) fn resend_at(&self, resend: Duration) -> Option<Timestamp> {
        let waits = self.unacked > 0 || self.have == Have::Unknown;
        waits.then(|| self.progress + resend * (1 << self.patience))
    }

    fn heard(&mut self, now: Timestamp) {
        self.progress = now;
        self.patience = 0;
    }
}

impl Replica {
    /// Begins to send a peer a lane it asked for.
    pub(super) fn serve(&mut self, now: Timestamp, to: NodeId, writer: NodeId, kind: Kind, outgoing: Outgoing) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if let Some(mut before) = peer.outgoing.insert((kind, writer), outgoing) {
            peer.unacked -= before.time_out(&self.transfers);
        }
        self.push(now, to);
    }

    /// Sends a peer what is newer of our own lanes, and goes on with what it asked for.
    pub(super) fn push(&mut self, now: Timestamp, to: NodeId) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if peer.have == Have::Known {
            for kind in Kind::ALL {
                if let Some(lane) = self.lanes.lane(self.me, kind) {
                    let fresh = || Outgoing::new(Purpose::Push, lane.position().epoch, 0);
                    peer.outgoing.entry((kind, self.me)).or_insert_with(fresh);
                }
            }
        }
        if peer.unacked == 0 && peer.have == Have::Known {
            peer.progress = now;
        }
        let mut unacked = peer.unacked;
        peer.outgoing.retain(|(kind, writer), outgoing| {
            let Some(lane) = self.lanes.lane(*writer, *kind) else {
                unacked -= outgoing.time_out(&self.transfers);
                return false;
            };
            while unacked < self.limits.unacked_bytes_max
                && let Some(part) = outgoing.next(*writer, *kind, lane, &mut self.transfers, &mut unacked)
            {
                self.out.push(ReplicaOutput::Send { peer: to, class: part.class, bytes: part.bytes });
            }
            !outgoing.is_done(lane)
        });
        peer.unacked = unacked;
    }

    /// A part of a transfer came.
    pub(super) fn on_chunk(&mut self, now: Timestamp, from: NodeId, chunk: Chunk) -> Result<(), Misbehaviour> {
        check(&chunk, &self.limits)?;
        let (writer, transfer, index) = (chunk.writer, chunk.transfer, chunk.index);
        let Some(kind) = Kind::of(chunk.kind) else {
            // A newer program's lane: it need not be sent again.
            self.skipped_entries += chunk.entries.len() as u64;
            let ack = AckRow {
                writer,
                kind: chunk.kind,
                transfer,
                index,
                outcome: Outcome::Taken,
                epoch: chunk.epoch,
                version: chunk.last.map_or(0, |last| last.version),
            };
            self.acknowledge(now, from, ack);
            return Ok(());
        };
        let pulled = self.peers.get(&from).is_some_and(|peer| peer.pulls.contains_key(&(kind, writer)));
        if writer != from && !pulled {
            // The rest of something that was given up.
            return Ok(());
        }
        let outcome = if writer == self.me {
            self.stage(now, from, kind, chunk)?;
            Outcome::Taken
        } else {
            // Of two copies at one position, the whole of the other was asked for.
            let purpose = if pulled && chunk.since == 0 { Purpose::Pull } else { Purpose::Push };
            match self.judge(from, kind, &chunk, purpose) {
                Judgement::Wanted => {
                    self.stage(now, from, kind, chunk)?;
                    Outcome::Taken
                }
                Judgement::Old => Outcome::Taken,
                Judgement::Gap => Outcome::Gap,
                Judgement::Ahead => Outcome::Ahead,
                Judgement::Dead => Outcome::Dead,
            }
        };
        let Position { epoch, version } = match outcome {
            Outcome::Dead => self.lanes.given_up(writer, kind),
            _ => self.lanes.position(writer, kind),
        };
        let row = AckRow { writer, kind: kind as u8, transfer, index, outcome, epoch, version };
        self.acknowledge(now, from, row);
        if kind.is_durable() && writer == from {
            // Somebody may be waiting for this.
            self.send_acks(from);
        }
        Ok(())
    }

    fn judge(&self, from: NodeId, kind: Kind, chunk: &Chunk, purpose: Purpose) -> Judgement {
        let ours = self.lanes.position(chunk.writer, kind);
        let old = chunk.epoch == ours.epoch
            && chunk.last.is_some_and(|last| {
                last.version < ours.version || (last.version == ours.version && purpose == Purpose::Push)
            });
        // Only its last part tells how far a transfer leads.
        let version = chunk.last.map_or(u64::MAX, |last| last.version);
        if self.lanes.is_dead(chunk.writer, kind, Position { epoch: chunk.epoch, version }) {
            return Judgement::Dead;
        }
        if old || chunk.epoch < ours.epoch {
            return Judgement::Old;
        }
        if chunk.since != 0 && (chunk.epoch != ours.epoch || chunk.since > ours.version) {
            return Judgement::Gap;
        }
        let base = chunk.last.map(|last| Position { epoch: last.base_epoch, version: last.base_version });
        let lost = kind.is_durable() && chunk.epoch > ours.epoch && base.is_some_and(|base| base < ours);
        // A dead writer cannot ask for what it lost: its last word counts.
        if lost && from == chunk.writer && self.planes.alive().contains(&from) {
            return Judgement::Ahead;
        }
        Judgement::Wanted
    }

    /// Keeps a part until its transfer is whole, then applies that.
    fn stage(&mut self, now: Timestamp, from: NodeId, kind: Kind, chunk: Chunk) -> Result<(), Misbehaviour> {
        let writer = chunk.writer;
        let limits = self.limits;
        let others = self.lanes.writer_bytes(writer) - self.lanes.lane(writer, kind).map_or(0, |lane| lane.bytes());
        let peer = self.peers.get_mut(&from).expect("the caller has seen the peer");
        if let Some(at) = peer.pulls.get_mut(&(kind, writer)) {
            *at = now;
        }
        let stage = peer.stages.entry((kind, writer)).or_insert_with(|| Stage::of(&chunk));
        match chunk.transfer.cmp(&stage.transfer()) {
            std::cmp::Ordering::Less => return Ok(()),
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => *stage = Stage::of(&chunk),
        }
        stage.add(chunk, &limits)?;
        if others + stage.bytes() > limits.writer_bytes_max {
            return Err(Misbehaviour::Limit);
        }
        if !stage.is_whole() {
            return Ok(());
        }
        let patch = peer.stages.remove(&(kind, writer)).and_then(Stage::into_patch).expect("it is whole");
        peer.pulls.remove(&(kind, writer));
        if writer == self.me {
            self.recover(now, kind, patch);
            return Ok(());
        }
        let ours = self.lanes.position(writer, kind);
        if patch.to == ours && patch.since == 0 {
            self.settle_tie(now, writer, kind, Lane::of(patch));
            return Ok(());
        }
        let fits = patch.since == 0 || (patch.to.epoch == ours.epoch && patch.since <= ours.version);
        if patch.to <= ours || !fits || self.lanes.is_dead(writer, kind, patch.to) {
            return Ok(());
        }
        let lane = self.lanes.lane(writer, kind).filter(|_| patch.since != 0);
        let is_new = |part: &&Part| lane.is_none_or(|lane| lane.version_of(&part.key).is_none());
        if lane.map_or(0, Lane::len) + patch.parts.iter().filter(is_new).count() > limits.lane_entries_max {
            return Err(Misbehaviour::Limit);
        }
        let changes = self.lanes.apply(writer, kind, patch);
        self.absorb(now, writer, kind, &changes);
        self.behind.remove(&(kind, writer));
        if !kind.is_durable() {
            self.bury(now, writer);
        }
        Ok(())
    }

    /// Two copies differ at one position, because a second node wrote under the same name, and the writer is not there to begin
    /// anew: everybody takes the same one.
    fn settle_tie(&mut self, now: Timestamp, writer: NodeId, kind: Kind, theirs: Lane) {
        if self.lanes.lane(writer, kind).is_some_and(|ours| theirs.hash() > ours.hash()) {
            let changes = self.lanes.replace(writer, kind, theirs);
            self.absorb(now, writer, kind, &changes);
        }
    }

    /// A writer's ephemeral lanes die with its boot number.
    pub(super) fn bury(&mut self, now: Timestamp, writer: NodeId) {
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_durable()) {
            let position = self.lanes.position(writer, kind);
            if position.version != 0 && self.lanes.is_dead(writer, kind, position) {
                let changes = self.lanes.drop_lane(writer, kind);
                self.absorb(now, writer, kind, &changes);
            }
        }
    }

    fn acknowledge(&mut self, now: Timestamp, from: NodeId, row: AckRow) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        peer.acks.push(row);
        if peer.acks.len() >= ACKS_MAX {
            self.send_acks(from);
        } else {
            self.stir(now);
        }
    }

    /// Sends what is to be acknowledged.
    pub(super) fn send_acks(&mut self, to: NodeId) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        let rows = std::mem::take(&mut peer.acks);
        if !rows.is_empty() {
            self.send(to, LaneFrame::Ack(rows));
        }
    }

    /// A peer says what became of parts.
    pub(super) fn on_ack(&mut self, now: Timestamp, from: NodeId, rows: &[AckRow]) {
        for row in rows {
            let Some(kind) = Kind::of(row.kind) else { continue };
            let Some(lane) = self.lanes.lane(row.writer, kind) else { continue };
            let Some(peer) = self.peers.get_mut(&from) else { return };
            peer.heard(now);
            if let Some(outgoing) = peer.outgoing.get_mut(&(kind, row.writer)) {
                peer.unacked -= outgoing.acknowledge(row, lane, &self.transfers);
            }
            let theirs = Position { epoch: row.epoch, version: row.version };
            if row.writer == self.me && row.outcome == Outcome::Dead {
                self.revive(now, kind, theirs);
            } else if row.writer == self.me && (row.outcome == Outcome::Ahead || theirs > lane.position()) {
                self.ask_for_own(now, from, kind, theirs);
            }
        }
        self.resolve();
        self.push(now, from);
    }

    /// What was not acknowledged for too long is sent again.
    pub(super) fn time_out(&mut self, now: Timestamp) {
        let mut late = Vec::new();
        for (node, peer) in &mut self.peers {
            if peer.resend_at(self.timers.resend).is_none_or(|due| due > now) {
                continue;
            }
            peer.progress = now;
            peer.patience = (peer.patience + 1).min(PATIENCE_MAX);
            peer.have = Have::Known;
            peer.outgoing.retain(|(_, writer), outgoing| {
                if outgoing.is_in_flight() {
                    peer.unacked -= outgoing.time_out(&self.transfers);
                }
                // Whoever pulled it asks again if it still needs it.
                *writer == self.me
            });
            late.push(*node);
        }
        for node in late {
            self.push(now, node);
        }
    }
}

/// What to do with a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judgement {
    Wanted,
    Old,
    Gap,
    Ahead,
    Dead,
}
