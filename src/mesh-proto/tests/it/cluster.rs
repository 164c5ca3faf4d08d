//! A cluster in virtual time: frames arrive after a delay, over links that can be cut; nothing else is real. Small on purpose; the
//! simulator proper is `smg-sim`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use smg_base::{Random, SplitMix, Timestamp};
use smg_mesh_proto::{
    Class, CloseCode, Config, ConnectionId, Direction, Event, Gone, Input, Limits, Member, MemberState, Mesh, NodeId,
    Output, Profile, Record,
};

const DELAY: Duration = Duration::from_micros(300);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(1);
const IDLE_TIMEOUT: Duration = Duration::from_secs(8);
const SWEEP: Duration = Duration::from_millis(250);

pub(crate) struct Cluster {
    pub(crate) now: Timestamp,
    pub(crate) nodes: Vec<Node>,
    /// Directed links that carry nothing.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Every frame that was sent, if they are kept.
    pub(crate) tape: Option<Vec<(usize, Bytes)>>,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    queue: BTreeMap<(Timestamp, u64), Delivery>,
    pairs: Vec<Pair>,
    ends: BTreeMap<(usize, u64), usize>,
    count: u64,
    random: SplitMix,
    profile: Profile,
    next_sweep: Timestamp,
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) address: SocketAddr,
    pub(crate) cluster: String,
    pub(crate) seeds: Vec<usize>,
    pub(crate) mesh: Option<Mesh>,
    pub(crate) disk: Vec<Record>,
    pub(crate) events: Vec<(Timestamp, Event)>,
    pub(crate) closes: Vec<CloseCode>,
    pub(crate) paused: bool,
    held: VecDeque<Input>,
    starts: u64,
    ticks: u64,
}

/// A connection: its two ends, and what waits on a cut link.
struct Pair {
    ends: [(usize, u64); 2],
    open: bool,
    broken: Option<Timestamp>,
    stalled: Vec<(usize, Bytes)>,
}

struct Delivery {
    to: usize,
    start: u64,
    input: Input,
}

/// How a node's end looks from outside.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    /// Peers hear nothing more.
    Silent,
    /// Peers learn at once that connections are gone.
    Reset,
}

impl Cluster {
    /// Nodes that are not started yet; all have the first as their seed.
    pub(crate) fn new(size: usize, seed: u64) -> Self {
        let nodes = (0..size).map(|at| Node::new(at, &format!("n{at}"), vec![0])).collect();
        Self {
            now: Timestamp::ORIGIN + Duration::from_secs(1),
            nodes,
            cuts: BTreeSet::new(),
            tape: None,
            frames: 0,
            bytes: 0,
            queue: BTreeMap::new(),
            pairs: Vec::new(),
            ends: BTreeMap::new(),
            count: 0,
            random: SplitMix::new(seed),
            profile: Profile::Lan,
            next_sweep: Timestamp::ORIGIN,
        }
    }

    pub(crate) fn with_profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// A cluster whose nodes have all joined and see each other.
    pub(crate) fn formed(size: usize, seed: u64) -> Self {
        Self::new(size, seed).form()
    }

    pub(crate) fn form(mut self) -> Self {
        (0..self.nodes.len()).for_each(|at| self.start(at));
        self.until(Duration::from_secs(10), "formed", |cluster| cluster.all_see_all());
        self
    }

    pub(crate) fn start(&mut self, at: usize) {
        let now = self.now;
        let instance = self.random.next_u64();
        let seed = self.random.next_u64();
        let node = &mut self.nodes[at];
        let config = Config {
            name: node.name.clone(),
            cluster: node.cluster.clone(),
            advertise: node.address,
            traffic_url: String::new(),
            zone: "z".to_owned(),
            region: "r".to_owned(),
            software: "0".to_owned(),
            instance,
            seed,
            timers: self.profile.timers(),
            limits: Limits::default(),
        };
        node.starts += 1;
        node.paused = false;
        node.held.clear();
        node.mesh = Some(Mesh::new(config, node.disk.clone(), now));
        let seeds = node.seeds.iter().map(|seed| address(*seed)).collect();
        self.give(at, Input::Seeds(seeds));
    }

