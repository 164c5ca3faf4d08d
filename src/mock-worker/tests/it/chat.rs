//! Chat completions and the ledger.

use serde_json::{Value, json};
use smg_mock_worker::{Config, Dialect, Outcome};

use crate::{
    client::{Client, End, PATIENCE, get, post},
    with, worker,
};

const CHAT: &str = "/v1/chat/completions";

fn user(text: &str) -> Value {
    json!({ "model": "demo", "messages": [{ "role": "user", "content": text }] })
}

#[tokio::test]
async fn the_text_depends_on_the_prompt_only() {
    let (one, two) =
        (worker(Config::default()).await, worker(Config { name: "other".into(), ..Config::default() }).await);
    let text =
        |answer: crate::client::Answer| answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let first = post(one.address(), CHAT, "", &user("hello")).await;
    assert_eq!((first.status, first.field("x-mock-worker")), (200, Some("mock")));
    let second = post(two.address(), CHAT, "", &user("hello")).await;
    assert_eq!(second.json()["system_fingerprint"], "other");
    let first = text(first);
    assert_eq!(first.split(' ').count(), 16, "{first}");
    assert_eq!(first, text(second));
    assert_ne!(first, text(post(one.address(), CHAT, "", &user("hallo")).await));
}

#[tokio::test]
async fn a_stream_says_what_the_plain_answer_says_one_token_an_event_each_in_its_chunk() {
    let worker = worker(Config::default()).await;
    let plain = post(worker.address(), CHAT, "", &user("hi")).await.json();
    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let stream = post(worker.address(), CHAT, "", &with(user("hi"), &options)).await;
    let events = stream.events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(plain["choices"][0]["message"]["content"], text);
    assert_eq!(plain["usage"], events[events.len() - 2]["usage"]);
    assert_eq!(events.last().unwrap(), "[DONE]");
    // The role, sixteen tokens, the finish, the usage and the end.
    assert_eq!(events.len(), 20);
    assert_eq!(stream.chunks.len(), 20);
    assert!(stream.chunks.iter().all(|chunk| chunk.ends_with(b"\n\n")));
    assert_eq!(events[17]["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn what_the_caller_asks_for_shapes_the_answer() {
    let worker = worker(Config::default()).await;
    let weather = json!([{ "type": "function", "function": { "name": "get_weather", "parameters": {
        "type": "object", "properties": { "city": { "type": "string" }, "days": { "type": "integer" } },
    } } }]);
    let cases = [
        (user("echo a b c"), json!({}), json!({ "text": "a b c", "reason": "stop" })),
        (user("echo 🦀 naïve"), json!({}), json!({ "text": "🦀 naïve", "reason": "stop" })),
        (user("echo one two six"), json!({ "max_tokens": 2 }), json!({ "text": "one two", "reason": "length" })),
        (user("echo one two six"), json!({ "stop": [" six"] }), json!({ "text": "one two", "reason": "stop" })),
        (user("echo onetwo"), json!({ "stop": "two" }), json!({ "text": "one", "reason": "stop" })),
        (
            user("call get_weather {\"city\":\"Oslo\"}"),
            json!({ "tools": weather }),
            json!({ "call": "get_weather", "arguments": "{\"city\":\"Oslo\"}", "reason": "tool_calls" }),
        ),
        (
            user("what now"),
            json!({ "tools": weather, "tool_choice": "required" }),
            json!({ "call": "get_weather", "arguments": "{\"city\":\"mock city\",\"days\":1}", "reason": "tool_calls" }),
        ),
    ];
    for (body, extra, expected) in cases {
        let body = with(body, &extra);
        let choice = post(worker.address(), CHAT, "", &body).await.json()["choices"][0].clone();
        let call = &choice["message"]["tool_calls"][0]["function"];
        let check = |name: &str, actual: &Value| {
            assert!(expected[name].is_null() || expected[name] == *actual, "{name}: {choice}");
        };
        check("text", &choice["message"]["content"]);
        check("reason", &choice["finish_reason"]);
        check("call", &call["name"]);
        check("arguments", &call["arguments"]);
        let events = post(worker.address(), CHAT, "", &with(body, &json!({ "stream": true }))).await.events();
        let arguments: String = events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str())
            .collect();
        check("arguments", &json!(arguments));
    }
}

#[tokio::test]
async fn several_choices_are_different_and_interleaved() {
    let worker = worker(Config::default()).await;
    let body = with(user("hi"), &json!({ "n": 3, "stream": true, "max_tokens": 4 }));
    let events = post(worker.address(), CHAT, "", &body).await.events();
    let text = |index: u64| -> String {
        let own = events.iter().filter(|event| event["choices"][0]["index"] == index);
        own.filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
    };
    assert_ne!(text(0), text(1));
    assert_ne!(text(1), text(2));
    let order: Vec<u64> = events.iter().filter_map(|event| event["choices"][0]["index"].as_u64()).collect();
    assert_eq!(&order[..9], [0, 1, 2, 0, 1, 2, 0, 1, 2]);
}

#[tokio::test]
async fn bad_input_is_told_in_the_dialects_shape() {
    let cases = [
        (Dialect::Vllm, user("x"), "model", json!("none"), 404, "/error/type", "NotFoundError"),
        (Dialect::Vllm, user("x"), "messages", json!([]), 400, "/error/type", "BadRequestError"),
        (Dialect::Sglang, user("x"), "n", json!("two"), 400, "/type", "BadRequestError"),
        (Dialect::Openai, user("x"), "max_tokens", json!(-1), 400, "/error/type", "invalid_request_error"),
    ];
    for (dialect, mut body, name, value, status, pointer, kind) in cases {
        let worker = worker(Config { dialect, ..Config::default() }).await;
        body[name] = value;
        let answer = post(worker.address(), CHAT, "", &body).await;
        assert_eq!((answer.status, answer.json().pointer(pointer)), (status, Some(&json!(kind))), "{answer:?}");
    }
}

#[tokio::test]
async fn the_ledger_tells_what_was_asked_and_how_it_ended() {
    let worker = worker(Config::default()).await;
    let body = with(user("hi"), &json!({ "stream": true }));
    let answer = post(worker.address(), CHAT, "x-request-id: r-1\r\n", &body).await;
    assert_eq!(answer.end, End::Whole);
    worker.ledger().wait_for(|entries| entries.iter().all(|entry| entry.finished.is_some()), PATIENCE).await.unwrap();
    let entries = worker.ledger().entries();
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!((entry.outcome, entry.status, entry.stream), (Outcome::Completed, Some(200), true));
    assert_eq!((entry.request_id.as_deref(), entry.model.as_deref()), (Some("r-1"), Some("demo")));
    assert_eq!((entry.output_tokens, entry.events), (16, 19));
    assert_eq!(entry.body, body.to_string().as_bytes());
    assert!(entry.received <= entry.first_token.unwrap() && entry.first_token <= entry.finished);
    let shown = get(worker.address(), "/mock/ledger?path=/v1/chat/completions&outcome=completed").await.json();
    assert_eq!(shown["entries"][0]["request_id"], "r-1");
    assert_eq!(get(worker.address(), "/mock/ledger?outcome=aborted").await.json()["entries"], json!([]));
    let mut client = Client::connect(worker.address()).await;
    client.request("DELETE", "/mock/ledger", "", b"").await;
    assert_eq!(client.answer().await.status, 200);
    assert!(worker.ledger().entries().is_empty());
}

#[tokio::test]
async fn a_callers_disconnect_is_seen_at_once() {
    let worker = worker(Config::default()).await;
    let mut client = Client::connect(worker.address()).await;
    let body = with(user("hi"), &json!({ "stream": true })).to_string();
    client.request("POST", CHAT, "x-mock-fault: stall@event:3\r\n", body.as_bytes()).await;
    client.read_until(b"\n\n").await.unwrap();
    drop(client);
    let gone = tokio::time::Instant::now();
    worker.ledger().wait_for(|entries| entries[0].outcome == Outcome::Aborted, PATIENCE).await.unwrap();
    let entry = &worker.ledger().entries()[0];
    assert!(entry.finished.unwrap() - gone < std::time::Duration::from_millis(100), "{entry:?}");
    assert_eq!(entry.events, 2);
}

#[tokio::test]
async fn requests_on_one_connection_follow_each_other_also_when_sent_ahead() {
    let worker = worker(Config::default()).await;
    let mut client = Client::connect(worker.address()).await;
    for text in ["echo one", "echo two", "echo six"] {
        client.request("POST", CHAT, "", user(text).to_string().as_bytes()).await;
    }
    for text in ["one", "two", "six"] {
        assert_eq!(client.answer().await.json()["choices"][0]["message"]["content"], text);
    }
    let chunked = user("echo chunks").to_string();
    let (start, end) = chunked.split_at(10);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: mock\r\ntransfer-encoding: chunked\r\n\r\n";
    client.send(format!("{head}a;x=y\r\n{start}\r\n{:x}\r\n{end}\r\n0\r\ntrailer: t\r\n\r\n", end.len())).await;
    assert_eq!(client.answer().await.json()["choices"][0]["message"]["content"], "chunks");
    let connections: Vec<u64> = worker.ledger().entries().iter().map(|entry| entry.connection).collect();
    assert_eq!(connections, [1, 1, 1, 1]);
}
