//! Nodes of a mesh, each a process on a host of its own, and what they say of each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde_json::Value;
use smg_fabric::Host;

use super::{
    client::{Answer, Ask},
    cluster::{Stream, on},
    gateway::Gateway,
    lab::Lab,
    wait::{took, wait_for},
};

const CHAT: &str = "/v1/chat/completions";
const MESH_PORT: u16 = 39_527;

/// What nodes are told beyond the defaults of all gateways under test.
const FLAGS: &[&str] = &["--enable-mesh", "--admin-api-key", "cluster", "--runtime-worker-threads", "2"];

/// What they are told of probes unless a test is about something else: short times, for tests wait for them.
const QUICK_PROBES: &[&str] = &[
    "--health-check-interval-secs",
    "500ms",
    "--health-check-timeout-secs",
    "400ms",
    "--health-failure-threshold",
    "2",
    "--health-success-threshold",
    "1",
    "--connect-timeout",
    "1s",
];

/// A node, running or not. Its settings may be changed before it starts.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) host: Host,
    pub(crate) seeds: Vec<String>,
    /// What it is told beyond [`FLAGS`].
    pub(crate) flags: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    /// Its secret; none if its flags say what it has instead.
    pub(crate) token: Option<String>,
    pub(crate) data: PathBuf,
    gateway: Option<Gateway>,
    /// What its earlier processes wrote.
    past: String,
}

impl Node {
    pub(crate) fn new(name: &str, host: Host, lab: &Lab) -> Self {
        Self {
            name: name.to_owned(),
            host,
            seeds: Vec::new(),
            flags: QUICK_PROBES.iter().map(|flag| (*flag).to_owned()).collect(),
            past: String::new(),
            environment: Vec::new(),
            token: Some(lab.token.clone()),
            data: lab.data().join(name),
            gateway: None,
        }
    }

    /// Where other nodes reach it.
    pub(crate) fn mesh_address(&self) -> String {
        format!("{}:{MESH_PORT}", self.host.address())
    }

    /// Adds flags for the next start.
    pub(crate) fn tell(&mut self, flags: &[&str]) {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    }

    /// Starts its process, and does not wait for it.
    pub(crate) fn launch(&mut self) {
        assert!(self.gateway.is_none(), "{} runs", self.name);
        let address = self.host.address().to_string();
        let data = self.data.display().to_string();
        let mut flags = [FLAGS, &["--mesh-server-name", &self.name]].concat();
        flags.extend(["--mesh-advertise-host", &address, "--data-dir", &data]);
        if let Some(token) = &self.token {
            flags.extend(["--mesh-token", token]);
        }
        flags.extend(self.flags.iter().map(String::as_str));
        if !self.seeds.is_empty() {
            flags.push("--mesh-peer-urls");
            flags.extend(self.seeds.iter().map(String::as_str));
        }
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.gateway = Some(Gateway::on_host(&self.host, &flags, &environment));
    }

    /// Starts its process and waits until it answers.
    pub(crate) async fn start(&mut self) {
        self.launch();
        self.answers().await;
    }

    /// Waits until it answers.
    pub(crate) async fn answers(&mut self) {
        let name = self.name.clone();
        assert!(self.listens().await, "{name} ended at once: {}", self.log());
    }

    /// Ends its process without a warning.
    pub(crate) async fn kill(&mut self) {
        self.signal("KILL");
        self.ended().await;
        self.forget();
    }

