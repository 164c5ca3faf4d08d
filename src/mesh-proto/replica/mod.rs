//! Replication of one node: its own lanes out to every peer, everybody's lanes in, what is missing fetched from whoever has it.
//!
//! - `outgoing`, `incoming`: one lane on its way to one peer, and from one.
//! - `reconcile`: digests, and what they show to be missing.
//! - `writes`: what this node changes, and when that counts as done.
//! - `recovery`: a writer that has lost its memory, or is back from the dead.
//! - `upkeep`: adoption of the dead, and what may be forgotten.

mod incoming;
mod outgoing;
mod peer;
mod reconcile;
mod recovery;
#[cfg(test)]
mod tests;
mod upkeep;
mod writes;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use smg_base::{SplitMix, Timestamp, WorkerId};

use crate::{
    Batch, Class, Config, Digest, Event, Kind, LaneStatus, Ledger, Limits, NodeId, NodeInfo, PlaneStatus, Reach,
    Restored, Timers, WorkerRow,
    lanes::{Change, Lanes, Position},
    planes::Planes,
    wire::{Frame, Holds, LaneFrame, Misbehaviour, encode},
};

pub(crate) use crate::planes::Alive;
use outgoing::Transfers;
use peer::Peer;
use recovery::Anew;
use writes::Writes;

/// Something is to be done for replication.
#[derive(Clone, Debug)]
pub(crate) enum ReplicaOutput {
    /// Send a frame to a peer, over the session that stands.
    Send {
        /// To whom.
        peer: NodeId,
        /// How it travels.
        class: Class,
        /// The frame's bytes.
        bytes: Bytes,
    },
    /// Write to disk.
    Persist(Batch),
    /// News for the node.
    Event(Event),
    /// What a node says of itself changed: its `Member` is to be shown anew.
    Info(NodeId),
}

/// Replication of one node.
pub(crate) struct Replica {
    me: NodeId,
    instance: u64,
    boot: u64,
    info: NodeInfo,
    timers: Timers,
    limits: Limits,
    random: SplitMix,
    lanes: Lanes,
    planes: Planes,
    peers: BTreeMap<NodeId, Peer>,
    transfers: Transfers,
    writes: Writes,
    /// The greatest epoch of our durable lanes that a peer told of.
    told_epoch: u64,
    /// How far our durable lanes were when this run began, or when they last began anew.
    begun: BTreeMap<Kind, Position>,
    /// What this run wrote itself, which no older copy overrides.
    written: BTreeSet<(Kind, Bytes)>,
    /// Lanes that somebody has more of, since when, although their writer should be sending it.
    behind: BTreeMap<(Kind, NodeId), Timestamp>,
    /// Since when a writer's word does not count.
    silent: BTreeMap<NodeId, Timestamp>,
    /// Removals of ours whose assertion nobody holds any more, since when.
    settled: BTreeMap<Bytes, Timestamp>,
    /// Nodes that say themselves again what we had adopted, since when that is known.
    returned: BTreeMap<(Kind, NodeId), Timestamp>,
    anew: Anew,
    schedule: Schedule,
    /// Entries of lanes that only a newer program understands.
    skipped_entries: u64,
    out: Vec<ReplicaOutput>,
}

/// When the next step of each kind is due.
#[derive(Debug)]
struct Schedule {
    flush: Option<Timestamp>,
    flushed: Timestamp,
    digest: Timestamp,
    upkeep: Timestamp,
}

impl Replica {
    /// Replication of the node `me`, with what its disk held.
    pub(crate) fn new(me: NodeId, config: &Config, restored: Restored) -> Self {
        let (lanes, boot) = Lanes::restore(restored);
        let mut replica = Self {
            me,
            instance: config.instance,
            boot,
            info: NodeInfo {
                name: config.name.clone(),
                zone: config.zone.clone(),
                region: config.region.clone(),
                traffic_url: config.traffic_url.clone(),
                software: config.software.clone(),
                draining: false,
            },
            timers: config.timers,
            limits: config.limits,
            random: SplitMix::new(config.seed ^ 0x006c_616e_6573),
            lanes: Lanes::default(),
            planes: Planes::new(me),
            peers: BTreeMap::new(),
            transfers: Transfers::default(),
            writes: Writes::default(),
            told_epoch: 0,
            begun: BTreeMap::new(),
            written: BTreeSet::new(),
            behind: BTreeMap::new(),
            silent: BTreeMap::new(),
            settled: BTreeMap::new(),
            returned: BTreeMap::new(),
            anew: Anew::default(),
            schedule: Schedule {
                flush: Some(Timestamp::ORIGIN),
                flushed: Timestamp::ORIGIN,
                digest: Timestamp::ORIGIN,
                upkeep: Timestamp::ORIGIN,
            },
            skipped_entries: 0,
            out: Vec::new(),
        };
        for kind in Kind::ALL {
            for (writer, lane) in lanes.of_kind(kind) {
                for (key, value) in lane.live_from(&[]) {
                    let change = Change { key: key.clone(), old: None, new: Some(value.clone()) };
                    replica.planes.change(writer, kind, &change);
                }
            }
            replica.begun.insert(kind, lanes.position(me, kind));
        }
        replica.lanes = lanes;
        replica
    }

