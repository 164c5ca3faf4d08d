//! `smg demo`: nodes that form a mesh, with fake engines behind them, to try it out.
//!
//! Each node is a process of its own, so that one can be killed; all end with this one, which holds their standard input open.

use std::{
    fmt::Write,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    num::NonZeroUsize,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use http::Method;
use serde_json::Value;
use smg_mock_worker::{Config as EngineConfig, Dialect, MockWorker, Speed};
use smg_node::{
    Node,
    config::{Config, Inputs, Secret},
};
use smg_runtime::Phase;
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

use super::{
    Failure,
    client::{Client, Target},
    launch, load, mesh, output,
};

/// Arguments of `smg demo`, beside those of `smg launch`, which each node gets.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Demo")]
pub(super) struct Args {
    /// How many nodes to start. The first has the ports as given, each further one those behind.
    #[arg(long, default_value = "3", value_name = "NUMBER")]
    nodes: NonZeroUsize,
    /// How many fake engines to start.
    #[arg(long, default_value = "4", value_name = "NUMBER")]
    engines: NonZeroUsize,
    /// The model they serve.
    #[arg(long, default_value = "demo", value_name = "MODEL")]
    engine_model: String,
    /// Be one of the nodes, until standard input ends.
    #[arg(long, hide = true)]
    as_node: bool,
}

/// More engines than this say nothing more.
const ENGINES_MAX: usize = 64;

/// The names of the nodes.
const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

/// About as fast as a small model on one GPU, so that streams look like streams and a warm cache can be felt.
const SPEED: Speed = Speed {
    running_max: 256,
    waiting_max: 1_024,
    prefill_tokens_per_second: 8_000.0,
    decode_tokens_per_second: 60.0,
    decode_tokens_per_second_total: 2_400.0,
    time_scale: 1.0,
};

/// How long the nodes may take to know each other and all engines.
const START_PATIENCE: Duration = Duration::from_secs(20);

/// How long they may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);

const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) fn run(args: &Args, mut inputs: Inputs) -> Result<(), Failure> {
    if args.as_node {
        return be_node(inputs);
    }
    if args.engines.get() > ENGINES_MAX {
        return Err(Failure::Usage(format!("--engines: at most {ENGINES_MAX}")));
    }
    if args.nodes.get() > NAMES.len() {
        return Err(Failure::Usage(format!("--nodes: at most {}", NAMES.len())));
    }
    // What is fake answers on this machine only, unless asked otherwise; and it has nobody to wait for when it ends.
    for (variable, value) in [
        ("SMG_HOST", "127.0.0.1"),
        ("SMG_PROMETHEUS_HOST", "127.0.0.1"),
        ("SMG_DRAIN_DELAY", "0"),
        ("SMG_LOG_LEVEL", "warn"),
    ] {
        inputs.env.entry(variable.to_owned()).or_insert_with(|| value.to_owned());
    }
    let mut first = inputs.clone();
    if args.nodes.get() > 1 {
        first.flags.set("enable_mesh", ["true".to_owned()]);
        first.flags.set("mesh_host", ["127.0.0.1".to_owned()]);
    }
    let config = load(&first)?;
    let runtime = launch::runtime(&config)?;
    let engines = runtime.block_on(engines(args))?;
    let plan = Plan::new(args, &config, &engines)?;
    let folder = Folder::new();
    let mut nodes = plan.start(&inputs, &folder)?;
    let shown = plan.wait(&mut nodes).and_then(|()| plan.show(&nodes));
    let ended = shown.and_then(|()| runtime.block_on(watch(&mut nodes)));
    stop(nodes, &runtime);
    runtime.block_on(async {
        for engine in engines {
            engine.stop().await;
        }
    });
    ended
}

