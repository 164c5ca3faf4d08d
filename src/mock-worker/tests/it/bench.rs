//! The bench mode: canned answers of exact sizes.

use serde_json::json;
use smg_mock_worker::{Bench, Config, EventFraming};

use crate::{
    client::{End, get, post},
    worker,
};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn sizes_are_as_asked() {
    let bench = Bench { body_bytes: 1000, events: 50, event_bytes: 300, ..Bench::default() };
    let worker = worker(Config { bench: Some(bench), ..Config::default() }).await;
    let answer = post(worker.address(), CHAT, "", &json!({ "model": "any" })).await;
    assert_eq!(
        (answer.status, answer.body.len(), answer.json()["object"].as_str()),
        (200, 1000, Some("chat.completion"))
    );
    let answer = post(worker.address(), CHAT, "x-mock-body-bytes: 20\r\n", &json!({})).await;
    assert_eq!((answer.body.len(), answer.json()["a"].is_string()), (20, true));

    let stream = post(worker.address(), CHAT, "", &json!({ "model": "any", "stream": true })).await;
    assert_eq!((stream.end, stream.chunks.len()), (End::Whole, 52));
    assert!(stream.chunks[..50].iter().all(|chunk| chunk.len() == 300));
    assert!(stream.events()[..51].iter().all(serde_json::Value::is_object));
    let tiny =
        post(worker.address(), CHAT, "x-mock-events: 7\r\nx-mock-event-bytes: 16\r\n", &json!({ "stream": true }))
            .await;
    assert_eq!(tiny.chunks.len(), 9);
    assert!(tiny.chunks[..7].iter().all(|chunk| chunk.len() == 16), "{:?}", tiny.text());
    assert!(tiny.events()[..8].iter().all(serde_json::Value::is_object));
    assert_eq!(get(worker.address(), "/v1/models").await.status, 200);
    let entry = &worker.ledger().select(|entry| entry.stream)[0];
    assert_eq!((entry.events, entry.fields.len()), (52, 0));
}

#[tokio::test]
async fn events_may_share_a_chunk_or_have_a_write_each() {
    for (framing, chunks) in [(EventFraming::Write, 12), (EventFraming::Coalesce, 1)] {
        let bench = Bench { events: 10, ..Bench::default() };
        let worker = worker(Config { bench: Some(bench), framing, ..Config::default() }).await;
        let stream = post(worker.address(), CHAT, "", &json!({ "stream": true })).await;
        assert_eq!((stream.end, stream.chunks.len(), stream.events().len()), (End::Whole, chunks, 12));
    }
    let worker = worker(Config { framing: EventFraming::Coalesce, ..Config::default() }).await;
    let body = json!({ "model": "demo", "stream": true, "messages": [{ "role": "user", "content": "hi" }] });
    let stream = post(worker.address(), CHAT, "", &body).await;
    assert_eq!((stream.end, stream.chunks.len(), stream.events().len()), (End::Whole, 1, 19));
}
