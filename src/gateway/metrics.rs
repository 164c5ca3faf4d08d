//! The gateway's metrics. Names and labels follow the reference gateway where the meaning is equal.

use std::sync::{Arc, OnceLock};

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};
use smg_api::Endpoint;
use smg_base::ModelId;
use smg_routing::PolicyKind;
use smg_runtime::metrics::{DURATION_BUCKETS, Registrar, SHORT_BUCKETS};

use crate::limits::LimitMeters;

/// Everything the gateway counts.
pub(crate) struct Metrics {
    pub(crate) http_requests: IntCounterVec,
    pub(crate) http_duration: HistogramVec,
    pub(crate) http_responses: IntCounterVec,
    pub(crate) http_in_flight: IntGauge,
    pub(crate) request_bytes: Histogram,
    pub(crate) body_budget_used: IntGauge,
    pub(crate) disconnects: IntCounterVec,
    pub(crate) auth_failures: IntCounterVec,
    pub(crate) requests: IntCounterVec,
    pub(crate) duration: HistogramVec,
    pub(crate) errors: IntCounterVec,
    pub(crate) upstream_responses: IntCounterVec,
    pub(crate) stage_duration: HistogramVec,
    pub(crate) ttft: HistogramVec,
    pub(crate) tpot: HistogramVec,
    pub(crate) gap_max: HistogramVec,
    pub(crate) generation: HistogramVec,
    pub(crate) overhead: HistogramVec,
    pub(crate) tokens: IntCounterVec,
    pub(crate) stream_events: IntCounterVec,
    pub(crate) stream_failures: IntCounterVec,
    pub(crate) open_streams: IntGauge,
    pub(crate) selections: IntCounterVec,
    pub(crate) worker_errors: IntCounterVec,
    pub(crate) breaker_transitions: IntCounterVec,
    pub(crate) breaker_outcomes: IntCounterVec,
    pub(crate) retries: IntCounterVec,
    pub(crate) retries_exhausted: IntCounterVec,
    pub(crate) retry_backoff: HistogramVec,
    pub(crate) no_candidate: IntCounterVec,
    pub(crate) affinity_entries: IntGauge,
    pub(crate) affinity_lookups: IntCounterVec,
    pub(crate) policy_branches: IntCounterVec,
    pub(crate) admin_operations: IntCounterVec,
    pub(crate) relayed: IntCounterVec,
    pub(crate) limits: LimitMeters,
}

/// Labels of the per-model families, in order.
const ROUTER: &[&str] = &["router_type", "backend_type", "connection_mode", "model", "endpoint"];
const MODEL: &[&str] = &["router_type", "backend_type", "model", "endpoint"];

/// There is one way to a worker so far; the labels keep the reference's dashboards working.
const ROUTER_TYPE: &str = "http";
const BACKEND_TYPE: &str = "regular";
const CONNECTION_MODE: &str = "http";

