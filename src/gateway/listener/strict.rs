//! Requests that two servers might read differently. The HTTP library reads them in one way and gets most right; where
//! a server in front may have read another, the request is refused rather than guessed at (RFC 9112 §3.2, §6.1, §11.2).

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, Request, Version, header};
use smg_infer::{Failure, FailureCode};

use crate::reply::{self, Refusal};

/// The answer to a request that cannot be trusted; none to all others.
pub(super) fn refuse<B>(request: &Request<B>) -> Option<Response> {
    let message = doubt(request)?;
    let failure = Failure::new(FailureCode::InvalidRequest, message);
    let family = reply::family_of_path(request.uri().path());
    let mut response = Refusal { family, request_id: None, failure: &failure }.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

fn doubt<B>(request: &Request<B>) -> Option<&'static str> {
    if request.version() > Version::HTTP_11 {
        // There these things have no place, and its own checks.
        return None;
    }
    let headers = request.headers();
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (!coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some())
    {
        return Some("the only transfer coding taken is chunked, once");
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() == Version::HTTP_11 => return Some("the request names no host"),
        (_, Some(_)) => return Some("the request names more than one host"),
        _ => {}
    }
    let has_credentials = |authority: &http::uri::Authority| authority.as_str().contains('@');
    if request.uri().authority().is_some_and(has_credentials) {
        return Some("the request's target holds credentials");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubtful_requests_are_told_from_good_ones() {
        let check = |uri: &str, version: Version, fields: &[(&'static str, &'static str)], is_good: bool| {
            let mut request = Request::builder().uri(uri).version(version);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            let request = request.body(()).expect("a request");
            assert_eq!(doubt(&request).is_none(), is_good, "{request:?}");
        };
        let host = ("host", "a");
        check("/", Version::HTTP_11, &[host], true);
        check("/", Version::HTTP_11, &[host, ("transfer-encoding", "Chunked")], true);
        check("/", Version::HTTP_11, &[host, ("transfer-encoding", "gzip, chunked")], false);
        check(
            "/",
            Version::HTTP_11,
            &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            false,
        );
        check("/", Version::HTTP_11, &[], false);
        check("/", Version::HTTP_10, &[], true);
        check("/", Version::HTTP_2, &[], true);
        check("/", Version::HTTP_11, &[host, host], false);
        check("http://b/", Version::HTTP_11, &[host], true);
        check("http://u:p@b/", Version::HTTP_11, &[host], false);
    }
}
