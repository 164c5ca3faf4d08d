//! What errors look like in each family of APIs.

use serde_json::Value;

use crate::harness::{Answer, Event};

/// The families by their error shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    OpenAi,
    Responses,
    Anthropic,
}

/// The endpoints of the matrix.
pub(crate) const ENDPOINTS: &[(&str, Shape)] = &[
    ("/v1/chat/completions", Shape::OpenAi),
    ("/v1/completions", Shape::OpenAi),
    ("/v1/messages", Shape::Anthropic),
    ("/v1/responses", Shape::Responses),
    ("/generate", Shape::OpenAi),
    ("/v1/embeddings", Shape::OpenAi),
];

impl Shape {
    /// Checks that `answer` is an error of the gateway's own, whole, in this shape, with this status and code.
    pub(crate) fn check_answer(self, answer: &Answer, (status, code): (u16, &str), what: &str) {
        assert_eq!((answer.status, answer.is_whole), (status, true), "{what}: {}", answer.text());
        assert_eq!(answer.field("content-type"), Some("application/json"), "{what}");
        assert_eq!(answer.field("x-smg-error-code"), Some(code), "{what}: {}", answer.text());
        assert!(answer.field("x-request-id").is_some(), "{what}");
        let body = answer.value();
        match self {
            Self::OpenAi | Self::Responses => check_openai(&body["error"], code, what),
            Self::Anthropic => check_anthropic(&body, code, what),
        }
    }

    /// Checks that `events` end with the gateway's error event, and that nothing pretends that the stream is complete.
    pub(crate) fn check_stream(self, events: &[Event], code: &str, what: &str) {
        let last = events.last().unwrap_or_else(|| panic!("{what}: no event at all"));
        match self {
            Self::OpenAi => check_openai(&last.value()["error"], code, what),
            Self::Anthropic => {
                assert_eq!(last.name.as_deref(), Some("error"), "{what}");
                check_anthropic(&last.value(), code, what);
            }
            Self::Responses => {
                let value = last.value();
                assert_eq!((last.name.as_deref(), &value["type"]), (Some("error"), &"error".into()), "{what}");
                assert_eq!(value["code"], code, "{what}");
                assert!(value["message"].is_string(), "{what}: {value}");
                assert_eq!(value["sequence_number"], events.len() - 1, "{what}");
            }
        }
        assert!(!events.iter().any(|event| self.is_terminal(event)), "{what}: {events:?}");
    }

    /// Checks that `events` are those of a stream that came to its end.
    pub(crate) fn check_complete(self, events: &[Event], what: &str) {
        assert!(events.len() > 3, "{what}: {events:?}");
        assert!(self.is_terminal(events.last().unwrap()), "{what}: {events:?}");
    }

    fn is_terminal(self, event: &Event) -> bool {
        match self {
            Self::OpenAi => event.data == "[DONE]",
            Self::Anthropic => event.name.as_deref() == Some("message_stop"),
            Self::Responses => event.name.as_deref() == Some("response.completed"),
        }
    }
}

fn check_openai(error: &Value, code: &str, what: &str) {
    assert_eq!((&error["code"], &error["type"]), (&code.into(), &"server_error".into()), "{what}: {error}");
    assert!(error["message"].is_string() && error.get("param").is_some(), "{what}: {error}");
}

fn check_anthropic(body: &Value, code: &str, what: &str) {
    let error = &body["error"];
    assert_eq!((&body["type"], &error["details"]["error_code"]), (&"error".into(), &code.into()), "{what}: {body}");
    let kinds = ["api_error", "timeout_error", "overloaded_error"];
    assert!(kinds.iter().any(|kind| error["type"] == *kind) && error["message"].is_string(), "{what}: {body}");
    assert!(body["request_id"].is_string(), "{what}: {body}");
}
