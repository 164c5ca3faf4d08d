//! What an operator says of a worker.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use smg_base::Secret;

use crate::{BreakerConfig, Engine, FleetError, HealthConfig, KvEventsSpec, ModelCard, WorkerUrl};

/// A worker as flags, the configuration file or the admin API describe it. On the wire only `url` is required and
/// unknown keys are refused; the key is read and never written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "SpecWire")]
pub struct WorkerSpec {
    /// Where it is.
    pub url: WorkerUrl,
    /// The models it serves; empty: ask the worker.
    pub models: Vec<ModelCard>,
    /// Its part in disaggregated serving.
    pub worker_type: WorkerType,
    /// How it is spoken to.
    pub connection_mode: ConnectionMode,
    /// The engine; absent or `unspecified`: detect it.
    pub runtime_type: Option<Engine>,
    /// Who runs it, for those who list the workers.
    pub provider: Option<String>,
    /// Free text. `model_id` names the model of a worker that lists none, `policy` the policy of its models, and
    /// `max_running_requests` is read where the field of that name is absent.
    pub labels: BTreeMap<String, String>,
    /// Greater is preferred: a lower tier is used only when no worker of a higher one may be used.
    pub priority: u32,
    /// What a request costs here, relative to other workers.
    pub cost: f64,
    /// How much it can take, relative to other workers. Its share of the traffic is weight ÷ cost.
    pub weight: f64,
    /// The key it wants.
    #[serde(skip_serializing)]
    pub api_key: Option<Secret>,
    /// How many tokens its KV cache holds; absent: ask the worker.
    pub kv_capacity_tokens: Option<u64>,
    /// How many requests it runs at once; absent: ask the worker.
    pub max_running_requests: Option<u32>,
    /// Where its health checks differ from the gateway's.
    pub health: HealthOverride,
    /// Where its breaker and retries differ from the gateway's.
    pub resilience: ResilienceOverride,
    /// Where its engine tells what its KV cache holds; absent: ask the worker, and predict it where that does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_events: Option<KvEventsSpec>,
}

/// The part a worker plays in disaggregated serving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerType {
    /// It does everything.
    #[default]
    Regular,
}

/// How a worker is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConnectionMode {
    /// HTTP, with or without TLS.
    #[default]
    Http,
}

/// Who brought a worker in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The command line or the environment.
    Flag,
    /// The configuration file.
    File,
    /// The admin API.
    Api,
    /// Another node of the cluster.
    Mesh,
}

impl Origin {
    /// The word on the wire and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Flag => "flag",
            Self::File => "file",
            Self::Api => "api",
            Self::Mesh => "mesh",
        }
    }
}

/// The health-check settings a worker may have of its own; what is absent is the gateway's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HealthOverride {
    /// How long a probe may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_secs: Option<u64>,
    /// Time between probes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check_interval_secs: Option<u64>,
    /// Successes in a row that bring it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub success_threshold: Option<u32>,
    /// Failures in a row that take it out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure_threshold: Option<u32>,
    /// Whether to believe it healthy without asking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_health_check: Option<bool>,
    /// The shortest time between draining and removal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_settle_secs: Option<u64>,
    /// The path that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

impl HealthOverride {
    /// The gateway's settings with this worker's in front.
    pub(crate) fn over(&self, base: &HealthConfig) -> HealthConfig {
        let seconds = |own: Option<u64>, base: Duration| own.map_or(base, Duration::from_secs);
        HealthConfig {
            enabled: self.disable_health_check.map_or(base.enabled, |disabled| !disabled),
            endpoint: self.endpoint.clone().unwrap_or_else(|| base.endpoint.clone()),
            interval: seconds(self.check_interval_secs, base.interval),
            startup_interval: base.startup_interval,
            timeout: seconds(self.timeout_secs, base.timeout),
            success_threshold: self.success_threshold.unwrap_or(base.success_threshold),
            failure_threshold: self.failure_threshold.unwrap_or(base.failure_threshold),
            drain_settle: seconds(self.drain_settle_secs, base.drain_settle),
        }
    }

