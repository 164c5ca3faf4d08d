//! Which dialect has which paths. The same table answers `/openapi.json`.

use serde_json::{Map, Value, json};

use crate::config::Dialect;

/// What a path does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Chat,
    Completions,
    Messages,
    CountTokens,
    Responses,
    Response,
    ForgetResponse,
    CancelResponse,
    ResponseInputs,
    Embeddings,
    Rerank,
    Classify,
    Score,
    Transcriptions,
    Generate,
    Tokenize,
    Detokenize,
    Health,
    HealthGenerate,
    Models,
    Model,
    Version,
    ServerInfo,
    ModelInfo,
    OpenApi,
    Metrics,
    Load,
    Loads,
    FlushCache,
    KvCacheEvents,
    Profile,
    Abort,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found<'p> {
    /// The path, and what stands for its variable part.
    Route(Route, &'p str),
    /// The path exists, but not for this method.
    OtherMethod,
    /// There is no such path.
    Nothing,
}

const V: u8 = 1;
const S: u8 = 2;
const O: u8 = 4;
const A: u8 = 8;
const T: u8 = 16;

/// Dialects, methods, path, meaning.
const TABLE: &[(u8, &[&str], &str, Route)] = &[
    (V | S | O | T, &["POST"], "/v1/chat/completions", Route::Chat),
    (V | S | O | T, &["POST"], "/v1/completions", Route::Completions),
    (V | S | A, &["POST"], "/v1/messages", Route::Messages),
    (V | S | A, &["POST"], "/v1/messages/count_tokens", Route::CountTokens),
    (V | S | O, &["POST"], "/v1/responses", Route::Responses),
    (V | S | O, &["GET"], "/v1/responses/{id}", Route::Response),
    (O, &["DELETE"], "/v1/responses/{id}", Route::ForgetResponse),
    (V | S | O, &["POST"], "/v1/responses/{id}/cancel", Route::CancelResponse),
    (O, &["GET"], "/v1/responses/{id}/input_items", Route::ResponseInputs),
    (V | S | O, &["POST"], "/v1/embeddings", Route::Embeddings),
    (V, &["POST"], "/rerank", Route::Rerank),
    (V | S, &["POST"], "/v1/rerank", Route::Rerank),
    (V, &["POST"], "/v2/rerank", Route::Rerank),
    (V | S, &["POST"], "/classify", Route::Classify),
    (S, &["POST"], "/v1/classify", Route::Classify),
    (V, &["POST"], "/score", Route::Score),
    (V | S, &["POST"], "/v1/score", Route::Score),
    (V | S | O, &["POST"], "/v1/audio/transcriptions", Route::Transcriptions),
    (V | O, &["POST"], "/v1/audio/translations", Route::Transcriptions),
    (S, &["POST", "PUT"], "/generate", Route::Generate),
    (V | S, &["POST"], "/tokenize", Route::Tokenize),
    (S, &["POST"], "/v1/tokenize", Route::Tokenize),
    (V | S, &["POST"], "/detokenize", Route::Detokenize),
    (S, &["POST"], "/v1/detokenize", Route::Detokenize),
    (V | S | T, &["GET"], "/health", Route::Health),
    (S, &["GET"], "/health_generate", Route::HealthGenerate),
    (V | S, &["GET"], "/ping", Route::Health),
    (V, &["POST"], "/ping", Route::Health),
    (V | S | O | A | T, &["GET"], "/v1/models", Route::Models),
    (S | O | A, &["GET"], "/v1/models/{id}", Route::Model),
    (V | T, &["GET"], "/version", Route::Version),
    (T, &["POST"], "/kv_cache_events", Route::KvCacheEvents),
    (V | S, &["GET"], "/server_info", Route::ServerInfo),
    (S, &["GET"], "/get_server_info", Route::ServerInfo),
    (S, &["GET"], "/model_info", Route::ModelInfo),
    (S, &["GET"], "/get_model_info", Route::ModelInfo),
    (V | S | T, &["GET"], "/openapi.json", Route::OpenApi),
    (V | S | T, &["GET"], "/metrics", Route::Metrics),
    (V, &["GET"], "/load", Route::Load),
    (S, &["GET"], "/get_load", Route::Load),
    (S, &["GET"], "/v1/loads", Route::Loads),
    (S, &["GET", "POST"], "/flush_cache", Route::FlushCache),
    (V, &["POST"], "/reset_prefix_cache", Route::FlushCache),
    (V, &["POST"], "/start_profile", Route::Profile),
    (V, &["POST"], "/stop_profile", Route::Profile),
    (S, &["GET", "POST"], "/start_profile", Route::Profile),
    (S, &["GET", "POST"], "/stop_profile", Route::Profile),
    (S, &["POST"], "/abort_request", Route::Abort),
];

fn bit(dialect: Dialect) -> u8 {
    match dialect {
        Dialect::Vllm => V,
        Dialect::Sglang => S,
        Dialect::Trtllm => T,
        Dialect::Openai => O,
        Dialect::Anthropic => A,
    }
}

/// What `method` on `path` means in `dialect`.
pub(crate) fn find<'p>(dialect: Dialect, method: &str, path: &'p str) -> Found<'p> {
    let method = if method == "HEAD" { "GET" } else { method };
    let mut found = Found::Nothing;
    for (_, methods, pattern, route) in TABLE.iter().filter(|(dialects, ..)| dialects & bit(dialect) != 0) {
        let Some(variable) = matched(pattern, path) else { continue };
        if methods.contains(&method) {
            return Found::Route(*route, variable);
        }
        found = Found::OtherMethod;
    }
    found
}

/// The variable part of `path`, empty if `pattern` has none; `None` if they do not fit.
fn matched<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let Some((before, after)) = pattern.split_once("{id}") else { return (pattern == path).then_some("") };
    let variable = path.strip_prefix(before)?.strip_suffix(after)?;
    // A model's id may contain a slash; what follows the id in another pattern may not be taken for a part of it.
    let is_plain = !variable.is_empty() && (before == "/v1/models/" || !variable.contains('/'));
    is_plain.then_some(variable)
}

/// The description of `dialect` that FastAPI would make.
pub(crate) fn openapi(dialect: Dialect, version: &str) -> Value {
    let mut paths = Map::new();
    for (_, methods, path, _) in TABLE.iter().filter(|(dialects, ..)| dialects & bit(dialect) != 0) {
        let operations = paths.entry(path.replace("{id}", "{response_id}")).or_insert_with(|| json!({}));
        for method in *methods {
            operations[method.to_lowercase()] =
                json!({ "responses": { "200": { "description": "Successful Response" } } });
        }
    }
    json!({ "openapi": "3.1.0", "info": { "title": "FastAPI", "version": version }, "paths": paths })
}
