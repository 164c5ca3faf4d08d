//! What the gateway says when it says no: one shape for each family of APIs, before and in the middle of a stream.

use serde::Serialize;

use crate::{Endpoint, Family};

/// An error as a client is to see it.
#[derive(Clone, Copy, Debug)]
pub struct ErrorView<'a> {
    /// The HTTP status; it decides the `type`.
    pub status: u16,
    /// What happened, as a stable snake-case word.
    pub code: &'a str,
    /// A sentence for people.
    pub message: &'a str,
    /// The field at fault.
    pub param: Option<&'a str>,
    /// The request's id.
    pub request_id: Option<&'a str>,
}

/// The body of an error answer, in the family's shape.
pub fn body(family: Family, view: &ErrorView<'_>) -> Vec<u8> {
    match family {
        Family::OpenAi | Family::Native => json(&OpenAiBody::new(view)),
        Family::Anthropic => json(&AnthropicBody::new(view)),
    }
}

/// The event that tells an error in the middle of a stream, blank line included. Nothing may follow it. `sequence` is the
/// number of the event in its stream, which the Responses API wants.
pub fn stream_event(endpoint: Endpoint, view: &ErrorView<'_>, sequence: u64) -> Vec<u8> {
    match (endpoint, endpoint.family()) {
        (Endpoint::Responses, _) => event(Some("error"), &json(&ResponsesError::new(view, sequence))),
        (_, Family::Anthropic) => event(Some("error"), &json(&AnthropicBody::new(view))),
        (_, Family::OpenAi | Family::Native) => event(None, &json(&OpenAiBody::new(view))),
    }
}

fn event(name: Option<&str>, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(data.len() + 32);
    if let Some(name) = name {
        out.extend_from_slice(b"event: ");
        out.extend_from_slice(name.as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\n\n");
    out
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings and numbers always serialise")
}

#[derive(Serialize)]
struct OpenAiBody<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'a str,
}

impl<'a> OpenAiBody<'a> {
    fn new(view: &ErrorView<'a>) -> Self {
        let r#type = openai_type(view.status);
        Self { error: OpenAiError { message: view.message, r#type, param: view.param, code: view.code } }
    }
}

/// The `error` event of the Responses API is flat.
#[derive(Serialize)]
struct ResponsesError<'a> {
    r#type: &'static str,
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
    sequence_number: u64,
}

impl<'a> ResponsesError<'a> {
    fn new(view: &ErrorView<'a>, sequence_number: u64) -> Self {
        Self { r#type: "error", code: view.code, message: view.message, param: view.param, sequence_number }
    }
}

#[derive(Serialize)]
struct AnthropicBody<'a> {
    r#type: &'static str,
    error: AnthropicError<'a>,
    request_id: Option<&'a str>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    r#type: &'static str,
    message: &'a str,
    details: AnthropicDetails<'a>,
}

/// Where Anthropic's clients look for a stable code.
#[derive(Serialize)]
struct AnthropicDetails<'a> {
    error_code: &'a str,
}

impl<'a> AnthropicBody<'a> {
    fn new(view: &ErrorView<'a>) -> Self {
        let r#type = anthropic_type(view.status);
        let error =
            AnthropicError { r#type, message: view.message, details: AnthropicDetails { error_code: view.code } };
        Self { r#type: "error", error, request_id: view.request_id }
    }
}

fn openai_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        409 => "conflict_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

fn anthropic_type(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        402 => "billing_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIEW: ErrorView<'static> = ErrorView {
        status: 404,
        code: "model_not_found",
        message: "no worker serves \"x\"\n",
        param: Some("model"),
        request_id: Some("req-1"),
    };

    fn check(got: &[u8], expected: &str) {
        assert_eq!(str::from_utf8(got).expect("UTF-8"), expected);
    }

    #[test]
    fn bodies_have_the_shape_of_their_family() {
        let openai = r#"{"error":{"message":"no worker serves \"x\"\n","type":"not_found_error","param":"model","code":"model_not_found"}}"#;
        check(&body(Family::OpenAi, &VIEW), openai);
        check(&body(Family::Native, &VIEW), openai);
        check(
            &body(Family::Anthropic, &VIEW),
            r#"{"type":"error","error":{"type":"not_found_error","message":"no worker serves \"x\"\n","details":{"error_code":"model_not_found"}},"request_id":"req-1"}"#,
        );
        let anonymous = ErrorView { param: None, request_id: None, status: 500, ..VIEW };
        let text = |family| String::from_utf8(body(family, &anonymous)).expect("UTF-8");
        assert!(text(Family::OpenAi).contains(r#""type":"server_error","param":null,"#));
        assert!(text(Family::Anthropic).ends_with(r#""request_id":null}"#));
    }

    #[test]
    fn events_have_the_shape_of_their_endpoint() {
        let lost =
            ErrorView { status: 502, code: "upstream_lost", message: "gone", param: None, request_id: Some("r") };
        let openai = "data: {\"error\":{\"message\":\"gone\",\"type\":\"server_error\",\"param\":null,\"code\":\"upstream_lost\"}}\n\n";
        check(&stream_event(Endpoint::ChatCompletions, &lost, 9), openai);
        check(&stream_event(Endpoint::Generate, &lost, 9), openai);
        check(
            &stream_event(Endpoint::Responses, &lost, 9),
            "event: error\ndata: {\"type\":\"error\",\"code\":\"upstream_lost\",\"message\":\"gone\",\"param\":null,\"sequence_number\":9}\n\n",
        );
        check(
            &stream_event(Endpoint::Messages, &lost, 9),
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"gone\",\"details\":{\"error_code\":\"upstream_lost\"}},\"request_id\":\"r\"}\n\n",
        );
    }

    #[test]
    fn types_follow_the_status() {
        let check = |status: u16, openai: &str, anthropic: &str| {
            assert_eq!((openai_type(status), anthropic_type(status)), (openai, anthropic), "{status}");
        };
        check(400, "invalid_request_error", "invalid_request_error");
        check(401, "authentication_error", "authentication_error");
        check(403, "permission_error", "permission_error");
        check(405, "invalid_request_error", "invalid_request_error");
        check(413, "invalid_request_error", "request_too_large");
        check(429, "rate_limit_error", "rate_limit_error");
        check(499, "invalid_request_error", "invalid_request_error");
        check(500, "server_error", "api_error");
        check(502, "server_error", "api_error");
        check(503, "server_error", "overloaded_error");
        check(504, "server_error", "timeout_error");
    }
}
