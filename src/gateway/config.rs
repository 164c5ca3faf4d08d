//! What the gateway can be told: [`Config`] once at start, [`Settings`] again at any time.

use std::{net::IpAddr, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName};
use smg_base::{Backoff, ByteSize, ModelId, Secret, map::StableMap};
use smg_limits::Rules;
use smg_routing::{PolicyConfig, PolicyKind};
use smg_upstream::rules::Network;

use crate::{prices::Prices, shared::SharedSettings};

/// What cannot change while the node runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Memory for request bodies that are being read or kept for a retry, over all requests.
    pub body_budget: ByteSize,
    /// How many requests `explain` remembers.
    pub explanations_max: usize,
    /// How many response ids are remembered with the worker that answered them.
    pub affinity_entries_max: usize,
    /// How long an unused response id is remembered.
    pub affinity_idle: Duration,
    /// Web origins whose pages may call; none means that browsers are told nothing, and so refuse.
    pub cors_origins: Vec<String>,
    /// How trace context crosses the gateway.
    pub trace: TraceHooks,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            body_budget: ByteSize(2 << 30),
            explanations_max: 1_024,
            affinity_entries_max: 100_000,
            affinity_idle: Duration::from_secs(4 * 3_600),
            cors_origins: Vec::new(),
            trace: TraceHooks::default(),
        }
    }
}

/// How W3C trace context gets from a caller into a span, and from a span to a worker. Injected, so that the gateway
/// needs no tracing backend; by default the caller's headers pass on unchanged.
#[derive(Clone, Copy, Debug)]
pub struct TraceHooks {
    /// Whether anything listens. If not, no span is made.
    pub enabled: bool,
    /// Makes the caller's context the parent of the span.
    pub adopt: fn(&HeaderMap, &tracing::Span),
    /// Writes the span's context into the headers for a worker.
    pub inject: fn(&tracing::Span, &mut HeaderMap),
}

impl Default for TraceHooks {
    fn default() -> Self {
        Self { enabled: false, adopt: |_, _| {}, inject: |_, _| {} }
    }
}

/// What a reload may change. One immutable value per version; a request keeps the version it began with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The key callers must present; none means open.
    pub api_key: Option<Secret>,
    /// The key for the admin API; by default the callers' key.
    pub admin_key: Option<Secret>,
    /// Who may use the admin API while there is no key.
    pub admin_access: AdminAccess,
    /// Whether callers need a key even while there are none.
    pub require_key: bool,
    /// The header that names a request's tenant, if one is believed.
    pub tenant_header: Option<TenantHeader>,
    /// Whether the caches and stored objects of tenants are kept apart.
    pub isolation: Isolation,
    /// Largest request body.
    pub body_bytes_max: ByteSize,
    /// Longest pause, and longest time for the first 16 KiB, while a client sends its body.
    pub body_timeout: Duration,
    /// Largest answer that is held back until it is whole, so that a broken one becomes a clean error.
    pub buffered_answer_bytes_max: ByteSize,
    /// Headers in which callers may send a request id, most preferred first.
    pub request_id_headers: Vec<HeaderName>,
    /// Whether answers carry `x-smg-worker`, `x-smg-route`, `x-smg-attempts` for callers who ask with `x-smg-debug`.
    pub debug_headers: bool,
    /// Whether streams are asked for usage on the caller's behalf, so that tokens are counted. The extra chunk is
    /// taken out again.
    pub count_stream_usage: bool,
    /// What callers may use.
    pub rules: Arc<Rules>,
    /// What tokens of models cost.
    pub prices: Arc<Prices>,
    /// Output tokens that a request is charged beforehand which does not say how many it wants at most.
    pub output_tokens_reserved: u64,
    /// What holds for models without their own entry.
    pub defaults: ModelDefaults,
    /// Overrides by model.
    pub models: StableMap<ModelId, ModelSettings>,
    /// What all nodes of the cluster share; it comes before what is this node's own.
    pub shared: SharedSettings,
    /// Which requests are logged.
    pub access_log: AccessLog,
    /// Time after which a request is logged as slow, whatever `access_log` says, unless that is off.
    pub slow_request: Duration,
    /// Time between two sweeps of what policies and the memory of response ids have not used for too long.
    pub sweep_interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            api_key: None,
            admin_key: None,
            admin_access: AdminAccess::Loopback,
            require_key: false,
            tenant_header: None,
            isolation: Isolation::Auto,
            body_bytes_max: ByteSize(512 << 20),
            body_timeout: Duration::from_secs(30),
            buffered_answer_bytes_max: ByteSize(1 << 20),
            request_id_headers: ["x-request-id", "x-correlation-id", "x-trace-id", "request-id"]
                .map(HeaderName::from_static)
                .to_vec(),
            debug_headers: true,
            count_stream_usage: false,
            rules: Arc::default(),
            prices: Arc::default(),
            output_tokens_reserved: 1_024,
            defaults: ModelDefaults::default(),
            models: StableMap::default(),
            shared: SharedSettings::default(),
            access_log: AccessLog::All,
            slow_request: Duration::from_secs(600),
            sweep_interval: Duration::from_secs(120),
        }
    }
}

