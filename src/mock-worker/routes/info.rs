//! What the engine tells about itself.

use serde_json::{Value, json};

use crate::{
    config::Dialect,
    reply::{Cut, Plain, Reply},
    worker::{Worker, unix_now},
};

/// Answers a GET.
pub(crate) async fn answer(worker: &Worker, path: &str, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
    let dialect = worker.config.dialect;
    let is_engine = matches!(dialect, Dialect::Vllm | Dialect::Sglang);
    match path {
        "/health" if is_engine => reply.plain(Plain { status: 200, ..Plain::default() }).await,
        "/v1/models" => reply.plain(worker.json(200, &models(worker))).await,
        "/version" if dialect == Dialect::Vllm => reply.plain(worker.json(200, &json!({ "version": "0.20.0" }))).await,
        _ => reply.plain(worker.unknown_path(404, path)).await,
    }
}

fn models(worker: &Worker) -> Value {
    let owner = match worker.config.dialect {
        Dialect::Vllm => "vllm",
        Dialect::Sglang => "sglang",
        Dialect::Openai | Dialect::Anthropic => "system",
    };
    let model = |id: &String| {
        json!({
            "id": id, "object": "model", "created": unix_now(), "owned_by": owner, "root": id, "parent": null,
            "max_model_len": worker.config.context_length,
        })
    };
    json!({ "object": "list", "data": worker.config.models.iter().map(model).collect::<Vec<_>>() })
}
