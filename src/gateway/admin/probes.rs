//! Liveness and readiness.

use std::sync::Arc;

use axum::{Json, extract::State, response::IntoResponse};
use http::StatusCode;
use serde_json::json;
use smg_runtime::Phase;

use crate::{app::Gateway, cluster::Standing};

/// The process runs.
pub(crate) async fn live() -> &'static str {
    "OK"
}

/// Requests can be served: not draining, knowing what the mesh knows, and some worker may be used.
pub(crate) async fn ready(State(gateway): State<Arc<Gateway>>) -> impl IntoResponse {
    let snapshot = gateway.fleet.snapshot();
    let now = gateway.now();
    let total = snapshot.workers().len();
    let healthy = snapshot.workers().iter().filter(|worker| worker.is_available(now)).count();
    let standing = gateway.cluster.as_ref().map(|cluster| cluster.standing());
    let reason = if gateway.shutdown.phase() >= Phase::Draining || standing == Some(Standing::Draining) {
        Some("draining")
    } else if standing == Some(Standing::Joining) {
        Some("joining the mesh")
    } else if healthy == 0 {
        Some("insufficient healthy workers")
    } else {
        None
    };
    let status = if reason.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut body = json!({
        "status": if reason.is_none() { "ready" } else { "not ready" },
        "healthy_workers": healthy,
        "total_workers": total,
    });
    if let Some(reason) = reason {
        body["reason"] = reason.into();
    }
    if let Some(standing) = standing {
        body["mesh"] = standing.as_str().into();
    }
    (status, Json(body))
}
