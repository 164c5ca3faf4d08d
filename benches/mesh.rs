//! What the mesh costs: bytes and time of a large change on the wire, changes applied, memory, digests.
//!
//! ```sh
//! cargo bench -p smg-benches --bench mesh
//! ```
//!
//! One thread, medians. What is sent stands beside the same as plain bincode of the tokens, which is what it would be without hashes.
//! How fast simulated nodes notice and agree is printed by `smg simulate mesh tables`, what relays cost and what real nodes send at rest by the stage
//! `mesh` of the benchmark `overhead`; `cargo xtask bench --only mesh` runs all three.

#![allow(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bincode::{Decode, Encode};
use bytes::Bytes;
use smg_base::{Random, SplitMix, Timestamp, WorkerId, hash};
use smg_benches::{Table, nanos};
use smg_mesh_proto::{
    Config, ConnectionId, Direction, Gone, Input, Kind, Limits, Mesh, NodeId, Op, Output, Profile, decode_changes,
    encode_changes,
};

// The one that smg has. Beside it the system's gives memory back after each frame, and a page taken anew costs more than what is measured.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The workload: so many changes of who has which prefix, so many tokens each.
const OPERATIONS: usize = 1_024;
const TOKENS: usize = 4_000;
/// Between nodes one hash stands for so many tokens.
const HASHED_TOKENS: usize = 128;
const WORKERS: usize = 10_000;
/// Sizes of the clusters whose memory is compared.
const FEW: usize = 16;
const MANY: usize = 64;

fn main() {
    println!("mesh: one thread, medians\n");
    // First, while nothing that was freed can be used again unseen.
    let memory = memory();
    println!("{}", on_the_wire());
    println!("{}", applied());
    println!("{}", returned());
    println!("{memory}");
    println!("{}", digests());
}

/// One change as it would be without hashes.
#[derive(Debug, Encode, Decode)]
struct Plain {
    tokens: Vec<u32>,
    worker: String,
}

fn plain_operations() -> Vec<Plain> {
    let random = SplitMix::new(42);
    let tokens = |_| (0..TOKENS).map(|_| u32::try_from(random.below(50_000)).unwrap_or(0)).collect();
    (0..OPERATIONS)
        .map(|number| Plain { tokens: tokens(number), worker: format!("http://worker-{number}:8000") })
        .collect()
}

/// The same as changes of a lane: the first hash is the key; the worker's number in the lane and the other hashes are the value.
fn changes(operations: &[Plain]) -> Vec<(Bytes, Bytes)> {
    let one = |(number, operation): (u16, &Plain)| {
        let mut link = 0;
        let hashes = operation.tokens.chunks_exact(HASHED_TOKENS).map(|chunk| {
            let bytes: Vec<u8> = chunk.iter().flat_map(|token| token.to_le_bytes()).collect();
            link = hash::stable64_seeded(&bytes, link);
            link
        });
        let hashes: Vec<[u8; 8]> = hashes.map(u64::to_le_bytes).collect();
        let value = [&number.to_le_bytes()[..], hashes[1..].as_flattened()].concat();
        (Bytes::copy_from_slice(&hashes[0]), value.into())
    };
    (0..).zip(operations).map(one).collect()
}