/// Runs one of the nodes: as `smg launch` does, and no longer than the process that started it.
fn be_node(inputs: Inputs) -> Result<(), Failure> {
    let config = Config::load(&inputs)?;
    launch::runtime(&config)?.block_on(async move {
        let failed = |error: smg_node::Error| Failure::Launch(error.into());
        let node = Node::build(config, inputs, Vec::new()).await.map_err(failed)?;
        let shutdown = node.shutdown().clone();
        std::thread::spawn(move || {
            // However it ends, nobody is there any more.
            let _ended = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            shutdown.advance(Phase::Draining);
        });
        Box::pin(node.run(|_| {})).await.map_err(failed)
    })
}

async fn engines(args: &Args) -> Result<Vec<MockWorker>, Failure> {
    let mut engines = Vec::with_capacity(args.engines.get());
    for number in 1..=args.engines.get() {
        let engine = engine(number, &args.engine_model);
        engines.push(MockWorker::start(engine).await.map_err(|error| Failure::Launch(error.into()))?);
    }
    Ok(engines)
}

/// Half of the engines speak vLLM's dialect, half SGLang's.
fn engine(number: usize, model: &str) -> EngineConfig {
    let dialect = if number.is_multiple_of(2) { Dialect::Sglang } else { Dialect::Vllm };
    EngineConfig {
        name: format!("engine-{number}"),
        dialect,
        models: vec![model.to_owned()],
        output_tokens: 48,
        speed: SPEED,
        ..EngineConfig::default()
    }
}

/// What runs where.
struct Plan {
    model: String,
    policy: String,
    scheme: &'static str,
    key: Option<Secret>,
    engines: Vec<String>,
    nodes: Vec<Place>,
}

/// Where one node is.
struct Place {
    name: &'static str,
    port: u16,
    metrics_port: u16,
    mesh_port: u16,
    /// The machine it plays to be on.
    machine: &'static str,
    /// The engines it is told of.
    engines: Vec<String>,
}

/// A node that runs.
struct Running {
    name: &'static str,
    process: Child,
}

impl Plan {
    fn new(args: &Args, config: &Config, engines: &[MockWorker]) -> Result<Self, Failure> {
        let sections = &config.sections;
        let urls: Vec<String> = engines.iter().map(|engine| engine.url().to_owned()).collect();
        // The last node plays to be on a machine of its own, where the last engine is: the others reach that one only through
        // it, and it reaches theirs only through them.
        let is_split = args.nodes.get() > 1 && urls.len() > 1;
        let shared = urls.len() - usize::from(is_split);
        let mut nodes = Vec::with_capacity(args.nodes.get());
        for (index, name) in NAMES.into_iter().take(args.nodes.get()).enumerate() {
            let is_apart = is_split && index + 1 == args.nodes.get();
            nodes.push(Place {
                name,
                port: port(sections.listener.port, index, free_tcp)?,
                metrics_port: port(sections.metrics.prometheus_port, index, free_tcp)?,
                mesh_port: port(sections.mesh.mesh_port, index, free_udp)?,
                machine: if is_apart { "second" } else { "first" },
                engines: if is_apart { urls[shared..].to_vec() } else { urls[..shared].to_vec() },
            });
        }
        Ok(Self {
            model: args.engine_model.clone(),
            policy: sections.routing.policy.to_string(),
            scheme: if sections.tls.tls_cert_path.is_some() { "https" } else { "http" },
            key: sections.security.admin_api_key.clone().or_else(|| sections.security.api_key.clone()),
            engines: urls,
            nodes,
        })
    }

