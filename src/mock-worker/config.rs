//! What a fake engine is: its dialect, its speed, its cache, its limits.

use std::{net::IpAddr, time::Duration};

use serde::Serialize;
use smg_base::Secret;

use crate::faults::Rule;

/// Everything a [`MockWorker`](crate::MockWorker) is told at the start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Shown in the header `x-mock-worker`, in `system_fingerprint` and in the ledger.
    pub name: String,
    /// Whose endpoints, headers and error shapes it has.
    pub dialect: Dialect,
    /// The address to listen on.
    pub host: IpAddr,
    /// The port to listen on; zero lets the system choose.
    pub port: u16,
    /// The models it lists, the first of which is the base model; at least one.
    pub models: Vec<String>,
    /// The key it asks for, if any: as a bearer token, or as `x-api-key` in the Anthropic dialect.
    pub api_key: Option<Secret>,
    /// What `/version` and the like say; `None` for a plausible release of the engine.
    pub version: Option<String>,
    /// The longest prompt plus output, in tokens.
    pub context_length: u32,
    /// Tokens of an answer that nothing else bounds.
    pub output_tokens: u32,
    /// Mixed into the hash of the prompt that decides the text. Workers with one seed answer alike.
    pub seed: u64,
    /// The prefix cache.
    pub cache: CacheConfig,
    /// Where it tells what the prefix cache holds, if it does.
    pub kv_events: Option<KvEvents>,
    /// The queue model.
    pub speed: Speed,
    /// How events of a stream leave.
    pub framing: EventFraming,
    /// Canned answers instead of the model of an engine.
    pub bench: Option<Bench>,
    /// Bounds on what it accepts and keeps.
    pub limits: Limits,
    /// Rules that are in force from the start.
    pub faults: Vec<Rule>,
    /// Answers that go before the dialect's own, by method and path.
    pub canned: Vec<Canned>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "mock".to_owned(),
            dialect: Dialect::Vllm,
            host: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            models: vec!["demo".to_owned()],
            api_key: None,
            version: None,
            context_length: 32_768,
            output_tokens: 16,
            seed: 0,
            cache: CacheConfig::default(),
            kv_events: None,
            speed: Speed::default(),
            framing: EventFraming::Chunk,
            bench: None,
            limits: Limits::default(),
            faults: Vec::new(),
            canned: Vec::new(),
        }
    }
}

impl Config {
    /// The base model.
    pub(crate) fn model(&self) -> &str {
        self.models.first().map_or("demo", String::as_str)
    }
}

/// Whose API the worker speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// vLLM's OpenAI-compatible server.
    Vllm,
    /// SGLang's server.
    Sglang,
    /// TensorRT-LLM's server, whose events of the prefix cache are fetched.
    Trtllm,
    /// A cloud-like API with OpenAI's endpoints and nothing else.
    Openai,
    /// A cloud-like API with Anthropic's endpoints and nothing else.
    Anthropic,
}

/// The prefix cache: blocks of tokens, least recently used out first.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Tokens per block. Only whole blocks are shared.
    pub block_tokens: u32,
    /// Blocks in all; zero turns the cache off (running requests then take no blocks).
    pub blocks: u32,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { block_tokens: 16, blocks: 16_384 }
    }
}

/// The publisher of what happens to the prefix cache.
#[derive(Clone, Debug)]
pub struct KvEvents {
    /// Where it publishes, such as `tcp://127.0.0.1:5557`; port 0 lets the system choose.
    pub endpoint: String,
    /// Where it repeats what was missed, if anywhere.
    pub replay: Option<String>,
    /// What its messages begin with.
    pub topic: String,
    /// How it writes.
    pub format: KvEventFormat,
    /// How many batches can be repeated, the latest ones.
    pub buffer_steps: usize,
}

impl KvEvents {
    /// A publisher on free ports of `host`, which also repeats.
    pub fn on(host: IpAddr) -> Self {
        let endpoint = match host {
            IpAddr::V4(host) => format!("tcp://{host}:0"),
            IpAddr::V6(host) => format!("tcp://[{host}]:0"),
        };
        Self { replay: Some(endpoint.clone()), endpoint, ..Self::default() }
    }
}

