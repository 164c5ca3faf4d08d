//! Workers: list, add, change, drain, remove.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::json;
use smg_base::WorkerId;
use smg_fleet::{Change, FleetError, Origin, Status, Worker, WorkerInfo, WorkerPatch, WorkerSpec};
use smg_infer::{Failure, FailureCode};

use super::{Answer, mesh};
use crate::app::Gateway;

/// What `GET /workers` can be asked for.
#[derive(Debug, Deserialize)]
pub(crate) struct Filter {
    model: Option<String>,
}

/// All workers, or those of one model.
pub(crate) async fn list(State(gateway): State<Arc<Gateway>>, Query(filter): Query<Filter>) -> Answer {
    let snapshot = gateway.fleet.snapshot();
    let of_model = filter.model.as_deref().map(|model| snapshot.pool(model));
    let workers: &[Arc<Worker>] = match &of_model {
        None => snapshot.workers(),
        Some(Some(pool)) => &pool.workers,
        Some(None) => &[],
    };
    let infos: Vec<WorkerInfo> = workers.iter().map(|worker| info(&gateway, worker)).collect();
    Answer::ok(&json!({
        "workers": infos,
        "total": infos.len(),
        "stats": { "prefill_count": 0, "decode_count": 0, "regular_count": infos.len() },
    }))
}

/// What is told of a worker; the peer through which it is reached by name.
fn info(gateway: &Gateway, worker: &Worker) -> WorkerInfo {
    let mut info = WorkerInfo::from(worker);
    if let Some(name) = info.via.as_deref().and_then(|peer| mesh::name(gateway, peer)) {
        info.via = Some(name);
    }
    info
}

/// One worker.
pub(crate) async fn one(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    find(&gateway, &id).map(|worker| Answer::ok(&info(&gateway, &worker))).into()
}

/// Registers a worker. It is used once it has passed its first probe.
pub(crate) async fn add(State(gateway): State<Arc<Gateway>>, body: Bytes) -> Response {
    let added = parse::<WorkerSpec>(&body);
    let added = match added {
        Ok(spec) => register_new(&gateway, spec).await,
        Err(failure) => Err(failure),
    };
    count(&gateway, "add", &added);
    match added {
        Ok((worker, change)) => accepted(&worker, if change == Change::New { "registered" } else { "taken back" }),
        Err(failure) => Answer::from(failure).into_response(),
    }
}

/// Registers a worker that is not there, or is on its way out.
async fn register_new(gateway: &Gateway, spec: WorkerSpec) -> Result<(Arc<Worker>, Change), Failure> {
    let id = gateway.fleet.id_of(&spec.url);
    let there = gateway.fleet.snapshot().worker(id).is_some_and(|worker| worker.status() != Status::Draining);
    if there {
        let message = format!("the worker {} is registered already, as {id}; change it with PUT or PATCH", spec.url);
        return Err(Failure::new(FailureCode::AlreadyExists, message));
    }
    register(gateway, spec).await
}

