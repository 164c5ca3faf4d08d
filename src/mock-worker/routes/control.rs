//! `/mock/*`: the ledger, the faults and the listeners to events, for tests in another process.

use serde_json::json;

use super::Request;
use crate::{
    faults::Rule,
    ledger::Entry,
    reply::{Cut, Reply},
    worker::Worker,
};

/// Answers a request to `/mock/*`.
pub(crate) async fn answer(worker: &Worker, request: &Request, reply: &mut Reply<'_, '_>) -> Result<(), Cut> {
    let head = &request.head;
    let plain = match (head.method(), head.path()) {
        ("GET", "/mock/ledger") => {
            worker.json(200, &json!({ "entries": worker.ledger.to_json(|entry| is_asked_for(request, entry)) }))
        }
        ("DELETE", "/mock/ledger") => {
            worker.ledger.clear();
            worker.json(200, &json!({}))
        }
        ("GET", "/mock/kv-events") => match &worker.kv_publisher {
            Some(publisher) => worker.json(200, &publisher.to_json()),
            None => worker.error(404, "this worker publishes no events"),
        },
        ("GET", "/mock/faults") => worker.json(200, &json!({ "rules": worker.faults.list() })),
        ("POST", "/mock/faults") => match serde_json::from_slice::<Rule>(&request.body.bytes) {
            Ok(rule) => match worker.faults.add(rule) {
                Some(id) => worker.json(200, &json!({ "id": id })),
                None => worker.error(429, "too many rules"),
            },
            Err(bad) => worker.error(400, &bad.to_string()),
        },
        ("DELETE", "/mock/faults") => {
            worker.faults.clear();
            worker.json(200, &json!({}))
        }
        ("DELETE", path) => match path.strip_prefix("/mock/faults/").and_then(|id| id.parse().ok()) {
            Some(id) if worker.faults.remove(id) => worker.json(200, &json!({})),
            _ => worker.error(404, "no such rule"),
        },
        _ => worker.error(404, "no such control"),
    };
    reply.plain(plain).await
}

/// The filters of the query: `path`, `outcome`, `model`, `request_id`, `after` (an id).
fn is_asked_for(request: &Request, entry: &Entry) -> bool {
    let asked = |name| request.head.query(name);
    let outcome = serde_json::to_value(entry.outcome).unwrap_or_default();
    asked("path").is_none_or(|path| entry.path == path)
        && asked("outcome").is_none_or(|asked| outcome == asked)
        && asked("model").is_none_or(|model| entry.model.as_deref() == Some(model))
        && asked("request_id").is_none_or(|id| entry.request_id.as_deref() == Some(id))
        && asked("after").is_none_or(|id| id.parse::<u64>().is_ok_and(|id| entry.id > id))
}
