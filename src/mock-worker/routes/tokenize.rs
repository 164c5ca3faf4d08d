//! `/tokenize` and `/detokenize`.

use serde_json::{Value, json};

use super::{
    Answered, Invalid, Request, chat, checked_model,
    generation::{Written, prompts},
    send,
};
use crate::{config::Dialect, reply::Reply, tokens::decode as decode_tokens, worker::Worker};

/// Cuts text into tokens.
pub(super) async fn encode(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let json = &request.body.json;
    let read = checked_model(worker, &request.body).and_then(|_| {
        if json["messages"].is_array() {
            return Ok(vec![Written { text: String::new(), tokens: chat::prompt(json)?.tokens }]);
        }
        prompts(&json["prompt"])
    });
    let written = match read {
        Ok(written) => written,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let is_batch = json["prompt"].is_array();
    let tokens: Vec<_> = written.iter().map(|written| json!(written.tokens)).collect();
    let counts: Vec<_> = written.iter().map(|written| json!(written.tokens.len())).collect();
    let one_or_all =
        |list: Vec<Value>| if is_batch { json!(list) } else { list.into_iter().next().unwrap_or_default() };
    let mut body = json!({
        "count": one_or_all(counts),
        "max_model_len": worker.config.context_length,
        "tokens": one_or_all(tokens),
    });
    if worker.config.dialect == Dialect::Vllm {
        body["token_strs"] = Value::Null;
    }
    send(worker, &body, reply).await
}

/// Joins tokens to text.
pub(super) async fn decode(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Answered {
    let json = &request.body.json;
    let read = checked_model(worker, &request.body).and_then(|_| match &json["tokens"] {
        Value::Array(list) if list.is_empty() => Ok(vec![String::new()]),
        Value::Array(_) => {
            let text = |written: Written| String::from_utf8_lossy(&decode_tokens(&written.tokens)).into_owned();
            Ok(prompts(&json["tokens"])?.into_iter().map(text).collect())
        }
        _ => Err(Invalid::new("`tokens` must be a list of token ids")),
    });
    let texts: Vec<String> = match read {
        Ok(texts) => texts,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let is_batch = json["tokens"][0].is_array();
    let text = if is_batch { json!(texts) } else { json!(texts.concat()) };
    let name = if worker.config.dialect == Dialect::Vllm { "prompt" } else { "text" };
    send(worker, &json!({ name: text }), reply).await
}