    fn start(&self, inputs: &Inputs, folder: &Folder) -> Result<Vec<Running>, Failure> {
        let program = std::env::current_exe().map_err(Failure::system("find this program"))?;
        let token = smg_node::new_mesh_token();
        let peers: Vec<String> = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.mesh_port)).collect();
        let mut running = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let mut flags = inputs.flags.clone();
            flags.set("port", [node.port.to_string()]);
            flags.set("prometheus_port", [node.metrics_port.to_string()]);
            flags.add("worker_urls", node.engines.iter().cloned());
            if self.nodes.len() > 1 {
                flags.set("enable_mesh", ["true".to_owned()]);
                flags.set("mesh_server_name", [node.name.to_owned()]);
                flags.set("mesh_host", ["127.0.0.1".to_owned()]);
                flags.set("mesh_port", [node.mesh_port.to_string()]);
                flags.set("mesh_peer_urls", peers.clone());
                flags.set("host_scope", [node.machine.to_owned()]);
                flags.set("data_dir", [folder.0.display().to_string()]);
            }
            let process = Command::new(&program)
                .args(["demo", "--as-node"])
                .args(flags.arguments())
                .envs(&inputs.env)
                .env("SMG_MESH_TOKEN", token.expose())
                .stdin(Stdio::piped())
                .spawn()
                .map_err(Failure::system("start a node"))?;
            running.push(Running { name: node.name, process });
        }
        Ok(running)
    }

    /// Waits until every node can use every engine and knows all others.
    fn wait(&self, nodes: &mut [Running]) -> Result<(), Failure> {
        let deadline = Instant::now() + START_PATIENCE;
        for place in &self.nodes {
            let client = self.client(place)?;
            while !self.is_complete(&client) {
                if let Some(ended) = nodes.iter_mut().find_map(Running::ended) {
                    return Err(Failure::Usage(format!("{ended} before it could serve")));
                }
                if Instant::now() >= deadline {
                    output::note("not all nodes know each other and all engines yet");
                    return Ok(());
                }
                client.pause(LOOK_EVERY);
            }
        }
        Ok(())
    }

    fn is_complete(&self, client: &Client) -> bool {
        let count = |path: &[&str], field: &str| {
            let answer = client.call(Method::GET, path, None).ok()?;
            answer.pointer(field).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok())
        };
        count(&["readyz"], "/healthy_workers") == Some(self.engines.len())
            && (self.nodes.len() == 1 || count(&["mesh", "status"], "/members/alive") == Some(self.nodes.len()))
    }

    fn client(&self, place: &Place) -> Result<Client, Failure> {
        let target = Target::of(&self.url(place), self.key.as_ref()).map_err(Failure::Usage)?;
        Client::new(&target)
    }

    fn url(&self, place: &Place) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, place.port)
    }

    /// Prints what runs, and what to do with it.
    fn show(&self, nodes: &[Running]) -> Result<(), Failure> {
        let mut text = String::from("\nNodes and fake engines are running: no GPU, no model.\n\n");
        text.push_str(&self.table(nodes));
        if let (Some(first), true) = (self.nodes.first(), self.nodes.len() > 1) {
            let client = self.client(first)?;
            let page = |what: &str| client.call(Method::GET, &["mesh", what], None);
            let status = mesh::describe(&page("status")?, &page("members")?);
            put(&mut text, format_args!("\n$ smg mesh status{}\n{status}", self.place_of(first)));
        }
        self.tour(nodes, &mut text);
        output::print(&text)
    }

    fn table(&self, nodes: &[Running]) -> String {
        let row = |what: String, place: String, about: String| vec![what, place, about];
        let mut rows = Vec::new();
        for (place, node) in self.nodes.iter().zip(nodes) {
            let about = format!(
                "process {}, policy {}, metrics http://127.0.0.1:{}/metrics",
                node.process.id(),
                self.policy,
                place.metrics_port
            );
            rows.push(row(format!("node {}", place.name), self.url(place), about));
        }
        for (index, url) in self.engines.iter().enumerate() {
            let dialect = if index.is_multiple_of(2) { "vLLM" } else { "SGLang" };
            let machine =
                self.nodes.iter().find(|node| node.engines.contains(url)).map_or("first", |node| node.machine);
            let about = format!("fake {dialect}, model {}, on the {machine} machine", self.model);
            rows.push(row(format!("engine {}", index + 1), url.clone(), about));
        }
        output::table(&["WHAT", "WHERE", "ABOUT"], &rows)
    }

    fn tour(&self, nodes: &[Running], text: &mut String) {
        let key = if self.key.is_some() { " -H \"authorization: Bearer $SMG_API_KEY\"" } else { "" };
        let body = format!(
            "{{\"model\": \"{}\", \"stream\": true, \"messages\": [{{\"role\": \"user\", \"content\": \"Hello!\"}}]}}",
            self.model
        );
        put(text, format_args!("\nTry it from another terminal. Any node takes any request:\n\n"));
        for place in &self.nodes {
            let url = self.url(place);
            put(
                text,
                format_args!(
                    "  curl -iN {url}/v1/chat/completions -H 'content-type: application/json'{key} \\\n    -d '{body}'\n"
                ),
            );
        }
        if let (Some(first), Some(last), true) = (self.nodes.first(), self.nodes.last(), self.nodes.len() > 1) {
            if first.machine != last.machine {
                put(
                    text,
                    format_args!(
                        "\nNode {0} plays to be on another machine: it reaches the engines of the first one through its peers, \
                         and they reach its own through it:\n\n  smg mesh workers{1}\n",
                        last.name,
                        self.place_of(last)
                    ),
                );
            }
            let second = &self.nodes[1.min(self.nodes.len() - 1)];
            let process = nodes.get(1).map_or(0, |node| node.process.id());
            put(
                text,
                format_args!(
                    "\nKill node {}, and look again; requests to the others go on:\n\n  kill -9 {process}\n  smg mesh status{}\n",
                    second.name,
                    self.place_of(first)
                ),
            );
        }
        if let Some(last) = self.nodes.last() {
            put(
                text,
                format_args!(
                    "\nWhy a request went where it went, asked of the node that took it; curl shows its x-request-id:\n\n  \
                     smg explain{} REQUEST-ID\n\nCtrl-C ends it all.\n\n",
                    self.place_of(last)
                ),
            );
        }
    }

    /// The flag that names a node, where one is needed.
    fn place_of(&self, place: &Place) -> String {
        let url = self.url(place);
        if url == "http://127.0.0.1:30000" { String::new() } else { format!(" --url {url}") }
    }
}

