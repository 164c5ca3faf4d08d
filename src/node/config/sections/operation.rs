//! Settings of the process and of what it tells about itself.

use std::{net::IpAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::super::value::{LogFilter, node_name, otlp_endpoint, positive, seconds, some_seconds};

/// What is logged.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logging")]
pub struct Logging {
    /// What is logged: off, error, warn, info, debug or trace, or directives such as info,smg_gateway=debug.
    /// `RUST_LOG` and `SMG_LOG` override it.
    #[arg(long, default_value = "info")]
    pub log_level: LogFilter,
    /// How log lines look.
    #[arg(long, value_enum, default_value = "auto")]
    pub log_format: LogFormat,
    /// Log JSON; the same as `--log-format json`.
    #[arg(long)]
    pub log_json: bool,
    /// Also write the log to daily files named `smg.<date>` in this folder.
    #[arg(long)]
    pub log_dir: Option<PathBuf>,
    /// Which requests get a line in the log.
    #[arg(long, value_enum, default_value = "all")]
    pub access_log: AccessLog,
    /// Time after which a request counts as slow and is logged also by `--access-log errors`.
    #[arg(long, default_value = "10m", value_parser = some_seconds)]
    pub slow_request: Duration,
}

/// How log lines look.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Human on a terminal, JSON elsewhere.
    Auto,
    /// For reading.
    Human,
    /// One object a line.
    Json,
}

/// Which requests get a line in the log.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// All of them.
    All,
    /// Those answered with 400 and above, and those that broke off.
    Errors,
    /// None.
    Off,
}

/// What is measured.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Metrics")]
pub struct Metrics {
    /// Address that serves `GET /metrics`.
    #[arg(long, default_value = "0.0.0.0")]
    pub prometheus_host: IpAddr,
    /// Port that serves `GET /metrics`; 0 lets the system choose.
    #[arg(long, default_value_t = 29_000)]
    pub prometheus_port: u16,
    /// Upper bounds of the duration histograms' buckets, in seconds, ascending. By default 28 from 1 ms to 2 h.
    #[arg(long, value_parser = positive)]
    pub prometheus_duration_buckets: Vec<f64>,
}

/// What is traced.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Tracing")]
pub struct Tracing {
    /// Export spans to an OTLP collector over gRPC. The `OTEL_*` variables are honoured.
    #[arg(long)]
    pub enable_trace: bool,
    /// The collector, as host:port or URL.
    #[arg(long, default_value = "localhost:4317", value_parser = otlp_endpoint)]
    pub otlp_traces_endpoint: String,
}

/// The process itself.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Node")]
pub struct Node {
    /// The file to read settings from. By default `smg.toml` in the working folder, if there is one; an empty
    /// value reads none.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How often the file, the certificate and its key are looked at for changes; 0 only reloads on SIGHUP.
    #[arg(long, default_value = "2s", value_parser = seconds)]
    pub config_watch_interval: Duration,
    /// The name of this node in logs and traces. By default the host's name.
    #[arg(long, value_parser = node_name)]
    pub node_name: Option<String>,
    /// Threads that serve requests. By default one per core.
    #[arg(long)]
    pub runtime_worker_threads: Option<NonZeroUsize>,
    /// Longest time for requests to finish after SIGTERM or SIGINT; what is left is then cut off.
    #[arg(long, default_value = "180", value_parser = seconds)]
    pub shutdown_grace_period_secs: Duration,
    /// How long new connections are still accepted after readiness says no, so that load balancers can notice. Part
    /// of the grace period.
    #[arg(long, default_value = "5s", value_parser = seconds)]
    pub drain_delay: Duration,
    /// How many requests `smg explain` remembers.
    #[arg(long, default_value_t = 1_024)]
    pub explanations_max: usize,
}

/// Flags of the reference gateway that are accepted and have no effect.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Compatibility")]
pub struct Compatibility {
    /// No effect: cache_aware weighs caches against queues in seconds and has no thresholds.
    #[arg(long, hide = true)]
    pub cache_threshold: Option<f64>,
    /// No effect: the fill of KV caches is part of the cost that cache_aware and least_load compare.
    #[arg(long, hide = true)]
    pub balance_token_usage_threshold: Option<f64>,
    /// No effect: the fill of KV caches is part of the cost that cache_aware and least_load compare.
    #[arg(long, hide = true)]
    pub overload_token_usage_threshold: Option<f64>,
    /// No effect: the size of an engine's blocks is detected.
    #[arg(long, hide = true)]
    pub block_size: Option<u64>,
    /// No effect: several models are always served, each by the workers that have it.
    #[arg(long, hide = true)]
    pub enable_igw: bool,
    /// No effect: only the files that --tokenizer-path or --model-path name are loaded.
    #[arg(long, hide = true)]
    pub disable_tokenizer_autoload: bool,
    /// No effect: a worker that does not answer yet is probed for as long as it is registered.
    #[arg(long, value_parser = seconds, hide = true)]
    pub worker_startup_timeout_secs: Option<Duration>,
    /// No effect: a worker gets requests once it answers its first probe.
    #[arg(long, value_parser = seconds, hide = true)]
    pub worker_startup_delay: Option<Duration>,
}