    pub(crate) fn crash(&mut self, at: usize, how: Crash) {
        self.nodes[at].mesh = None;
        let pairs: Vec<usize> = self.open_pairs(at);
        for pair in pairs {
            self.pairs[pair].open = how == Crash::Silent;
            self.pairs[pair].broken.get_or_insert(self.now);
            if how == Crash::Reset {
                let other = self.other(pair, at);
                self.send_input(other.0, Input::Disconnected { connection: ConnectionId(other.1), gone: Gone::Lost });
            }
        }
    }

    /// A crash that also loses the disk.
    pub(crate) fn wipe(&mut self, at: usize) {
        self.nodes[at].disk.clear();
    }

    pub(crate) fn resume(&mut self, at: usize) {
        self.nodes[at].paused = false;
        while let Some(input) = self.nodes[at].held.pop_front() {
            self.give(at, input);
        }
    }

    /// Cuts both directions between two groups.
    pub(crate) fn split(&mut self, left: &[usize], right: &[usize]) {
        for a in left {
            for b in right {
                self.cuts.extend([(*a, *b), (*b, *a)]);
            }
        }
    }

    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Runs until a condition holds; returns how long that took.
    #[track_caller]
    pub(crate) fn until(&mut self, limit: Duration, what: &str, holds: impl Fn(&Self) -> bool) -> Duration {
        let (begin, end) = (self.now, self.now + limit);
        while !holds(self) {
            // Once a millisecond is often enough to look.
            let looked = self.now;
            while self.now.since(looked) < Duration::from_millis(1) {
                assert!(self.step(end), "not {what} within {limit:?}:\n{}", self.picture());
            }
        }
        self.now.since(begin)
    }

    pub(crate) fn all_see_all(&self) -> bool {
        let live: Vec<usize> = self.live().collect();
        live.iter().all(|at| live.iter().all(|other| self.sees(*at, *other)))
    }

