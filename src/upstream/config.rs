//! What the operator can say about the way to workers.

use std::{path::PathBuf, time::Duration};

use crate::rules::UrlRules;

/// Settings of the client that carries traffic, probes, detection and admin calls alike.
#[derive(Clone, Debug)]
pub struct Config {
    /// How long a name may take to resolve, a connection to open and its TLS handshake to finish, all together.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. Below the five seconds after which uvicorn, the server in front of
    /// most engines, closes one: a request written into a connection that is being closed is lost, and nobody can
    /// tell whether it ran.
    pub pool_idle_timeout: Duration,
    /// How many unused connections are kept for each worker.
    pub pool_idle_per_worker: usize,
    /// The largest head of a response, status line and headers together; it has at most a hundred headers.
    pub response_head_bytes_max: usize,
    /// Whether HTTP/2 is offered to workers reached over TLS.
    pub http2: bool,
    /// Identity, and whom to trust.
    pub tls: TlsConfig,
    /// Addresses that workers from flags and files may have.
    pub operator_rules: UrlRules,
    /// Addresses that workers registered through the admin API may have.
    pub api_rules: UrlRules,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            pool_idle_timeout: Duration::from_secs(4),
            pool_idle_per_worker: 256,
            response_head_bytes_max: 64 << 10,
            http2: true,
            tls: TlsConfig::default(),
            operator_rules: UrlRules::default(),
            api_rules: UrlRules::default(),
        }
    }
}

/// How workers prove who they are, and how the gateway does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM files with certificate authorities that are trusted beside the public ones.
    pub ca_files: Vec<PathBuf>,
    /// PEM file with the gateway's own certificate and its chain, shown to workers that ask.
    pub client_cert: Option<PathBuf>,
    /// PEM file with the key of `client_cert`.
    pub client_key: Option<PathBuf>,
    /// The name to expect in workers' certificates instead of the host in their URL.
    pub server_name: Option<String>,
}
