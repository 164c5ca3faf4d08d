//! Several nodes' planes that exchange entries late and in parts, while nodes crash and links are cut.

use crate::{EngineHash, Stored};
use smg_base::{Random, SplitMix, fuzz, hash};

use super::*;

const SEED: u64 = 5;
const STEP: Duration = Duration::from_millis(50);

/// What a policy makes of what it is fed, and whether the feeder keeps its promise.
#[derive(Default)]
struct Reader {
    held: BTreeMap<u64, Option<u64>>,
}

impl Reader {
    fn apply(&mut self, change: &Change, about: &str) {
        match change {
            Change::Held { after, chunks } => {
                let mut after = *after;
                for chunk in chunks {
                    assert!(after.is_none_or(|after| self.held.contains_key(&after)), "{about}: no chunk before");
                    assert_eq!(self.held.insert(*chunk, after), None, "{about}: held twice");
                    after = Some(*chunk);
                }
            }
            Change::Dropped { chunks } => {
                for chunk in chunks {
                    assert!(self.held.remove(chunk).is_some(), "{about}: dropped what is not held");
                }
                let orphan = self.held.values().flatten().find(|after| chunks.contains(after));
                assert_eq!(orphan, None, "{about}: something follows what was dropped");
            }
            Change::Cleared => self.held.clear(),
        }
    }
}

/// An engine whose blocks are chunks.
struct Engine {
    events: Vec<KvBatch>,
    /// Blocks by name: the one before, and a token that names them.
    blocks: BTreeMap<u64, Option<u64>>,
    names: u64,
}

impl Engine {
    fn new() -> Self {
        Self { events: Vec::new(), blocks: BTreeMap::new(), names: 0 }
    }

    fn run(&mut self, random: &SplitMix) {
        let event = match random.below(40) {
            0 => {
                self.blocks.clear();
                KvEvent::Cleared
            }
            1..18 if !self.blocks.is_empty() => {
                // From the end, as engines do, several in a row.
                let mut gone = Vec::new();
                for _ in 0..=random.below(6) {
                    let is_leaf = |name: &&u64| !self.blocks.values().any(|before| *before == Some(**name));
                    let Some(name) = self.blocks.keys().find(is_leaf).copied() else { break };
                    self.blocks.remove(&name);
                    gone.push(EngineHash(name));
                }
                KvEvent::Removed { blocks: gone, tier: crate::Tier::Device, group: 0 }
            }
            _ => {
                let before = self.blocks.keys().nth(usize::try_from(random.below(20)).unwrap()).copied();
                let mut parent = before;
                let mut blocks = Vec::new();
                let mut tokens = Vec::new();
                for _ in 0..=random.below(40) {
                    self.names += 1;
                    self.blocks.insert(self.names, parent);
                    parent = Some(self.names);
                    blocks.push(EngineHash(self.names));
                    tokens.extend(std::iter::repeat_n(u32::try_from(self.names).unwrap(), 128));
                }
                let parent = before.map(EngineHash);
                KvEvent::Stored(Stored { blocks, parent, tokens, block_tokens: 128, ..Stored::default() })
            }
        };
        self.events.push(KvBatch { sequence: self.events.len() as u64, rank: 0, events: vec![event] });
    }
}

struct Node {
    plane: Plane,
    readers: BTreeMap<Stream, Reader>,
    /// This node's lane: keys by the version that set them.
    lane: BTreeMap<Bytes, (u64, Option<Bytes>)>,
    version: u64,
    run: u64,
    /// How far the lanes of others have come: their run and version.
    seen: BTreeMap<usize, (u64, u64)>,
    /// Workers that are followed, and the next event.
    follows: BTreeMap<WorkerId, usize>,
    is_up: bool,
}

struct World {
    random: SplitMix,
    nodes: Vec<Node>,
    engines: BTreeMap<WorkerId, Engine>,
    predicted: Vec<WorkerId>,
    /// Sides of a split.
    sides: Vec<u64>,
    ever: BTreeMap<Stream, BTreeSet<u64>>,
    now: Timestamp,
    runs: u64,
}

fn id(node: usize) -> PeerId {
    PeerId(hash::stable128(format!("n{node}").as_bytes()))
}

/// Whether anything is new in the world.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Busy,
    Quiet,
}

/// How much of what is newer comes at once.
#[derive(Clone, Copy)]
enum Extent {
    Whole,
    Part,
}