impl Running {
    /// How it ended, if it did.
    fn ended(&mut self) -> Option<String> {
        let status = self.process.try_wait().ok().flatten()?;
        Some(format!("node {} has ended ({status})", self.name))
    }
}

/// Says which nodes end, until all have or this process is told to end.
async fn watch(nodes: &mut [Running]) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::system("listen for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::system("listen for signals"))?;
    let mut told = vec![false; nodes.len()];
    while told.contains(&false) {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        for (node, told) in nodes.iter_mut().zip(&mut told).filter(|(_, told)| !**told) {
            if let Some(ended) = node.ended() {
                output::note(&ended);
                *told = true;
            }
        }
    }
    Ok(())
}

/// Lets the nodes end in order, and by force if they do not.
fn stop(mut nodes: Vec<Running>, runtime: &Runtime) {
    for node in &mut nodes {
        drop(node.process.stdin.take());
    }
    let deadline = Instant::now() + END_PATIENCE;
    while nodes.iter_mut().any(|node| node.ended().is_none()) && Instant::now() < deadline {
        runtime.block_on(async { tokio::time::sleep(LOOK_EVERY).await });
    }
    for node in &mut nodes {
        // One that has ended already is what was wanted.
        let _gone = node.process.kill();
        let _reaped = node.process.wait();
    }
}

/// Where the nodes keep what they remember, while the demo runs.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("smg-demo-{}", std::process::id())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What is left behind is small, and in a folder that is swept.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

/// The port of the node with this index: the one given for the first and those behind, or one that is free where the system is
/// to choose.
fn port(first: u16, index: usize, free: fn() -> std::io::Result<u16>) -> Result<u16, Failure> {
    if first == 0 {
        return free().map_err(Failure::system("find a free port"));
    }
    let port = u16::try_from(index).ok().and_then(|index| first.checked_add(index));
    port.ok_or_else(|| Failure::Usage(format!("there are too few ports behind {first}")))
}

fn free_tcp() -> std::io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn free_udp() -> std::io::Result<u16> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Writing to a string cannot fail.
fn put(text: &mut String, words: std::fmt::Arguments<'_>) {
    text.write_fmt(words).expect("a string takes all text");
}
