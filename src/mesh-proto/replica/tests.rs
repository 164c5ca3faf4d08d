//! Replicas joined by a network that loses, doubles and reorders what they send.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use smg_base::{Random, SplitMix, Timestamp, WorkerId};

use super::{Alive, Replica, ReplicaOutput};
use crate::{
    Config, EngineFigures, Event, Kind, Ledger, Limits, NodeId, Op, Profile, Record, Ticket, Verdict, Vote, WriteError,
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
        if a == b || self.nodes[a].is_none() || self.nodes[b].is_none() || self.linked.insert(key, true) == Some(true) {
            return;
        }
        let now = self.now;
        for (one, other) in [(a, b), (b, a)] {
            let holds = self.node(other).holds(id(one));
            let boot = self.node(one).boot();
            if let Some(holds) = holds {
                self.node(one).told(holds);
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
                node.replica.persisted(batch.sequence);
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
