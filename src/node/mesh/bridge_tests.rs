//! The bridge between a mesh that only takes notes and a fleet.

use smg_base::ManualClock;
use smg_fleet::{FleetConfig, HealthConfig, Origin, Path, Status};
use smg_gateway::Parts as GatewayParts;
use smg_mesh_proto::{MemberState, Refusal, Vote};
use smg_runtime::{TaskKind, Tasks, channel, entropy, metrics::Registrar};

use super::*;
use crate::mesh::{shared::text, testing::FakeLink};

struct Stage {
    bridge: Bridge,
    link: Arc<FakeLink>,
    fleet: Arc<Fleet>,
    known: Arc<Known>,
    clock: Arc<ManualClock>,
    declare: watch::Sender<Declared>,
}

/// A node on the machine `here`, whose probes trust every worker.
fn stage() -> Stage {
    let link = FakeLink::new();
    let clock = Arc::new(ManualClock::default());
    let health = HealthConfig { enabled: false, drain_settle: Duration::ZERO, ..HealthConfig::default() };
    let config = FleetConfig { health, scope: Some("here".to_owned()), ..FleetConfig::default() };
    let fleet = Arc::new(Fleet::new(config));
    let registrar = Registrar::new();
    let gate = smg_admission::Gate::new(smg_admission::Config::default(), clock.clone(), &registrar);
    let parts = GatewayParts {
        fleet: fleet.clone(),
        upstream: smg_upstream::Upstream::new(&smg_upstream::Config::default(), &registrar).expect("it needs nothing"),
        gate: Arc::new(gate),
        clock: clock.clone(),
        random: Arc::new(entropy()),
        shutdown: Shutdown::new(),
        registrar,
        cluster: None,
        hash_seed: 0,
        prompt_tokens: None,
        prefix_page: None,
        identity: smg_gateway::Identity::of_nobody(clock.clone()),
        limiter: Arc::new(smg_limits::Limiter::new(smg_limits::LimiterConfig::default())),
    };
    let gateway = Gateway::new(smg_gateway::Config::default(), smg_gateway::Settings::default(), parts);
    let flags = crate::config::Flags::default();
    let inputs = crate::config::Inputs { flags, env: BTreeMap::new(), directory: "/nowhere".into() };
    let config = crate::config::Config::load(&inputs).expect("the defaults are sound");
    let known = Arc::new(Known::default());
    let declare = watch::Sender::new(Declared::default());
    let bridge = Bridge::new(Parts {
        link: link.clone(),
        known: known.clone(),
        fleet: fleet.clone(),
        live: Arc::new(Live::new(gateway.clone(), fleet.clone(), crate::auth::Keys::of_nobody(clock.clone()), &config)),
        gateway,
        clock: clock.clone(),
        scope: "here".to_owned(),
        declared: declare.subscribe(),
        inboxes: Inboxes { prefixes: Arc::default(), limits: Arc::default() },
    });
    Stage { bridge, link, fleet, known, clock, declare }
}

impl Stage {
    fn hear(&mut self, events: impl IntoIterator<Item = Event>) {
        let (sender, mut receiver) = channel("events", 64, &Registrar::new());
        for event in events {
            sender.try_send(event).expect("there is room");
        }
        while let Ok(event) = receiver.try_recv() {
            self.bridge.take(event, &mut receiver);
        }
    }

    /// Lets all writes that are under way end, and gives what was written.
    async fn settle(&mut self) -> Vec<String> {
        while let Some((op, outcome)) = self.bridge.writes.next().await {
            self.bridge.written(op, outcome);
        }
        self.link.written()
    }

    fn wait(&mut self, time: Duration) -> Vec<String> {
        self.clock.advance(time);
        self.bridge.tell();
        self.link.posted()
    }

    fn row(&self, url: &str, scope: &str) -> (WorkerId, WorkerRow) {
        let spec = spec(url);
        let bytes = spec::encode(&spec, scope, &*self.link);
        let row = WorkerRow { spec: bytes, writer: NodeId::of("b"), declared: false, assertions: 1 };
        (spec.url.id(Some(scope)), row)
    }

    fn status(&self, worker: WorkerId) -> Option<Status> {
        self.fleet.snapshot().worker(worker).map(|there| there.status())
    }

    fn path(&self, worker: WorkerId) -> Option<String> {
        let snapshot = self.fleet.snapshot();
        let path = snapshot.worker(worker)?.path(self.clock.now())?;
        Some(match path {
            Path::Direct => "direct".to_owned(),
            Path::Via(via) => self.known.facts().name(NodeId::from_u128(via.peer.0)),
        })
    }
}

