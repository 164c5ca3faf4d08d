//! Stored responses: `/v1/responses/{id}` and what lies below it go to the worker that holds the response.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Path, Request, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use smg_api::Family;
use smg_auth::Scope;
use smg_base::{RequestId, TenantId, WorkerId};
use smg_fleet::{Path as WorkerPath, Worker};
use smg_infer::{Failure, FailureCode};
use smg_upstream::{Outbound, OutboundBody};
use tokio::time::timeout;

use crate::{
    access::{Guest, Visit},
    app::Gateway,
    body::{self, Limits},
    edge, questions,
    reply::{self, Refusal},
};

/// Workers asked for a response nobody remembers, at most.
const WORKERS_ASKED_MAX: usize = 64;

/// How long one worker may take to say whether it holds a response.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest id.
const ID_BYTES_MAX: usize = 128;

/// Takes `GET`, `DELETE` and `POST …/cancel` of a stored response to where it is stored.
pub(crate) async fn stored(State(gateway): State<Arc<Gateway>>, Path(id): Path<String>, request: Request) -> Response {
    stored_below(State(gateway), Path((id, String::new())), request).await
}

/// The same for `…/cancel` and `…/input_items`.
pub(crate) async fn stored_below(
    State(gateway): State<Arc<Gateway>>,
    Path((id, below)): Path<(String, String)>,
    request: Request,
) -> Response {
    let current = gateway.settings().clone();
    let names = &current.settings.request_id_headers;
    let (request_id, _) = edge::request_id(request.headers(), names, "resp-", &*gateway.random);
    let result = forward(&gateway, &current.settings, &id, &below, request).await;
    match result {
        Ok(mut response) => {
            edge::to_client(response.headers_mut());
            reply::stamp(response.headers_mut(), Family::OpenAi, &request_id);
            response
        }
        Err(failure) => refuse(&failure, &request_id),
    }
}

fn refuse(failure: &Failure, request_id: &RequestId) -> Response {
    Refusal { family: Family::OpenAi, request_id: Some(request_id), failure }.into_response()
}

async fn forward(
    gateway: &Gateway,
    settings: &crate::config::Settings,
    id: &str,
    below: &str,
    request: Request,
) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let Guest { principal, credentials } = gateway.let_in(Visit::of(&head), Some(Scope::Responses), settings).await?;
    let known_path = matches!(
        (&head.method, below),
        (&Method::GET | &Method::DELETE, "") | (&Method::POST, "cancel") | (&Method::GET, "input_items")
    );
    if !known_path || !is_id(id) {
        return Err(Failure::new(FailureCode::NotFound, "there is no such object"));
    }
    let limits = Limits { bytes_max: 1 << 20, pause_max: settings.body_timeout };
    let mut share = gateway.body_budget.share();
    let body = body::collect(body, body::announced(&head.headers), limits, &mut share).await?;
    let mut headers = head.headers;
    edge::to_worker(&mut headers, credentials);
    let mut path = format!("/v1/responses/{id}");
    if !below.is_empty() {
        path.push('/');
        path.push_str(below);
    }
    if let Some(query) = head.uri.query() {
        path.push('?');
        path.push_str(query);
    }
    if let Some(header) = &settings.tenant_header {
        headers.remove(&header.name);
    }
    let searching = if gateway.access.isolates(settings) { Searching::Forbidden } else { Searching::Allowed };
    let errand = Errand { method: head.method, path, headers, body, tenant: principal.tenant.clone(), searching };
    errand.run(gateway, id).await
}

fn is_id(id: &str) -> bool {
    (1..=ID_BYTES_MAX).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

impl Gateway {
    /// The worker that answered a response id for a tenant. A peer may remember what this node does not; without its answer a worker would
    /// be asked that does not have the response.
    pub(crate) async fn worker_of_response(&self, tenant: &TenantId, id: &str) -> Option<WorkerId> {
        let own = self.affinity.worker_of(tenant, id, self.now());
        let (result, worker) = match own {
            Some(worker) => ("hit", Some(worker)),
            None => match questions::responder(self, tenant, id).await {
                Some(worker) => ("peer", Some(worker)),
                None => ("miss", None),
            },
        };
        self.metrics.affinity_lookups.with_label_values(&[result]).inc();
        worker
    }
}

/// One request about one stored response.
struct Errand {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: bytes::Bytes,
    tenant: TenantId,
    searching: Searching,
}

/// Whether a response that nobody remembers is looked for at the workers. They do not know whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Searching {
    Allowed,
    Forbidden,
}

impl Errand {
    /// Goes to the worker that holds the response; where nobody remembers which that is, asks one after another.
    async fn run(&self, gateway: &Gateway, id: &str) -> Result<Response, Failure> {
        let snapshot = gateway.fleet.snapshot().clone();
        let now = gateway.now();
        let known =
            gateway.worker_of_response(&self.tenant, id).await.and_then(|worker| snapshot.worker(worker).cloned());
        if let Some(worker) = known {
            return self.ask(gateway, &worker).await;
        }
        let available = snapshot.workers().iter().filter(|worker| worker.is_available(now));
        let available = available.filter(|_| self.searching == Searching::Allowed);
        for worker in available.take(WORKERS_ASKED_MAX) {
            match self.ask(gateway, worker).await {
                Ok(response) if response.status().is_success() => {
                    gateway.affinity.learn(&self.tenant, id, worker.id, now);
                    return Ok(response);
                }
                // Not here, or not a worker that keeps responses.
                Ok(_) | Err(_) => {}
            }
        }
        Err(Failure::new(FailureCode::NotFound, "no worker holds a response with this id"))
    }

    async fn ask(&self, gateway: &Gateway, worker: &Worker) -> Result<Response, Failure> {
        let outbound = Outbound {
            method: self.method.clone(),
            path_and_query: self.path.clone().into(),
            headers: self.headers.clone(),
            body: OutboundBody::Full(self.body.clone()),
        };
        let path = worker.path(gateway.now()).unwrap_or(WorkerPath::Direct);
        let answer = timeout(PATIENCE, gateway.upstream.send_on(path, worker, outbound)).await;
        let response = answer.map_err(|_| {
            Failure::new(FailureCode::UpstreamTimeout, "the worker that holds the response does not answer")
        })??;
        let length_known = response.status() == StatusCode::NO_CONTENT;
        let (mut head, body) = response.into_parts();
        if !length_known {
            head.headers.remove(http::header::CONTENT_LENGTH);
        }
        Ok(Response::from_parts(head, axum::body::Body::new(body.map_err(axum::Error::new))))
    }
}
