//! What is served where.

mod audio;
mod base64;
mod bench;
mod chat;
mod completions;
mod control;
mod form;
mod generate;
mod generation;
mod info;
mod messages;
mod metrics;
mod pooling;
mod prompt;
mod responses;
mod sse;
mod table;
mod tokenize;

use bytes::Bytes;
use serde_json::Value;

use self::{
    form::Form,
    table::{Found, Route},
};
use crate::{
    config::Dialect,
    http1::Head,
    reply::{Cut, Reply},
    scheduler::QueueFull,
    worker::Worker,
};

pub(crate) use bench::Prepared;

/// A request that has been read.
pub(crate) struct Request {
    pub(crate) head: Head,
    pub(crate) body: Body,
}

/// The body of a request.
#[derive(Default)]
pub(crate) struct Body {
    pub(crate) bytes: Bytes,
    /// Its JSON, or null if it is none.
    pub(crate) json: Value,
    /// Its form, if it is one.
    pub(crate) form: Option<Form>,
}

impl Body {
    /// A body whose content matters.
    pub(crate) fn read(head: &Head, bytes: Bytes) -> Self {
        let form = head.field("content-type").and_then(|content_type| Form::parse(content_type, &bytes));
        let json =
            if bytes.first() == Some(&b'{') { serde_json::from_slice(&bytes).unwrap_or_default() } else { Value::Null };
        Self { bytes, json, form }
    }

    /// A body, or its start, that nobody will look into.
    pub(crate) fn unread(bytes: Bytes) -> Self {
        Self { bytes, ..Self::default() }
    }

    pub(crate) fn model(&self) -> Option<&str> {
        match &self.form {
            Some(form) => form.text("model"),
            None => self.json.get("model")?.as_str(),
        }
    }

    pub(crate) fn is_stream(&self) -> bool {
        match &self.form {
            Some(form) => form.text("stream").is_some_and(|text| text.eq_ignore_ascii_case("true")),
            None => self.json.get("stream").and_then(Value::as_bool).unwrap_or(false),
        }
    }
}

/// Answers `request`.
pub(crate) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
    let (method, path) = (request.head.method(), request.head.path());
    if is_control(path) {
        return control::answer(worker, request, reply).await;
    }
    if let Some(prepared) = worker.prepared.as_ref().filter(|_| method == "POST") {
        return prepared.answer(request, reply).await;
    }
    if let Some(status) = reply.fault().status {
        let mut plain = worker.error_on(path, status, "a scripted fault");
        if let Some(body) = &reply.fault().body {
            plain.body = body.clone().into_bytes();
        }
        return reply.plain(plain).await;
    }
    let canned = worker.config.canned.iter().find(|canned| canned.method == method && canned.path == path);
    if let Some(canned) = canned {
        return reply.plain(info::canned(canned)).await;
    }
    if !is_allowed(worker, request) {
        return reply.plain(worker.error_on(path, 401, "Unauthorized")).await;
    }
    match table::find(worker.config.dialect, method, path) {
        Found::Route(route, variable) => dispatch(worker, request, (route, variable), reply).await,
        Found::OtherMethod => reply.plain(worker.unknown_path(405, path)).await,
        Found::Nothing => reply.plain(worker.unknown_path(404, path)).await,
    }
}

/// The futures are boxed: they are large, and few requests need the same one.
async fn dispatch(
    worker: &Worker,
    request: &Request,
    (route, variable): (Route, &str),
    reply: &mut Reply<'_, '_>,
) -> Result<(), Cut> {
    let answered = match route {
        Route::Chat => Box::pin(chat::answer(worker, request, reply)).await?,
        Route::Completions => Box::pin(completions::answer(worker, request, reply)).await?,
        Route::Messages => Box::pin(messages::answer(worker, request, reply)).await?,
        Route::CountTokens => Box::pin(messages::count(worker, request, reply)).await?,
        Route::Responses => Box::pin(responses::answer(worker, request, reply)).await?,
        Route::Response | Route::ForgetResponse | Route::CancelResponse | Route::ResponseInputs => {
            Box::pin(responses::stored(worker, route, variable, reply)).await?
        }
        Route::Embeddings | Route::Rerank | Route::Classify | Route::Score => {
            Box::pin(pooling::answer(worker, request, route, reply)).await?
        }
        Route::Transcriptions => Box::pin(audio::answer(worker, request, reply)).await?,
        Route::Generate => Box::pin(generate::answer(worker, request, reply)).await?,
        Route::Tokenize => Box::pin(tokenize::encode(worker, request, reply)).await?,
        Route::Detokenize => Box::pin(tokenize::decode(worker, request, reply)).await?,
        _ => {
            info::answer(worker, route, variable, reply).await?;
            Ok(())
        }
    };
    match answered {
        Ok(()) => Ok(()),
        Err(Invalid(status, message)) => reply.plain(worker.error_on(request.head.path(), status, &message)).await,
    }
}

/// Whether `path` belongs to the control of the fake engine, which is beyond faults and ledger.
pub(crate) fn is_control(path: &str) -> bool {
    path.starts_with("/mock/")
}

/// vLLM guards only `/v1`; SGLang everything but its health.
fn is_allowed(worker: &Worker, request: &Request) -> bool {
    let Some(key) = &worker.config.api_key else { return true };
    let path = request.head.path();
    let is_open = path.starts_with("/health") || (worker.config.dialect == Dialect::Vllm && !path.starts_with("/v1"));
    let bearer = request.head.field("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let own = request.head.field("x-api-key").filter(|_| worker.config.dialect == Dialect::Anthropic);
    is_open || own.or(bearer).is_some_and(|offered| key.matches(offered))
}

/// Bad input of a request: a status and a message.
#[derive(Debug)]
pub(crate) struct Invalid(u16, String);

impl Invalid {
    fn new(message: impl Into<String>) -> Self {
        Self(400, message.into())
    }
}

impl From<QueueFull> for Invalid {
    fn from(_: QueueFull) -> Self {
        Self(503, "The request queue is full.".to_owned())
    }
}

/// What an endpoint returns: that it answered, or what is wrong with the request, before anything was sent.
type Answered = Result<Result<(), Invalid>, Cut>;

/// Sends `json`.
async fn send(worker: &Worker, json: &Value, reply: &mut Reply<'_, '_>) -> Answered {
    reply.plain(worker.json(200, json)).await?;
    Ok(Ok(()))
}

/// The model that the answer names: the one asked for, which must be served, or the base model.
fn checked_model(worker: &Worker, body: &Body) -> Result<String, Invalid> {
    if body.form.is_none() && !body.json.is_object() {
        return Err(Invalid::new("the body must be a JSON object"));
    }
    let model = body.model().unwrap_or_else(|| worker.config.model());
    // SGLang answers whatever model it is asked for.
    if worker.config.dialect != Dialect::Sglang && !worker.config.models.iter().any(|served| served == model) {
        return Err(Invalid(404, format!("The model `{model}` does not exist.")));
    }
    Ok(model.to_owned())
}
