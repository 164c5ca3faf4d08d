//! A network of hosts that tests can break, with the test itself on a host of its own.

use std::{
    io::Write,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    sync::mpsc::sync_channel,
    thread::JoinHandle,
};

use serde_json::{Value, json};
use smg_fabric::{Entered, Fabric, Host};
use smg_mock_worker::{Config, KvEventFormat, KvEvents, KvPublisher, Ledger, MockWorker};
use tempfile::TempDir;
use tokio::{runtime::Builder, sync::oneshot};

use super::nodes::Node;

/// A network, and this thread on it: what the test connects to, it connects to from the host `client`.
pub(crate) struct Lab {
    // The visit ends before the network does.
    _visit: Entered,
    pub(crate) fabric: Fabric,
    pub(crate) client: Host,
    /// The secret that nodes share unless they say otherwise.
    pub(crate) token: String,
    data: TempDir,
}

impl Lab {
    /// A network in which `seed` decides what chance does; none on a machine that can't have one, which is counted.
    pub(crate) fn open(seed: u64) -> Option<Self> {
        let fabric = match Fabric::new(seed) {
            Err(error) if error.is_lack() => {
                skipped(&error.to_string());
                return None;
            }
            other => other.unwrap(),
        };
        let client = fabric.host("client").unwrap();
        let token = new_token();
        let _visit = client.enter().unwrap();
        Some(Self { _visit, fabric, client, token, data: tempfile::tempdir().unwrap() })
    }

    /// A node called `name` on a host of its own. It is not started.
    pub(crate) fn node(&self, name: &str) -> Node {
        Node::new(name, self.fabric.host(name).unwrap(), self)
    }

    /// Nodes `n0`, `n1`, … who all have all others for seeds. They are not started.
    pub(crate) fn nodes(&self, count: usize) -> Vec<Node> {
        let mut nodes: Vec<Node> = (0..count).map(|index| self.node(&format!("n{index}"))).collect();
        let seeds: Vec<String> = nodes.iter().map(Node::mesh_address).collect();
        nodes.iter_mut().for_each(|node| node.seeds.clone_from(&seeds));
        nodes
    }

    /// A plain engine on a host of its own.
    pub(crate) fn engine(&self, name: &str) -> Engine {
        self.engine_of(name, Config::default())
    }

    /// An engine on a host of its own.
    pub(crate) fn engine_of(&self, name: &str, config: Config) -> Engine {
        let host = self.fabric.host(name).unwrap();
        let address = host.address();
        Engine::start(host, Config { name: name.to_owned(), host: address.into(), ..config })
    }

    /// An engine on a host of its own that tells of its KV cache in this way.
    pub(crate) fn telling_engine(&self, name: &str, config: Config, format: KvEventFormat) -> Engine {
        let host = self.fabric.host(name).unwrap();
        let address = host.address();
        let kv_events = Some(KvEvents { format, ..KvEvents::on(address.into()) });
        Engine::start(host, Config { name: name.to_owned(), host: address.into(), kv_events, ..config })
    }

    /// An engine on the loopback address of a node's host, where nobody else reaches it.
    pub(crate) fn engine_beside(&self, node: &Node, name: &str) -> Engine {
        let host = IpAddr::from(Ipv4Addr::LOCALHOST);
        Engine::start(node.host.clone(), Config { name: name.to_owned(), host, ..Config::default() })
    }

    /// Where nodes keep what outlives them.
    pub(crate) fn data(&self) -> PathBuf {
        self.data.path().to_owned()
    }
}

/// A fake engine on a thread of its own, so that neither the test nor its load slows it down.
pub(crate) struct Engine {
    pub(crate) host: Host,
    pub(crate) url: String,
    pub(crate) ledger: Ledger,
    /// Who is told of its KV cache, if it tells.
    pub(crate) kv_events: Option<KvPublisher>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// The port of every engine, on its host.
const ENGINE_PORT: u16 = 8_000;

impl Engine {
    /// How an operator registers it.
    pub(crate) fn spec(&self) -> Value {
        let mut spec = json!({ "url": self.url });
        if let Some(events) = &self.kv_events {
            spec["kv_events"] = json!({ "endpoint": events.endpoint(), "topic": events.topic() });
            if let Some(replay) = events.replay() {
                spec["kv_events"]["replay"] = json!(replay);
            }
        }
        spec
    }

    fn start(host: Host, config: Config) -> Self {
        let config = Config { port: ENGINE_PORT, ..config };
        let (stop, stopped) = oneshot::channel();
        let (report, started) = sync_channel(1);
        let live = move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let worker = MockWorker::start(config).await.unwrap();
                let parts = (worker.url().to_owned(), worker.ledger().clone(), worker.kv_events().cloned());
                report.send(parts).unwrap();
                let _dropped_counts_too = stopped.await;
                worker.stop().await;
            });
        };
        // A thread begins in the namespace of the one that starts it.
        let thread = host.run(move || std::thread::spawn(live));
        let (url, ledger, kv_events) = started.recv().unwrap();
        Self { host, url, ledger, kv_events, stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(!matches!(ended, Some(Err(_))) || std::thread::panicking(), "an engine panicked");
    }
}

/// Says that the running test is skipped and why, where people see it and where the count of skipped tests is made.
pub(crate) fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("SKIP 1 test: {test}: {why}");
    if let Some(path) = std::env::var_os("SMG_TEST_SKIPS") {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{test}: {why}").unwrap();
    }
}

/// As operators make one.
pub(crate) fn new_token() -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_smg")).args(["mesh", "token"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