    /// This node's boot number; before [`Self::set_boot`] that of the run before, 0 if there was none.
    pub(crate) fn boot(&self) -> u64 {
        self.boot
    }

    /// Begins a run under this number: journals it and restarts the ephemeral lanes under it.
    pub(crate) fn set_boot(&mut self, boot: u64) {
        if boot <= self.boot && self.lanes.boot(self.me) != 0 {
            return;
        }
        self.boot = boot;
        self.lanes.pending.boot(boot);
        self.restart_ephemeral(self.schedule.flushed);
    }

    /// The greatest numbers known for a node; none if nothing is known of it.
    pub(crate) fn holds(&self, node: NodeId) -> Option<Holds> {
        let holds = Holds { boot: self.lanes.boot(node), epoch: self.lanes.epoch(node) };
        (holds != Holds::default()).then_some(holds)
    }

    /// A peer says what it holds of this node's lanes.
    pub(crate) fn told(&mut self, holds: Holds) {
        self.told_epoch = self.told_epoch.max(holds.epoch);
    }

    /// A session with a peer stands.
    pub(crate) fn session_up(&mut self, now: Timestamp, peer: NodeId) {
        if peer == self.me {
            return;
        }
        self.peers.insert(peer, Peer::new(now));
        self.greet(now, peer);
        self.stir(now);
    }

    /// It has ended.
    pub(crate) fn session_down(&mut self, now: Timestamp, peer: NodeId) {
        self.peers.remove(&peer);
        self.resolve();
        self.stir(now);
    }

    /// SWIM says whether a node's word counts.
    pub(crate) fn set_alive(&mut self, now: Timestamp, node: NodeId, alive: Alive) {
        if node == self.me {
            return;
        }
        match alive {
            Alive::Yes => self.silent.remove(&node),
            Alive::No => Some(*self.silent.entry(node).or_insert(now)),
        };
        self.planes.set_alive(node, alive, &self.lanes);
        self.stir(now);
    }

    /// A frame came from a peer with a session.
    pub(crate) fn frame(&mut self, now: Timestamp, from: NodeId, frame: LaneFrame) -> Result<(), Misbehaviour> {
        if !self.peers.contains_key(&from) {
            return Ok(());
        }
        match frame {
            LaneFrame::Have(rows) => self.on_have(now, from, &rows),
            LaneFrame::Chunk(chunk) => self.on_chunk(now, from, chunk)?,
            LaneFrame::Ack(rows) => self.on_ack(now, from, &rows),
            LaneFrame::Root(root) => self.on_root(now, from, root),
            LaneFrame::Equal(root) => self.on_equal(now, from, root),
            LaneFrame::Kinds(kinds) => self.on_kinds(now, from, &kinds),
            LaneFrame::Rows(rows) => self.on_rows(now, from, &rows),
            LaneFrame::Pull(pull) => self.on_pull(now, from, pull),
        }
        self.settle_retired(now);
        Ok(())
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self, now: Timestamp) {
        if self.schedule.flush.is_some_and(|due| due <= now) {
            self.flush(now);
        }
        self.time_out(now);
        if self.schedule.digest <= now {
            self.schedule.digest = now + self.timers.digest;
            self.ask_somebody(now);
        }
        if self.schedule.upkeep <= now {
            self.schedule.upkeep = now + self.timers.digest;
            self.upkeep(now);
        }
    }

    /// When [`Self::tick`] is due.
    pub(crate) fn next_tick(&self) -> Timestamp {
        let timers = [Some(self.schedule.digest), Some(self.schedule.upkeep), self.schedule.flush];
        let resends = self.peers.values().filter_map(|peer| peer.resend_at(self.timers.resend));
        timers.into_iter().flatten().chain(resends).min().unwrap_or(self.schedule.digest)
    }

    /// Takes what is to be done.
    pub(crate) fn drain(&mut self, out: &mut Vec<ReplicaOutput>) {
        self.persist();
        out.append(&mut self.out);
    }

    /// Changes of a lane become part of what the planes say.
    fn absorb(&mut self, now: Timestamp, writer: NodeId, kind: Kind, changes: &[Change]) {
        for change in changes {
            self.planes.change(writer, kind, change);
        }
        self.stir(now);
    }

