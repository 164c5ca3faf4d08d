//! From the configuration as it was given to the settings each part understands.

use smg_base::{Backoff, map::StableMap};
use smg_fleet::{BreakerConfig, FleetConfig, HealthConfig};
use smg_gateway::{
    AdminAccess, ModelDefaults, ModelSettings, PolicySettings, Replays, RetrySettings, Settings, Timeouts, TraceHooks,
    listener,
};
use smg_routing::PolicyConfig;
use smg_upstream::rules::UrlRules;

use crate::config::{Config, sections};

/// The gateway's settings.
pub(crate) fn gateway(config: &Config) -> Settings {
    let sections = &config.sections;
    let models: StableMap<_, _> = config
        .models
        .iter()
        .map(|model| {
            let settings = ModelSettings {
                policy: Some(policy_settings(&model.routing, &sections.mesh)),
                retry: Some(retry(&model.retries)),
                timeouts: Some(timeouts(&model.timeouts)),
            };
            (model.id.clone(), settings)
        })
        .collect();
    Settings {
        api_key: sections.security.api_key.clone(),
        admin_key: sections.security.admin_api_key.clone(),
        admin_access: match sections.security.admin_access {
            sections::AdminAccess::Loopback => AdminAccess::Loopback,
            sections::AdminAccess::Anyone => AdminAccess::Anyone,
        },
        require_key: sections.auth.require_key,
        tenant_header: sections.auth.trust_tenant_header.then(|| smg_gateway::TenantHeader {
            name: sections.auth.tenant_header_name.clone(),
            proxies: sections.auth.trusted_proxies.clone(),
        }),
        isolation: match sections.auth.isolate_caches {
            sections::Isolation::Auto => smg_gateway::Isolation::Auto,
            sections::Isolation::On => smg_gateway::Isolation::On,
            sections::Isolation::Off => smg_gateway::Isolation::Off,
        },
        body_bytes_max: sections.limits.max_payload_size,
        body_timeout: sections.listener.body_timeout,
        buffered_answer_bytes_max: sections.limits.buffered_answer_max,
        request_id_headers: sections.listener.request_id_headers.clone(),
        debug_headers: sections.listener.debug_headers,
        rules: config.allowances.rules.clone(),
        prices: config.allowances.prices.clone(),
        output_tokens_reserved: config.sections.limits.output_tokens_reserved,
        count_stream_usage: sections.upstream.count_stream_usage,
        defaults: ModelDefaults {
            policy: policy_settings(&sections.routing, &sections.mesh),
            retry: retry(&sections.retries),
            timeouts: timeouts(&sections.timeouts),
        },
        models,
        // What all nodes share is put on top of this.
        shared: smg_gateway::SharedSettings::default(),
        access_log: match sections.logging.access_log {
            sections::AccessLog::All => smg_gateway::AccessLog::All,
            sections::AccessLog::Errors => smg_gateway::AccessLog::Errors,
            sections::AccessLog::Off => smg_gateway::AccessLog::Off,
        },
        slow_request: sections.logging.slow_request,
        sweep_interval: sections.routing.eviction_interval,
    }
}

/// The parts of the gateway that stay as they were at the start.
pub(crate) fn gateway_start(config: &Config, trace: TraceHooks) -> smg_gateway::Config {
    let limits = &config.sections.limits;
    smg_gateway::Config {
        body_budget: limits.body_memory_max,
        explanations_max: config.sections.node.explanations_max,
        affinity_entries_max: limits.affinity_entries_max.get(),
        affinity_idle: limits.affinity_idle,
        cors_origins: config
            .sections
            .security
            .cors_allowed_origins
            .iter()
            .map(|origin| origin.as_str().into())
            .collect(),
        trace,
    }
}

fn policy_settings(routing: &sections::Routing, mesh: &sections::Mesh) -> PolicySettings {
    let config = PolicyConfig { shared_keys: mesh.enable_mesh, ..routing.policy_config() };
    PolicySettings { kind: routing.policy, config }
}

fn retry(retries: &sections::Retries) -> RetrySettings {
    RetrySettings {
        attempts_max: if retries.disable_retries { 1 } else { retries.retry_max_retries.get() },
        backoff: Backoff {
            initial: retries.retry_initial_backoff_ms,
            max: retries.retry_max_backoff_ms,
            multiplier: retries.retry_backoff_multiplier,
            jitter: retries.retry_jitter_factor,
        },
        budget_ratio: retries.retry_budget_ratio,
        budget_floor_per_second: retries.retry_budget_per_second,
        replays: if retries.retry_dispatched { Replays::Always } else { Replays::OnRequest },
    }
}