fn spec(url: &str) -> WorkerSpec {
    serde_json::from_value(serde_json::json!({ "url": url, "models": ["m"] })).expect("it is a specification")
}

fn member(name: &str, rtt_ms: u64) -> Member {
    Member {
        node: NodeId::of(name),
        name: name.to_owned(),
        address: ([127, 0, 0, 1], 1).into(),
        traffic_url: String::new(),
        zone: String::new(),
        region: String::new(),
        software: String::new(),
        boot: 1,
        state: MemberState::Alive,
        doubted: false,
        draining: false,
        connected: true,
        rtt: Some(Duration::from_millis(rtt_ms)),
        since: Timestamp::ORIGIN,
        is_self: name == "me",
    }
}

fn joins(member: Member) -> Event {
    Event::Member(Arc::new(member))
}

fn reach(via: &[&str], home: &str) -> Reach {
    Reach {
        verdict: Verdict::Up,
        via: via.iter().map(|name| NodeId::of(name)).collect(),
        votes: via.iter().map(|name| (NodeId::of(name), Vote::Up)).collect(),
        home: Some(NodeId::of(home)),
        standby: None,
        probed_here: true,
    }
}

#[tokio::test]
async fn workers_of_other_nodes_come_and_go() {
    let mut stage = stage();
    let (worker, row) = stage.row("http://10.0.0.1", "b");
    stage.hear([Event::Worker { worker, row: Some(row.clone()) }]);
    assert_eq!(stage.status(worker), Some(Status::Ready));
    assert_eq!(stage.fleet.snapshot().worker(worker).map(|there| there.origin), Some(Origin::Mesh));
    stage.hear([Event::Worker { worker, row: None }]);
    assert_eq!(stage.status(worker), Some(Status::Draining));
    stage.hear([Event::Worker { worker, row: Some(row) }]);
    assert_eq!(stage.status(worker), Some(Status::Ready), "somebody asserts it again");
    let broken = WorkerRow { spec: Bytes::from_static(b"{}"), ..stage.row("http://10.0.0.1", "b").1 };
    stage.hear([Event::Worker { worker, row: Some(broken) }]);
    assert_eq!(stage.status(worker), Some(Status::Ready), "what cannot be read changes nothing");
}

#[tokio::test]
async fn a_worker_that_is_drained_here_stays_so_until_it_is_described_anew() {
    let mut stage = stage();
    let (worker, row) = stage.row("http://10.0.0.1", "b");
    stage.hear([Event::Worker { worker, row: Some(row.clone()) }]);
    stage.fleet.drain(worker);
    let second = WorkerRow { assertions: 2, ..row };
    stage.hear([Event::Worker { worker, row: Some(second.clone()) }]);
    assert_eq!(stage.status(worker), Some(Status::Draining));
    let other = spec::encode(&WorkerSpec { priority: 9, ..spec("http://10.0.0.1") }, "b", &*stage.link);
    stage.hear([Event::Worker { worker, row: Some(WorkerRow { spec: other, ..second }) }]);
    assert_eq!(stage.status(worker), Some(Status::Ready));
}

#[tokio::test]
async fn what_flags_and_files_declare_is_asserted_once_and_taken_back() {
    let mut stage = stage();
    let ids: Vec<WorkerId> = ["http://10.0.0.1", "http://127.0.0.1:1"].map(|url| spec(url).url.id(Some("here"))).into();
    let declare = |stage: &mut Stage, urls: &[&str]| {
        stage
            .declare
            .send_replace(Declared { workers: urls.iter().map(|url| spec(url)).collect(), ..Declared::default() });
        stage.bridge.declare();
    };
    declare(&mut stage, &["http://10.0.0.1", "http://127.0.0.1:1"]);
    let mut written = stage.settle().await;
    written.sort();
    let mut expected: Vec<String> = ids.iter().map(|id| format!("declare {id}")).collect();
    expected.sort();
    assert_eq!(written, expected);
    declare(&mut stage, &["http://10.0.0.1", "http://127.0.0.1:1"]);
    assert_eq!(stage.settle().await, Vec::<String>::new());
    declare(&mut stage, &["http://10.0.0.1"]);
    assert_eq!(stage.settle().await, [format!("withdraw {}", ids[1])]);
    stage.link.fail(WriteError::Busy);
    declare(&mut stage, &[]);
    assert_eq!(stage.settle().await, vec![format!("withdraw {}", ids[0]); 2], "a busy mesh is asked again");
}