    pub(crate) fn live(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.nodes.len()).filter(|at| self.nodes[*at].mesh.is_some())
    }

    pub(crate) fn sees(&self, at: usize, other: usize) -> bool {
        self.mesh(at).is_alive(self.id(other))
    }

    pub(crate) fn mesh(&self, at: usize) -> &Mesh {
        self.nodes[at].mesh.as_ref().expect("the node runs")
    }

    pub(crate) fn id(&self, at: usize) -> NodeId {
        NodeId::of(&self.nodes[at].name)
    }

    pub(crate) fn member(&self, at: usize, other: usize) -> Option<Arc<Member>> {
        self.mesh(at).status().members.into_iter().find(|member| member.node == self.id(other))
    }

    pub(crate) fn state(&self, at: usize, other: usize) -> Option<MemberState> {
        self.member(at, other).map(|member| member.state)
    }

    /// Events of a node since a time.
    pub(crate) fn events(&self, at: usize, since: Timestamp) -> impl Iterator<Item = &Event> {
        self.nodes[at].events.iter().filter(move |(when, _)| *when >= since).map(|(_, event)| event)
    }

    /// Times at which a live node took another live one for dead.
    pub(crate) fn false_downs(&self, since: Timestamp) -> Vec<String> {
        let live: Vec<NodeId> = self.live().map(|at| self.id(at)).collect();
        let mut verdicts = Vec::new();
        for at in self.live() {
            let mut dead = BTreeSet::new();
            for (when, event) in &self.nodes[at].events {
                let Event::Member(member) = event else { continue };
                if member.state != MemberState::Down {
                    dead.remove(&member.node);
                } else if dead.insert(member.node) && live.contains(&member.node) && *when >= since {
                    verdicts.push(format!("{when:?}: {at} buries {} of boot {}", member.name, member.boot));
                }
            }
        }
        verdicts
    }

    /// Gives a node something right now.
    pub(crate) fn give(&mut self, at: usize, input: Input) {
        if self.nodes[at].paused {
            self.nodes[at].held.push_back(input);
            return;
        }
        let mut out = Vec::new();
        let now = self.now;
        let Some(mesh) = &mut self.nodes[at].mesh else { return };
        mesh.handle(now, input, &mut out);
        for output in out {
            self.obey(at, output);
        }
    }

    /// The connection, as `at` numbers it, to another node.
    pub(crate) fn connection(&self, at: usize, other: usize) -> Option<ConnectionId> {
        self.open_pairs(at).into_iter().rev().find(|pair| self.other(*pair, at).0 == other).map(|pair| {
            let ends = self.pairs[pair].ends;
            ConnectionId(if ends[0].0 == at { ends[0].1 } else { ends[1].1 })
        })
    }

    fn step(&mut self, end: Timestamp) -> bool {
        let delivery = self.queue.first_key_value().map(|(key, _)| key.0);
        let tick = self.next_tick();
        let next = [delivery, tick.map(|(at, _)| at), Some(self.next_sweep)].into_iter().flatten().min();
        let next = next.expect("sweeps go on for ever").max(self.now);
        if next > end {
            self.now = end;
            return false;
        }
        self.now = next;
        if delivery.is_some_and(|at| at <= next) {
            let (_, delivery) = self.queue.pop_first().expect("it was there");
            if self.nodes[delivery.to].starts == delivery.start {
                self.give(delivery.to, delivery.input);
            }
        } else if let Some((at, node)) = tick
            && at <= next
        {
            self.nodes[node].ticks += 1;
            self.give(node, Input::Tick);
            let mesh = self.nodes[node].mesh.as_ref().expect("it has just run");
            assert!(mesh.next_tick() > self.now, "{} does not get on: {:?}", self.nodes[node].name, mesh.next_tick());
        } else {
            self.next_sweep = self.now + SWEEP;
            self.sweep();
        }
        true
    }

    fn next_tick(&self) -> Option<(Timestamp, usize)> {
        self.live()
            .filter(|at| !self.nodes[*at].paused)
            .map(|at| (self.mesh(at).next_tick(), at))
            .filter(|(due, _)| due.as_nanos() != u64::MAX)
            .min()
    }

    fn obey(&mut self, at: usize, output: Output) {
        match output {
            Output::Dial { address, expect } => self.dial(at, address, expect),
            Output::Send { connection, class, bytes } => {
                self.frames += 1;
                self.bytes += bytes.len() as u64;
                if let Some(tape) = &mut self.tape {
                    tape.push((at, bytes.clone()));
                }
                self.carry(at, connection, class, bytes);
            }
            Output::Close { connection, code } => {
                self.nodes[at].closes.push(code);
                if let Some(pair) = self.pair(at, connection) {
                    self.pairs[pair].open = false;
                    let other = self.other(pair, at);
                    if !self.is_cut(at, other.0) {
                        let gone = Gone::Closed(code);
                        self.send_input(other.0, Input::Disconnected { connection: ConnectionId(other.1), gone });
                    }
                    self.send_input(at, Input::Disconnected { connection, gone: Gone::Closed(code) });
                }
            }
            Output::Persist(batch) => {
                self.nodes[at].disk.extend(batch.records);
                self.send_input(at, Input::Persisted { sequence: batch.sequence });
            }
            Output::Event(event) => self.nodes[at].events.push((self.now, event)),
        }
    }

    fn dial(&mut self, at: usize, address: SocketAddr, expect: Option<NodeId>) {
        let found = self.live().find(|other| self.nodes[*other].address == address && !self.nodes[*other].paused);
        let reached = found.filter(|other| !self.is_cut(at, *other) && !self.is_cut(*other, at));
        let Some(other) = reached else {
            return self.send_after(HANDSHAKE_TIMEOUT, at, Input::DialFailed { address });
        };
        if expect.is_some_and(|expect| expect != self.id(other)) {
            return self.send_after(DELAY * 2, at, Input::DialFailed { address });
        }
        let (near, far) = (self.count + 1, self.count + 2);
        self.count += 2;
        let pair = Pair { ends: [(at, near), (other, far)], open: true, broken: None, stalled: Vec::new() };
        self.ends.extend([((at, near), self.pairs.len()), ((other, far), self.pairs.len())]);
        self.pairs.push(pair);
        let connected = |connection, peer, address, direction| Input::Connected {
            connection: ConnectionId(connection),
            peer,
            address,
            direction,
        };
        let (me, it, from) = (self.id(at), self.id(other), self.nodes[at].address);
        self.send_after(DELAY * 2, at, connected(near, it, address, Direction::Dialled));
        self.send_after(DELAY * 3, other, connected(far, me, from, Direction::Accepted));
    }

    fn carry(&mut self, at: usize, connection: ConnectionId, _class: Class, bytes: Bytes) {
        let Some(pair) = self.pair(at, connection) else { return };
        let other = self.other(pair, at);
        if self.is_cut(at, other.0) {
            self.pairs[pair].broken.get_or_insert(self.now);
            self.pairs[pair].stalled.push((at, bytes));
            return;
        }
        self.send_input(other.0, Input::Frame { connection: ConnectionId(other.1), bytes });
    }

    /// Connections over cut links end when they have been silent for too long, or go on.
    fn sweep(&mut self) {
        for pair in 0..self.pairs.len() {
            let [a, b] = self.pairs[pair].ends;
            if !self.pairs[pair].open {
                continue;
            }
            let cut = self.is_cut(a.0, b.0) || self.is_cut(b.0, a.0);
            let dead = self.nodes[a.0].mesh.is_none() || self.nodes[b.0].mesh.is_none();
            if !cut && !dead {
                self.pairs[pair].broken = None;
                for (from, bytes) in std::mem::take(&mut self.pairs[pair].stalled) {
                    let to = self.other(pair, from);
                    self.send_input(to.0, Input::Frame { connection: ConnectionId(to.1), bytes });
                }
                continue;
            }
            let broken = *self.pairs[pair].broken.get_or_insert(self.now);
            if self.now.since(broken) >= IDLE_TIMEOUT {
                self.pairs[pair].open = false;
                for (node, connection) in [a, b] {
                    let connection = ConnectionId(connection);
                    self.send_input(node, Input::Disconnected { connection, gone: Gone::Lost });
                }
            }
        }
    }

    fn send_input(&mut self, to: usize, input: Input) {
        self.send_after(DELAY, to, input);
    }

    fn send_after(&mut self, delay: Duration, to: usize, input: Input) {
        self.count += 1;
        let start = self.nodes[to].starts;
        self.queue.insert((self.now + delay, self.count), Delivery { to, start, input });
    }

    fn is_cut(&self, from: usize, to: usize) -> bool {
        self.cuts.contains(&(from, to))
    }

    fn pair(&self, at: usize, connection: ConnectionId) -> Option<usize> {
        self.ends.get(&(at, connection.0)).copied().filter(|pair| self.pairs[*pair].open)
    }

    fn open_pairs(&self, at: usize) -> Vec<usize> {
        (0..self.pairs.len())
            .filter(|pair| self.pairs[*pair].open && self.pairs[*pair].ends.iter().any(|end| end.0 == at))
            .collect()
    }

    fn other(&self, pair: usize, at: usize) -> (usize, u64) {
        let [a, b] = self.pairs[pair].ends;
        if a.0 == at { b } else { a }
    }

    fn picture(&self) -> String {
        let line = |at: usize| {
            let members = self.mesh(at).status().members;
            let shown: Vec<String> = members
                .iter()
                .map(|member| {
                    let link = if member.connected { "" } else { "!" };
                    format!("{}:{}{link}", member.name, member.state.as_str())
                })
                .collect();
            format!("{} sees {}", self.nodes[at].name, shown.join(" "))
        };
        self.live().map(line).collect::<Vec<_>>().join("\n")
    }
}

impl Node {
    fn new(at: usize, name: &str, seeds: Vec<usize>) -> Self {
        Self {
            name: name.to_owned(),
            address: address(at),
            cluster: "c".to_owned(),
            seeds,
            mesh: None,
            disk: Vec::new(),
            events: Vec::new(),
            closes: Vec::new(),
            paused: false,
            held: VecDeque::new(),
            starts: 0,
            ticks: 0,
        }
    }
}

pub(crate) fn address(at: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, u8::try_from(at + 1).expect("few nodes")], 39_527))
}