fn timeouts(timeouts: &sections::Timeouts) -> Timeouts {
    Timeouts {
        request: timeouts.request_timeout_secs,
        first_byte: timeouts.first_token_timeout.0,
        stall: timeouts.stall_timeout.0,
    }
}

/// How the fleet judges its workers. `scope` is the machine that loopback addresses mean.
pub(crate) fn fleet(config: &Config, scope: Option<String>) -> FleetConfig {
    let sections = &config.sections;
    FleetConfig {
        health: HealthConfig {
            startup_interval: sections.fleet.worker_startup_check_interval,
            ..health(&sections.health)
        },
        breaker: breaker(&sections.circuit_breaker),
        scope,
        workers_max: sections.fleet.workers_max.get(),
    }
}

fn health(health: &sections::Health) -> HealthConfig {
    HealthConfig {
        failure_threshold: health.health_failure_threshold.get(),
        success_threshold: health.health_success_threshold.get(),
        interval: health.health_check_interval_secs,
        timeout: health.health_check_timeout_secs,
        endpoint: health.health_check_endpoint.clone(),
        enabled: !health.disable_health_check,
        drain_settle: health.drain_settle_secs,
        ..HealthConfig::default()
    }
}

fn breaker(breaker: &sections::CircuitBreaker) -> BreakerConfig {
    BreakerConfig {
        failure_threshold: breaker.cb_failure_threshold.get(),
        success_threshold: breaker.cb_success_threshold.get(),
        open_for: breaker.cb_timeout_duration_secs,
        window: breaker.cb_window_duration_secs,
        enabled: !breaker.disable_circuit_breaker,
    }
}

/// The client to workers.
pub(crate) fn upstream(config: &Config) -> smg_upstream::Config {
    let (upstream, security) = (&config.sections.upstream, &config.sections.security);
    smg_upstream::Config {
        connect_timeout: upstream.connect_timeout,
        pool_idle_timeout: upstream.pool_idle_timeout,
        pool_idle_per_worker: upstream.pool_idle_per_worker_max,
        response_head_bytes_max: upstream.response_head_bytes_max.as_usize(),
        http2: upstream.worker_http2,
        tls: smg_upstream::TlsConfig {
            ca_files: upstream.ca_cert_paths.clone(),
            client_cert: upstream.client_cert_path.clone(),
            client_key: upstream.client_key_path.clone(),
            server_name: upstream.worker_server_name.clone(),
        },
        // Whoever may write flags and files may name any address.
        operator_rules: UrlRules::default(),
        api_rules: UrlRules {
            allow: security.worker_url_allow.clone(),
            deny: security.worker_url_deny.clone(),
            unlisted: security.worker_url_unlisted,
        },
    }
}

/// Admission.
pub(crate) fn admission(config: &Config) -> smg_admission::Config {
    let limits = &config.sections.limits;
    smg_admission::Config {
        concurrent_max: limits.max_concurrent_requests.0,
        queue_max: limits.queue_size,
        queue_timeout: limits.queue_timeout_secs,
        rate_per_second: limits.rate_limit_tokens_per_second,
        scheduler: config.sections.admission.scheduler(),
    }
}

/// The traffic listener.
pub(crate) fn listener(config: &Config) -> listener::Config {
    let listener = &config.sections.listener;
    listener::Config {
        connections_max: listener.connections_max.0,
        connections_per_address_max: listener.connections_per_address_max.0,
        head_timeout: listener.header_timeout,
        idle_timeout: listener.idle_timeout,
        write_stall_timeout: listener.write_timeout.0,
        head_bytes_max: listener.head_bytes_max,
        headers_max: listener::HEADERS_MAX,
        http2_streams_max: listener.http2_streams_max.get(),
    }
}

/// Logs and traces.
pub(crate) fn telemetry(config: &Config, node_name: &str) -> smg_telemetry::Config {
    let sections = &config.sections;
    smg_telemetry::Config {
        level: sections.logging.log_level.as_str().to_owned(),
        format: match (sections.logging.log_json, sections.logging.log_format) {
            (true, _) | (_, sections::LogFormat::Json) => smg_telemetry::LogFormat::Json,
            (_, sections::LogFormat::Human) => smg_telemetry::LogFormat::Human,
            (_, sections::LogFormat::Auto) => smg_telemetry::LogFormat::Auto,
        },
        log_dir: sections.logging.log_dir.clone(),
        otlp_endpoint: sections.tracing.enable_trace.then(|| sections.tracing.otlp_traces_endpoint.clone()),
        service_name: "smg".to_owned(),
        node_name: node_name.to_owned(),
    }
}
