//! Liveness and readiness.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::StatusCode;
use serde_json::json;
use smg_runtime::Phase;

use crate::app::Gateway;

/// The process runs.
pub(crate) async fn live() -> &'static str {
    "OK"
}

/// Requests can be served: not draining, and some worker may be used.
pub(crate) async fn ready(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    let snapshot = gateway.fleet.snapshot();
    let now = gateway.now();
    let total = snapshot.workers().len();
    let healthy = snapshot.workers().iter().filter(|worker| worker.is_available(now)).count();
    let reason = if gateway.shutdown.phase() >= Phase::Draining {
        Some("draining")
    } else if healthy == 0 {
        Some("insufficient healthy workers")
    } else {
        None
    };
    match reason {
        None => {
            (StatusCode::OK, Json(json!({ "status": "ready", "healthy_workers": healthy, "total_workers": total })))
        }
        Some(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            Json(json!({
                "status": "not ready", "reason": reason, "healthy_workers": healthy, "total_workers": total
            })),
        ),
    }
}