impl World {
    fn new(seed: u64, nodes: usize) -> Self {
        let worker = |number: u128| WorkerId::from_u128(number);
        let mut world = Self {
            random: SplitMix::new(seed),
            nodes: Vec::new(),
            engines: (1..=4).map(|number| (worker(number), Engine::new())).collect(),
            predicted: (11..=13).map(worker).collect(),
            sides: vec![0; nodes],
            ever: BTreeMap::new(),
            now: Timestamp::ORIGIN + Duration::from_secs(60),
            runs: 0,
        };
        for number in 0..nodes {
            let node = world.fresh(number);
            world.nodes.push(node);
        }
        world
    }

    fn fresh(&mut self, number: usize) -> Node {
        self.runs += 1;
        let mut plane = Plane::new(id(number), Sharing::Mesh, SEED, u32::try_from(self.runs).unwrap());
        let mut workers: BTreeMap<WorkerId, Events> =
            self.engines.keys().map(|worker| (*worker, Events::Published)).collect();
        workers.extend(self.predicted.iter().map(|worker| (*worker, Events::None)));
        plane.set_workers(&workers, self.now);
        Node {
            plane,
            readers: BTreeMap::new(),
            lane: BTreeMap::new(),
            version: 0,
            run: self.runs,
            seen: BTreeMap::new(),
            follows: BTreeMap::new(),
            is_up: true,
        }
    }

    fn hears(&self, one: usize, other: usize) -> bool {
        self.nodes[one].is_up && self.nodes[other].is_up && self.sides[one] == self.sides[other]
    }

    /// What the mesh tells a node of who lives and who is home.
    fn tell_reach(&mut self, number: usize) {
        let alive: BTreeSet<PeerId> =
            (0..self.nodes.len()).filter(|other| self.hears(number, *other)).map(id).collect();
        let workers: Vec<WorkerId> = self.engines.keys().chain(&self.predicted).copied().collect();
        let plane = &mut self.nodes[number].plane;
        plane.set_alive(alive.clone(), self.now);
        for worker in workers {
            let mut ranked: Vec<PeerId> = alive.iter().copied().collect();
            ranked
                .sort_by_key(|node| hash::stable128(&[node.0.to_le_bytes(), worker.as_u128().to_le_bytes()].concat()));
            plane.set_reach(worker, ranked.first().copied(), ranked.get(1).copied(), self.now);
        }
    }

    /// Brings what is newer of one node's lane to another, sometimes only a part of it.
    fn replicate(&mut self, from: usize, to: usize, extent: Extent) {
        let (run, version) = (self.nodes[from].run, self.nodes[from].version);
        let seen = self.nodes[to].seen.get(&from).copied().unwrap_or_default();
        let mut news: BTreeMap<Bytes, Option<Bytes>> = BTreeMap::new();
        let mut since = seen.1;
        if seen.0 != run {
            // A new lane takes the place of the old one.
            let known: Vec<Bytes> = self.nodes[to].plane.peers.get(&id(from)).map(keys).unwrap_or_default();
            news.extend(known.into_iter().map(|key| (key, None)));
            since = 0;
        }
        let upto = match extent {
            Extent::Whole => version,
            Extent::Part => since + self.random.below(version - since + 1),
        };
        let lane = &self.nodes[from].lane;
        for (key, (at, value)) in lane.iter().filter(|(_, (at, _))| *at > since && *at <= upto) {
            assert!(*at > 0);
            news.insert(key.clone(), value.clone());
        }
        let now = self.now;
        self.nodes[to].seen.insert(from, (run, upto));
        let entries = news.into_iter().map(|(key, value)| (id(from), key, value)).collect();
        self.nodes[to].plane.take_entries(entries, now);
    }

    fn drain(&mut self, number: usize, about: &str) {
        let node = &mut self.nodes[number];
        for effect in node.plane.take_effects() {
            match effect {
                Effect::Feed { stream, change } => {
                    if let (Change::Held { chunks, .. }, Some(ever)) = (&change, self.ever.get(&stream)) {
                        assert!(chunks.iter().all(|chunk| ever.contains(chunk)), "{about}: credit that nobody gave");
                    }
                    let used = node.plane.workers.get(&stream.worker).and_then(|watched| watched.used.get(&stream));
                    let about = format!("{about}, node {number} by {used:?}, {stream:?}");
                    node.readers.entry(stream).or_default().apply(&change, &about);
                }
                Effect::Write((key, value)) => {
                    node.version += 1;
                    node.lane.insert(key, (node.version, value));
                }
                Effect::Follow(worker) => assert_eq!(node.follows.insert(worker, 0), None, "{about}"),
                Effect::Unfollow(worker) => assert!(node.follows.remove(&worker).is_some(), "{about}"),
                Effect::SetSource { .. } => {}
            }
        }
    }