    /// Takes over what `newer` says.
    fn update(&mut self, newer: Self) {
        let Self {
            timeout_secs,
            check_interval_secs,
            success_threshold,
            failure_threshold,
            disable_health_check,
            drain_settle_secs,
            endpoint,
        } = newer;
        self.timeout_secs = timeout_secs.or(self.timeout_secs);
        self.check_interval_secs = check_interval_secs.or(self.check_interval_secs);
        self.success_threshold = success_threshold.or(self.success_threshold);
        self.failure_threshold = failure_threshold.or(self.failure_threshold);
        self.disable_health_check = disable_health_check.or(self.disable_health_check);
        self.drain_settle_secs = drain_settle_secs.or(self.drain_settle_secs);
        self.endpoint = endpoint.or(self.endpoint.take());
    }
}

/// The breaker and retry settings a worker may have of its own; what is absent is the gateway's. The breaker's are
/// applied here, the others by whoever retries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ResilienceOverride {
    /// Attempts, the first included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<u32>,
    /// The first wait between attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_backoff_ms: Option<u64>,
    /// The longest wait between attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_backoff_ms: Option<u64>,
    /// Growth of the wait per attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff_multiplier: Option<f64>,
    /// Spread of the wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jitter_factor: Option<f64>,
    /// Whether to try only once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_retry: Option<bool>,
    /// Failures in a row that open the breaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cb_failure_threshold: Option<u32>,
    /// Successes in a row that close it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cb_success_threshold: Option<u32>,
    /// How long it stays open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cb_timeout_secs: Option<u64>,
    /// How far apart failures in a row may lie.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cb_window_secs: Option<u64>,
    /// Whether it has no breaker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disable_circuit_breaker: Option<bool>,
    /// The statuses that count as failures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retryable_status_codes: Option<Vec<u16>>,
}

impl ResilienceOverride {
    /// The gateway's breaker settings with this worker's in front.
    pub(crate) fn over(&self, base: &BreakerConfig) -> BreakerConfig {
        let seconds = |own: Option<u64>, base: Duration| own.map_or(base, Duration::from_secs);
        BreakerConfig {
            enabled: self.disable_circuit_breaker.map_or(base.enabled, |disabled| !disabled),
            failure_threshold: self.cb_failure_threshold.unwrap_or(base.failure_threshold),
            success_threshold: self.cb_success_threshold.unwrap_or(base.success_threshold),
            open_for: seconds(self.cb_timeout_secs, base.open_for),
            window: seconds(self.cb_window_secs, base.window),
        }
    }
}

/// What the admin API may change of a worker that stays; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerPatch {
    /// The new priority.
    pub priority: Option<u32>,
    /// The new cost.
    pub cost: Option<f64>,
    /// The new weight.
    pub weight: Option<f64>,
    /// Labels to set, and with `null` to take away.
    pub labels: BTreeMap<String, Option<String>>,
    /// The new key; `null` takes it away.
    pub api_key: KeyPatch,
    /// Health-check settings to set.
    pub health: HealthOverride,
}

/// What happens to a worker's key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KeyPatch {
    /// It stays.
    #[default]
    Keep,
    /// It goes.
    Clear,
    /// This takes its place.
    Set(Secret),
}

impl<'de> Deserialize<'de> for KeyPatch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // An absent key never comes here: it is the default.
        Ok(Option::<Secret>::deserialize(deserializer)?.map_or(Self::Clear, Self::Set))
    }
}

