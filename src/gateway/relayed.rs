//! Requests that a peer hands on, because this node reaches the worker and the peer does not.
//!
//! The peer knows the caller: it has authenticated it, admitted the request, counts it and settles it. Here the request enters
//! the pipeline behind all that, and goes to a worker that this node reaches itself or to none: a request that wanders from
//! node to node would never be found again. Headers of the relay mean something on streams of peers only; from callers they
//! are never looked at, and none of them reaches a caller or a worker.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use smg_api::{Endpoint, Family};
use smg_base::{PeerId, WorkerId};
use smg_fleet::Relaying;
use smg_infer::{Dispatched, Failure, FailureCode};
use smg_upstream::{Outbound, OutboundBody, relay};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    app::Gateway,
    body::{self, Limits},
    edge::{self, Credentials},
    pipeline::{self, Received},
    questions,
    reply::Refusal,
};

/// How long a peer may take over the head of a request.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Largest head: the caller's, and what the peer adds.
const HEAD_BYTES_MAX: usize = 256 << 10;

/// Fields in a head: the caller's, and what the peer adds.
const HEADERS_MAX: usize = crate::listener::HEADERS_MAX + 16;

/// Largest body of an errand.
const ERRAND_BYTES_MAX: u64 = 1 << 20;

/// Where a relayed request comes from, and what its sender says of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hop {
    /// The peer.
    pub(crate) peer: PeerId,
    /// The worker it would take.
    pub(crate) preferred: Option<WorkerId>,
    /// How long the answer may take.
    pub(crate) time_left: Option<Duration>,
}

impl Hop {
    fn new(peer: PeerId, headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name)?.to_str().ok();
        let time_left = text(relay::DEADLINE_MS).and_then(|ms| ms.parse().ok()).map(Duration::from_millis);
        Self { peer, preferred: text(relay::WORKER).and_then(|id| id.parse().ok()), time_left }
    }

    /// Whether a request that came like this may be handed to a peer.
    pub(crate) fn relaying(hop: Option<&Self>) -> Relaying {
        if hop.is_some() { Relaying::Forbidden } else { Relaying::Allowed }
    }
}

/// Serves the one request on a stream that `peer` opened. Ends when the answer has been sent, or when the peer has gone, which
/// the worker then sees too.
pub async fn serve_relayed<S>(gateway: Arc<Gateway>, peer: PeerId, stream: S)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let gateway = gateway.clone();
        async move { Ok::<_, Infallible>(answer(gateway, peer, request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .keep_alive(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "relayed request ended with an error");
    }
}

async fn answer(gateway: Arc<Gateway>, peer: PeerId, request: Request<Incoming>) -> Response {
    let (head, body) = request.into_parts();
    let body = axum::body::Body::new(body);
    let hop = Hop::new(peer, &head.headers);
    if head.headers.contains_key(&relay::ERRAND) {
        return errand(&gateway, hop, head, body).await.unwrap_or_else(|failure| refused(&failure));
    }
    if head.method == Method::GET {
        let answered = questions::answer(&gateway, head.uri.path(), &head.headers);
        return answered.unwrap_or_else(|failure| refused(&failure));
    }
    match Endpoint::of_path(head.uri.path()).filter(|_| head.method == Method::POST) {
        Some(endpoint) => pipeline::serve_relayed(gateway, Received { endpoint, head, body }, hop).await,
        None => refused(&Failure::new(FailureCode::RouteNotFound, "the peer asks for something unknown here")),
    }
}

/// What a peer wants of a worker itself, such as a response that is stored there.
async fn errand(
    gateway: &Gateway,
    hop: Hop,
    head: request::Parts,
    body: axum::body::Body,
) -> Result<Response, Failure> {
    let unavailable = || Failure::new(FailureCode::TargetUnavailable, "the worker cannot be used from here");
    let worker = hop.preferred.and_then(|id| gateway.fleet.snapshot().worker(id).cloned()).ok_or_else(unavailable)?;
    if !worker.can_take(Relaying::Forbidden, gateway.now()) {
        return Err(unavailable());
    }
    let limits = Limits { bytes_max: ERRAND_BYTES_MAX, pause_max: gateway.settings().settings.body_timeout };
    let mut share = gateway.body_budget.share();
    let body = body::collect(body, body::announced(&head.headers), limits, &mut share).await?;
    let request::Parts { method, uri, mut headers, .. } = head;
    edge::to_worker(&mut headers, Credentials::Workers);
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let outbound = Outbound { method, path_and_query: path.into(), headers, body: OutboundBody::Full(body) };
    let response = gateway.upstream.send(&worker, outbound).await?;
    let (mut head, body) = response.into_parts();
    edge::to_client(&mut head.headers);
    Ok(Response::from_parts(head, axum::body::Body::new(body)))
}

/// Says no to a peer, before or after a worker may have got the request.
pub(crate) fn refused(failure: &Failure) -> Response {
    let mut response = Refusal { family: Family::OpenAi, request_id: None, failure }.into_response();
    let name = match failure.dispatched {
        Dispatched::No => relay::REFUSED,
        Dispatched::Maybe | Dispatched::Yes => relay::FAILED,
    };
    response.headers_mut().insert(name, HeaderValue::from_static(failure.code.as_str()));
    response
}