fn on_the_wire() -> Table {
    let title =
        format!("{OPERATIONS} prefix operations of {TOKENS} tokens: bytes on the wire, µs to encode and decode all");
    let mut table = Table::new(&title, &["", "MiB", "encode µs", "decode µs"]);
    let operations = plain_operations();
    let changes = changes(&operations);
    let (writer, bytes_max) = (NodeId::of("node"), Limits::default().frame_bytes_max);
    let send = || encode_changes(writer, Kind::Prefixes, &changes, bytes_max);
    let sent = send();
    let receive =
        || sent.iter().map(|frame| decode_changes(frame, bytes_max).expect("a frame of ours is read")).sum::<usize>();
    assert_eq!(receive(), OPERATIONS, "all that was sent is read");
    let (encode, decode) = (nanos(send), nanos(receive));
    let size = sent.iter().map(Bytes::len).sum::<usize>();
    table.row(row(&format!("as sent: {HASHED_TOKENS}-token hashes in lane entries"), size, encode, decode));
    let fixed = bincode::config::standard().with_fixed_int_encoding();
    let bytes = bincode::encode_to_vec(&operations, fixed).expect("plain data encodes");
    let encode = nanos(|| bincode::encode_to_vec(&operations, fixed));
    let decode = nanos(|| bincode::decode_from_slice::<Vec<Plain>, _>(&bytes, fixed));
    table.row(row("plain bincode of the tokens, fixed integers", bytes.len(), encode, decode));
    let variable = bincode::config::standard();
    let bytes = bincode::encode_to_vec(&operations, variable).expect("plain data encodes");
    let encode = nanos(|| bincode::encode_to_vec(&operations, variable));
    let decode = nanos(|| bincode::decode_from_slice::<Vec<Plain>, _>(&bytes, variable));
    table.row(row("plain bincode of the tokens, variable integers", bytes.len(), encode, decode));
    table.row(vec!["target, as sent".to_owned(), "≤ 0.26".to_owned(), "≤ 50".to_owned(), "≤ 50".to_owned()]);
    table
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn row(name: &str, bytes: usize, encode: f64, decode: f64) -> Vec<String> {
    let size = format!("{:.3}", bytes as f64 / f64::from(1 << 20));
    vec![name.to_owned(), size, format!("{:.1}", encode / 1e3), format!("{:.1}", decode / 1e3)]
}

/// Nodes that all reach each other at once, with a clock of their own.
struct Cluster {
    nodes: Vec<Mesh>,
    now: Timestamp,
    /// What is to be handed to whom.
    inbox: VecDeque<(usize, Input)>,
    sent_bytes: usize,
    sent_frames: usize,
    /// Whether what the first node receives is kept and not handed over.
    held: Option<Vec<Input>>,
}

impl Cluster {
    fn new(count: usize) -> Self {
        let now = Timestamp::ORIGIN + Duration::from_secs(1);
        let nodes: Vec<Mesh> = (0..count).map(|number| Mesh::new(config(number), Vec::new(), now)).collect();
        let ids: Vec<NodeId> = nodes.iter().map(Mesh::node).collect();
        let mut cluster = Self { nodes, now, inbox: VecDeque::new(), sent_bytes: 0, sent_frames: 0, held: None };
        for low in 0..count {
            for high in low + 1..count {
                for (at, peer, direction) in [(low, high, Direction::Dialled), (high, low, Direction::Accepted)] {
                    let connection = connection(low, high);
                    let input = Input::Connected { connection, peer: ids[peer], address: address(peer), direction };
                    cluster.inbox.push_back((at, input));
                }
            }
        }
        cluster.run_for(Duration::from_secs(10));
        cluster
    }

    fn write(&mut self, at: usize, op: Op) {
        self.inbox.push_back((at, Input::Write { ticket: None, op }));
        self.deliver();
    }

    /// Hands over what is there, and what follows from it, until nothing is left.
    fn deliver(&mut self) {
        let mut out = Vec::new();
        while let Some((at, input)) = self.inbox.pop_front() {
            self.nodes[at].handle(self.now, input, &mut out);
            for output in out.drain(..) {
                self.take(at, output);
            }
        }
    }

    fn take(&mut self, at: usize, output: Output) {
        match output {
            Output::Send { connection, bytes, .. } => {
                self.sent_bytes += bytes.len();
                self.sent_frames += 1;
                let to = other_end(connection, at);
                let input = Input::Frame { connection, bytes };
                match &mut self.held {
                    Some(held) if to == 0 => held.push(input),
                    _ => self.inbox.push_back((to, input)),
                }
            }
            Output::Persist(batch) => self.inbox.push_back((at, Input::Persisted { sequence: batch.sequence })),
            Output::Close { connection, code } => panic!("{connection:?} is closed: {code:?}"),
            Output::Dial { .. } | Output::Event(_) => {}
        }
    }

    fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.deliver();
            let next = self.nodes.iter().map(Mesh::next_tick).min().unwrap_or(end).max(self.now);
            if next > end {
                break;
            }
            self.now = next;
            let due = (0..self.nodes.len()).filter(|at| self.nodes[*at].next_tick() <= next);
            self.inbox.extend(due.map(|at| (at, Input::Tick)));
        }
        self.now = end;
    }
}

fn config(number: usize) -> Config {
    Config {
        name: format!("node-{number}"),
        cluster: "bench".to_owned(),
        advertise: address(number),
        traffic_url: String::new(),
        zone: String::new(),
        region: String::new(),
        software: String::new(),
        instance: number as u64 + 1,
        seed: number as u64 + 1,
        timers: Profile::Lan.timers(),
        limits: Limits::default(),
    }
}

fn address(number: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], u16::try_from(10_000 + number).unwrap_or(0)))
}