fn accepted(worker: &Worker, message: &str) -> Response {
    let location = format!("/workers/{}", worker.id);
    let body = json!({
        "status": "accepted",
        "worker_id": worker.id,
        "url": worker.spec.url.as_str(),
        "location": location,
        "message": format!("worker {message}; it is used once it has passed a probe"),
    });
    let mut response = Answer::json(StatusCode::ACCEPTED, &body).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

async fn register(gateway: &Gateway, spec: WorkerSpec) -> Result<(Arc<Worker>, Change), Failure> {
    gateway
        .upstream
        .check(&spec.url, Origin::Api)
        .await
        .map_err(|refused| Failure::new(FailureCode::InvalidRequest, refused.to_string()).param("url"))?;
    let added = gateway.fleet.add(spec, Origin::Api, gateway.now()).map_err(|error| refused(&error))?;
    gateway.keep_worker(added.worker.id);
    if let Err(failure) = tell(gateway, &added.worker).await {
        if added.change == Change::New {
            gateway.fleet.remove(added.worker.id);
        }
        return Err(failure);
    }
    tracing::info!(worker = %added.worker.id, url = %added.worker.spec.url, change = ?added.change, "worker added");
    Ok((added.worker, added.change))
}

/// Lets the mesh know of a worker before the caller is told that it is done.
async fn tell(gateway: &Gateway, worker: &Arc<Worker>) -> Result<(), Failure> {
    match &gateway.cluster {
        Some(cluster) => cluster.added(worker.clone()).await.map_err(mesh::refused),
        None => Ok(()),
    }
}

fn refused(error: &FleetError) -> Failure {
    let code = match error {
        FleetError::AlreadyExists(_) => FailureCode::AlreadyExists,
        FleetError::UnknownWorker(_) => FailureCode::NotFound,
        _ => FailureCode::InvalidRequest,
    };
    Failure::new(code, error.to_string())
}

/// Replaces the specification. The URL is what a worker is known by, so it cannot change.
pub(crate) async fn replace(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>, body: Bytes) -> Answer {
    let replaced = async {
        let worker = find(&gateway, &id)?;
        let spec: WorkerSpec = parse(&body)?;
        if spec.url != worker.spec.url {
            return Err(Failure::new(
                FailureCode::InvalidRequest,
                format!("the url must stay {}; to move a worker, add the new one and remove this", worker.spec.url),
            )
            .param("url"));
        }
        if gateway.fleet.id_of(&spec.url) != worker.id {
            let message =
                "the url means a worker of another machine; change it with PATCH, or with PUT at a node there";
            return Err(Failure::new(FailureCode::InvalidRequest, message).param("url"));
        }
        register(&gateway, spec).await
    }
    .await;
    count(&gateway, "replace", &replaced);
    replaced.map(|(worker, _)| Answer::json(StatusCode::ACCEPTED, &info(&gateway, &worker))).into()
}

/// Changes some of a worker's settings.
pub(crate) async fn update(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>, body: Bytes) -> Answer {
    let updated = async {
        let worker = find(&gateway, &id)?;
        let patch: WorkerPatch = parse(&body)?;
        let worker = gateway.fleet.patch(worker.id, patch).map_err(|error| refused(&error))?;
        tell(&gateway, &worker).await?;
        Ok(worker)
    }
    .await;
    count(&gateway, "update", &updated);
    updated.map(|worker| Answer::json(StatusCode::ACCEPTED, &info(&gateway, &worker))).into()
}

/// Sends a worker no more requests; those in flight go on.
pub(crate) async fn drain(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    let drained = find(&gateway, &id).inspect(|worker| {
        gateway.fleet.drain(worker.id);
        tracing::info!(worker = %worker.id, url = %worker.spec.url, "worker draining");
    });
    count(&gateway, "drain", &drained);
    drained
        .map(|worker| {
            let body = json!({
                "status": "draining", "worker_id": worker.id, "in_flight": worker.state.load.in_flight()
            });
            Answer::json(StatusCode::ACCEPTED, &body)
        })
        .into()
}

/// Drains a worker, and removes it when its requests have ended; on all nodes of the mesh.
pub(crate) async fn remove(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>) -> Answer {
    let removed = async {
        let worker = find(&gateway, &id)?;
        if let Some(cluster) = &gateway.cluster {
            cluster.removed(worker.id).await.map_err(mesh::refused)?;
        }
        gateway.retire_worker(worker.id);
        tracing::info!(worker = %worker.id, url = %worker.spec.url, "worker draining before removal");
        Ok(worker)
    }
    .await;
    count(&gateway, "remove", &removed);
    removed
        .map(|worker| {
            let body = json!({
                "status": "accepted",
                "worker_id": worker.id,
                "in_flight": worker.state.load.in_flight(),
                "message": "the worker takes no more requests and is removed when those in flight have ended",
            });
            Answer::json(StatusCode::ACCEPTED, &body)
        })
        .into()
}

/// A worker by its id or URL.
pub(crate) fn find(gateway: &Gateway, id: &str) -> Result<Arc<Worker>, Failure> {
    let snapshot = gateway.fleet.snapshot();
    let found = match id.parse::<WorkerId>() {
        Ok(id) => snapshot.worker(id).cloned(),
        Err(_) => snapshot.workers().iter().find(|worker| worker.spec.url.as_str() == id).cloned(),
    };
    found.ok_or_else(|| Failure::new(FailureCode::NotFound, "there is no such worker"))
}

/// Reads an admin body. The message names the place, never the text: it may hold a key.
fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::new(FailureCode::InvalidRequest, format!("the body is not as expected: {error}")))
}

fn count<T>(gateway: &Gateway, operation: &str, result: &Result<T, Failure>) {
    let result = if result.is_ok() { "ok" } else { "refused" };
    gateway.metrics.admin_operations.with_label_values(&[operation, result]).inc();
}
