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
    pub(crate) fn told(&mut self, _now: Timestamp, _peer: NodeId, holds: Holds) {
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

    /// One digest over all planes.
    pub(crate) fn digest(&self) -> Digest {
        self.lanes.root()
    }

    fn acked_by(&self, peer: &Peer, kind: Kind) -> Position {
        peer.outgoing.get(&(kind, self.me)).map(outgoing::Outgoing::acked).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    //! Replicas joined by a network that loses, doubles and reorders what they send.

    use std::{collections::BTreeMap, time::Duration};

    use bytes::Bytes;
    use proptest::prelude::*;
    use smg_base::{Random, SplitMix, Timestamp, WorkerId};

    use super::{Alive, Replica, ReplicaOutput};
    use crate::{
        Config, EngineFigures, Event, Kind, Ledger, Limits, NodeId, Op, Profile, Record, Ticket, Verdict, Vote,
        WriteError,
        lanes::Lanes,
        wire::{Decoded, Frame, decode},
    };

    const STEP: Duration = Duration::from_millis(1);

    #[derive(Clone, Copy, Default)]
    struct Faults {
        /// Of 100 frames, so many.
        lost: u64,
        doubled: u64,
        reordered: u64,
    }

    struct Node {
        replica: Replica,
        disk: Vec<Record>,
        events: Vec<Event>,
        runs: u64,
    }

    struct Letter {
        from: usize,
        to: usize,
        bytes: Bytes,
    }

    struct Net {
        now: Timestamp,
        random: SplitMix,
        faults: Faults,
        nodes: Vec<Option<Node>>,
        disks: Vec<Vec<Record>>,
        linked: BTreeMap<(usize, usize), bool>,
        letters: Vec<Letter>,
        sent_bytes: usize,
    }

    fn id(index: usize) -> NodeId {
        NodeId::of(&format!("n{index}"))
    }

    fn worker(index: usize) -> WorkerId {
        WorkerId::of(&format!("http://w{index}:8000"), None)
    }

    fn config(index: usize, run: u64) -> Config {
        Config {
            name: format!("n{index}"),
            cluster: "test".to_owned(),
            advertise: "127.0.0.1:1".parse().unwrap(),
            traffic_url: String::new(),
            zone: String::new(),
            region: String::new(),
            software: String::new(),
            instance: (index as u64) << 32 | run,
            seed: index as u64 + 77 * run,
            timers: Profile::Lan.timers(),
            limits: Limits::default(),
        }
    }

    impl Net {
        /// So many nodes, all linked, all alive to each other and joined.
        fn of(count: usize, seed: u64) -> Self {
            let mut net = Self {
                now: Timestamp::from_nanos(1_000_000_000),
                random: SplitMix::new(seed),
                faults: Faults::default(),
                nodes: Vec::new(),
                disks: vec![Vec::new(); count],
                linked: BTreeMap::new(),
                letters: Vec::new(),
                sent_bytes: 0,
            };
            net.nodes.extend((0..count).map(|_| None));
            for index in 0..count {
                net.start(index, 1);
            }
            net.heal();
            net.run(Duration::from_secs(3));
            for index in 0..count {
                net.join(index);
            }
            net
        }

        fn start(&mut self, index: usize, run: u64) {
            let disk = self.disks[index].clone();
            let mut replica = Replica::new(id(index), &config(index, run), disk.clone());
            let boot = replica.boot() + 1;
            replica.set_boot(boot);
            self.nodes[index] = Some(Node { replica, disk, events: Vec::new(), runs: run });
        }

        fn join(&mut self, index: usize) {
            let now = self.now;
            self.node(index).joined(now);
            self.drain(index);
        }

        /// Its memory goes; its disk stays.
        fn crash(&mut self, index: usize) {
            let node = self.nodes[index].take().expect("it runs");
            self.disks[index] = node.disk;
            for other in 0..self.nodes.len() {
                self.unlink(index, other);
            }
            self.letters.retain(|letter| letter.from != index && letter.to != index);
        }

        fn node(&mut self, index: usize) -> &mut Replica {
            &mut self.nodes[index].as_mut().expect("it runs").replica
        }

        fn link(&mut self, a: usize, b: usize) {
            let key = (a.min(b), a.max(b));
            if a == b
                || self.nodes[a].is_none()
                || self.nodes[b].is_none()
                || self.linked.insert(key, true) == Some(true)
            {
                return;
            }
            let now = self.now;
            for (one, other) in [(a, b), (b, a)] {
                let holds = self.node(other).holds(id(one));
                let boot = self.node(one).boot();
                if let Some(holds) = holds {
                    self.node(one).told(now, id(other), holds);
                    if holds.boot > boot {
                        self.node(one).set_boot(holds.boot + 1);
                    }
                }
                self.node(one).set_alive(now, id(other), Alive::Yes);
                self.node(one).session_up(now, id(other));
            }
            self.drain(a);
            self.drain(b);
        }

        fn unlink(&mut self, a: usize, b: usize) {
            if self.linked.insert((a.min(b), a.max(b)), false) != Some(true) {
                return;
            }
            let now = self.now;
            for (one, other) in [(a, b), (b, a)] {
                if let Some(node) = &mut self.nodes[one] {
                    node.replica.session_down(now, id(other));
                    node.replica.set_alive(now, id(other), Alive::No);
                    self.drain(one);
                }
            }
            self.letters.retain(|letter| (letter.from, letter.to) != (a, b) && (letter.from, letter.to) != (b, a));
        }

        fn heal(&mut self) {
            for a in 0..self.nodes.len() {
                for b in a + 1..self.nodes.len() {
                    self.link(a, b);
                }
            }
        }

        fn write(&mut self, index: usize, ticket: u64, op: Op) {
            let now = self.now;
            self.node(index).write(now, Some(Ticket(ticket)), op);
            self.drain(index);
        }

        fn drain(&mut self, index: usize) {
            loop {
                let mut out = Vec::new();
                let Some(node) = &mut self.nodes[index] else { return };
                node.replica.drain(&mut out);
                if out.is_empty() {
                    return;
                }
                for output in out {
                    self.take(index, output);
                }
            }
        }

        fn take(&mut self, index: usize, output: ReplicaOutput) {
            let now = self.now;
            let node = self.nodes[index].as_mut().expect("it runs");
            match output {
                ReplicaOutput::Send { peer, bytes, .. } => {
                    self.sent_bytes += bytes.len();
                    let to = (0..self.nodes.len()).find(|other| id(*other) == peer).expect("a node of this net");
                    if self.random.below(100) >= self.faults.lost {
                        self.letters.push(Letter { from: index, to, bytes: bytes.clone() });
                    }
                    if self.random.below(100) < self.faults.doubled {
                        self.letters.push(Letter { from: index, to, bytes });
                    }
                }
                ReplicaOutput::Persist(batch) => {
                    node.disk.extend(batch.records);
                    node.replica.persisted(now, batch.sequence);
                }
                ReplicaOutput::Event(event) => node.events.push(event),
                ReplicaOutput::Info(_) => {}
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while self.now < end {
                self.now = self.now + STEP;
                let mut letters = std::mem::take(&mut self.letters);
                while !letters.is_empty() {
                    let reorder = self.random.below(100) < self.faults.reordered;
                    let count = u64::try_from(letters.len()).unwrap();
                    let pick = if reorder { usize::try_from(self.random.below(count)).unwrap() } else { 0 };
                    let letter = letters.remove(pick);
                    self.deliver(letter);
                }
                for index in 0..self.nodes.len() {
                    let now = self.now;
                    if let Some(node) = &mut self.nodes[index]
                        && node.replica.next_tick() <= now
                    {
                        node.replica.tick(now);
                        self.drain(index);
                    }
                }
            }
        }

        fn deliver(&mut self, letter: Letter) {
            let now = self.now;
            let frame = decode(&letter.bytes, Limits::default().frame_bytes_max).expect("our own frames can be read");
            let Decoded::Frame(Frame::Lane(frame)) = frame else { panic!("not a frame of lanes") };
            if let Some(node) = &mut self.nodes[letter.to] {
                node.replica.frame(now, id(letter.from), frame).expect("nobody misbehaves here");
                self.drain(letter.to);
            }
        }

        fn digests(&self) -> Vec<u128> {
            self.nodes.iter().flatten().map(|node| node.replica.digest().0).collect()
        }

        fn assert_equal(&mut self, what: &str) {
            let digests = self.digests();
            if digests.windows(2).any(|pair| pair[0] != pair[1]) {
                for index in 0..self.nodes.len() {
                    if self.nodes[index].is_some() {
                        for plane in self.node(index).planes().into_iter().filter(|plane| !plane.lanes.is_empty()) {
                            eprintln!("{index} {:?} {:x} {:?}", plane.kind, plane.digest.0, plane.lanes);
                        }
                    }
                }
                panic!("{what}: {digests:x?}");
            }
        }

        fn outcome(&self, index: usize, ticket: u64) -> Option<Result<(), WriteError>> {
            self.nodes[index].as_ref()?.events.iter().find_map(|event| match event {
                Event::Written { ticket: Ticket(of), outcome } if *of == ticket => Some(*outcome),
                _ => None,
            })
        }
    }

    fn add(index: usize, spec: &str) -> Op {
        Op::AddWorker { worker: worker(index), spec: Bytes::copy_from_slice(spec.as_bytes()), declared: false }
    }

    fn declare(index: usize, spec: &str) -> Op {
        Op::AddWorker { worker: worker(index), spec: Bytes::copy_from_slice(spec.as_bytes()), declared: true }
    }

    fn set(key: &str, value: &'static str) -> Op {
        Op::Config { key: key.to_owned(), value: Some(Bytes::from_static(value.as_bytes())) }
    }

    #[test]
    fn a_write_is_everywhere_after_a_few_milliseconds_and_done_when_a_peer_has_it() {
        let mut net = Net::of(5, 1);
        net.write(0, 1, add(1, "a"));
        assert_eq!(net.outcome(0, 1), None);
        net.run(Duration::from_millis(15));
        assert_eq!(net.outcome(0, 1), Some(Ok(())));
        net.run(Duration::from_millis(10));
        for node in 0..5 {
            assert_eq!(net.node(node).workers()[&worker(1)].spec, "a");
        }
        net.assert_equal("after a write");
    }

    #[test]
    fn alone_the_disk_is_enough() {
        let mut net = Net::of(1, 1);
        net.write(0, 1, set("alias/x", "y"));
        net.run(Duration::from_millis(5));
        assert_eq!(net.outcome(0, 1), Some(Ok(())));
        assert_eq!(net.node(0).config_value("alias/x").unwrap(), "y");
    }

    #[test]
    fn durable_writes_wait_until_the_node_has_joined() {
        let mut net = Net::of(2, 1);
        net.crash(0);
        net.start(0, 2);
        net.write(0, 1, add(1, "a"));
        net.write(0, 2, Op::Vote { worker: worker(1), vote: Some(Vote::Up) });
        net.run(Duration::from_millis(50));
        assert_eq!((net.outcome(0, 1), net.outcome(0, 2)), (None, Some(Ok(()))));
        net.join(0);
        net.run(Duration::from_millis(50));
        assert_eq!(net.outcome(0, 1), Some(Ok(())));
    }

    #[test]
    fn a_removal_on_another_node_covers_what_it_has_seen_and_no_more() {
        let mut net = Net::of(3, 1);
        net.write(0, 1, add(1, "a"));
        net.run(Duration::from_millis(100));
        net.unlink(0, 1);
        net.unlink(0, 2);
        net.write(1, 2, Op::RemoveWorker { worker: worker(1) });
        net.write(0, 3, add(2, "b"));
        net.write(0, 4, Op::RemoveWorker { worker: worker(7) });
        net.run(Duration::from_millis(100));
        assert_eq!(net.outcome(0, 4), Some(Err(WriteError::UnknownWorker)));
        net.heal();
        net.run(Duration::from_secs(1));
        for node in 0..3 {
            assert_eq!(net.node(node).workers().into_keys().collect::<Vec<_>>(), [worker(2)]);
        }
        // The dead assertion and then the removal are forgotten by all.
        net.run(Duration::from_secs(20));
        net.assert_equal("after a removal");
        let workers = |net: &mut Net, node| net.node(node).plane(Kind::Workers);
        let live: usize = workers(&mut net, 0).lanes.iter().map(|lane| lane.entries).sum();
        assert_eq!(live, 1);
    }

    #[test]
    fn a_removed_declaration_stays_removed_over_restarts_until_it_changes() {
        let mut net = Net::of(2, 1);
        net.write(0, 1, declare(1, "a"));
        net.write(1, 1, declare(1, "a"));
        net.run(Duration::from_millis(100));
        assert_eq!(net.node(1).workers()[&worker(1)].assertions, 1);
        net.write(1, 2, Op::RemoveWorker { worker: worker(1) });
        net.run(Duration::from_secs(30));
        net.crash(0);
        net.run(Duration::from_secs(30));
        net.start(0, 2);
        net.heal();
        net.run(Duration::from_secs(3));
        net.join(0);
        net.nodes[0].as_mut().unwrap().events.clear();
        net.write(0, 3, declare(1, "a"));
        net.run(Duration::from_millis(100));
        assert_eq!(net.outcome(0, 3), Some(Ok(())));
        let gone = Event::Worker { worker: worker(1), row: None };
        assert!(net.nodes[0].as_ref().unwrap().events.contains(&gone), "the node is told that its worker is none");
        assert!(net.node(1).workers().is_empty());
        net.write(0, 4, declare(1, "b"));
        net.run(Duration::from_millis(100));
        assert_eq!(net.node(1).workers()[&worker(1)].spec, "b");
        net.write(0, 5, Op::WithdrawWorker { worker: worker(1) });
        net.run(Duration::from_millis(100));
        assert!(net.node(1).workers().is_empty());
    }

    #[test]
    fn a_later_specification_wins_and_declaring_again_does_not_override_it() {
        let mut net = Net::of(3, 1);
        net.write(0, 1, declare(1, "a"));
        net.run(Duration::from_millis(50));
        net.write(1, 2, add(1, "b"));
        net.run(Duration::from_millis(50));
        net.write(2, 3, declare(1, "a"));
        net.run(Duration::from_millis(50));
        let row = net.node(0).workers()[&worker(1)].clone();
        assert_eq!((&*row.spec, row.declared, row.assertions, row.writer), (&b"b"[..], true, 2, id(1)));
    }

    #[test]
    fn verdicts_and_homes_follow_the_votes_of_the_alive() {
        let mut net = Net::of(3, 1);
        let vote = |net: &mut Net, node, vote| {
            net.write(node, 9, Op::Vote { worker: worker(1), vote: Some(vote) });
            net.run(Duration::from_millis(50));
            net.node(0).reach(worker(1)).verdict
        };
        assert_eq!(net.node(0).reach(worker(1)).verdict, Verdict::Unknown);
        assert_eq!(vote(&mut net, 0, Vote::Unreachable), Verdict::Down);
        assert_eq!(vote(&mut net, 1, Vote::Up), Verdict::Up);
        assert_eq!(vote(&mut net, 2, Vote::Sick), Verdict::Up, "of two that reach it, both must say sick");
        assert_eq!(vote(&mut net, 0, Vote::Sick), Verdict::Down);
        assert_eq!(vote(&mut net, 0, Vote::Up), Verdict::Up);
        let reach = net.node(2).reach(worker(1));
        let mut ranked = [id(0), id(1)];
        ranked.sort_by_key(|node| std::cmp::Reverse(node.score(worker(1).as_u128())));
        assert_eq!((reach.home, reach.standby), (Some(ranked[0]), Some(ranked[1])));
        assert_eq!(reach.via, ranked);
        // The word of a node that is gone does not count.
        net.crash(1);
        net.run(Duration::from_millis(50));
        assert_eq!(net.node(2).reach(worker(1)).via, [id(0)]);
    }

    #[test]
    fn load_is_the_sum_of_the_alive_others_and_engines_speak_through_their_home() {
        let mut net = Net::of(3, 1);
        for node in 0..3 {
            let ledger = Ledger { requests: 1 + u32::try_from(node).unwrap(), decoding: 0, pending_tokens: 10 };
            net.write(node, 1, Op::Ledger { worker: worker(1), ledger });
            net.write(node, 2, Op::Vote { worker: worker(1), vote: Some(Vote::Up) });
            let figures = EngineFigures { running: u32::try_from(node).unwrap(), ..EngineFigures::default() };
            net.write(node, 3, Op::Engine { worker: worker(1), figures: Some(figures) });
        }
        net.run(Duration::from_millis(300));
        assert_eq!(net.node(0).peer_load(worker(1)), Ledger { requests: 5, decoding: 0, pending_tokens: 20 });
        let home = net.node(0).reach(worker(1)).home.unwrap();
        let heard = |net: &Net, node: usize| {
            net.nodes[node].as_ref().unwrap().events.iter().rev().find_map(|event| match event {
                Event::Engine { figures, .. } => Some(*figures),
                _ => None,
            })
        };
        for node in 0..3 {
            let expected = (0..3).find(|other| id(*other) == home).unwrap();
            match heard(&net, node).flatten() {
                Some(figures) => assert_eq!(figures.running as usize, expected),
                None => assert_eq!(id(node), home, "the home itself is told nothing"),
            }
        }
        let ledger = Ledger::default();
        net.write(2, 4, Op::Ledger { worker: worker(1), ledger });
        net.crash(1);
        net.run(Duration::from_millis(300));
        assert_eq!(net.node(0).peer_load(worker(1)), Ledger::default());
    }

    #[test]
    fn configuration_is_the_last_writers_and_revocations_stay() {
        let mut net = Net::of(2, 1);
        net.write(0, 1, set("alias/x", "a"));
        net.run(Duration::from_millis(50));
        net.write(1, 2, set("alias/x", "b"));
        net.write(1, 3, set("revoked/k", "1"));
        net.run(Duration::from_millis(50));
        net.write(0, 4, Op::Config { key: "revoked/k".to_owned(), value: None });
        assert_eq!(net.outcome(0, 4), Some(Err(WriteError::Revoked)));
        assert_eq!(net.node(0).config_value("alias/x").unwrap(), "b");
        net.write(0, 5, Op::Config { key: "alias/x".to_owned(), value: None });
        net.run(Duration::from_millis(50));
        assert_eq!(net.node(1).config_value("alias/x"), None);
        assert_eq!(net.node(1).config_keys(), ["revoked/k"]);
    }

    #[test]
    fn news_goes_around_a_broken_link() {
        let mut net = Net::of(3, 1);
        net.unlink(0, 2);
        net.write(0, 1, add(1, "a"));
        net.write(0, 2, Op::Vote { worker: worker(1), vote: Some(Vote::Up) });
        net.run(Duration::from_secs(5));
        assert!(net.node(2).workers().contains_key(&worker(1)));
        net.assert_equal("around a link");
    }

    #[test]
    fn a_restart_with_its_disk_keeps_everything_and_drops_what_is_ephemeral() {
        let mut net = Net::of(3, 1);
        net.write(0, 1, add(1, "a"));
        net.write(0, 2, Op::Vote { worker: worker(1), vote: Some(Vote::Up) });
        net.run(Duration::from_millis(100));
        net.crash(0);
        net.start(0, 2);
        assert!(net.node(0).workers().contains_key(&worker(1)));
        net.heal();
        net.run(Duration::from_secs(3));
        assert!(net.node(0).is_synced(id(1)) && net.node(0).is_synced(id(2)));
        net.join(0);
        net.run(Duration::from_secs(3));
        assert!(net.node(1).reach(worker(1)).votes.is_empty());
        net.assert_equal("after a restart");
    }

    #[test]
    fn a_wiped_disk_is_made_up_for_by_the_peers() {
        for forgetful_first in [false, true] {
            let mut net = Net::of(3, 1);
            for index in 0..200 {
                net.write(0, index, add(usize::try_from(index).unwrap(), "a"));
            }
            net.run(Duration::from_millis(200));
            net.crash(0);
            net.disks[0].clear();
            net.start(0, 2);
            if forgetful_first {
                // It takes itself for new, and is written to before it meets anybody.
                net.join(0);
                net.write(0, 900, add(500, "b"));
                net.run(Duration::from_secs(1));
            }
            net.heal();
            net.run(Duration::from_secs(3));
            net.join(0);
            net.write(0, 901, add(501, "c"));
            net.run(Duration::from_secs(5));
            assert_eq!(net.outcome(0, 901), Some(Ok(())));
            for node in 0..3 {
                assert_eq!(net.node(node).workers().len(), 201 + usize::from(forgetful_first), "node {node}");
            }
            net.assert_equal("after a wipe");
        }
    }

    #[test]
    fn an_old_disk_is_made_up_for_by_the_peers() {
        let mut net = Net::of(3, 1);
        net.write(0, 1, add(1, "a"));
        net.write(0, 2, add(2, "a"));
        net.run(Duration::from_millis(100));
        let backup = net.nodes[0].as_ref().unwrap().disk.clone();
        net.write(0, 3, add(3, "a"));
        net.write(1, 4, Op::RemoveWorker { worker: worker(1) });
        net.run(Duration::from_secs(30));
        net.crash(0);
        net.disks[0] = backup;
        net.start(0, 2);
        net.join(0);
        net.write(0, 5, add(4, "b"));
        net.run(Duration::from_secs(1));
        net.heal();
        net.run(Duration::from_secs(5));
        for node in 0..3 {
            assert_eq!(net.node(node).workers().into_keys().count(), 3, "node {node}");
            assert!(!net.node(node).workers().contains_key(&worker(1)), "a removed worker is back");
        }
        net.assert_equal("after an old disk");
    }

    #[test]
    fn what_only_one_peer_has_of_a_forgetful_writer_is_not_given_up() {
        let mut net = Net::of(3, 1);
        net.write(0, 1, add(1, "a"));
        net.run(Duration::from_millis(100));
        net.unlink(0, 1);
        net.unlink(1, 2);
        net.write(0, 2, add(2, "a"));
        net.run(Duration::from_millis(100));
        assert_eq!(net.outcome(0, 2), Some(Ok(())));
        net.crash(0);
        net.disks[0].clear();
        net.start(0, 2);
        // It meets the peer that knows less first.
        net.link(0, 1);
        net.run(Duration::from_secs(3));
        net.join(0);
        net.write(0, 3, add(3, "b"));
        net.run(Duration::from_secs(3));
        net.heal();
        net.run(Duration::from_secs(5));
        for node in 0..3 {
            assert_eq!(net.node(node).workers().len(), 3, "node {node}");
        }
        net.assert_equal("after a partial recovery");
    }

    #[test]
    fn a_declaration_said_again_outlives_an_older_copy_in_which_it_was_taken_back() {
        let mut net = Net::of(3, 1);
        net.write(0, 1, declare(1, "a"));
        net.run(Duration::from_millis(100));
        net.unlink(0, 1);
        net.unlink(1, 2);
        net.write(0, 2, Op::WithdrawWorker { worker: worker(1) });
        net.run(Duration::from_millis(100));
        net.crash(0);
        net.disks[0].clear();
        net.start(0, 2);
        // The first peer still knows the declaration, the second that it was taken back.
        net.link(0, 1);
        net.run(Duration::from_secs(3));
        net.join(0);
        net.write(0, 3, declare(1, "a"));
        net.run(Duration::from_secs(1));
        assert_eq!(net.outcome(0, 3), Some(Ok(())));
        net.heal();
        net.run(Duration::from_secs(5));
        for node in 0..3 {
            assert!(net.node(node).workers().contains_key(&worker(1)), "node {node}");
        }
        net.assert_equal("after a declaration said again");
    }

    #[test]
    fn the_dead_are_adopted_and_their_lanes_go() {
        let mut net = Net::of(3, 1);
        net.write(0, 1, add(1, "a"));
        net.write(0, 2, declare(2, "a"));
        net.write(0, 3, set("alias/x", "a"));
        net.write(
            0,
            4,
            Op::Entry { kind: Kind::Budgets, key: Bytes::from_static(b"k"), value: Some(Bytes::from_static(b"v")) },
        );
        net.run(Duration::from_millis(100));
        net.crash(0);
        net.run(Duration::from_secs(610));
        for node in 1..3 {
            assert_eq!(net.node(node).workers().len(), 2);
            assert_eq!(net.node(node).workers()[&worker(1)].writer, id(0));
            assert_eq!(net.node(node).config_value("alias/x").unwrap(), "a");
            let writers: Vec<NodeId> =
                net.node(node).planes().iter().flat_map(|plane| &plane.lanes).map(|lane| lane.writer).collect();
            assert!(!writers.contains(&id(0)), "its lanes are gone");
        }
        net.assert_equal("after adoption");
        net.write(1, 5, Op::RemoveWorker { worker: worker(1) });
        net.run(Duration::from_secs(30));
        // It comes back with its disk: what was removed meanwhile stays so, the rest is its own again.
        net.start(0, 2);
        net.heal();
        net.run(Duration::from_secs(3));
        net.join(0);
        net.write(0, 6, add(3, "b"));
        net.run(Duration::from_secs(10));
        assert_eq!(net.outcome(0, 6), Some(Ok(())));
        for node in 0..3 {
            assert_eq!(net.node(node).workers().into_keys().count(), 2);
            assert!(!net.node(node).workers().contains_key(&worker(1)), "a removed worker is back");
        }
        net.assert_equal("after the return");
    }

    #[test]
    fn long_lanes_travel_in_parts_and_a_window_bounds_what_is_in_flight() {
        let mut net = Net::of(2, 1);
        net.unlink(0, 1);
        let value = Bytes::from(vec![7; 4_000]);
        for index in 0..2_000_u32 {
            let key = Bytes::copy_from_slice(&index.to_le_bytes());
            net.write(0, 1, Op::Entry { kind: Kind::Prefixes, key, value: Some(value.clone()) });
        }
        net.link(0, 1);
        net.letters.clear();
        let before = net.sent_bytes;
        // Nothing is acknowledged while no time passes for the other side.
        let now = net.now + Duration::from_secs(2);
        net.node(0).tick(now);
        net.drain(0);
        assert!(net.sent_bytes - before < (1 << 20) + (64 << 10), "{}", net.sent_bytes - before);
        net.run(Duration::from_secs(10));
        net.assert_equal("after a long transfer");
        let entries = net.nodes[1].as_ref().unwrap().events.iter().filter(|event| matches!(event, Event::Entry { .. }));
        assert_eq!(entries.count(), 2_000);
    }

    #[test]
    fn frames_that_break_the_rules_are_refused() {
        let mut net = Net::of(2, 1);
        let chunk = |entries: Vec<(u64, usize)>, last: u64| {
            use crate::wire::{Chunk, LaneFrame, Last};
            let entries = entries.into_iter().map(|(version, length)| crate::wire::tests::entry(version, length));
            LaneFrame::Chunk(Chunk {
                writer: id(1),
                kind: Kind::Limits as u8,
                epoch: 1,
                since: 0,
                transfer: 1,
                index: 0,
                last: Some(Last { version: last, collected: 0, base_epoch: 0, base_version: 0 }),
                entries: entries.collect(),
            })
        };
        let now = net.now;
        for (entries, last) in [
            (vec![(1, 1_000)], 1),
            (vec![(2, 4), (1, 4)], 2),
            (vec![(1, 4), (1, 4)], 2),
            (vec![(3, 4)], 2),
            (vec![(u64::MAX, 4)], u64::MAX),
        ] {
            assert!(net.node(0).frame(now, id(1), chunk(entries.clone(), last)).is_err(), "{entries:?} {last}");
        }
        assert!(net.node(0).frame(now, id(1), chunk(vec![(1, 4)], 1)).is_ok());
    }

    #[derive(Clone, Debug)]
    enum Act {
        Add(usize, usize),
        Declare(usize, usize),
        Remove(usize, usize),
        Config(usize, usize),
        Vote(usize, usize),
        Cut(usize, usize),
        Mend(usize, usize),
        Restart(usize),
        Wait(u64),
    }

    fn act() -> impl Strategy<Value = Act> {
        let pair = || (0..4_usize, 0..6_usize);
        prop_oneof![
            4 => pair().prop_map(|(node, worker)| Act::Add(node, worker)),
            2 => pair().prop_map(|(node, worker)| Act::Declare(node, worker)),
            4 => pair().prop_map(|(node, worker)| Act::Remove(node, worker)),
            2 => pair().prop_map(|(node, worker)| Act::Config(node, worker)),
            2 => pair().prop_map(|(node, worker)| Act::Vote(node, worker)),
            1 => (0..4_usize, 0..4_usize).prop_map(|(a, b)| Act::Cut(a, b)),
            1 => (0..4_usize, 0..4_usize).prop_map(|(a, b)| Act::Mend(a, b)),
            1 => (0..4_usize).prop_map(Act::Restart),
            4 => (1..400_u64).prop_map(Act::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

        /// Whatever is lost, doubled and reordered: when the network heals, all nodes say the same, and it is what a fold of their
        /// lanes from nothing says.
        #[test]
        fn replicas_converge(seed: u64, acts in prop::collection::vec(act(), 1..60)) {
            let mut net = Net::of(4, seed);
            net.faults = Faults { lost: 10, doubled: 10, reordered: 30 };
            for (ticket, act) in acts.into_iter().enumerate() {
                let ticket = u64::try_from(ticket).unwrap();
                match act {
                    Act::Add(node, worker) => net.write(node, ticket, add(worker, &format!("{ticket}"))),
                    Act::Declare(node, worker) => net.write(node, ticket, declare(worker, "declared")),
                    Act::Remove(node, index) => net.write(node, ticket, Op::RemoveWorker { worker: worker(index) }),
                    Act::Config(node, key) => net.write(node, ticket, Op::Config {
                        key: format!("alias/{key}"),
                        value: (ticket % 3 != 0).then(|| Bytes::from(ticket.to_string())),
                    }),
                    Act::Vote(node, index) => net.write(node, ticket, Op::Vote {
                        worker: worker(index),
                        vote: (ticket % 4 != 0).then_some(Vote::Up),
                    }),
                    Act::Cut(a, b) if a != b => net.unlink(a, b),
                    Act::Mend(a, b) => net.link(a, b),
                    Act::Cut(..) => {}
                    Act::Restart(node) => {
                        let run = net.nodes[node].as_ref().unwrap().runs + 1;
                        net.crash(node);
                        net.start(node, run);
                        net.join(node);
                    }
                    Act::Wait(millis) => net.run(Duration::from_millis(millis)),
                }
            }
            net.heal();
            net.run(Duration::from_secs(10));
            net.faults = Faults::default();
            net.run(Duration::from_secs(20));
            net.assert_equal("after healing");
            let rows = net.node(0).workers();
            let keys = net.node(0).config_keys();
            for index in 0..4 {
                prop_assert_eq!(&net.node(index).workers(), &rows);
                prop_assert_eq!(&net.node(index).config_keys(), &keys);
                // The journal holds what the node knows, and a fold from nothing says the same as the one kept up to date.
                let node = net.nodes[index].as_ref().unwrap();
                let (restored, _) = Lanes::restore(node.disk.clone());
                prop_assert_eq!(restored.digest(Kind::Workers), node.replica.plane(Kind::Workers).digest.0);
                prop_assert_eq!(restored.version_vector(Kind::Config), node.replica.lanes.version_vector(Kind::Config));
                let again = Replica::new(id(index), &config(index, 99), node.disk.clone());
                prop_assert_eq!(&again.workers(), &rows);
                prop_assert_eq!(&again.config_keys(), &keys);
            }
        }
    }
}
