//! Nodes and uneven engines with small caches, as the scenarios begin with them.

use std::{collections::BTreeMap, time::Duration};

use smg_mock_worker::{CacheConfig, Config, KvEventFormat, Limits, Speed};

use super::{
    agents::{Doors, Form, Keys, Play, Script, Turn},
    figures::{BLOCK_TOKENS, Figures},
};
use crate::harness::{Engine, Lab, Node, formed, launched, serving, serving_all, took};

/// How large a scenario is.
#[derive(Clone, Debug)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    pub(crate) engines: usize,
    /// Tokens per second at which every other engine computes prompts; the rest are twice as fast.
    pub(crate) slow_rate: f64,
    /// What all caches together have room for, as a share of the working set.
    pub(crate) room: f64,
    pub(crate) script: Script,
}

/// Nodes and engines that run.
pub(crate) struct Setting {
    // Processes end before the network that they are on.
    pub(crate) nodes: Vec<Node>,
    pub(crate) engines: Vec<Engine>,
    rates: Vec<f64>,
    pub(crate) doors: Doors,
    pub(crate) lab: Lab,
}

/// Whether nodes know of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mesh {
    Joined,
    Apart,
}

/// Whether engines tell of their caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tells {
    Yes,
    No,
}

impl Size {
    /// What every run of the tests does, or with `SMG_CACHES=full` what the targets speak of. A third of the conversations
    /// is under way at a time: there is room for what they need.
    pub(crate) fn chosen() -> Self {
        let script = Script {
            conversations: 20,
            turns: 4,
            systems: 10,
            system_tokens: 640,
            turn_tokens: 500,
            spread: Duration::from_secs(6),
            pause: Duration::from_millis(300),
            form: Form::Tokens,
            keys: Keys::Missing,
            seed: 7,
        };
        // Slow enough for what a cache saves to weigh more than what engines may differ by, and with time to spare: moving a
        // conversation away from a long queue would be right.
        let slow_rate = 2_000.0;
        if is_full() {
            let (spread, pause) = (Duration::from_secs(60), Duration::from_secs(3));
            let script = Script { conversations: 320, turns: 8, systems: 20, spread, pause, ..script };
            return Self { nodes: 8, engines: 32, slow_rate, room: 0.6, script };
        }
        // Few conversations do not level out: each engine has room for one more than its share.
        Self { nodes: 3, engines: 8, slow_rate, room: 1.5, script }
    }

    /// The same with fewer conversations, for scenarios about something else than load.
    pub(crate) fn light() -> Self {
        let mut size = Self::chosen();
        if !is_full() {
            size.script.conversations = 12;
            size.script.spread = Duration::from_secs(3);
        }
        size
    }

    fn rate(&self, engine: usize) -> f64 {
        if engine.is_multiple_of(2) { self.slow_rate } else { 2.0 * self.slow_rate }
    }
}

/// Whether the targets' sizes are asked for.
pub(crate) fn is_full() -> bool {
    std::env::var("SMG_CACHES").is_ok_and(|text| text == "full")
}

impl Setting {
    /// Starts nodes that choose by `policy`, and engines; none where there can be no network. Returns when all nodes use all engines.
    pub(crate) async fn start(seed: u64, size: &Size, mesh: Mesh, tells: Tells, policy: &str) -> Option<Self> {
        let lab = Lab::open(seed)?;
        let rates: Vec<f64> = (0..size.engines).map(|number| size.rate(number)).collect();
        let engines: Vec<Engine> = (0..size.engines).map(|number| engine(&lab, number, size, tells)).collect();
        let mut nodes = lab.nodes(size.nodes);
        for node in &mut nodes {
            // No engine fails here, so probes may be as patient as they are by default.
            node.flags.clear();
            node.tell(&["--policy", policy, "--load-monitor-interval", "1", "--drain-delay", "500ms"]);
            if mesh == Mesh::Apart {
                node.seeds.clear();
            }
        }
        match mesh {
            Mesh::Joined => launched(&mut nodes).await,
            Mesh::Apart => {
                for node in &mut nodes {
                    node.start().await;
                }
            }
        }
        let doors = Doors::new(nodes.iter().map(|node| node.address()));
        let setting = Self { nodes, engines, rates, doors, lab };
        let told: &[Node] = if mesh == Mesh::Joined { &setting.nodes[..1] } else { &setting.nodes };
        for node in told {
            for engine in &setting.engines {
                node.add_spec(&engine.spec()).await;
            }
        }
        serving_all(&setting.all(), &setting.urls()).await;
        if tells == Tells::Yes {
            let heard = async || setting.engines.iter().all(|engine| streams(engine).open > 0);
            took("every engine to be listened to", heard).await;
        }
        setting.forget();
        Some(setting)
    }