/// Both ends know a connection by one number, from which the ends follow.
fn connection(low: usize, high: usize) -> ConnectionId {
    ConnectionId((low as u64) << 32 | high as u64)
}

fn other_end(ConnectionId(number): ConnectionId, at: usize) -> usize {
    let ends = [number >> 32 & 0xffff, number & 0xffff_ffff].map(|end| usize::try_from(end).unwrap_or(0));
    if ends[0] == at { ends[1] } else { ends[0] }
}

fn worker(number: usize) -> Op {
    let url = format!("http://10.{}.{}.{}:8000", number >> 16, number >> 8 & 255, number & 255);
    let spec = format!(
        "{{\"url\":\"{url}\",\"models\":[\"llama-3-70b\"],\"labels\":{{\"rack\":\"r{}\"}},\"priority\":50}}",
        number % 64
    );
    Op::AddWorker { worker: WorkerId::of(&url, None), spec: spec.into(), declared: true }
}

/// A change of each kind at one node, ten thousand times, until the other has applied and acknowledged all.
fn applied() -> Table {
    let mut table = Table::new(
        &format!("{WORKERS} changes from one node to another"),
        &["", "changes/s written", "changes/s applied", "bytes a change"],
    );
    let ops: [(&str, &dyn Fn(usize) -> Op); 2] = [
        ("workers registered", &worker),
        ("prefix entries of 31 hashes", &|number| Op::Entry {
            kind: Kind::Prefixes,
            key: Bytes::copy_from_slice(&number.to_le_bytes()),
            value: Some(vec![7; 242].into()),
        }),
    ];
    for (name, op) in ops {
        let mut cluster = Cluster::new(2);
        cluster.held = Some(Vec::new());
        let (bytes, started) = (cluster.sent_bytes, Instant::now());
        for number in 0..WORKERS {
            cluster.write(1, op(number));
        }
        let mut written = started.elapsed();
        let mut applied = Duration::ZERO;
        // A peer is sent so much before it acknowledges, so this goes to and fro.
        for _ in 0..10_000 {
            let started = Instant::now();
            cluster.run_for(Duration::from_millis(10));
            written += started.elapsed();
            let held = cluster.held.take().unwrap_or_default();
            if held.is_empty() && shown(&cluster.nodes[0]) == shown(&cluster.nodes[1]) {
                break;
            }
            let started = Instant::now();
            cluster.inbox.extend(held.into_iter().map(|input| (0, input)));
            cluster.held = Some(Vec::new());
            cluster.deliver();
            applied += started.elapsed();
        }
        assert!(cluster.nodes[0].status().digest == cluster.nodes[1].status().digest, "both know the same");
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let (count, bytes) = (WORKERS as f64, (cluster.sent_bytes - bytes) as f64);
        table.row(vec![
            name.to_owned(),
            format!("{:.0}", count / written.as_secs_f64()),
            format!("{:.0}", count / applied.as_secs_f64()),
            format!("{:.0}", bytes / count),
        ]);
    }
    table
}

/// What a node that has restarted and knows nothing gets back of other nodes' prefixes: how long both compute for that, how long they
/// wait for each other's acknowledgements on a link without delay, and for how long at most a node does nothing else.
fn returned() -> Table {
    let mut table = Table::new(
        "prefixes for a node that has restarted",
        &["entries × bytes", "MB", "ms in all", "of it sender", "receiver", "waiting", "longest step ms"],
    );
    // A worker's million of blocks of 16 tokens are 125 000 chunks, 8 bytes each.
    for (count, bytes) in [(8_000, 300), (30_000, 400), (120_000, 400)] {
        let mut cluster = Cluster::new(2);
        for number in 0..count {
            let key = Bytes::copy_from_slice(&u64::try_from(number).unwrap_or(0).to_be_bytes());
            cluster.write(1, Op::Entry { kind: Kind::Prefixes, key, value: Some(vec![7; bytes].into()) });
        }
        cluster.run_for(Duration::from_secs(20));
        let took = cluster.restart_first();
        #[expect(clippy::cast_precision_loss, reason = "figures for people")]
        let megabytes = (count * (bytes + 8)) as f64 / 1e6;
        let ms = |time: Duration| format!("{:.1}", time.as_secs_f64() * 1e3);
        let all = took.computed[0] + took.computed[1] + took.waited;
        table.row(vec![
            format!("{count} × {bytes}"),
            format!("{megabytes:.1}"),
            ms(all),
            ms(took.computed[1]),
            ms(took.computed[0]),
            ms(took.waited),
            ms(took.longest),
        ]);
    }
    table
}

