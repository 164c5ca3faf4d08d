//! What operators and probes ask: workers, models, engines, health, explanations.

use std::sync::Arc;

use axum::{
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Serialize;
use smg_infer::Failure;

use crate::{
    access::{self, PeerAddress},
    app::Gateway,
    routes,
};

pub(crate) mod engines;
pub(crate) mod explain;
pub(crate) mod models;
pub(crate) mod probes;
pub(crate) mod workers;

/// Which door a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    /// The callers'.
    Serving,
    /// The operators'.
    Admin,
}

/// Lets only those in who may come in.
pub(crate) async fn guard(door: Door, gateway: Arc<Gateway>, request: Request, next: Next) -> Response {
    let refused = {
        let current = gateway.settings();
        let headers = request.headers();
        match door {
            Door::Serving => access::serving(headers, &current.settings).err(),
            Door::Admin => {
                let peer = request.extensions().get::<PeerAddress>().copied();
                access::admin(headers, peer, &current.settings).err()
            }
        }
    };
    let Some(failure) = refused else {
        return next.run(request).await;
    };
    let surface = if door == Door::Admin { "admin" } else { "serving" };
    gateway.metrics.auth_failures.with_label_values(&[surface]).inc();
    routes::refuse(&gateway, &request, &failure)
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
                Self(Err(Failure::new(smg_infer::FailureCode::Internal, "the answer cannot be written")))
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
