//! What operators and probes ask: workers, models, engines, health, explanations.

use std::sync::Arc;

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};
use http_body::Body;
use http_body_util::BodyExt;
use serde::Serialize;
use smg_auth::{Scope, Via};
use smg_infer::{Failure, FailureCode};

use crate::{
    access::{self, Guest, Refused, Visit},
    app::Gateway,
    body::{self, Limits},
    config::Settings,
    edge::{self, Credentials},
    routes,
};

use self::audit::{Attempt, Change};

pub(crate) mod audit;
pub(crate) mod engines;
pub(crate) mod explain;
pub(crate) mod keys;
pub(crate) mod limits;
pub(crate) mod mesh;
pub(crate) mod models;
pub(crate) mod probes;
pub(crate) mod usage;
pub(crate) mod workers;

/// Which door a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// The callers', who may need a scope for it.
    Serving(Option<Scope>),
    /// The operators'.
    Admin,
}

/// Largest body of an admin request.
const BODY_BYTES_MAX: u64 = 1 << 20;

/// Longest text with which a path, query or body is refused before the handler sees it.
const REASON_BYTES_MAX: u64 = 4 << 10;

/// Lets only those in who may come in. What a handler gets has its body whole, and what it says to one that is malformed has
/// the shape of all errors.
pub(crate) async fn guard(door: Door, gateway: Arc<Gateway>, request: Request, next: Next) -> Response {
    let current = gateway.settings().clone();
    let (mut head, body) = request.into_parts();
    let attempt = (door == Door::Admin).then(|| attempt(&gateway, &current.settings, &head)).flatten();
    let guest = match let_in(door, &gateway, &current.settings, &head).await {
        Ok(guest) => guest,
        Err(refused) => {
            let surface = if door == Door::Admin { "admin" } else { "serving" };
            gateway.metrics.auth_failures.with_label_values(&[surface, refused.reason]).inc();
            if let Some(attempt) = attempt {
                attempt.denied(&gateway, &refused);
            }
            return routes::refuse(&gateway, &Request::from_parts(head, body), &refused.failure);
        }
    };
    head.extensions.insert(guest.clone());
    let mut share = gateway.body_budget.share();
    let body = if door == Door::Admin {
        let limits = Limits { bytes_max: BODY_BYTES_MAX, pause_max: current.settings.body_timeout };
        match body::collect(body, body::announced(&head.headers), limits, &mut share).await {
            Ok(body) => body.into(),
            Err(failure) => return Answer::from(failure).into_response(),
        }
    } else {
        body
    };
    let response = reworded(next.run(Request::from_parts(head, body)).await).await;
    if let Some(attempt) = attempt {
        attempt.ended(&gateway, &guest.principal, response.status(), response.extensions().get::<Change>());
    }
    response
}

fn attempt(gateway: &Gateway, settings: &Settings, head: &Parts) -> Option<Attempt> {
    let (request_id, _) = edge::request_id(&head.headers, &settings.request_id_headers, "req-", &*gateway.random);
    Attempt::of(Visit::of(head), head.uri.path(), request_id)
}

async fn let_in(door: Door, gateway: &Gateway, settings: &Settings, head: &Parts) -> Result<Guest, Refused> {
    let visit = Visit::of(head);
    if let Door::Serving(wanted) = door {
        return gateway.access.serving(visit, wanted, settings).await;
    }
    let principal = gateway.access.admin(visit, settings).await?;
    if principal.via == Via::Open && access::is_of_foreign_page(&head.headers, &gateway.config.cors_origins) {
        return Err(access::forbidden("web pages may not administer a gateway that has no key"));
    }
    Ok(Guest { principal, credentials: Credentials::Gateways })
}

/// Puts the plain text with which axum refuses paths, queries and bodies into the shape of all errors.
async fn reworded(response: Response) -> Response {
    let is_text = |value: &http::HeaderValue| value.as_bytes().starts_with(b"text/plain");
    let is_plain = response.headers().get(http::header::CONTENT_TYPE).is_some_and(is_text);
    let is_short = response.body().size_hint().exact().is_some_and(|bytes| bytes <= REASON_BYTES_MAX);
    if !response.status().is_client_error() || !is_plain || !is_short {
        return response;
    }
    let status = response.status();
    let reason = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let reason = String::from_utf8_lossy(&reason).into_owned();
    let mut worded = Answer::from(Failure::new(FailureCode::InvalidRequest, reason)).into_response();
    *worded.status_mut() = status;
    worded
}

/// An admin answer: JSON with a status, or a failure in the usual shape.
pub(crate) struct Answer(Result<(StatusCode, Box<serde_json::value::RawValue>), Failure>);

impl Answer {
    /// `value` with `status`.
    pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::value::to_raw_value(value) {
            Ok(raw) => Self(Ok((status, raw))),
            Err(error) => {
                tracing::error!(%error, "cannot serialise an admin answer");
                Self(Err(Failure::new(FailureCode::Internal, "the answer cannot be written")))
            }
        }
    }

    /// `value` with status 200.
    pub(crate) fn ok(value: &impl Serialize) -> Self {
        Self::json(StatusCode::OK, value)
    }
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Self {
        Self(Err(failure))
    }
}

impl From<Result<Self, Failure>> for Answer {
    fn from(result: Result<Self, Failure>) -> Self {
        result.unwrap_or_else(Self::from)
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self.0 {
            Ok((status, value)) => {
                let headers = [(http::header::CONTENT_TYPE, "application/json")];
                (status, headers, Box::<str>::from(value).into_string()).into_response()
            }
            Err(failure) => {
                let family = smg_api::Family::OpenAi;
                crate::reply::Refusal { family, request_id: None, failure: &failure }.into_response()
            }
        }
    }
}
