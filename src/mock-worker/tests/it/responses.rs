//! Responses, and what is kept of them.

use serde_json::{Value, json};
use smg_mock_worker::{Config, Dialect, Limits};

use crate::{
    client::{Client, get, post},
    of, with, worker,
};

const RESPONSES: &str = "/v1/responses";

fn ask(input: &str) -> Value {
    json!({ "model": "demo", "input": input })
}

#[tokio::test]
async fn a_stream_is_numbered_and_ends_with_the_whole() {
    let worker = of(Dialect::Openai).await;
    let plain = post(worker.address(), RESPONSES, "", &ask("echo a b")).await.json();
    assert_eq!(plain["output"][0]["content"][0]["text"], "a b");
    let stream = post(worker.address(), RESPONSES, "", &with(ask("echo a b"), &json!({ "stream": true }))).await;
    let events = stream.events();
    let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert!(numbers.iter().copied().eq(0..events.len() as u64));
    let kinds: Vec<_> =
        events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect();
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(kinds, expected);
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"][0]["content"], plain["output"][0]["content"]);
    assert_eq!(events[8]["item"], last["output"][0]);
}

#[tokio::test]
async fn tools_are_called_and_their_results_answered() {
    let worker = of(Dialect::Vllm).await;
    let tools = json!({ "tools": [{ "type": "function", "name": "look_up", "parameters": { "properties": { "key": { "type": "string" } } } }] });
    let body = with(ask("look_up it"), &tools);
    let plain = post(worker.address(), RESPONSES, "", &body).await.json();
    let call = &plain["output"][0];
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("look_up")));
    let events = post(worker.address(), RESPONSES, "", &with(body.clone(), &json!({ "stream": true }))).await.events();
    let arguments: String = events
        .iter()
        .filter(|event| event["type"] == "response.function_call_arguments.delta")
        .filter_map(|event| event["delta"].as_str())
        .collect();
    assert_eq!(call["arguments"], arguments);
    let result = json!([{ "type": "function_call_output", "call_id": call["call_id"], "output": "42" }]);
    let next = with(body, &json!({ "input": result, "previous_response_id": plain["id"] }));
    assert_eq!(post(worker.address(), RESPONSES, "", &next).await.json()["output"][0]["type"], "message");
}

#[tokio::test]
async fn what_was_said_before_is_part_of_the_prompt() {
    let worker = of(Dialect::Openai).await;
    let first = post(worker.address(), RESPONSES, "", &ask(&"word ".repeat(50))).await.json();
    let next = with(ask("go on"), &json!({ "previous_response_id": first["id"] }));
    let next = post(worker.address(), RESPONSES, "", &next).await.json();
    let tokens = |response: &Value| response["usage"]["input_tokens"].as_u64().unwrap();
    assert!(tokens(&next) > tokens(&first) + 16);
    assert!(next["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap() >= tokens(&first) / 16 * 16);
    let lost = with(ask("go on"), &json!({ "previous_response_id": "resp_none" }));
    assert_eq!(post(worker.address(), RESPONSES, "", &lost).await.status, 404);
}

#[tokio::test]
async fn stored_responses_are_fetched_cancelled_and_forgotten() {
    let limits = Limits { stored_responses_max: 2, ..Limits::default() };
    let worker = worker(Config { dialect: Dialect::Openai, limits, ..Config::default() }).await;
    let address = worker.address();
    let stored = post(address, RESPONSES, "", &ask("hi")).await.json();
    let path = format!("{RESPONSES}/{}", stored["id"].as_str().unwrap());
    assert_eq!(get(address, &path).await.json(), stored);
    let items = get(address, &format!("{path}/input_items")).await.json();
    assert_eq!((&items["data"][0]["content"], items["first_id"].is_string()), (&json!("hi"), true));
    assert_eq!(post(address, &format!("{path}/cancel"), "", &json!({})).await.status, 400);

    let background = post(address, RESPONSES, "", &with(ask("hi"), &json!({ "background": true }))).await.json();
    assert_eq!(background["status"], "queued");
    let cancel = format!("{RESPONSES}/{}/cancel", background["id"].as_str().unwrap());
    assert_eq!(post(address, &cancel, "", &json!({})).await.json()["status"], "cancelled");

    let mut client = Client::connect(address).await;
    client.request("DELETE", &path, "", b"").await;
    assert_eq!(client.answer().await.json()["deleted"], true);
    assert_eq!(get(address, &path).await.status, 404);

    let unstored = post(address, RESPONSES, "", &with(ask("hi"), &json!({ "store": false }))).await.json();
    assert_eq!(get(address, &format!("{RESPONSES}/{}", unstored["id"].as_str().unwrap())).await.status, 404);
    for _ in 0..2 {
        post(address, RESPONSES, "", &ask("more")).await;
    }
    assert_eq!(get(address, cancel.trim_end_matches("/cancel")).await.status, 404);
}
