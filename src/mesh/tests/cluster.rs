//! Whole nodes, each on a runtime of its own, so that one can be ended without a word.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use smg_base::WorkerId;
use smg_mesh_proto::{
    Batch, Event, Kind, Ledger, Limits, MemberState, NodeId, Op, Profile, Record, Refusal, Status, WriteError,
};
use smg_runtime::{Phase, Shutdown, SystemClock, TaskKind, Tasks, entropy};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    runtime::{Builder, Runtime},
    time::{Duration, timeout},
};

use super::*;
use crate::{Config, Journal, JournalError, Mesh, Relayed};

/// How long a condition may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What a node is started with.
#[derive(Clone)]
struct Setup {
    name: &'static str,
    cluster: &'static str,
    security: Security,
    seeds: Vec<SocketAddr>,
    disk: Option<Disk>,
}

impl Setup {
    fn new(name: &'static str, seeds: &[&Node]) -> Self {
        let seeds = seeds.iter().map(|node| node.mesh.address()).collect();
        Self { name, cluster: "smg", security: tokens(&["one"]), seeds, disk: None }
    }
}

/// A journal in memory that outlives its node.
#[derive(Clone, Default)]
struct Disk(Arc<Mutex<Vec<Record>>>);

impl Journal for Disk {
    fn load(&mut self) -> Result<Vec<Record>, JournalError> {
        Ok(self.0.lock().clone())
    }

    fn append(&mut self, batch: &Batch) -> Result<(), JournalError> {
        self.0.lock().extend(batch.records.clone());
        Ok(())
    }
}

struct Node {
    mesh: Mesh,
    events: Receiver<Event>,
    relayed: Receiver<Relayed>,
    shutdown: Shutdown,
    registrar: Registrar,
    process: Option<Runtime>,
    seen: Seen,
}

/// With whom a node has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    Alone,
    Peers,
}

/// What a node was told by its mesh.
#[derive(Debug, Default)]
struct Seen {
    members: BTreeMap<String, MemberState>,
    workers: BTreeMap<WorkerId, Option<Bytes>>,
    loads: BTreeMap<WorkerId, Ledger>,
    entries: BTreeMap<Bytes, Bytes>,
    joined: Option<Company>,
    refused: Option<Refusal>,
}

impl Node {
    async fn start(setup: Setup) -> Self {
        let process = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let registrar = Registrar::new();
        let shutdown = Shutdown::new();
        let (counted, watched) = (registrar.clone(), shutdown.clone());
        let started = process.spawn(async move {
            let config = config(&setup);
            let journal = setup.disk.map(|disk| Box::new(disk) as Box<dyn Journal>);
            let parts = Mesh::bind(config, Arc::new(SystemClock::new()), journal, &counted).await.expect("it binds");
            let tasks = Tasks::new(watched.clone());
            tasks.spawn(TaskKind::Background, "mesh", parts.driver.run(watched, tasks.clone()));
            (parts.mesh, parts.events, parts.relayed)
        });
        let (mesh, events, relayed) = started.await.expect("it starts");
        Self { mesh, events, relayed, shutdown, registrar, process: Some(process), seen: Seen::default() }
    }

    /// Hears news until `condition` holds.
    async fn until(&mut self, what: &str, condition: impl Fn(&Seen) -> bool) {
        let wait = async {
            while !condition(&self.seen) {
                match self.events.recv().await.expect("the mesh runs") {
                    Event::Member(member) => drop(self.seen.members.insert(member.name.clone(), member.state)),
                    Event::Worker { worker, row } => {
                        self.seen.workers.insert(worker, row.map(|row| row.spec));
                    }
                    Event::PeerLoad { worker, ledger } => drop(self.seen.loads.insert(worker, ledger)),
                    Event::Entry { key, value: Some(value), .. } => drop(self.seen.entries.insert(key, value)),
                    Event::Joined { alone: true } => self.seen.joined = Some(Company::Alone),
                    Event::Joined { alone: false } => self.seen.joined = Some(Company::Peers),
                    Event::Refused(refusal) => self.seen.refused = Some(refusal),
                    _ => {}
                }
            }
        };
        let outcome = timeout(PATIENCE, wait).await;
        assert!(outcome.is_ok(), "{what}: {:?}, {:?}", self.seen, self.mesh.status().await);
    }

    async fn sees(&mut self, name: &str, state: MemberState) {
        self.until(&format!("{name} is {state:?}"), |seen| seen.members.get(name) == Some(&state)).await;
    }

    async fn joins(&mut self, company: Company) {
        self.until("it joins", |seen| seen.joined == Some(company)).await;
    }

    async fn status(&self) -> Status {
        self.mesh.status().await
    }