#[tokio::test]
async fn a_declared_worker_that_was_removed_before_stays_removed() {
    let mut stage = stage();
    let now = stage.clock.now();
    let kept = stage.fleet.add(spec("http://10.0.0.1"), Origin::Flag, now).expect("there is room").worker.id;
    let removed = stage.fleet.add(spec("http://10.0.0.2"), Origin::Flag, now).expect("there is room").worker.id;
    let workers = vec![spec("http://10.0.0.1"), spec("http://10.0.0.2")];
    stage.declare.send_replace(Declared { workers, ..Declared::default() });
    stage.bridge.declare();
    stage.settle().await;
    stage.wait(Duration::from_millis(500));
    let (worker, row) = stage.row("http://10.0.0.1", "here");
    assert_eq!(worker, kept);
    stage.hear([Event::Worker { worker, row: Some(row) }]);
    assert_eq!(stage.status(removed), Some(Status::Ready), "the mesh may still be about to say that it stands");
    stage.wait(Duration::from_millis(600));
    assert_eq!(stage.status(removed), Some(Status::Draining));
    assert_eq!(stage.status(kept), Some(Status::Ready));
}

#[tokio::test]
async fn a_worker_of_another_machine_is_reached_through_the_best_peer() {
    let mut stage = stage();
    let (worker, row) = stage.row("http://127.0.0.1:1", "there");
    stage.hear([
        joins(member("me", 0)),
        joins(member("b", 5)),
        joins(member("c", 1)),
        Event::Worker { worker, row: Some(row) },
        Event::Reach { worker, reach: reach(&["b", "c"], "b") },
    ]);
    let check = |stage: &mut Stage, changed: Member, expected: Option<&str>| {
        let what = format!("{changed:?}");
        stage.hear([joins(changed)]);
        assert_eq!(stage.path(worker).as_deref(), expected, "{what}");
    };
    assert_eq!(stage.path(worker).as_deref(), Some("c"), "the nearest");
    stage.wait(Duration::from_millis(100));
    assert_eq!(stage.link.candidates(), [NodeId::of("c")], "the way that is used is watched");
    check(&mut stage, Member { doubted: true, ..member("c", 1) }, Some("b"));
    check(&mut stage, Member { doubted: true, ..member("b", 5) }, Some("c"));
    check(&mut stage, Member { draining: true, ..member("c", 1) }, Some("b"));
    check(&mut stage, Member { state: MemberState::Down, ..member("b", 5) }, None);
    check(&mut stage, member("c", 1), Some("c"));
    stage.hear([Event::Reach { worker, reach: Reach { verdict: Verdict::Down, ..reach(&["c"], "c") } }]);
    assert_eq!(stage.path(worker), None, "nobody is to use it");
}

#[tokio::test]
async fn one_node_asks_an_engine_and_the_others_hear() {
    let mut stage = stage();
    let (worker, row) = stage.row("http://10.0.0.1", "b");
    let figures =
        EngineFigures { running: 7, waiting: 1, foreign: 3, kv_usage: 0.5, generation_tokens_per_second: 9.0 };
    stage.hear([
        joins(member("b", 1)),
        Event::Engine { worker, figures: Some(figures) },
        Event::PeerLoad { worker, ledger: Ledger { requests: 4, decoding: 2, pending_tokens: 80 } },
        Event::Worker { worker, row: Some(row) },
        Event::Reach { worker, reach: reach(&["b"], "b") },
    ]);
    let there = stage.fleet.snapshot().worker(worker).cloned().expect("it came");
    assert_eq!(there.state.load.engine().map(|engine| (engine.running, engine.waiting)), Some((7, 1)));
    assert_eq!((there.state.load.foreign_requests(), there.state.load.peers().requests), (3, 4));
    assert_eq!(there.engine_source(), EngineSource::Heard);
    let told = stage.wait(Duration::from_millis(100));
    assert_eq!(told, ["vote up"], "what was heard is not told again");
    stage.hear([Event::Reach { worker, reach: reach(&["b"], "me") }]);
    assert_eq!(there.engine_source(), EngineSource::Asked);
    assert_eq!(there.state.load.engine(), None, "this node has not asked yet");
}