impl WorkerPatch {
    /// `spec` with the changes made and checked.
    pub(crate) fn apply(self, spec: &WorkerSpec) -> Result<WorkerSpec, FleetError> {
        let mut spec = spec.clone();
        spec.priority = self.priority.unwrap_or(spec.priority);
        spec.cost = self.cost.unwrap_or(spec.cost);
        spec.weight = self.weight.unwrap_or(spec.weight);
        for (label, value) in self.labels {
            match value {
                Some(value) => drop(spec.labels.insert(label, value)),
                None => drop(spec.labels.remove(&label)),
            }
        }
        match self.api_key {
            KeyPatch::Keep => {}
            KeyPatch::Clear => spec.api_key = None,
            KeyPatch::Set(key) => spec.api_key = Some(key),
        }
        spec.health.update(self.health);
        spec.checked()
    }
}

impl WorkerSpec {
    /// The most models one worker may list.
    pub const MODELS_MAX: usize = 4_096;
    /// The most labels one worker may have.
    pub const LABELS_MAX: usize = 64;

    /// A worker of which only the place is said.
    pub fn new(url: WorkerUrl) -> Self {
        Self {
            url,
            models: Vec::new(),
            worker_type: WorkerType::Regular,
            connection_mode: ConnectionMode::Http,
            runtime_type: None,
            provider: None,
            labels: BTreeMap::new(),
            priority: 50,
            cost: 1.0,
            weight: 1.0,
            api_key: None,
            kv_capacity_tokens: None,
            max_running_requests: None,
            health: HealthOverride::default(),
            resilience: ResilienceOverride::default(),
            kv_events: None,
        }
    }

    /// The specification, if every value in it can be used.
    pub(crate) fn checked(self) -> Result<Self, FleetError> {
        let require = |holds: bool, field: &'static str, reason: &'static str| match holds {
            true => Ok(()),
            false => Err(FleetError::InvalidSpec { field, reason }),
        };
        // Shares are ratios of these, so they stay far from the ends of a double.
        let is_ratio = |value: f64| (1e-6..=1e6).contains(&value);
        require(is_ratio(self.cost), "cost", "must lie between 0.000001 and 1000000")?;
        require(is_ratio(self.weight), "weight", "must lie between 0.000001 and 1000000; to take it out, drain it")?;
        require(self.models.len() <= Self::MODELS_MAX, "models", "lists more than 4096")?;
        require(self.labels.len() <= Self::LABELS_MAX, "labels", "holds more than 64")?;
        for card in &self.models {
            require(!card.id.as_str().is_empty(), "models", "names a model with an empty id")?;
            require(!card.aliases.contains(&card.id), "models", "gives a model its own id as an alias")?;
            let is_named = card.aliases.iter().all(|alias| !alias.as_str().is_empty());
            require(is_named, "models", "gives a model an empty alias")?;
        }
        let key = self.api_key.as_ref().map_or("-", Secret::expose);
        let is_header_text = !key.is_empty() && key.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        require(is_header_text, "api_key", "must be visible ascii, because it is sent in a header")?;
        let endpoint = self.health.endpoint.as_deref().unwrap_or("/");
        let is_path = endpoint.starts_with('/') && endpoint.bytes().all(|byte| (0x21..0x7f).contains(&byte));
        require(is_path, "health.endpoint", "must be a path that starts with a slash")?;
        require(self.health.check_interval_secs != Some(0), "health.check_interval_secs", "must be at least 1")?;
        require(self.health.timeout_secs != Some(0), "health.timeout_secs", "must be at least 1")?;
        if let Some(events) = &self.kv_events {
            events.check(&self.url)?;
        }
        Ok(self)
    }
}