    /// Something is to be sent or told, at once if nothing was for a while.
    fn stir(&mut self, now: Timestamp) {
        if self.schedule.flush.is_none() {
            self.schedule.flush = Some(now.max(self.schedule.flushed + self.timers.flush));
        }
    }

    fn flush(&mut self, now: Timestamp) {
        self.schedule.flush = None;
        self.schedule.flushed = now;
        self.cover();
        self.transfers.forget_shared();
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.push(now, peer);
            self.send_acks(peer);
        }
        self.transfers.forget_shared();
        let mut news = Vec::new();
        self.planes.take_news(&mut news);
        self.out.extend(news.into_iter().map(ReplicaOutput::Event));
        self.out.extend(self.planes.take_infos().into_iter().map(ReplicaOutput::Info));
    }

    fn send(&mut self, peer: NodeId, frame: LaneFrame) {
        let bytes = encode(&Frame::Lane(frame));
        self.out.push(ReplicaOutput::Send { peer, class: Class::Lane, bytes });
    }
}

/// What others read.
impl Replica {
    /// Whether everything this peer had when it was asked has arrived here.
    pub(crate) fn is_synced(&self, peer: NodeId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| {
            peer.sync.is_answered()
                && peer.sync.targets().all(|((kind, writer), target)| {
                    // A lane of our own is only past what a peer holds once it has begun anew over that.
                    let position = self.lanes.position(*writer, *kind);
                    let reached = if *writer == self.me { position > *target } else { position >= *target };
                    reached || self.lanes.is_dead(*writer, *kind, *target)
                })
        })
    }

    /// Whether every peer with a session has acknowledged all of this node's lanes, and the disk has them too: it may leave.
    pub(crate) fn is_flushed(&self) -> bool {
        let kinds = || Kind::ALL.into_iter().filter(|kind| self.lanes.lane(self.me, *kind).is_some());
        let acked = |peer: &Peer| kinds().all(|kind| self.acked_by(peer, kind) >= self.lanes.position(self.me, kind));
        self.peers.values().all(acked) && self.lanes.pending.is_empty() && self.writes.is_on_disk()
    }

    /// What a node says of itself.
    pub(crate) fn info(&self, node: NodeId) -> Option<NodeInfo> {
        self.planes.info(node).cloned()
    }

    /// All workers of which an assertion stands.
    pub(crate) fn workers(&self) -> BTreeMap<WorkerId, WorkerRow> {
        self.planes.workers.rows()
    }

    /// How a worker stands with the nodes.
    pub(crate) fn reach(&self, worker: WorkerId) -> Reach {
        self.planes.reach(worker)
    }

    /// What all alive others have at a worker.
    pub(crate) fn peer_load(&self, worker: WorkerId) -> Ledger {
        self.planes.load.others(self.me, worker, self.planes.alive())
    }

    /// A value of shared configuration.
    pub(crate) fn config_value(&self, key: &str) -> Option<Bytes> {
        self.planes.config.value(key)
    }

    /// The keys of shared configuration that have a value.
    pub(crate) fn config_keys(&self) -> Vec<String> {
        self.planes.config.keys()
    }

    /// All planes.
    pub(crate) fn planes(&self) -> Vec<PlaneStatus> {
        Kind::ALL.into_iter().map(|kind| self.plane(kind)).collect()
    }

    fn plane(&self, kind: Kind) -> PlaneStatus {
        let lanes = self.lanes.of_kind(kind).map(|(writer, lane)| {
            let Position { epoch, version } = lane.position();
            let behind = |peer: &Peer| match self.acked_by(peer, kind) {
                acked if acked.epoch == epoch => version - acked.version.min(version),
                _ => version,
            };
            LaneStatus {
                writer,
                epoch,
                version,
                collected: lane.collected(),
                entries: lane.live(),
                tombstones: lane.tombstones(),
                lag: if writer == self.me { self.peers.values().map(behind).max().unwrap_or_default() } else { 0 },
            }
        });
        PlaneStatus {
            kind,
            digest: Digest(self.lanes.digest(kind)),
            bytes: self.lanes.of_kind(kind).map(|(_, lane)| lane.bytes()).sum(),
            lanes: lanes.collect(),
        }
    }

    /// Entries so far that only a newer program understands.
    pub(crate) fn skipped_entries(&self) -> u64 {
        self.skipped_entries
    }

    /// One digest over all planes.
    pub(crate) fn digest(&self) -> Digest {
        self.lanes.root()
    }

    fn acked_by(&self, peer: &Peer, kind: Kind) -> Position {
        peer.outgoing.get(&(kind, self.me)).map(outgoing::Outgoing::acked).unwrap_or_default()
    }
}