/// Which requests get a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Each one.
    All,
    /// Those that failed or were slow.
    Errors,
    /// None.
    Off,
}

/// Who may use the admin API while no key is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAccess {
    /// Callers on this machine only.
    Loopback,
    /// Anyone who reaches the port.
    Anyone,
}

/// A header that names the tenant of a request, and who is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TenantHeader {
    /// Its name.
    pub name: HeaderName,
    /// Networks of the proxies that set it.
    pub proxies: Vec<Network>,
}

impl TenantHeader {
    /// Whether what comes from `address` is believed.
    pub(crate) fn believes(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.proxies.iter().any(|network| network.contains(address))
    }
}

/// Whether the caches and stored objects of tenants are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// As soon as there can be more than one tenant.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Policy and resilience of models without their own entry.
#[derive(Clone, Debug, Default)]
pub struct ModelDefaults {
    /// The routing policy.
    pub policy: PolicySettings,
    /// Retries.
    pub retry: RetrySettings,
    /// Timeouts.
    pub timeouts: Timeouts,
}

/// A routing policy and its parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicySettings {
    /// Which policy.
    pub kind: PolicyKind,
    /// Its parameters.
    pub config: PolicyConfig,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self { kind: PolicyKind::CacheAware, config: PolicyConfig::default() }
    }
}

/// What one model does differently; what is absent follows the defaults.
#[derive(Clone, Debug, Default)]
pub struct ModelSettings {
    /// Policy and parameters.
    pub policy: Option<PolicySettings>,
    /// Retries.
    pub retry: Option<RetrySettings>,
    /// Timeouts.
    pub timeouts: Option<Timeouts>,
}

/// When and how often another worker is tried.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetrySettings {
    /// Attempts in all, the first included; at least one.
    pub attempts_max: u32,
    /// Wait before the second and later retries; the first goes to another worker at once.
    pub backoff: Backoff,
    /// Retries as a share of requests.
    pub budget_ratio: f64,
    /// Retries per second that are always allowed.
    pub budget_floor_per_second: f64,
    /// Whether a generation that may have been dispatched may be sent again.
    pub replays: Replays,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self {
            attempts_max: 5,
            backoff: Backoff::default(),
            budget_ratio: 0.2,
            budget_floor_per_second: 10.0,
            replays: Replays::OnRequest,
        }
    }
}

/// Who decides that a generation which may have run is sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replays {
    /// The caller, by `Idempotency-Key` or `X-SMG-Allow-Replay: true`.
    OnRequest,
    /// The operator: always.
    Always,
}

/// How long a worker may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The whole request, retries and streaming included.
    pub request: Duration,
    /// From dispatch to the first byte of the answer's body.
    pub first_byte: Option<Duration>,
    /// Between two pieces of an answer.
    pub stall: Option<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { request: Duration::from_secs(1_800), first_byte: None, stall: Some(Duration::from_secs(300)) }
    }
}
