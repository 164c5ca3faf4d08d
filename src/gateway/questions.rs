//! What nodes ask each other about what each of them alone remembers: how a request was routed, and which worker answered a
//! response id.
//!
//! A question takes one hop: who is asked looks into its own memory and no further. It is a `GET` on a relay stream, which only
//! members of the mesh can open.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::{BodyExt, Limited};
use serde_json::{Value, json};
use smg_base::{PeerId, TenantId, WorkerId};
use smg_infer::{Failure, FailureCode};
use smg_upstream::{Outbound, OutboundBody, relay};
use tokio::time::timeout;

use crate::{admin, app::Gateway, edge};

/// Peers asked at once.
const ASKED_AT_ONCE: usize = 8;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// How long an operator waits for what peers know.
const OPERATORS_PATIENCE: Duration = Duration::from_secs(1);

/// How long a request waits for that, if it can go nowhere else.
const CALLERS_PATIENCE: Duration = Duration::from_millis(500);

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    /// How a request was routed.
    Explain,
    /// Who answered a response id.
    Responder,
    /// What tenants used.
    Usage,
}

impl Question {
    const fn path(self) -> &'static str {
        match self {
            Self::Explain => "/explain",
            Self::Responder => "/responder",
            Self::Usage => "/usage",
        }
    }
}

/// Answers a peer out of this node's own memory.
pub(crate) fn answer(gateway: &Gateway, path: &str, headers: &HeaderMap) -> Result<Response, Failure> {
    let unknown = || Failure::new(FailureCode::NotFound, "nothing is remembered of this here");
    let about = headers.get(&relay::ABOUT).and_then(|about| about.to_str().ok()).ok_or_else(unknown)?;
    let found = if path == Question::Explain.path() {
        gateway.explanations.find(about).and_then(|record| serde_json::to_value(&record).ok())
    } else if path == Question::Responder.path() {
        let tenant = &gateway.access.of_peer(headers).tenant;
        gateway.affinity.worker_of(tenant, about, gateway.now()).map(|worker| json!({ "worker": worker.to_string() }))
    } else if path == Question::Usage.path() {
        admin::usage::of_node(gateway, about).and_then(|known| serde_json::to_value(&known).ok())
    } else {
        return Err(Failure::new(FailureCode::RouteNotFound, "the peer asks for something unknown here"));
    };
    let text = found.ok_or_else(unknown)?.to_string();
    let headers = [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((headers, text).into_response())
}

/// What a peer remembers of how a request was routed, and the peer: the one with the caller, if that answers in time.
pub(crate) async fn explain(gateway: &Gateway, request_id: &str) -> Option<(PeerId, Value)> {
    let mut answers = std::pin::pin!(ask(gateway, Question::Explain, request_id, None));
    let mut best = None;
    let looking = async {
        while let Some(answer) = answers.next().await {
            let is_second_hand = answer.1.get("from_peer").is_some();
            if best.is_none() || !is_second_hand {
                best = Some(answer);
            }
            if !is_second_hand {
                break;
            }
        }
    };
    // What came before time was up is as good.
    let _in_time = timeout(OPERATORS_PATIENCE, looking).await;
    best
}

/// The worker that answered a response id for a tenant, if a peer remembers it. It is remembered here too from then on.
pub(crate) async fn responder(gateway: &Gateway, tenant: &TenantId, response_id: &str) -> Option<WorkerId> {
    let mut answers = std::pin::pin!(
        ask(gateway, Question::Responder, response_id, Some(tenant))
            .filter_map(|(_, answer)| async move { answer["worker"].as_str()?.parse::<WorkerId>().ok() })
    );
    let worker = timeout(CALLERS_PATIENCE, answers.next()).await.ok()??;
    gateway.affinity.learn(tenant, response_id, worker, gateway.now());
    Some(worker)
}

/// What the peers counted of usage: of those that answer in time.
pub(crate) async fn usage(gateway: &Gateway, about: &str) -> Vec<Value> {
    let mut answers = std::pin::pin!(ask(gateway, Question::Usage, about, None));
    let mut heard = Vec::new();
    let listening = async {
        while let Some((_, answer)) = answers.next().await {
            heard.push(answer);
        }
    };
    let _in_time = timeout(OPERATORS_PATIENCE, listening).await;
    heard
}

/// What the peers know, as they answer.
fn ask<'a>(
    gateway: &'a Gateway,
    question: Question,
    about: &str,
    tenant: Option<&TenantId>,
) -> impl futures_util::Stream<Item = (PeerId, Value)> + 'a + use<'a> {
    let peers = gateway.cluster.as_ref().map(|cluster| cluster.peers()).unwrap_or_default();
    let about = HeaderValue::from_str(about).ok();
    let mut headers = HeaderMap::new();
    if let Some(tenant) = tenant {
        headers.insert(relay::TENANT, edge::header_value(&edge::percent_encoded(tenant.as_str())));
    }
    let told = about.map(|about| {
        headers.insert(relay::ABOUT, about);
        headers
    });
    let asked: Vec<_> = peers.into_iter().filter_map(|peer| Some((peer, told.clone()?))).collect();
    stream::iter(asked)
        .map(move |(peer, headers)| async move { Some((peer, ask_one(gateway, peer, question, headers).await?)) })
        .buffer_unordered(ASKED_AT_ONCE)
        .filter_map(std::future::ready)
}

async fn ask_one(gateway: &Gateway, peer: PeerId, question: Question, headers: HeaderMap) -> Option<Value> {
    let outbound = Outbound {
        method: Method::GET,
        path_and_query: question.path().into(),
        headers,
        body: OutboundBody::Full(Bytes::new()),
    };
    let answer = gateway.upstream.ask_peer(peer, outbound).await.ok()?;
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.ok()?;
    serde_json::from_slice(&body.to_bytes()).ok()
}
