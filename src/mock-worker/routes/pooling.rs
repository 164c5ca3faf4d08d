//! Models that read and do not write: embeddings, rerank, classify, score.

use serde_json::{Value, json};
use smg_base::hash;

use super::{
    Answered, Body, Invalid, Request, base64, checked_model,
    generation::{Usage, Written, number, prompts, read_only},
    send,
    table::Route,
};
use crate::{
    config::Dialect,
    reply::Reply,
    tokens::Token,
    worker::{Worker, unix_now},
};

/// Numbers of an embedding that nothing else bounds.
const DIMENSIONS: u32 = 8;
const DIMENSIONS_MAX: u32 = 8192;

/// Answers a request of one of these endpoints.
pub(super) async fn answer(worker: &Worker, request: &Request, route: Route, reply: &mut Reply<'_, '_>) -> Answered {
    let read =
        checked_model(worker, &request.body).and_then(|model| Ok((model, Task::read(worker, route, &request.body)?)));
    let (model, task) = match read {
        Ok(read) => read,
        Err(invalid) => return Ok(Err(invalid)),
    };
    let usage = match read_only(worker, task.prompts(), reply).await? {
        Ok(usage) => usage,
        Err(invalid) => return Ok(Err(invalid)),
    };
    send(worker, &task.answer(worker, &model, usage), reply).await
}

/// What is wanted.
enum Task {
    Embed { inputs: Vec<Written>, dimensions: u32, is_base64: bool },
    Rank { query: String, documents: Vec<String>, top: usize, shows_documents: bool },
    Classify { inputs: Vec<Written> },
    Score { pairs: Vec<(String, String)> },
}

impl Task {
    fn read(worker: &Worker, route: Route, body: &Body) -> Result<Self, Invalid> {
        let json = &body.json;
        match route {
            Route::Embeddings => {
                let dimensions = number(json, "dimensions", 1)?.unwrap_or(DIMENSIONS);
                if dimensions > DIMENSIONS_MAX {
                    return Err(Invalid::new(format!("`dimensions` must be at most {DIMENSIONS_MAX}")));
                }
                let is_base64 = json["encoding_format"] == "base64";
                Ok(Self::Embed { inputs: prompts(&json["input"])?, dimensions, is_base64 })
            }
            Route::Rerank => {
                let documents = texts(&json["documents"], "documents")?;
                let top = match number(json, "top_n", 0)? {
                    None => number(json, "top_k", 0)?,
                    given => given,
                };
                let top = top.filter(|top| *top > 0).map_or(documents.len(), |top| top as usize);
                let query = json["query"].as_str().ok_or_else(|| Invalid::new("`query` must be a text"))?.to_owned();
                Ok(Self::Rank { query, documents, top, shows_documents: json["return_documents"] != false })
            }
            Route::Classify => Ok(Self::Classify { inputs: prompts(&json["input"])? }),
            _ if worker.config.dialect == Dialect::Sglang => {
                let query = texts(&json["query"], "query")?.concat();
                let pairs = texts(&json["items"], "items")?.into_iter().map(|item| (query.clone(), item));
                Ok(Self::Score { pairs: pairs.collect() })
            }
            _ => {
                let (left, right) = (texts(&json["text_1"], "text_1")?, texts(&json["text_2"], "text_2")?);
                let pairs: Vec<_> = match left.as_slice() {
                    [one] => right.into_iter().map(|text| (one.clone(), text)).collect(),
                    _ if left.len() == right.len() => left.into_iter().zip(right).collect(),
                    _ => return Err(Invalid::new("`text_1` and `text_2` must have the same length")),
                };
                Ok(Self::Score { pairs })
            }
        }
    }

    fn prompts(&self) -> Vec<Vec<Token>> {
        let pair = |left: &str, right: &str| {
            let mut tokens = Vec::new();
            crate::tokens::encode(left, &mut tokens);
            crate::tokens::encode(right, &mut tokens);
            tokens
        };
        match self {
            Self::Embed { inputs, .. } | Self::Classify { inputs } => {
                inputs.iter().map(|input| input.tokens.clone()).collect()
            }
            Self::Rank { query, documents, .. } => documents.iter().map(|document| pair(query, document)).collect(),
            Self::Score { pairs } => pairs.iter().map(|(left, right)| pair(left, right)).collect(),
        }
    }