impl Metrics {
    #[expect(clippy::too_many_lines, reason = "a table: one line or two for each metric")]
    pub(crate) fn new(registrar: &Registrar) -> Self {
        let counter = |name, help, labels: &[&str]| registrar.counter_vec(name, help, labels);
        let seconds = |name, help, labels: &[&str]| registrar.histogram_vec(name, help, labels, DURATION_BUCKETS);
        let short = |name, help, labels: &[&str]| registrar.histogram_vec(name, help, labels, SHORT_BUCKETS);
        Self {
            http_requests: counter("smg_http_requests_total", "HTTP requests received", &["method", "path"]),
            http_duration: seconds(
                "smg_http_request_duration_seconds",
                "Time from the request head to the end of the answer",
                &["method", "path"],
            ),
            http_responses: counter(
                "smg_http_responses_total",
                "HTTP answers by status and gateway error code (empty when the answer is a worker's)",
                &["path", "status_code", "error_code"],
            ),
            http_in_flight: registrar.gauge("smg_http_requests_in_flight", "Requests whose answer has not ended"),
            request_bytes: registrar.histogram(
                "smg_http_request_body_bytes",
                "Size of request bodies",
                &[256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 16_777_216.0, 134_217_728.0],
            ),
            body_budget_used: registrar.gauge(
                "smg_http_body_budget_used_bytes",
                "Memory held by request bodies being read or kept for a retry",
            ),
            disconnects: counter(
                "smg_http_client_disconnects_total",
                "Callers that went away before the end of their answer",
                &["endpoint", "phase"],
            ),
            auth_failures: counter("smg_http_auth_failures_total", "Refused credentials", &["surface", "reason"]),
            requests: counter(
                "smg_router_requests_total",
                "Requests routed",
                &["router_type", "backend_type", "connection_mode", "model", "endpoint", "streaming"],
            ),
            duration: seconds("smg_router_request_duration_seconds", "Time of routed requests", ROUTER),
            errors: counter(
                "smg_router_request_errors_total",
                "Routed requests that failed, by error code",
                &["router_type", "backend_type", "connection_mode", "model", "endpoint", "error_type"],
            ),
            upstream_responses: counter(
                "smg_router_upstream_responses_total",
                "Answers of workers, each attempt counted",
                &["router_type", "status_code", "error_code"],
            ),
            stage_duration: short(
                "smg_router_stage_duration_seconds",
                "Time of each phase of the pipeline",
                &["router_type", "stage"],
            ),
            ttft: seconds(
                "smg_router_ttft_seconds",
                "Time from the request to the first byte of generated output",
                MODEL,
            ),
            tpot: short("smg_router_tpot_seconds", "Mean time between output events of a stream", MODEL),
            gap_max: seconds(
                "smg_router_inter_token_gap_max_duration_seconds",
                "Longest silence between two output events of a stream",
                MODEL,
            ),
            generation: seconds(
                "smg_router_generation_duration_seconds",
                "Time from the first to the last byte of an answer",
                MODEL,
            ),
            overhead: short(
                "smg_router_overhead_seconds",
                "Time a request spends inside the gateway before dispatch, waiting for a slot and for the client excluded",
                &["endpoint"],
            ),
            tokens: counter(
                "smg_router_tokens_total",
                "Tokens as workers report them",
                &["router_type", "backend_type", "model", "endpoint", "token_type"],
            ),
            stream_events: counter("smg_router_stream_events_total", "Events relayed in streams", &["endpoint"]),
            stream_failures: counter(
                "smg_router_stream_failures_total",
                "Streams that ended with an error event",
                &["endpoint", "error_type"],
            ),
            open_streams: registrar.gauge("smg_router_streams_open", "Streams being relayed"),
            selections: counter(
                "smg_worker_selection_total",
                "Workers chosen",
                &["worker_type", "connection_mode", "model", "policy"],
            ),
            worker_errors: counter(
                "smg_worker_errors_total",
                "Failed attempts by error code",
                &["worker_type", "connection_mode", "error_type"],
            ),
            breaker_transitions: counter(
                "smg_worker_cb_transitions_total",
                "Changes of circuit breakers",
                &["worker", "from", "to"],
            ),
            breaker_outcomes: counter(
                "smg_worker_cb_outcomes_total",
                "Outcomes told to circuit breakers",
                &["worker", "outcome"],
            ),
            retries: counter("smg_worker_retries_total", "Attempts after the first", &["worker_type", "endpoint"]),
            retries_exhausted: counter(
                "smg_worker_retries_exhausted_total",
                "Requests that failed although they could have been retried, by what forbade it",
                &["worker_type", "endpoint", "reason"],
            ),
            retry_backoff: short("smg_worker_retry_backoff_seconds", "Waits before retries", &["attempt"]),
            no_candidate: counter(
                "smg_router_no_candidate_total",
                "Choices that found no worker",
                &["model", "reason"],
            ),
            affinity_entries: registrar
                .gauge("smg_router_affinity_entries", "Response ids remembered with their worker"),
            affinity_lookups: counter(
                "smg_router_affinity_lookups_total",
                "Look-ups of the worker that answered a response id",
                &["result"],
            ),
            policy_branches: counter(
                "smg_router_policy_branch_total",
                "Choices by policy and the reason that decided",
                &["policy", "branch"],
            ),
            admin_operations: counter("smg_admin_operations_total", "Admin requests", &["operation", "result"]),
            relayed: counter(
                "smg_mesh_relay_requests_total",
                "Requests handed to a peer (out) and handed on for one (in), each attempt counted, by how they ended",
                &["direction", "outcome"],
            ),
            limits: LimitMeters::new(registrar),
        }
    }
}