    fn claim(&mut self, number: usize) {
        let worker = self.predicted[usize::try_from(self.random.below(3)).unwrap()];
        let stream = Stream { worker, model: 1 + self.random.below(2), space: Space::Text };
        let mut link = 0;
        let path: Vec<u64> = (0..=self.random.below(12))
            .map(|_| {
                link = hash::mix(link, self.random.below(10).saturating_sub(7));
                link
            })
            .collect();
        self.ever.entry(stream).or_default().extend(&path);
        let node = &mut self.nodes[number];
        let held = node
            .readers
            .get(&stream)
            .map_or(0, |reader| path.iter().take_while(|chunk| reader.held.contains_key(chunk)).count());
        let after = held.checked_sub(1).map(|last| path[last]);
        node.plane.claim(stream, &Claim { after, chunks: path[held..].to_vec() }, self.now);
    }

    fn step(&mut self, pace: Pace, about: &str) {
        let is_busy = pace == Pace::Busy;
        self.now = self.now + STEP;
        if is_busy {
            for engine in self.engines.values_mut() {
                if self.random.below(4) == 0 {
                    engine.run(&self.random);
                }
            }
        }
        let count = self.nodes.len();
        for number in 0..count {
            if !self.nodes[number].is_up {
                continue;
            }
            if is_busy && self.random.below(3) == 0 {
                self.claim(number);
            }
            if !is_busy || self.random.below(6) == 0 {
                self.tell_reach(number);
            }
            for other in 0..count {
                if other != number && self.hears(number, other) && (!is_busy || self.random.below(3) == 0) {
                    let is_whole = !is_busy || self.random.below(3) > 0;
                    self.replicate(other, number, if is_whole { Extent::Whole } else { Extent::Part });
                }
            }
            let now = self.now;
            let node = &mut self.nodes[number];
            for (worker, next) in &mut node.follows {
                for batch in &self.engines[worker].events[*next..] {
                    node.plane.take_batch(*worker, batch.clone(), now);
                }
                *next = self.engines[worker].events.len();
            }
            if node.plane.due(now).is_some_and(|due| due <= now) {
                node.plane.tick(now);
            }
            self.drain(number, about);
        }
    }

    fn disturb(&mut self) {
        let number = usize::try_from(self.random.below(self.nodes.len() as u64)).unwrap();
        match self.random.below(6) {
            0 => self.nodes[number].is_up = false,
            1 | 2 if !self.nodes[number].is_up => self.nodes[number] = self.fresh(number),
            3 => self.sides = (0..self.nodes.len()).map(|_| self.random.below(2)).collect(),
            4 | 5 => self.sides.fill(0),
            _ => {}
        }
    }
}

/// The keys of what is known of another node's lane.
fn keys(peer: &Peer) -> Vec<Bytes> {
    let of = |(stream, copy): (&Stream, &Copy)| {
        let segments = copy.firsts().into_iter().map(|first| Key::Segment(*stream, first).bytes());
        segments.chain([Key::Header(*stream).bytes()]).collect::<Vec<_>>()
    };
    peer.copies.iter().flat_map(of).collect()
}

#[test]
fn all_nodes_come_to_hold_what_the_homes_found_out() {
    let first = fuzz::seed(1);
    for seed in first..first + fuzz::inputs(6) {
        let mut world = World::new(seed, 2 + usize::try_from(seed % 4).unwrap());
        for step in 0..600 {
            if world.random.below(60) == 0 {
                world.disturb();
            }
            world.step(Pace::Busy, &format!("seed {seed}, step {step}"));
        }
        world.sides.fill(0);
        for number in 0..world.nodes.len() {
            if !world.nodes[number].is_up {
                world.nodes[number] = world.fresh(number);
            }
        }
        for step in 0..600 {
            world.step(Pace::Quiet, &format!("seed {seed}, quiet step {step}"));
        }
        let streams: BTreeSet<Stream> = world.nodes.iter().flat_map(|node| node.readers.keys().copied()).collect();
        for stream in streams {
            let of = |node: &Node| node.readers.get(&stream).map(|reader| reader.held.clone()).unwrap_or_default();
            let first = of(&world.nodes[0]);
            for (number, node) in world.nodes.iter().enumerate() {
                assert_eq!(of(node).len(), first.len(), "seed {seed}: {stream:?} on node {number}");
                assert_eq!(of(node), first, "seed {seed}: {stream:?} on node {number}");
                let mut shown = Reader::default();
                node.plane.show(stream.worker, &mut |effect| match effect {
                    Effect::Feed { stream: of, change } if of == stream => shown.apply(&change, "shown"),
                    _ => {}
                });
                assert_eq!(shown.held, first, "seed {seed}: a new policy, {stream:?} on node {number}");
            }
            if let Some(engine) = world.engines.get(&stream.worker) {
                assert_eq!(first.len(), engine.blocks.len(), "seed {seed}: {stream:?} is what the engine holds");
            }
        }
        let follows = |worker: &WorkerId| world.nodes.iter().filter(|node| node.follows.contains_key(worker)).count();
        assert!(world.engines.keys().all(|worker| follows(worker) == 2), "seed {seed}: home and standby follow");
    }
}