    fn answer(&self, worker: &Worker, model: &str, usage: Usage) -> Value {
        let usage = json!({ "prompt_tokens": usage.prompt, "total_tokens": usage.prompt });
        let list = |prefix: &str, data: Vec<Value>| {
            json!({
                "id": worker.fresh_id(prefix), "object": "list", "created": unix_now(), "model": model, "data": data,
                "usage": usage,
            })
        };
        match self {
            Self::Embed { inputs, dimensions, is_base64 } => {
                let embed = |(index, input): (usize, &Written)| {
                    let vector = vector(&input.text, *dimensions);
                    let shown = if *is_base64 { json!(base64::of_floats(&vector)) } else { json!(vector) };
                    json!({ "object": "embedding", "index": index, "embedding": shown })
                };
                list("embd-", inputs.iter().enumerate().map(embed).collect())
            }
            Self::Classify { inputs } => {
                let classify = |(index, input): (usize, &Written)| {
                    let yes = unit(hash::stable64(input.text.as_bytes()));
                    let label = if yes > 0.5 { "LABEL_1" } else { "LABEL_0" };
                    json!({ "index": index, "label": label, "probs": [1.0 - yes, yes], "num_classes": 2 })
                };
                list("classify-", inputs.iter().enumerate().map(classify).collect())
            }
            Self::Score { pairs } => {
                let scores = pairs.iter().map(|(left, right)| relevance(left, right));
                if worker.config.dialect == Dialect::Sglang {
                    let scores: Vec<_> = scores.map(|score| json!([score, 1.0 - score])).collect();
                    return json!({ "scores": scores, "model": model, "usage": usage, "object": "scoring" });
                }
                let data = scores
                    .enumerate()
                    .map(|(index, score)| json!({ "index": index, "object": "score", "score": score }));
                list("score-", data.collect())
            }
            Self::Rank { query, documents, top, shows_documents } => {
                let mut ranked: Vec<_> =
                    documents.iter().map(|document| relevance(query, document)).enumerate().collect();
                ranked.sort_by(|(_, left), (_, right)| right.total_cmp(left));
                ranked.truncate(*top);
                let document = |index: usize| documents.get(index).filter(|_| *shows_documents);
                if worker.config.dialect == Dialect::Sglang {
                    let results = ranked
                        .iter()
                        .map(|(index, score)| json!({ "score": score, "document": document(*index), "index": index }));
                    return results.collect();
                }
                let results = ranked.iter().map(|(index, score)| {
                    json!({ "index": index, "document": { "text": document(*index) }, "relevance_score": score })
                });
                json!({
                    "id": worker.fresh_id("rerank-"), "model": model, "usage": usage,
                    "results": results.collect::<Vec<_>>(),
                })
            }
        }
    }
}

fn texts(value: &Value, name: &str) -> Result<Vec<String>, Invalid> {
    let invalid = || Invalid::new(format!("`{name}` must be a text or a list of texts"));
    match value {
        Value::String(text) => Ok(vec![text.clone()]),
        Value::Array(list) if !list.is_empty() => {
            let text = |item: &Value| item.as_str().or(item["text"].as_str()).map(str::to_owned);
            list.iter().map(text).collect::<Option<_>>().ok_or_else(invalid)
        }
        _ => Err(invalid()),
    }
}

/// A vector of length one that depends on the text.
#[expect(clippy::cast_possible_truncation, reason = "embeddings are single floats")]
fn vector(text: &str, dimensions: u32) -> Vec<f32> {
    let root = hash::stable64(text.as_bytes());
    let raw: Vec<f64> = (0..dimensions).map(|place| unit(hash::mix(root, u64::from(place))) - 0.5).collect();
    let length = raw.iter().map(|number| number * number).sum::<f64>().sqrt().max(f64::MIN_POSITIVE);
    raw.iter().map(|number| (number / length) as f32).collect()
}

fn relevance(left: &str, right: &str) -> f64 {
    unit(hash::mix(hash::stable64(left.as_bytes()), hash::stable64(right.as_bytes())))
}

/// A number between zero and one made of `bits`.
fn unit(bits: u64) -> f64 {
    f64::from(u32::try_from(bits >> 32).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}