/// The counters of one model and endpoint, resolved once, so that the request path does no label look-up.
pub(crate) struct EndpointMeters {
    pub(crate) plain: IntCounter,
    pub(crate) streaming: IntCounter,
    pub(crate) duration: Histogram,
    pub(crate) ttft: Histogram,
    pub(crate) tpot: Histogram,
    pub(crate) gap_max: Histogram,
    pub(crate) generation: Histogram,
    pub(crate) overhead: Histogram,
    pub(crate) input_tokens: IntCounter,
    pub(crate) output_tokens: IntCounter,
    pub(crate) cached_tokens: IntCounter,
    pub(crate) events: IntCounter,
    pub(crate) selections: IntCounter,
    pub(crate) ok_answers: IntCounter,
    pub(crate) ok_upstream: IntCounter,
    pub(crate) http_requests: IntCounter,
    pub(crate) http_duration: Histogram,
    pub(crate) prepare: Histogram,
    pub(crate) route: Histogram,
    pub(crate) dispatch: Histogram,
}

impl EndpointMeters {
    fn new(metrics: &Metrics, model: &str, policy: PolicyKind, endpoint: Endpoint) -> Self {
        let label = endpoint.label();
        let router = [ROUTER_TYPE, BACKEND_TYPE, CONNECTION_MODE, model, label];
        let by_model = [ROUTER_TYPE, BACKEND_TYPE, model, label];
        let requests = |streaming| {
            let [a, b, c, d, e] = router;
            metrics.requests.with_label_values(&[a, b, c, d, e, streaming])
        };
        let tokens = |kind| metrics.tokens.with_label_values(&[ROUTER_TYPE, BACKEND_TYPE, model, label, kind]);
        let stage = |stage| metrics.stage_duration.with_label_values(&[ROUTER_TYPE, stage]);
        Self {
            plain: requests("false"),
            streaming: requests("true"),
            duration: metrics.duration.with_label_values(&router),
            ttft: metrics.ttft.with_label_values(&by_model),
            tpot: metrics.tpot.with_label_values(&by_model),
            gap_max: metrics.gap_max.with_label_values(&by_model),
            generation: metrics.generation.with_label_values(&by_model),
            overhead: metrics.overhead.with_label_values(&[label]),
            input_tokens: tokens("input"),
            output_tokens: tokens("output"),
            cached_tokens: tokens("cached"),
            events: metrics.stream_events.with_label_values(&[label]),
            selections: metrics.selections.with_label_values(&["regular", CONNECTION_MODE, model, policy.as_str()]),
            ok_answers: metrics.http_responses.with_label_values(&[endpoint.path(), "200", ""]),
            ok_upstream: metrics.upstream_responses.with_label_values(&[ROUTER_TYPE, "200", ""]),
            http_requests: metrics.http_requests.with_label_values(&["POST", endpoint.path()]),
            http_duration: metrics.http_duration.with_label_values(&["POST", endpoint.path()]),
            prepare: stage("prepare"),
            route: stage("route"),
            dispatch: stage("dispatch"),
        }
    }

    /// Counts a failed request.
    pub(crate) fn error(metrics: &Metrics, model: &str, endpoint: Endpoint, error_type: &str) {
        metrics
            .errors
            .with_label_values(&[ROUTER_TYPE, BACKEND_TYPE, CONNECTION_MODE, model, endpoint.label(), error_type])
            .inc();
    }

    /// Counts a worker's answer.
    pub(crate) fn upstream(metrics: &Metrics, status: &str, error_code: &str) {
        metrics.upstream_responses.with_label_values(&[ROUTER_TYPE, status, error_code]).inc();
    }

    /// Counts a failed attempt.
    pub(crate) fn worker_error(metrics: &Metrics, error_type: &str) {
        metrics.worker_errors.with_label_values(&["regular", CONNECTION_MODE, error_type]).inc();
    }
}

/// The meters of one model, one slot an endpoint, filled on first use.
pub(crate) struct ModelMeters {
    model: ModelId,
    policy: PolicyKind,
    slots: [OnceLock<Arc<EndpointMeters>>; Endpoint::ALL.len()],
}

impl ModelMeters {
    pub(crate) fn new(model: ModelId, policy: PolicyKind) -> Self {
        Self { model, policy, slots: std::array::from_fn(|_| OnceLock::new()) }
    }

    pub(crate) fn of(&self, endpoint: Endpoint, metrics: &Metrics) -> Arc<EndpointMeters> {
        self.slots[endpoint as usize]
            .get_or_init(|| Arc::new(EndpointMeters::new(metrics, self.model.as_str(), self.policy, endpoint)))
            .clone()
    }
}