    /// Ends the node without a word.
    fn kill(mut self) {
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shutdown.advance(Phase::Stopped);
        if let Some(process) = self.process.take() {
            process.shutdown_background();
        }
    }
}

fn config(setup: &Setup) -> Config {
    use smg_base::Random;
    let random = entropy();
    Config {
        proto: smg_mesh_proto::Config {
            name: setup.name.to_owned(),
            cluster: setup.cluster.to_owned(),
            advertise: loopback(),
            traffic_url: String::new(),
            zone: String::new(),
            region: String::new(),
            software: "test".to_owned(),
            instance: random.next_u64(),
            seed: random.next_u64(),
            timers: Profile::Fast.timers(),
            limits: Limits::default(),
        },
        bind: loopback(),
        seeds: setup.seeds.iter().map(ToString::to_string).collect(),
        srv: Vec::new(),
        peers_file: None,
        security: setup.security.clone(),
    }
}

async fn three() -> [Node; 3] {
    let mut a = Node::start(Setup::new("a", &[])).await;
    let mut b = Node::start(Setup::new("b", &[&a])).await;
    let mut c = Node::start(Setup::new("c", &[&a])).await;
    for node in [&mut a, &mut b, &mut c] {
        for name in ["a", "b", "c"] {
            // Of itself it needs no news.
            if NodeId::of(name) != node.mesh.node() {
                node.sees(name, MemberState::Alive).await;
            }
        }
    }
    b.joins(Company::Peers).await;
    c.joins(Company::Peers).await;
    [a, b, c]
}

fn worker(number: u128) -> WorkerId {
    WorkerId::from_u128(number)
}

fn addition(number: u128, spec: &'static [u8]) -> Op {
    Op::AddWorker { worker: worker(number), spec: Bytes::from_static(spec), declared: false }
}

#[tokio::test]
async fn three_nodes_form_and_what_one_writes_all_know() {
    let [mut a, mut b, mut c] = three().await;
    b.mesh.write(addition(1, b"one")).await.expect("written");
    b.mesh.post(Op::Ledger { worker: worker(1), ledger: Ledger { requests: 3, decoding: 1, pending_tokens: 9 } });
    for node in [&mut a, &mut b, &mut c] {
        node.until("the worker is known", |seen| seen.workers.get(&worker(1)) == Some(&Some("one".into()))).await;
    }
    for node in [&mut a, &mut c] {
        let expected = Ledger { requests: 3, decoding: 1, pending_tokens: 9 };
        node.until("the load is known", |seen| seen.loads.get(&worker(1)) == Some(&expected)).await;
    }
    c.mesh.write(Op::RemoveWorker { worker: worker(1) }).await.expect("written");
    for node in [&mut a, &mut b, &mut c] {
        node.until("the worker is gone", |seen| seen.workers.get(&worker(1)) == Some(&None)).await;
    }
    let unknown = a.mesh.write(Op::RemoveWorker { worker: worker(2) }).await;
    assert_eq!(unknown, Err(WriteError::UnknownWorker));
}

#[tokio::test]
async fn a_node_with_another_token_or_of_another_cluster_stays_outside() {
    let mut inside = Node::start(Setup::new("a", &[])).await;
    inside.joins(Company::Alone).await;
    let other_token = Setup { security: tokens(&["two"]), ..Setup::new("b", &[&inside]) };
    let other_cluster = Setup { cluster: "other", ..Setup::new("c", &[&inside]) };
    for setup in [other_token, other_cluster] {
        let mut outside = Node::start(setup).await;
        outside.joins(Company::Alone).await;
        let status = outside.status().await;
        assert_eq!(status.members.len(), 1, "{status:?}");
        let text = outside.registrar.encode();
        let failed = text.lines().find(|line| line.starts_with("smg_mesh_handshakes_failed_total{direction=\"sent\"}"));
        assert!(failed.is_some_and(|line| !line.ends_with(" 0")), "{text}");
    }
    assert_eq!(inside.status().await.members.len(), 1);
}

#[tokio::test]
async fn a_name_in_use_is_refused_with_its_place() {
    let mut a = Node::start(Setup::new("a", &[])).await;
    let mut b = Node::start(Setup::new("b", &[&a])).await;
    a.sees("b", MemberState::Alive).await;
    b.joins(Company::Peers).await;
    let mut double = Node::start(Setup::new("b", &[&a])).await;
    double.until("it is refused", |seen| seen.refused.is_some()).await;
    let text = double.seen.refused.take().expect("it was refused").to_string();
    assert!(text.contains("'b'") && text.contains(&b.mesh.address().to_string()), "{text}");
    b.sees("a", MemberState::Alive).await;
    let status = a.status().await;
    let kept = status.members.iter().find(|member| member.name == "b").expect("b is a member");
    assert_eq!((kept.address, kept.state), (b.mesh.address(), MemberState::Alive));
}