impl Default for KvEvents {
    fn default() -> Self {
        Self {
            endpoint: "tcp://*:5557".to_owned(),
            replay: None,
            topic: String::new(),
            format: KvEventFormat::VllmArray,
            buffer_steps: 10_000,
        }
    }
}

/// Whose way of writing events of the prefix cache it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KvEventFormat {
    /// vLLM's until June 2026: lists, with names that are numbers.
    VllmArray,
    /// vLLM's since: maps; and what is repeated has the topic too.
    VllmMap,
    /// The same with names that are bytes.
    VllmMapBytes,
    /// SGLang's: lists, one for each page.
    Sglang,
}

/// The queue model. A rate of zero means infinitely fast.
#[derive(Clone, Debug)]
pub struct Speed {
    /// Requests that may run at once; more wait in order of arrival.
    pub running_max: u32,
    /// Requests that may wait; one more is refused with 503.
    pub waiting_max: u32,
    /// Prompt tokens computed per second, by one prefill at a time.
    pub prefill_tokens_per_second: f64,
    /// Tokens per second of one stream when it decodes alone.
    pub decode_tokens_per_second: f64,
    /// Tokens per second of all streams together, a ceiling.
    pub decode_tokens_per_second_total: f64,
    /// Multiplies every duration the model computes; zero skips all waiting.
    pub time_scale: f64,
}

impl Default for Speed {
    fn default() -> Self {
        Self {
            running_max: 256,
            waiting_max: 16_384,
            prefill_tokens_per_second: 0.0,
            decode_tokens_per_second: 0.0,
            decode_tokens_per_second_total: 0.0,
            time_scale: 1.0,
        }
    }
}

/// How the events of a stream leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum EventFraming {
    /// Each event is an HTTP chunk in a write of its own.
    Write,
    /// Each event is an HTTP chunk of its own; chunks that are due together share a write.
    Chunk,
    /// Events that are due together share an HTTP chunk.
    Coalesce,
}

/// Canned answers by size, for measuring what is in front of the worker: nothing is parsed beyond the head and the
/// `stream` field, nothing is tokenised, and the ledger keeps neither headers nor bodies. Only POST requests are answered so, and
/// faults other than at `accept` and `request` do not befall them.
#[derive(Clone, Debug)]
pub struct Bench {
    /// Bytes of a plain answer's body.
    pub body_bytes: usize,
    /// Events of a stream, the terminal one not counted.
    pub events: usize,
    /// Bytes of an event, its empty line included; the least that holds valid JSON is 16.
    pub event_bytes: usize,
    /// Time between two events; zero writes a stream at once.
    pub event_interval: Duration,
}

impl Default for Bench {
    fn default() -> Self {
        Self { body_bytes: 1024, events: 128, event_bytes: 256, event_interval: Duration::ZERO }
    }
}

/// Bounds on what a worker accepts and keeps.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections; one more is closed at once.
    pub connections_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// How long an idle connection stays open.
    pub keep_alive: Duration,
    /// How long a body may pause.
    pub body_pause: Duration,
    /// Entries of the ledger; the oldest give way.
    pub ledger_entries_max: usize,
    /// Bytes of each request's body that the ledger keeps.
    pub ledger_body_bytes_max: usize,
    /// Stored responses; the oldest give way.
    pub stored_responses_max: usize,
    /// Fault rules in force.
    pub rules_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            head_bytes_max: 64 * 1024,
            body_bytes_max: 256 * 1024 * 1024,
            keep_alive: Duration::from_secs(5),
            body_pause: Duration::from_secs(60),
            ledger_entries_max: 16_384,
            ledger_body_bytes_max: 4096,
            stored_responses_max: 4096,
            rules_max: 1024,
        }
    }
}

/// An answer that goes before the dialect's own, to pass for another engine.
#[derive(Clone, Debug)]
pub struct Canned {
    /// The request's method.
    pub method: String,
    /// The request's path, without the query.
    pub path: String,
    /// The answer's status.
    pub status: u16,
    /// The answer's content type.
    pub content_type: String,
    /// The answer's body.
    pub body: String,
}
