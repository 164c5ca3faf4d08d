//! What is served where.

mod chat;
mod control;
mod generation;
mod info;
mod prompt;

use bytes::Bytes;
use serde_json::Value;

use crate::{
    config::Dialect,
    http1::Head,
    reply::{Cut, Reply},
    worker::Worker,
};

/// A request that has been read.
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Body,
}

/// The body of a request.
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    /// Its JSON, or null if it is none.
    pub(crate) json: Value,
}

impl Body {
    /// A body whose JSON matters.
    pub(crate) fn read(bytes: Bytes) -> Self {
        let json =
            if bytes.first() == Some(&b'{') { serde_json::from_slice(&bytes).unwrap_or_default() } else { Value::Null };
        Self { bytes, json }
    }

    /// A body, or its start, that nobody will look into.
    pub(crate) fn unread(bytes: Bytes) -> Self {
        Self { bytes, json: Value::Null }
    }

    pub(crate) fn model(&self) -> Option<&str> {
        self.json.get("model")?.as_str()
    }

    pub(crate) fn is_stream(&self) -> bool {
        self.json.get("stream").and_then(Value::as_bool).unwrap_or(false)
    }
}

/// Answers `request`.
pub(crate) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
    let (method, path) = (request.head.method(), request.head.path());
    if let Some(status) = reply.fault().status {
        let mut plain = worker.error(status, "a scripted fault");
        if let Some(body) = &reply.fault().body {
            plain.body = body.clone().into_bytes();
        }
        return reply.plain(plain).await;
    }
    if is_control(path) {
        return control::answer(worker, request, reply).await;
    }
    if !is_allowed(worker, request) {
        return reply.plain(worker.error(401, "Unauthorized")).await;
    }
    match (method, path) {
        ("POST", "/v1/chat/completions") => Box::pin(chat::answer(worker, request, reply)).await,
        ("GET" | "HEAD", _) => info::answer(worker, path, reply).await,
        _ => reply.plain(worker.unknown_path(404, path)).await,
    }
}

/// Whether `path` belongs to the control of the fake engine, which is beyond faults and ledger.
pub(crate) fn is_control(path: &str) -> bool {
    path.starts_with("/mock/")
}

fn is_allowed(worker: &Worker, request: &Request) -> bool {
    let Some(key) = &worker.config.api_key else { return true };
    let is_open = worker.config.dialect != Dialect::Sglang && !request.head.path().starts_with("/v1");
    let bearer = request.head.field("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let offered =
        if worker.config.dialect == Dialect::Anthropic { request.head.field("x-api-key").or(bearer) } else { bearer };
    is_open || request.head.path() == "/health" || offered.is_some_and(|offered| key.matches(offered))
}

/// Bad input of an inference request: a status and a message.
#[derive(Debug)]
pub(crate) struct Invalid(u16, String);

impl Invalid {
    fn new(message: impl Into<String>) -> Self {
        Self(400, message.into())
    }
}

/// The model that the answer names: the one asked for, which must be served, or the base model.
fn checked_model(worker: &Worker, json: &Value) -> Result<String, Invalid> {
    if !json.is_object() {
        return Err(Invalid::new("the body must be a JSON object"));
    }
    let model = json.get("model").and_then(Value::as_str).unwrap_or_else(|| worker.config.model());
    // SGLang answers whatever model it is asked for.
    if worker.config.dialect != Dialect::Sglang && !worker.config.models.iter().any(|served| served == model) {
        return Err(Invalid(404, format!("The model `{model}` does not exist.")));
    }
    Ok(model.to_owned())
}