#[tokio::test]
async fn a_killed_node_is_noticed_and_comes_back_under_its_name() {
    let [mut a, mut b, c] = three().await;
    let killed = Instant::now();
    c.kill();
    a.sees("c", MemberState::Down).await;
    b.sees("c", MemberState::Down).await;
    assert!(killed.elapsed() < Duration::from_secs(6), "{:?}", killed.elapsed());
    let mut again = Node::start(Setup::new("c", &[&b])).await;
    again.joins(Company::Peers).await;
    for node in [&mut a, &mut b] {
        node.sees("c", MemberState::Alive).await;
    }
}

#[tokio::test]
async fn one_that_leaves_is_known_to_have_left() {
    let [mut a, mut b, c] = three().await;
    timeout(PATIENCE, c.mesh.leave()).await.expect("it does not wait for ever");
    let late = c.mesh.write(addition(1, b"late")).await;
    assert_eq!(late, Err(WriteError::Leaving));
    // What the others are told, they were told before.
    c.kill();
    a.sees("c", MemberState::Left).await;
    b.sees("c", MemberState::Left).await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_crash() {
    let disk = Disk::default();
    let setup = Setup { disk: Some(disk.clone()), ..Setup::new("a", &[]) };
    let mut node = Node::start(setup.clone()).await;
    node.joins(Company::Alone).await;
    for number in 0..20 {
        node.mesh.write(addition(number, b"kept")).await.expect("written");
    }
    node.mesh.write(Op::RemoveWorker { worker: worker(0) }).await.expect("written");
    node.kill();
    let mut again = Node::start(setup).await;
    again.joins(Company::Alone).await;
    let known = |seen: &Seen| seen.workers.values().flatten().count() == 19;
    again.until("they are known", known).await;
    assert_eq!(again.seen.workers.get(&worker(0)).cloned().flatten(), None);
}

#[tokio::test]
async fn requests_are_relayed_to_a_member_and_a_killed_one_breaks_them_off() {
    let [a, _b, mut c] = three().await;
    let echo = async {
        let Relayed { peer, mut stream } = c.relayed.recv().await.expect("the mesh runs");
        assert_eq!(peer, NodeId::of("a"));
        let mut text = [0; 4];
        stream.read_exact(&mut text).await.expect("read");
        stream.write_all(&text).await.expect("written");
        stream
    };
    let ask = async {
        let mut stream = a.mesh.open(NodeId::of("c")).await.expect("a stream");
        stream.write_all(b"ping").await.expect("written");
        let mut text = [0; 4];
        stream.read_exact(&mut text).await.expect("read");
        assert_eq!(&text, b"ping");
        stream
    };
    let (mut asking, answering) = tokio::join!(ask, echo);
    drop(answering);
    assert!(timeout(PATIENCE, asking.read_u8()).await.expect("in time").is_err());
    let unknown = a.mesh.open(NodeId::of("nobody")).await.expect_err("no such member");
    assert_eq!(unknown.kind(), std::io::ErrorKind::NotConnected);
    assert!(a.registrar.encode().contains("smg_mesh_relay_failures_total 1"));
}

/// A worker's million of blocks of 16 tokens are 125 000 chunks of 128, named by 8 bytes each: so many entries of 32.
const MILLION_BLOCKS: usize = 125_000 / 32;

#[tokio::test]
async fn a_restarted_node_has_others_prefixes_back_while_nobody_is_suspected() {
    let [mut a, mut b, c] = three().await;
    for number in 0..4 * MILLION_BLOCKS {
        let key = Bytes::copy_from_slice(&u64::try_from(number).expect("it is small").to_be_bytes());
        let value = Some(Bytes::from(vec![7; 32 * 8 + 16]));
        a.mesh.post(Op::Entry { kind: Kind::Prefixes, key, value });
    }
    b.until("all entries", |seen| seen.entries.len() == 4 * MILLION_BLOCKS).await;
    c.kill();
    a.sees("c", MemberState::Down).await;
    let started = Instant::now();
    let mut again = Node::start(Setup::new("c", &[&a, &b])).await;
    for share in [MILLION_BLOCKS * 95 / 100, 4 * MILLION_BLOCKS] {
        again.until("the entries", |seen| seen.entries.len() >= share).await;
        println!("{share} entries are back {:?} after the start", started.elapsed());
    }
    // Long transfers keep nobody from answering probes.
    for node in [&a, &b, &again] {
        let down = node.status().await.members.iter().filter(|member| !member.state.is_alive()).count();
        assert_eq!(down, 0);
    }
}
