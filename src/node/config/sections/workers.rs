//! Settings of the side that workers see.

use std::{
    num::{NonZeroU16, NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use smg_base::{ByteSize, Secret};
use smg_fleet::{Engine, WorkerUrl};

use super::super::value::{Alias, WorkerEvents, seconds, some_seconds, url_path};

/// Which workers and models there are. Workers with settings of their own are `[[workers]]` tables of the file,
/// models with settings of their own `[[models]]` tables.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Fleet")]
pub struct Fleet {
    /// Workers to start with; more can be added through the admin API.
    #[arg(long)]
    pub worker_urls: Vec<WorkerUrl>,
    /// The key for the workers of `--worker-urls`.
    #[arg(long)]
    pub worker_api_key: Option<Secret>,
    /// The engine behind the workers of `--worker-urls`. By default it is detected.
    #[arg(long, alias = "runtime")]
    pub backend: Option<Engine>,
    /// Where engines tell what their KV caches hold, as worker=endpoint, such as
    /// `http://gpu-1:8000=tcp://gpu-1:5557`. An endpoint is `tcp://host:port` (vLLM, SGLang), `grpc://host:port`, or a URL below
    /// the worker's own (TensorRT-LLM). In a file, `kv_events` of a `[[workers]]` table says more.
    #[arg(long, value_name = "WORKER=ENDPOINT")]
    pub worker_kv_events: Vec<WorkerEvents>,
    /// The port at which the engines of all workers of `--worker-urls` publish what their KV caches hold, on the worker's own host.
    #[arg(long)]
    pub kv_events_port: Option<NonZeroU16>,
    /// The port at which they repeat what was missed. Without it, what is missed is lost.
    #[arg(long)]
    pub kv_events_replay_port: Option<NonZeroU16>,
    /// A folder with `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, or the first of these: prompts are then
    /// compared by their tokens, as engines do. It is used for every model.
    #[arg(long)]
    pub tokenizer_path: Option<PathBuf>,
    /// The model's folder, where its tokenizer is looked for unless `--tokenizer-path` names another.
    #[arg(long, alias = "model")]
    pub model_path: Option<PathBuf>,
    /// A chat template to use instead of the tokenizer's own, Jinja.
    #[arg(long)]
    pub chat_template: Option<PathBuf>,
    /// Further client-facing names of models, as alias=model.
    #[arg(long)]
    pub model_alias: Vec<Alias>,
    /// Most workers that may be registered.
    #[arg(long, default_value = "4096")]
    pub workers_max: NonZeroUsize,
    /// How often workers that have not answered yet are probed.
    #[arg(long, default_value = "1s", value_parser = some_seconds)]
    pub worker_startup_check_interval: Duration,
    /// How often engines are asked for their load; 0 never asks.
    #[arg(long, default_value = "10", value_parser = seconds)]
    pub load_monitor_interval: Duration,
    /// Whether engines' load is re-exported as `smg_engine_*` metrics.
    #[arg(long)]
    pub engine_metrics: bool,
}

/// How workers are probed.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Health")]
pub struct Health {
    /// Failed probes in a row after which a worker gets no more requests.
    #[arg(long, default_value = "3")]
    pub health_failure_threshold: NonZeroU32,
    /// Successful probes in a row after which a failed worker gets requests again. A new worker needs one.
    #[arg(long, default_value = "2")]
    pub health_success_threshold: NonZeroU32,
    /// Longest time for the answer to a probe.
    #[arg(long, default_value = "5", value_parser = some_seconds)]
    pub health_check_timeout_secs: Duration,
    /// Time between probes of one worker.
    #[arg(long, default_value = "60", value_parser = some_seconds)]
    pub health_check_interval_secs: Duration,
    /// Path that is probed.
    #[arg(long, default_value = "/health", value_parser = url_path)]
    pub health_check_endpoint: String,
    /// Take every worker for healthy and probe none.
    #[arg(long)]
    pub disable_health_check: bool,
    /// Remove workers that fail their probes. By default they stay registered and come back by themselves.
    #[arg(long)]
    pub remove_unhealthy_workers: bool,
    /// Longest time a removed worker stays listed to finish its requests; what is left then goes on unlisted.
    #[arg(long, default_value = "5m", value_parser = seconds)]
    pub worker_drain_timeout: Duration,
    /// Least time between the start of a worker's drain and its removal, in which other nodes can learn of it.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub drain_settle_secs: Duration,
}

/// How workers are spoken to.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Upstream")]
pub struct Upstream {
    /// Longest time to connect to a worker, name lookup and TLS included.
    #[arg(long, default_value = "5s", value_parser = some_seconds)]
    pub connect_timeout: Duration,
    /// How long an idle connection to a worker is kept. Keep it below the engine's own limit: uvicorn's is 5 s.
    #[arg(long, default_value = "4s", value_parser = some_seconds)]
    pub pool_idle_timeout: Duration,
    /// Most idle connections kept per worker.
    #[arg(long, default_value_t = 256)]
    pub pool_idle_per_worker_max: usize,
    /// Largest head of a worker's answer.
    #[arg(long, default_value = "64KiB")]
    pub response_head_bytes_max: ByteSize,
    /// Certificates of authorities that sign workers' certificates, PEM; trusted beside the public ones.
    #[arg(long)]
    pub ca_cert_paths: Vec<PathBuf>,
    /// Certificate chain by which workers recognise this gateway, PEM.
    #[arg(long)]
    pub client_cert_path: Option<PathBuf>,
    /// Private key of that certificate, PEM.
    #[arg(long)]
    pub client_key_path: Option<PathBuf>,
    /// The name to expect in workers' certificates instead of the host in their URL.
    #[arg(long)]
    pub worker_server_name: Option<String>,
    /// Whether HTTP/2 is offered to workers reached over TLS.
    #[arg(long, default_value = "true")]
    pub worker_http2: bool,
    /// Ask for token usage in streams whose callers did not, so that tokens are counted; the extra chunk is taken
    /// out again. Off by default, because it changes the bytes that workers receive.
    #[arg(long)]
    pub count_stream_usage: bool,
}