#[tokio::test]
async fn own_aliases_seed_what_nobody_has_ever_shared() {
    let mut stage = stage();
    let aliases = [("new", "m"), ("old", "m"), ("gone", "m")].map(|(alias, model)| (alias.into(), model.into())).into();
    stage.declare.send_replace(Declared { aliases, ..Declared::default() });
    stage.bridge.declare();
    assert_eq!(stage.settle().await, Vec::<String>::new(), "nobody knows yet what others share");
    stage.hear([
        Event::Joined { alone: false },
        Event::Config { key: "alias/old".to_owned(), value: Some(text("n")) },
        Event::Config { key: "alias/gone".to_owned(), value: None },
    ]);
    stage.wait(Duration::from_millis(500));
    assert_eq!(stage.settle().await, Vec::<String>::new());
    stage.wait(Duration::from_millis(600));
    assert_eq!(stage.settle().await, ["config alias/new=\"m\""]);
}

#[tokio::test]
async fn a_node_without_company_is_alone_and_one_that_is_refused_ends() {
    let mut stage = stage();
    stage.hear([joins(member("me", 0)), Event::Joined { alone: true }]);
    assert_eq!(stage.known.standing(), Standing::Alone);
    stage.hear([joins(member("b", 1))]);
    assert_eq!(stage.known.standing(), Standing::Joined);
    stage.hear([joins(Member { state: MemberState::Down, ..member("b", 1) })]);
    assert_eq!(stage.known.standing(), Standing::Alone);

    let (sender, receiver) = channel("events", 1, &Registrar::new());
    let refusal = Refusal::NameInUse { name: "me".to_owned(), address: ([127, 0, 0, 1], 1).into() };
    sender.try_send(Event::Refused(refusal)).expect("there is room");
    let tasks = Tasks::new(Shutdown::new());
    let shutdown = tasks.shutdown().clone();
    stage.bridge.run(receiver, shutdown.clone()).await;
    assert_eq!(shutdown.phase(), Phase::Closing);
    assert!(stage.known.refusal().is_some_and(|why| why.contains("every node needs its own --mesh-server-name")));
}

#[tokio::test]
async fn without_the_mesh_a_node_goes_on_with_what_it_reaches_itself() {
    let mut stage = stage();
    let (near, near_row) = stage.row("http://10.0.0.1", "b");
    let (far, far_row) = stage.row("http://127.0.0.1:1", "there");
    stage.hear([
        joins(member("b", 1)),
        Event::Worker { worker: near, row: Some(near_row) },
        Event::Worker { worker: far, row: Some(far_row) },
        Event::Reach { worker: near, reach: Reach { verdict: Verdict::Down, ..reach(&["b"], "b") } },
        Event::Reach { worker: far, reach: reach(&["b"], "b") },
    ]);
    assert_eq!((stage.path(near), stage.path(far).as_deref()), (None, Some("b")));
    let Stage { bridge, fleet, clock, .. } = stage;
    let (sender, receiver) = channel("events", 1, &Registrar::new());
    drop(sender);
    bridge.run(receiver, Shutdown::new()).await;
    let path = |worker| fleet.snapshot().worker(worker).and_then(|there| there.path(clock.now()));
    assert_eq!((path(near), path(far)), (Some(Path::Direct), None));
}

#[tokio::test(start_paused = true)]
async fn at_rest_it_is_not_looked_what_there_is_to_tell_until_there_is_something() {
    let Stage { bridge, link, fleet, .. } = stage();
    let worker = fleet.add(spec("http://10.0.0.1"), Origin::Api, Timestamp::ORIGIN).expect("there is room").worker;
    let (_sender, receiver) = channel("events", 1, &Registrar::new());
    let shutdown = Shutdown::new();
    let tasks = Tasks::new(shutdown.clone());
    tasks.spawn(TaskKind::Mesh, "bridge", bridge.run(receiver, shutdown.clone()));
    // Virtual time goes on only while everybody sleeps.
    let until_told = async |words: &str| {
        let began = Instant::now();
        while !link.posted().iter().any(|told| told.starts_with(words)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        began.elapsed()
    };
    until_told("vote").await;
    for rest in [350, 10_050] {
        tokio::time::sleep(Duration::from_millis(rest)).await;
        let guard = worker.state.begin(1_000, Timestamp::ORIGIN);
        assert!(until_told("ledger 1").await <= PACE + Duration::from_millis(2), "after {rest} ms");
        drop(guard);
        assert!(until_told("ledger 0").await <= PACE + Duration::from_millis(2), "after {rest} ms");
    }
    shutdown.advance(Phase::Stopped);
}