/// A worker without events, its home and a node that sends prompts to it: what all that tells costs each receiver for each token
/// that was computed, and how long a new home needs to tell of a full cache.
#[test]
fn what_is_told_costs_little() {
    let worker = WorkerId::from_u128(11);
    let stream = Stream { worker, model: 1, space: Space::Text };
    let mut planes = [0, 1].map(|number| {
        let mut plane = Plane::new(id(number), Sharing::Mesh, SEED, 1);
        plane.set_workers(&BTreeMap::from([(worker, Events::None)]), Timestamp::ORIGIN);
        plane.set_alive(BTreeSet::from([id(0), id(1)]), Timestamp::ORIGIN);
        plane.set_reach(worker, Some(id(0)), Some(id(1)), Timestamp::ORIGIN);
        plane
    });
    let random = SplitMix::new(7);
    let mut now = Timestamp::ORIGIN + Duration::from_secs(60);
    let (mut told, mut chunks, mut link) = ([0_u64; 2], 0_u64, 0_u64);
    planes[0].resize(stream, 4_000, now);
    let mut conversations: Vec<Vec<u64>> = Vec::new();
    for step in 0..20_000_u64 {
        now = now + Duration::from_millis(20);
        // Ten prompts in a second: a turn of 512 to 2048 new tokens in a conversation, now and then another one.
        if step % 5 == 0 {
            if conversations.len() < 60 || random.below(8) == 0 {
                conversations.push(Vec::new());
            }
            let at =
                conversations.len() - 1 - usize::try_from(random.below(conversations.len().min(60) as u64)).unwrap();
            let conversation = &mut conversations[at];
            let after = conversation.last().copied();
            let new: Vec<u64> = (0..4 + random.below(13))
                .map(|_| {
                    link += 1;
                    hash::mix(link, 1)
                })
                .collect();
            chunks += new.len() as u64;
            conversation.extend(&new);
            let sender = usize::try_from(step / 5 % 2).unwrap();
            planes[sender].claim(stream, &Claim { after, chunks: new }, now);
            if step == 0 {
                planes[0].resize(stream, 4_000, now);
            }
        }
        for from in 0..2 {
            if planes[from].due(now).is_some_and(|due| due <= now) {
                planes[from].tick(now);
            }
            let mut entries = Vec::new();
            for effect in planes[from].take_effects() {
                if let Effect::Write((key, value)) = effect {
                    told[from] += cost(&(key.clone(), value.clone())) as u64;
                    entries.push((id(from), key, value));
                }
            }
            planes[1 - from].take_entries(entries, now);
        }
    }
    let bytes = told.iter().sum::<u64>();
    #[expect(clippy::cast_precision_loss, reason = "printed")]
    let each = bytes as f64 / (chunks * 128) as f64;
    println!("{bytes} B for {chunks} chunks computed: {each:.3} B per token and receiver, headers of datagrams apart");
    assert!(each <= 0.25, "{each} B per token");
}

#[test]
fn a_new_home_tells_of_a_million_blocks_in_a_second() {
    let worker = WorkerId::from_u128(11);
    let stream = Stream { worker, model: 1, space: Space::Text };
    let mut segments = Segments::default();
    let mut now = Timestamp::ORIGIN + Duration::from_secs(60);
    for prompt in 0..1_000_u64 {
        let chunks: Vec<u64> = (0..125).map(|at| hash::mix(prompt, at)).collect();
        segments.apply(&Change::Held { after: None, chunks }, now);
    }
    assert_eq!(segments.len(), 125_000);
    segments.begin_telling();
    segments.complete();
    let mut copy = Copy::default();
    copy.follow(&mut Vec::new());
    let (began, mut bytes) = (now, 0);
    while segments.due().is_some() {
        let mut out = Vec::new();
        bytes += segments.flush(stream, CATCH_UP_BYTES, now, &mut out);
        now = now + CATCH_UP_EVERY;
        let mut news = News::default();
        for (key, value) in out {
            match Key::of(&key) {
                Some(Key::Segment(_, first)) => news.segments.push((first, value)),
                _ => news.header = Some(value.and_then(|value| Header::of(&value))),
            }
        }
        copy.take(news, Use::Followed, &mut Vec::new());
    }
    println!("125000 chunks in {bytes} B and {:?}", now.since(began));
    assert!(copy.is_complete() && copy.chunks() == 125_000);
    assert!(now.since(began) <= Duration::from_secs(1));
}
