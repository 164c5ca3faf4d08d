//! Listener, keys, limits, TLS: what guards the two edges.

mod access;
mod bad_input;
mod cors;
mod headers;
mod limits;
mod registration;
mod slow;
mod smuggling;
mod tls;
mod upstream_tls;

use crate::harness::{Answer, Ask, Stream, on};

/// The paths of the serving endpoints whose body is JSON.
const JSON_PATHS: [&str; 13] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/rerank",
    "/v1/classify",
    "/v1/score",
    "/generate",
    "/v1/tokenize",
    "/v1/detokenize",
];

/// A good request.
fn chat() -> Ask {
    on("/v1/chat/completions", "demo", Stream::No)
}

/// Checks that `answer` is the error `code` in the shape that callers of `path` expect.
fn assert_refused(path: &str, answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{path}: {answer:?}");
    assert_eq!(answer.field("x-smg-error-code"), Some(code), "{path}: {answer:?}");
    assert_shape(path, answer);
}

/// Checks that an error has the shape that callers of `path` expect.
fn assert_shape(path: &str, answer: &Answer) {
    let what = || format!("{path}: {answer:?}");
    assert!(answer.is_whole, "{}", what());
    assert_eq!(answer.field("content-type"), Some("application/json"), "{}", what());
    let value = answer.value();
    let is_text =
        |place: &str| value.pointer(place).and_then(|text| text.as_str()).is_some_and(|text| !text.is_empty());
    assert!(is_text("/error/message") && is_text("/error/type"), "{}", what());
    if path.starts_with("/v1/messages") {
        assert_eq!(value["type"], "error", "{}", what());
        assert!(answer.field("request-id").is_some(), "{}", what());
    } else {
        assert!(value["error"].get("code").is_some() && value["error"].get("param").is_some(), "{}", what());
    }
}
