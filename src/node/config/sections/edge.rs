//! Settings of the side that clients see.

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use http::HeaderName;
use smg_base::{ByteSize, Secret};
use smg_upstream::rules::{Network, Unlisted};

use super::super::value::{Limit, Timeout, WebOrigin, not_negative, one_of, seconds, some_seconds};

/// Where clients connect.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Listener")]
pub struct Listener {
    /// Address to listen on.
    #[arg(long, default_value = "0.0.0.0")]
    pub host: IpAddr,
    /// Port to listen on; 0 lets the system choose.
    #[arg(long, default_value_t = 30_000)]
    pub port: u16,
    /// Port for health and readiness probes alone, in plain HTTP, served by a thread of its own that load cannot
    /// starve. By default they are answered on the traffic port only.
    #[arg(long)]
    pub health_check_port: Option<u16>,
    /// Longest time for a client to send the head of a request.
    #[arg(long, default_value = "10s", value_parser = some_seconds)]
    pub header_timeout: Duration,
    /// Longest pause while a client sends a request's body.
    #[arg(long, default_value = "30s", value_parser = some_seconds)]
    pub body_timeout: Duration,
    /// How long a connection may wait for its next request.
    #[arg(long, default_value = "75s", value_parser = some_seconds)]
    pub idle_timeout: Duration,
    /// Longest time for a client to take any part of an answer that is ready; after it the connection is closed and
    /// the worker's request cancelled. `off` waits for ever.
    #[arg(long, default_value = "5m")]
    pub write_timeout: Timeout,
    /// Most client connections at once; further ones are closed. -1 for no limit.
    #[arg(long, default_value = "16384", allow_negative_numbers = true)]
    pub connections_max: Limit,
    /// Most connections at once from one address. -1 for no limit.
    #[arg(long, default_value = "-1", allow_negative_numbers = true)]
    pub connections_per_address_max: Limit,
    /// Largest head of a request.
    #[arg(long, default_value = "64KiB")]
    pub head_bytes_max: ByteSize,
    /// Most requests at once on one HTTP/2 connection.
    #[arg(long, default_value = "256")]
    pub http2_streams_max: NonZeroU32,
    /// Headers in which callers may send a request id, the most preferred first; these replace the built-in ones.
    #[arg(long, default_values = ["x-request-id", "x-correlation-id", "x-trace-id", "request-id"])]
    pub request_id_headers: Vec<HeaderName>,
    /// Whether answers tell worker, route and attempts in `x-smg-*` headers to callers who ask with `x-smg-debug`.
    #[arg(long, default_value = "true")]
    pub debug_headers: bool,
}

/// How much is taken on.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Limits")]
pub struct Limits {
    /// Largest request body; a larger one is answered with 413.
    #[arg(long, default_value = "512MiB")]
    pub max_payload_size: ByteSize,
    /// Memory for all request bodies that are being read or kept for a retry. A request that finds no room is
    /// answered with 503 and `Retry-After`.
    #[arg(long, default_value = "2GiB")]
    pub body_memory_max: ByteSize,
    /// Requests in progress at once; more wait in a queue. -1 for no limit.
    #[arg(long, default_value = "-1", allow_negative_numbers = true)]
    pub max_concurrent_requests: Limit,
    /// Requests that may wait for their turn; a further one is answered with 429.
    #[arg(long, default_value_t = 100)]
    pub queue_size: usize,
    /// Longest wait for a turn; after it the answer is 503 with `Retry-After`.
    #[arg(long, default_value = "60", value_parser = some_seconds)]
    pub queue_timeout_secs: Duration,
    /// Requests admitted per second, with bursts up to one second's worth. By default the rate is not limited, only
    /// the number in progress.
    #[arg(long, value_parser = not_negative)]
    pub rate_limit_tokens_per_second: Option<f64>,
    /// File with what tenants, keys and models may use, and what tokens cost, in TOML; read again when it changes. All nodes
    /// of a mesh should have the same.
    #[arg(long, value_name = "FILE")]
    pub limits_file: Option<PathBuf>,
    /// Output tokens that a request is charged until its end is known, if it does not say how many it wants at most.
    #[arg(long, default_value_t = 1_024)]
    pub output_tokens_reserved: u64,
    /// Largest answer that is held back until it is whole, so that one that breaks becomes a clean error.
    #[arg(long, default_value = "1MiB")]
    pub buffered_answer_max: ByteSize,
    /// How many response ids are remembered together with the worker that can continue them.
    #[arg(long, default_value = "100000")]
    pub affinity_entries_max: NonZeroUsize,
    /// How long an unused response id is remembered.
    #[arg(long, default_value = "4h", value_parser = seconds)]
    pub affinity_idle: Duration,
}

/// Who may do what.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Security")]
pub struct Security {
    /// The key that callers must present, as `Authorization: Bearer` or `x-api-key`. Without it everybody may call.
    #[arg(long)]
    pub api_key: Option<Secret>,
    /// The key for the admin API. By default it is the callers' key.
    #[arg(long)]
    pub admin_api_key: Option<Secret>,
    /// Who may use the admin API while no key is set.
    #[arg(long, value_enum, default_value = "loopback")]
    pub admin_access: AdminAccess,
    /// Origins whose web pages may call; `*` allows every page. By default no page may.
    #[arg(long)]
    pub cors_allowed_origins: Vec<WebOrigin>,
    /// Networks in which workers added through the admin API may be, whatever else is refused; such as 10.0.0.0/8.
    /// Link-local, metadata and multicast addresses are refused unless they are listed here.
    #[arg(long)]
    pub worker_url_allow: Vec<Network>,
    /// Networks in which workers added through the admin API may not be.
    #[arg(long)]
    pub worker_url_deny: Vec<Network>,
    /// What holds for workers added through the admin API whose address is on neither list: any may be used, only
    /// public ones, or nothing.
    #[arg(long, default_value = "any", value_parser = one_of(UNLISTED, unlisted))]
    pub worker_url_unlisted: Unlisted,
}

const UNLISTED: [Unlisted; 3] = [Unlisted::Any, Unlisted::Public, Unlisted::Nothing];

fn unlisted(unlisted: Unlisted) -> &'static str {
    match unlisted {
        Unlisted::Any => "any",
        Unlisted::Public => "public",
        Unlisted::Nothing => "nothing",
    }
}

/// Who may use the admin API while no key is set.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAccess {
    /// Callers on this machine only.
    Loopback,
    /// Anyone who reaches the port.
    Anyone,
}

/// Encryption towards clients.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "TLS")]
pub struct Tls {
    /// Certificate chain of this server, PEM. With it the traffic port speaks TLS only.
    #[arg(long)]
    pub tls_cert_path: Option<PathBuf>,
    /// Private key of this server, PEM.
    #[arg(long)]
    pub tls_key_path: Option<PathBuf>,
}