/// The specification as it is read. It also knows the fields of the reference gateway that mean nothing here: those
/// that ask for what this gateway cannot do must be null, the others are read and dropped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecWire {
    url: WorkerUrl,
    #[serde(default)]
    models: Vec<ModelCard>,
    #[serde(default)]
    worker_type: WorkerType,
    #[serde(default)]
    connection_mode: ConnectionMode,
    #[serde(default, alias = "runtime")]
    runtime_type: Option<Engine>,
    provider: Option<String>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    priority: Option<u32>,
    cost: Option<f64>,
    weight: Option<f64>,
    api_key: Option<Secret>,
    kv_capacity_tokens: Option<u64>,
    max_running_requests: Option<u32>,
    #[serde(default)]
    health: HealthOverride,
    #[serde(default)]
    resilience: ResilienceOverride,
    kv_events: Option<KvEventsSpec>,

    bootstrap_port: Option<Value>,
    dp_base_url: Option<Value>,
    dp_rank: Option<Value>,
    dp_size: Option<Value>,
    kv_connector: Option<Value>,
    kv_role: Option<Value>,
    kv_engine_id: Option<Value>,
    zmq_handshake_address: Option<Value>,

    // Traffic and probes share one client here, registration never gives up, and the other two tune transports that
    // do not exist; block sizes are detected.
    #[serde(rename = "http_pool")]
    _http_pool: Option<Value>,
    #[serde(rename = "max_connection_attempts")]
    _max_connection_attempts: Option<Value>,
    #[serde(rename = "load_monitor_interval_secs")]
    _load_monitor_interval_secs: Option<Value>,
    #[serde(rename = "multimodal_tensor_transport")]
    _multimodal_tensor_transport: Option<Value>,
    #[serde(rename = "multimodal_shm_min_bytes")]
    _multimodal_shm_min_bytes: Option<Value>,
    #[serde(rename = "kv_block_size")]
    _kv_block_size: Option<Value>,
}

impl TryFrom<SpecWire> for WorkerSpec {
    type Error = FleetError;