    pub(crate) fn all(&self) -> Vec<&Node> {
        self.nodes.iter().collect()
    }

    pub(crate) fn urls(&self) -> Vec<&str> {
        self.engines.iter().map(|engine| engine.url.as_str()).collect()
    }

    /// Forgets what engines were asked so far.
    pub(crate) fn forget(&self) {
        self.engines.iter().for_each(|engine| engine.ledger.clear());
    }

    /// Requests that engines have got.
    pub(crate) fn requests(&self) -> usize {
        self.engines.iter().map(|engine| engine.ledger.count(serving)).sum()
    }

    /// Plays `script` to its end.
    pub(crate) async fn play(&self, script: &Script) -> Figures {
        let turns = Play::start(script, &self.doors).finish().await;
        self.figures(&turns)
    }

    pub(crate) fn figures(&self, turns: &[Turn]) -> Figures {
        Figures::of(turns, &self.engines, &self.rates)
    }

    /// Stops the node of this number as an operator does, who first takes it out of the balancer, and starts it again.
    pub(crate) async fn restart(&mut self, number: usize) {
        self.doors.close(number);
        self.nodes[number].stop().await;
        self.nodes[number].start().await;
        let node = &self.nodes[number];
        took("the node to be ready again", async || node.is_ready().await).await;
        formed(&self.all()).await;
        self.doors.open(number);
    }
}

fn engine(lab: &Lab, number: usize, size: &Size, tells: Tells) -> Engine {
    let room = size.script.working_set_tokens() as f64 * size.room;
    let blocks = room as u64 / size.engines as u64 / u64::from(BLOCK_TOKENS);
    let config = Config {
        cache: CacheConfig { block_tokens: BLOCK_TOKENS, blocks: u32::try_from(blocks).unwrap() },
        speed: Speed {
            prefill_tokens_per_second: size.rate(number),
            decode_tokens_per_second: 200.0,
            ..Speed::default()
        },
        limits: Limits {
            ledger_entries_max: 1 << 20,
            ledger_body_bytes_max: 0,
            keep_alive: Duration::from_secs(300),
            ..Limits::default()
        },
        ..Config::default()
    };
    let name = format!("e{number}");
    match tells {
        Tells::Yes => {
            let formats = [KvEventFormat::VllmMap, KvEventFormat::VllmArray, KvEventFormat::VllmMapBytes];
            lab.telling_engine(&name, config, formats[number % formats.len()])
        }
        Tells::No => lab.engine_of(&name, config),
    }
}

/// Who listens to an engine's events.
pub(crate) fn streams(engine: &Engine) -> smg_mock_worker::EventStreams {
    engine.kv_events.as_ref().map(|events| events.streams()).unwrap_or_default()
}

/// What a node says of the caches it knows: digest and number of chunks, by worker, model and space.
async fn known(node: &Node) -> BTreeMap<String, (String, u64)> {
    let page = node.page("prefixes").await;
    let mut known = BTreeMap::new();
    for row in page["prefixes"].as_array().unwrap_or_else(|| panic!("no prefixes: {page}")) {
        let name = format!("{} {} {}", row["worker"], row["model"], row["space"]);
        let chunks = row["chunks"].as_u64().unwrap();
        if chunks > 0 {
            known.insert(name, (row["digest"].to_string(), chunks));
        }
    }
    known
}

/// Chunks that a node knows engines to hold.
pub(crate) async fn chunks_known(node: &Node) -> u64 {
    known(node).await.values().map(|(_, chunks)| chunks).sum()
}

/// Waits until all of `nodes` have the same digest of every engine's cache; how long that took.
pub(crate) async fn agreed_on_caches(nodes: &[&Node]) -> Duration {
    took("all nodes to know the same of every cache", async || {
        let first = known(nodes[0]).await;
        for node in &nodes[1..] {
            if known(node).await != first {
                return false;
            }
        }
        !first.is_empty()
    })
    .await
}