    /// Ends its process as an operator does, and waits for it.
    pub(crate) async fn stop(&mut self) {
        self.signal("TERM");
        let status = self.ended().await;
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.log());
        self.forget();
    }

    fn forget(&mut self) {
        let log = self.log();
        self.past.push_str(&log);
        self.gateway = None;
    }

    /// A page of its mesh.
    pub(crate) async fn page(&self, name: &str) -> Value {
        let answer = self.admin("GET", &format!("/mesh/{name}"), &Value::Null).await;
        assert_eq!(answer.status, 200, "{}: {}", self.name, answer.text());
        answer.value()
    }

    /// The members it knows, with their states.
    pub(crate) async fn members(&self) -> BTreeMap<String, String> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let page = self.page("members").await;
        let members = page["members"].as_array().unwrap_or_else(|| panic!("no members: {page}"));
        members.iter().map(|member| (text(&member["name"]), text(&member["state"]))).collect()
    }

    /// The members it takes for living, itself included. A suspect lives until the verdict.
    pub(crate) async fn sees(&self) -> BTreeSet<String> {
        let lives = |state: &str| matches!(state, "alive" | "suspect");
        self.members().await.into_iter().filter(|(_, state)| lives(state)).map(|(name, _)| name).collect()
    }

    /// One digest over everything it knows.
    pub(crate) async fn digest(&self) -> String {
        let page = self.page("digest").await;
        page["digest"].as_str().unwrap_or_else(|| panic!("no digest: {page}")).to_owned()
    }

    /// Its workers by URL, with their ids.
    pub(crate) async fn workers(&self) -> BTreeMap<String, String> {
        let list = self.admin("GET", "/workers", &Value::Null).await.value();
        let workers = list["workers"].as_array().unwrap_or_else(|| panic!("no workers: {list}")).clone();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        workers.iter().map(|worker| (text(&worker["url"]), text(&worker["id"]))).collect()
    }

    /// Registers a worker through it; the worker's id.
    pub(crate) async fn add(&self, url: &str) -> String {
        self.add_spec(&serde_json::json!({ "url": url })).await
    }

    /// Registers the worker that `spec` describes; its id.
    pub(crate) async fn add_spec(&self, spec: &Value) -> String {
        let answer = self.admin("POST", "/workers", spec).await;
        assert_eq!(answer.status, 202, "{}: {}", self.name, answer.text());
        answer.value()["worker_id"].as_str().unwrap().to_owned()
    }

    /// Removes a worker through it.
    pub(crate) async fn remove(&self, id: &str) {
        let answer = self.admin("DELETE", &format!("/workers/{id}"), &Value::Null).await;
        assert!(matches!(answer.status, 200 | 202), "{}: {}", self.name, answer.text());
    }

    /// Asks it for a streamed completion, which may run more than once; the answer tells the worker.
    pub(crate) async fn chat(&self) -> Answer {
        let ask = on(CHAT, "demo", Stream::Yes).field("x-smg-debug", "1").field("x-smg-allow-replay", "true");
        let answer = self.ask(&ask).await;
        let ends_well = answer.is_whole && answer.body.ends_with(b"data: [DONE]\n\n");
        assert!(answer.status != 200 || ends_well, "{}: {}", self.name, answer.text());
        answer
    }

    /// The worker, by id, that it chooses for this routing key.
    pub(crate) async fn place(&self, key: &str) -> String {
        let ask = on(CHAT, "demo", Stream::No).field("x-smg-routing-key", key).field("x-smg-debug", "1");
        let answer = self.ask(&ask).await;
        assert_eq!(answer.status, 200, "{}: {}", self.name, answer.text());
        answer.field("x-smg-worker").unwrap().to_owned()
    }

    /// Whether it says that it is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        self.ask(&Ask::get("/readyz")).await.status == 200
    }

    /// Bytes of memory its process holds.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}, what its earlier processes wrote ---\n{}--- end ---", self.name, self.past);
        }
    }
}

impl Deref for Node {
    type Target = Gateway;

    fn deref(&self) -> &Gateway {
        self.gateway.as_ref().unwrap_or_else(|| panic!("{} does not run", self.name))
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Gateway {
        self.gateway.as_mut().unwrap_or_else(|| panic!("{} does not run", self.name))
    }
}

/// Launches `nodes`, and waits until they are one mesh.
pub(crate) async fn launched(nodes: &mut [Node]) {
    for node in &mut *nodes {
        node.launch();
    }
    for node in &mut *nodes {
        node.answers().await;
    }
    formed(&nodes.iter().collect::<Vec<_>>()).await;
}

/// Waits until each of `nodes` takes exactly `nodes` for living; how long that took.
pub(crate) async fn formed(nodes: &[&Node]) -> Duration {
    let names: BTreeSet<String> = nodes.iter().map(|node| node.name.clone()).collect();
    let started = Instant::now();
    for node in nodes {
        took(&format!("{} to see exactly {names:?}", node.name), async || node.sees().await == names).await;
    }
    started.elapsed()
}

/// Waits until none of `nodes` takes `name` for living; how long that took, by the last of them.
pub(crate) async fn lost(nodes: &[&Node], name: &str) -> Duration {
    let started = Instant::now();
    for node in nodes {
        took(&format!("{} to give up {name}", node.name), async || !node.sees().await.contains(name)).await;
    }
    started.elapsed()
}

/// Waits until all of `nodes` have one digest; how long that took.
pub(crate) async fn agreed(nodes: &[&Node]) -> Duration {
    took("all digests to be equal", async || {
        let mut digests = BTreeSet::new();
        for node in nodes {
            digests.insert(node.digest().await);
        }
        digests.len() == 1
    })
    .await
}

/// Waits until each of `nodes` is ready and uses all of `urls`; then each answers.
pub(crate) async fn serving_all(nodes: &[&Node], urls: &[&str]) {
    for node in nodes {
        for url in urls {
            node.worker_is(url, "ready").await;
        }
        wait_for(&format!("{} to be ready", node.name), async || node.is_ready().await.then_some(())).await;
        let answer = node.chat().await;
        assert_eq!(answer.status, 200, "{}: {}", node.name, answer.text());
    }
}
