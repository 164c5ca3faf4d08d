//! What the gateway itself has to say, in the shape of the caller's API family.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};
use smg_api::{
    Endpoint, Family,
    error::{self, ErrorView},
};
use smg_base::RequestId;
use smg_infer::{Failure, FailureCode};

use crate::{
    edge::{X_REQUEST_ID, header_value},
    limits::{RETRY_AFTER_MS, X_SHOULD_RETRY},
};

/// Names the gateway's error code, as the reference gateway does.
const X_SMG_ERROR_CODE: HeaderName = HeaderName::from_static("x-smg-error-code");

/// Says that a request gave way to a more urgent one, as the reference gateway does.
const X_SMG_PREEMPTED: HeaderName = HeaderName::from_static("x-smg-preempted");

/// A failure together with what is needed to word it.
pub(crate) struct Refusal<'a> {
    pub(crate) family: Family,
    pub(crate) request_id: Option<&'a RequestId>,
    pub(crate) failure: &'a Failure,
}

impl Refusal<'_> {
    fn view(&self) -> ErrorView<'_> {
        ErrorView {
            status: self.failure.code.status(),
            code: self.failure.code.as_str(),
            message: &self.failure.message,
            param: self.failure.param.as_deref(),
            request_id: self.request_id.map(RequestId::as_str),
        }
    }
}

impl IntoResponse for Refusal<'_> {
    fn into_response(self) -> Response {
        let code = self.failure.code;
        let mut response = Response::new(error::body(self.family, &self.view()).into());
        *response.status_mut() = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(X_SMG_ERROR_CODE, HeaderValue::from_static(code.as_str()));
        if let Some(id) = self.request_id {
            stamp(headers, self.family, id);
        }
        if let Some(wait) = self.failure.retry_after {
            // Rounded up: a caller that comes back in time must not be refused again.
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        match code {
            FailureCode::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            // The rest of the body was not read, so the connection cannot carry another request.
            FailureCode::PayloadTooLarge | FailureCode::ClientTooSlow => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            FailureCode::RateLimited | FailureCode::BudgetSpent => match self.failure.retry_after {
                Some(wait) => {
                    let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
                    headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
                }
                // It would be refused again, however late it came.
                None => drop(headers.insert(X_SHOULD_RETRY, HeaderValue::from_static("false"))),
            },
            FailureCode::SchedulerPreempted => {
                headers.insert(X_SMG_PREEMPTED, HeaderValue::from_static("true"));
            }
            _ => {}
        }
        response
    }
}

/// Puts the request id where the caller's dialect looks for it.
pub(crate) fn stamp(headers: &mut http::HeaderMap, family: Family, id: &RequestId) {
    let value = header_value(id.as_str());
    if family == Family::Anthropic {
        headers.insert(HeaderName::from_static("request-id"), value.clone());
    }
    headers.insert(X_REQUEST_ID, value);
}

/// The event that tells a caller in the middle of a stream that the rest will not come.
pub(crate) fn stream_event(endpoint: Endpoint, id: &RequestId, failure: &Failure, sequence: u64) -> Vec<u8> {
    let refusal = Refusal { family: endpoint.family(), request_id: Some(id), failure };
    error::stream_event(endpoint, &refusal.view(), sequence)
}

/// The family whose error shape a path's callers expect.
pub(crate) fn family_of_path(path: &str) -> Family {
    match Endpoint::ALL.iter().find(|endpoint| endpoint.path() == path) {
        Some(endpoint) => endpoint.family(),
        None if path.starts_with("/v1/messages") => Family::Anthropic,
        None => Family::OpenAi,
    }
}
