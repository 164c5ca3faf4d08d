//! What is counted here. Requests and their outcomes are counted by whoever makes them.

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};
use smg_runtime::metrics::{DURATION_BUCKETS, Registrar, SHORT_BUCKETS};

/// The metrics of the way to workers.
pub(crate) struct Metrics {
    pub(crate) connections_open: IntGauge,
    pub(crate) connections_idle: IntGauge,
    pub(crate) connects: IntCounterVec,
    pub(crate) connect_seconds: Histogram,
    pub(crate) reused: IntCounter,
    pub(crate) resent: IntCounter,
    pub(crate) health_checks: IntCounterVec,
    pub(crate) health_check_seconds: Histogram,
    pub(crate) detections: IntCounterVec,
    pub(crate) load_polls: IntCounterVec,
}

impl Metrics {
    pub(crate) fn new(registrar: &Registrar) -> Self {
        Self {
            connections_open: registrar.gauge("smg_upstream_connections_open", "Connections to workers that are open."),
            connections_idle: registrar
                .gauge("smg_upstream_connections_idle", "Connections to workers that are open and unused."),
            connects: registrar.counter_vec(
                "smg_upstream_connects_total",
                "Connections to workers that were opened, or could not be, and why.",
                &["result"],
            ),
            connect_seconds: registrar.histogram(
                "smg_upstream_connect_seconds",
                "Time to open a connection to a worker, name resolution and TLS included.",
                SHORT_BUCKETS,
            ),
            reused: registrar.counter(
                "smg_upstream_connections_reused_total",
                "Requests that were sent over a connection that was open already.",
            ),
            resent: registrar.counter(
                "smg_upstream_requests_resent_total",
                "Requests sent again because the worker had closed the idle connection before anything was written.",
            ),
            health_checks: registrar.counter_vec(
                "smg_worker_health_checks_total",
                "Health checks of workers by their outcome.",
                &["worker_type", "result"],
            ),
            health_check_seconds: registrar.histogram(
                "smg_worker_health_check_seconds",
                "How long health checks of workers took.",
                DURATION_BUCKETS,
            ),
            detections: registrar.counter_vec(
                "smg_worker_detections_total",
                "Attempts to find out what engine a worker is, by what was found.",
                &["result"],
            ),
            load_polls: registrar.counter_vec(
                "smg_worker_load_polls_total",
                "Polls of the engines' own load figures by their outcome.",
                &["result"],
            ),
        }
    }
}