    fn try_from(wire: SpecWire) -> Result<Self, FleetError> {
        let disaggregated = "disaggregated and data-parallel workers are not supported over http";
        for (field, value, reason) in [
            ("bootstrap_port", &wire.bootstrap_port, disaggregated),
            ("dp_base_url", &wire.dp_base_url, disaggregated),
            ("dp_rank", &wire.dp_rank, disaggregated),
            ("dp_size", &wire.dp_size, disaggregated),
            ("kv_connector", &wire.kv_connector, disaggregated),
            ("kv_role", &wire.kv_role, disaggregated),
            ("kv_engine_id", &wire.kv_engine_id, disaggregated),
            ("zmq_handshake_address", &wire.zmq_handshake_address, "zmq workers are not supported"),
        ] {
            if value.is_some() {
                return Err(FleetError::InvalidSpec { field, reason });
            }
        }
        let plain = Self::new(wire.url);
        Self {
            models: wire.models,
            worker_type: wire.worker_type,
            connection_mode: wire.connection_mode,
            runtime_type: wire.runtime_type,
            provider: wire.provider,
            labels: wire.labels,
            priority: wire.priority.unwrap_or(plain.priority),
            cost: wire.cost.unwrap_or(plain.cost),
            weight: wire.weight.unwrap_or(plain.weight),
            api_key: wire.api_key,
            kv_capacity_tokens: wire.kv_capacity_tokens,
            max_running_requests: wire.max_running_requests,
            health: wire.health,
            resilience: wire.resilience,
            kv_events: wire.kv_events,
            ..plain
        }
        .checked()
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    fn parse(text: &str) -> Result<WorkerSpec, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_url_is_enough_and_everything_else_has_its_default() {
        let spec = parse(r#"{"url":"GPU-1:8000"}"#).unwrap();
        assert_eq!(spec, WorkerSpec::new("http://gpu-1:8000".parse().unwrap()));
        assert_eq!((spec.priority, spec.cost, spec.weight), (50, 1.0, 1.0));
    }

    #[test]
    fn the_reference_gateways_fields_are_understood() {
        let spec = parse(
            r#"{"url":"http://a:1","worker_type":"regular","connection_mode":"http","runtime":"external",
                "provider":"openai","bootstrap_port":null,"dp_rank":null,"http_pool":{"timeout_secs":3},
                "max_connection_attempts":20,"kv_block_size":16,"models":["m"],
                "health":{"check_interval_secs":7,"disable_health_check":true},
                "resilience":{"cb_failure_threshold":2,"retryable_status_codes":[503]}}"#,
        )
        .unwrap();
        assert_eq!(spec.runtime_type, Some(Engine::OpenAi));
        let health = spec.health.over(&HealthConfig::default());
        assert_eq!((health.enabled, health.interval), (false, Duration::from_secs(7)));
        assert_eq!(health.timeout, Duration::from_secs(5));
        let breaker = spec.resilience.over(&BreakerConfig::default());
        assert_eq!((breaker.failure_threshold, breaker.success_threshold, breaker.enabled), (2, 3, true));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        let check = |rest: &str, part: &str| {
            let error = parse(&format!(r#"{{"url":"http://a:1",{rest}}}"#)).unwrap_err();
            assert!(error.contains(part), "{rest}: {error}");
        };
        check(r#""wieght":1.0"#, "wieght");
        check(r#""worker_type":"prefill""#, "regular");
        check(r#""connection_mode":"grpc""#, "http");
        check(r#""bootstrap_port":8998"#, "bootstrap_port");
        check(r#""zmq_handshake_address":"tcp://a:1""#, "zmq_handshake_address");
        check(r#""weight":0"#, "weight");
        check(r#""cost":-1"#, "cost");
        check(r#""cost":1e99"#, "cost");
        check(r#""priority":-1"#, "-1");
        check(r#""models":[""]"#, "empty id");
        check(r#""models":[{"id":"a","aliases":["a"]}]"#, "alias");
        check(r#""api_key":"a\r\nb""#, "api_key");
        check(r#""api_key":"""#, "api_key");
        check(r#""health":{"endpoint":"health"}"#, "health.endpoint");
        check(r#""health":{"check_interval_secs":0}"#, "check_interval_secs");
        check(r#""health":{"interval":1}"#, "interval");
        check(r#""runtime_type":"vlm""#, "vllm");
        check(r#""kv_events":{"endpoint":"tcp://a"}"#, "kv_events.endpoint");
        check(r#""kv_events":{"endpoint":"tcp://a:1","port":1}"#, "port");
        assert!(parse(r#"{"models":[]}"#).unwrap_err().contains("url"));
    }

    #[test]
    fn a_key_is_read_and_never_written() {
        let spec = parse(r#"{"url":"http://a:1","api_key":"sk-secret"}"#).unwrap();
        assert_eq!(spec.api_key.as_ref().map(Secret::expose), Some("sk-secret"));
        for text in [serde_json::to_string(&spec).unwrap(), toml::to_string(&spec).unwrap(), format!("{spec:?}")] {
            assert!(!text.contains("sk-secret"), "{text}");
        }
        for text in [serde_json::to_string(&spec).unwrap(), toml::to_string(&spec).unwrap()] {
            // Not even redacted: read back, that would become the key.
            assert!(!text.contains("api_key"), "{text}");
        }
    }

    #[test]
    fn a_specification_survives_json_and_toml() {
        let mut spec = parse(
            r#"{"url":"http://a:1/x","models":[{"id":"m","aliases":["n"],"id2label":{"0":"no"}}],"labels":{"zone":"b"},
                "runtime_type":"vllm","priority":7,"cost":2.5,"weight":0.5,"kv_capacity_tokens":1000,
                "health":{"endpoint":"/ok"},"resilience":{"jitter_factor":0.5},
                "kv_events":{"endpoint":"tcp://*:5557","replay":"tcp://*:5567","topic":"kv","ranks":2}}"#,
        )
        .unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(parse(&json), Ok(spec.clone()));
        let toml = toml::to_string(&spec).unwrap();
        assert_eq!(toml::from_str(&toml), Ok(spec.clone()), "{toml}");
        spec.runtime_type = None;
        assert_eq!(parse(&serde_json::to_string(&spec).unwrap()), Ok(spec));
    }

    #[test]
    fn what_is_not_said_of_events_is_not_written() {
        let text = |spec: &str| serde_json::to_string(&parse(spec).unwrap()).unwrap();
        assert!(!text(r#"{"url":"http://a:1"}"#).contains("kv_events"));
        let plain = text(r#"{"url":"http://a:1","kv_events":{"endpoint":"tcp://*:5557"}}"#);
        assert!(plain.ends_with(r#""kv_events":{"endpoint":"tcp://*:5557"}}"#), "{plain}");
    }

    #[test]
    fn a_patch_changes_what_it_names() {
        let spec = parse(
            r#"{"url":"http://a:1","api_key":"k1","labels":{"a":"1","b":"2"},"health":{"endpoint":"/ok","timeout_secs":9}}"#,
        )
        .unwrap();
        let patch = |text: &str| serde_json::from_str::<WorkerPatch>(text).unwrap().apply(&spec);
        assert_eq!(patch("{}"), Ok(spec.clone()));
        let changed = patch(
            r#"{"priority":9,"cost":2.0,"weight":3.0,"labels":{"a":null,"c":"3"},"api_key":"k2","health":{"timeout_secs":1}}"#,
        )
        .unwrap();
        assert_eq!((changed.priority, changed.cost, changed.weight), (9, 2.0, 3.0));
        let labels: Vec<_> = changed.labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(labels, [("b", "2"), ("c", "3")]);
        assert_eq!(changed.api_key, Some(Secret::new("k2")));
        assert_eq!(changed.health.endpoint.as_deref(), Some("/ok"));
        assert_eq!(changed.health.timeout_secs, Some(1));
        assert_eq!(patch(r#"{"api_key":null}"#).unwrap().api_key, None);
        assert!(matches!(patch(r#"{"weight":0.0}"#), Err(FleetError::InvalidSpec { field: "weight", .. })));
        for fixed in [r#"{"url":"http://b:1"}"#, r#"{"models":[]}"#, r#"{"runtime_type":"vllm"}"#] {
            assert!(serde_json::from_str::<WorkerPatch>(fixed).is_err(), "{fixed}");
        }
    }

    #[test]
    fn mutated_specifications_never_panic_and_what_is_accepted_reads_back() {
        let corpus = [
            r#"{"url":"http://a:1","models":["m",{"id":"n","aliases":["o"],"context_length":9}],"labels":{"a":"b"}}"#,
            r#"{"url":"https://[::1]:2/x","priority":1,"cost":0.5,"weight":2e3,"runtime_type":"sglang","api_key":"k"}"#,
            r#"{"url":"b","health":{"endpoint":"/h","timeout_secs":1},"resilience":{"cb_window_secs":3},"dp_rank":null}"#,
        ];
        let alphabet = br#"{}[]",:\ 019-.eEtrunl/abx"#;
        let random = SplitMix::new(smg_base::fuzz::seed(11));
        let mut accepted = 0;
        for turn in 0..usize::try_from(smg_base::fuzz::inputs(20_000)).unwrap() {
            let mut bytes = corpus[turn % corpus.len()].as_bytes().to_vec();
            for _ in 0..=random.below(2) {
                let place = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                let byte = alphabet[usize::try_from(random.below(alphabet.len() as u64)).unwrap()];
                match random.below(3) {
                    0 => bytes[place] = byte,
                    1 => drop(bytes.remove(place)),
                    _ => bytes.insert(place, byte),
                }
            }
            let Ok(mut spec) = serde_json::from_slice::<WorkerSpec>(&bytes) else { continue };
            accepted += 1;
            spec.api_key = None;
            assert_eq!(parse(&serde_json::to_string(&spec).unwrap()), Ok(spec), "{}", String::from_utf8_lossy(&bytes));
        }
        assert!(accepted > 300, "too few to mean anything: {accepted}");
    }
}
