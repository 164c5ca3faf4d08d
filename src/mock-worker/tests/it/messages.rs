//! Anthropic messages.

use serde_json::{Value, json};
use smg_mock_worker::Dialect;

use crate::{client::post, of, with};

const MESSAGES: &str = "/v1/messages";
const VERSION: &str = "anthropic-version: 2023-06-01\r\n";

fn user(text: &str) -> Value {
    json!({ "model": "demo", "max_tokens": 64, "messages": [{ "role": "user", "content": text }] })
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["type"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_stream_has_the_events_of_the_api_in_order() {
    let worker = of(Dialect::Anthropic).await;
    let plain = post(worker.address(), MESSAGES, VERSION, &user("echo a b")).await.json();
    assert_eq!(plain["content"], json!([{ "type": "text", "text": "a b" }]));
    assert_eq!((&plain["stop_reason"], &plain["usage"]["output_tokens"]), (&json!("end_turn"), &json!(2)));
    let stream = post(worker.address(), MESSAGES, VERSION, &with(user("echo a b"), &json!({ "stream": true }))).await;
    let events = stream.events();
    let expected = [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(kinds(&events), expected);
    assert!(stream.text().starts_with("event: message_start\ndata: {"));
    assert_eq!(events[6]["usage"]["output_tokens"], 2);
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], plain["usage"]["input_tokens"]);
}

#[tokio::test]
async fn thinking_and_tools_are_blocks_of_their_own() {
    let worker = of(Dialect::Anthropic).await;
    let tool = json!({ "name": "get_time", "input_schema": { "type": "object", "properties": { "zone": { "enum": ["utc"] } } } });
    let body = with(user("use get_time"), &json!({ "tools": [tool] }));
    let plain = post(worker.address(), MESSAGES, VERSION, &body).await.json();
    assert_eq!(plain["stop_reason"], "tool_use");
    assert_eq!(
        (&plain["content"][0]["name"], &plain["content"][0]["input"]),
        (&json!("get_time"), &json!({ "zone": "utc" }))
    );
    let events =
        post(worker.address(), MESSAGES, VERSION, &with(body.clone(), &json!({ "stream": true }))).await.events();
    let input: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(input, r#"{"zone":"utc"}"#);
    let id = &plain["content"][0]["id"];
    let answered = json!([
        body["messages"][0],
        { "role": "assistant", "content": plain["content"] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": id, "content": "noon" }] },
    ]);
    let after = post(worker.address(), MESSAGES, VERSION, &with(body, &json!({ "messages": answered }))).await.json();
    assert_eq!(after["stop_reason"], "end_turn");

    let body =
        with(user("think first"), &json!({ "thinking": { "type": "enabled", "budget_tokens": 1024 }, "stream": true }));
    let events = post(worker.address(), MESSAGES, VERSION, &body).await.events();
    let blocks: Vec<_> = events.iter().filter_map(|event| event["content_block"]["type"].as_str()).collect();
    assert_eq!(blocks, ["thinking", "text"]);
}

#[tokio::test]
async fn tokens_are_counted_and_what_the_cache_had_is_told_apart() {
    let worker = of(Dialect::Anthropic).await;
    let long = user(&"word ".repeat(100));
    let counted = post(worker.address(), "/v1/messages/count_tokens", VERSION, &long).await.json()["input_tokens"]
        .as_u64()
        .unwrap();
    post(worker.address(), MESSAGES, VERSION, &long).await;
    let usage = post(worker.address(), MESSAGES, VERSION, &long).await.json()["usage"].clone();
    let read = usage["cache_read_input_tokens"].as_u64().unwrap();
    assert!(read > 0);
    assert_eq!(usage["input_tokens"].as_u64().unwrap() + read, counted);
}

#[tokio::test]
async fn errors_have_the_shape_of_the_api() {
    let worker = of(Dialect::Anthropic).await;
    let mut endless = user("hi");
    endless["max_tokens"].take();
    let cases = [
        ("", user("hi"), 400, "invalid_request_error"),
        (VERSION, endless, 400, "invalid_request_error"),
        (VERSION, with(user("hi"), &json!({ "model": "none" })), 404, "not_found_error"),
        ("x-mock-fault: status=529\r\n", user("hi"), 529, "overloaded_error"),
    ];
    for (fields, body, status, kind) in cases {
        let answer = post(worker.address(), MESSAGES, fields, &body).await;
        assert_eq!((answer.status, &answer.json()["error"]["type"]), (status, &json!(kind)), "{answer:?}");
        assert!(answer.field("request-id").is_some());
    }
    let vllm = of(Dialect::Vllm).await;
    let answer = post(vllm.address(), MESSAGES, "", &with(user("hi"), &json!({ "model": "none" }))).await;
    assert_eq!(answer.json()["error"]["type"], "not_found_error");
    let fields = format!("{VERSION}x-mock-fault: error@event:4\r\n");
    let stream = post(worker.address(), MESSAGES, &fields, &with(user("hi"), &json!({ "stream": true }))).await;
    assert!(stream.text().contains("event: error\ndata: "), "{}", stream.text());
    assert_eq!(kinds(&stream.events()).last(), Some(&"error"));
}