/// How long it took until a node knew everything again.
#[derive(Default)]
struct Took {
    computed: [Duration; 2],
    waited: Duration,
    longest: Duration,
}

impl Cluster {
    /// Replaces the first of two nodes by a run of it that knows nothing, and lets it learn.
    fn restart_first(&mut self) -> Took {
        let now = self.now;
        self.inbox.clear();
        let gone = Gone::Lost;
        let old = connection(0, 1);
        self.inbox.push_back((1, Input::Disconnected { connection: old, gone }));
        self.deliver();
        self.nodes[0] = Mesh::new(Config { instance: 77, ..config(0) }, Vec::new(), now);
        let ids = [self.nodes[0].node(), self.nodes[1].node()];
        // Another number with the same ends.
        let connection = ConnectionId(1 << 48 | old.0);
        for (at, direction) in [(0, Direction::Dialled), (1, Direction::Accepted)] {
            let peer = 1 - at;
            self.inbox
                .push_back((at, Input::Connected { connection, peer: ids[peer], address: address(peer), direction }));
        }
        let (mut took, mut out) = (Took::default(), Vec::new());
        loop {
            while let Some((at, input)) = self.inbox.pop_front() {
                let started = Instant::now();
                self.nodes[at].handle(self.now, input, &mut out);
                let step = started.elapsed();
                took.computed[at] += step;
                took.longest = took.longest.max(step);
                for output in out.drain(..) {
                    self.take(at, output);
                }
            }
            if shown(&self.nodes[0]) == shown(&self.nodes[1]) {
                return took;
            }
            let next = self.nodes.iter().map(Mesh::next_tick).min().unwrap_or(now).max(self.now);
            took.waited += next.since(self.now);
            assert!(took.waited < Duration::from_secs(60), "the node never learns all");
            self.now = next;
            let due = (0..2).filter(|at| self.nodes[*at].next_tick() <= next);
            self.inbox.extend(due.map(|at| (at, Input::Tick)));
        }
    }
}

fn shown(node: &Mesh) -> u128 {
    node.status().digest.0
}

/// Bytes of this process that are in memory.
fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
    pages.unwrap_or(f64::NAN) * 4_096.0
}

fn memory() -> Table {
    let mut table = Table::new("resident memory of a node", &["", "bytes"]);
    let mut row = |what: String, bytes: f64| table.row(vec![what, format!("{bytes:.0}")]);
    let mut pair = Cluster::new(2);
    let before = resident();
    (0..WORKERS).for_each(|number| pair.write(1, worker(number)));
    pair.run_for(Duration::from_secs(60));
    assert!(pair.nodes[0].workers().len() == WORKERS, "the other node knows them all");
    let bytes = (resident() - before) / 2.0;
    row(format!("for {WORKERS} workers, of each of two nodes"), bytes);
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    row("for each of them".to_owned(), bytes / WORKERS as f64);
    // Nothing is dropped before all is measured.
    let mut kept = vec![pair];
    let mut per_node = |count: usize| {
        let before = resident();
        kept.push(Cluster::new(count));
        #[expect(clippy::cast_precision_loss, reason = "a mean")]
        let nodes = count as f64;
        (resident() - before) / nodes
    };
    let (few, many) = (per_node(FEW), per_node(MANY));
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    row(format!("for each peer ({MANY} nodes against {FEW})"), (many - few) / (MANY - FEW) as f64);
    table
}

/// What two nodes that know the same spend to find that out.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn digests() -> Table {
    let title = format!("a second of two idle nodes that know the same {WORKERS} workers");
    let mut table = Table::new(&title, &["", "frames", "bytes", "µs of both"]);
    for workers in [0, WORKERS] {
        let mut cluster = Cluster::new(2);
        (0..workers).for_each(|number| cluster.write(1, worker(number)));
        cluster.run_for(Duration::from_secs(60));
        let (frames, bytes, started, seconds) = (cluster.sent_frames, cluster.sent_bytes, Instant::now(), 60);
        cluster.run_for(Duration::from_secs(seconds));
        let per_second = |value: usize| format!("{:.1}", value as f64 / seconds as f64);
        table.row(vec![
            format!("{workers} workers"),
            per_second(cluster.sent_frames - frames),
            per_second(cluster.sent_bytes - bytes),
            format!("{:.1}", started.elapsed().as_secs_f64() * 1e6 / seconds as f64),
        ]);
    }
    table
}
