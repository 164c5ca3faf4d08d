//! The prefix cache and the queue, as a caller sees them.

use std::time::Duration;

use serde_json::{Value, json};
use smg_mock_worker::{CacheConfig, Config, Dialect, Entry, MockWorker, Outcome, Speed};
use tokio::time::Instant;

use crate::{
    client::{Client, PATIENCE, get, post},
    with, worker,
};

const CHAT: &str = "/v1/chat/completions";

fn say(messages: &[(&str, &str)]) -> Value {
    let messages: Vec<_> = messages.iter().map(|(role, content)| json!({ "role": role, "content": content })).collect();
    json!({ "model": "demo", "messages": messages })
}

async fn usage(worker: &MockWorker, body: &Value) -> (u64, u64) {
    let usage = post(worker.address(), CHAT, "", body).await.json()["usage"].clone();
    (usage["prompt_tokens"].as_u64().unwrap(), usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap())
}

#[tokio::test]
async fn a_later_turn_finds_all_whole_blocks_of_the_turns_before() {
    let worker = worker(Config::default()).await;
    let long = "word ".repeat(100);
    let first = say(&[("system", &long), ("user", "hi")]);
    let (prompt, cached) = usage(&worker, &first).await;
    assert_eq!(cached, 0);
    let again = usage(&worker, &first).await;
    assert_eq!(again, (prompt, (prompt - 1) / 16 * 16));
    let text = post(worker.address(), CHAT, "", &first).await.json()["choices"][0]["message"]["content"].clone();
    // The blocks of the answer count too: the prompt, its sixteen tokens, and not the mark that ends it.
    let next = say(&[("system", &long), ("user", "hi"), ("assistant", text.as_str().unwrap()), ("user", "go on")]);
    assert_eq!(usage(&worker, &next).await.1, (prompt + 16) / 16 * 16);
    let salted = with(next, &json!({ "cache_salt": "tenant" }));
    assert_eq!(usage(&worker, &salted).await.1, 0);
    assert_eq!(post(worker.address(), "/reset_prefix_cache", "", &json!({})).await.status, 200);
    assert_eq!(usage(&worker, &first).await.1, 0);
    assert_eq!(worker.ledger().entries().last().unwrap().cached_tokens, 0);
}

#[tokio::test]
async fn adapters_share_nothing_with_the_base_model() {
    let worker = worker(Config { models: vec!["demo".into(), "adapter".into()], ..Config::default() }).await;
    let body = say(&[("user", &"word ".repeat(50))]);
    usage(&worker, &body).await;
    assert_ne!(usage(&worker, &body).await.1, 0);
    assert_eq!(usage(&worker, &with(body, &json!({ "model": "adapter" }))).await.1, 0);
}

#[tokio::test]
async fn the_cache_forgets_what_was_used_least_recently() {
    let cache = CacheConfig { block_tokens: 16, blocks: 14 };
    let worker = worker(Config { cache, ..Config::default() }).await;
    let long = |word: &str| say(&[("user", &format!("{word} ").repeat(100))]);
    for (word, is_found) in [("one", false), ("two", false), ("two", true), ("six", false), ("one", false)] {
        let (_, cached) = usage(&worker, &long(word)).await;
        assert_eq!(cached > 0, is_found, "{word}");
    }
}

#[tokio::test]
async fn time_to_first_token_is_the_prefill_of_what_the_cache_lacks() {
    let speed = Speed { prefill_tokens_per_second: 1000.0, ..Speed::default() };
    let worker = worker(Config { speed, ..Config::default() }).await;
    let body = with(say(&[("user", &"word ".repeat(99))]), &json!({ "stream": true }));
    for _ in 0..2 {
        post(worker.address(), CHAT, "", &body).await;
    }
    worker.ledger().wait_for(|entries| entries.iter().all(|entry| entry.finished.is_some()), PATIENCE).await.unwrap();
    let entries = worker.ledger().entries();
    let (cold, warm) = (entries[0].time_to_first_token().unwrap(), entries[1].time_to_first_token().unwrap());
    assert!(cold >= Duration::from_millis(200), "{cold:?}");
    assert!(warm < cold / 2, "{warm:?} {cold:?}");
}

#[tokio::test]
async fn one_prefill_at_a_time_and_decoding_takes_its_time() {
    let speed = Speed { prefill_tokens_per_second: 1000.0, decode_tokens_per_second: 200.0, ..Speed::default() };
    let worker = worker(Config { speed, ..Config::default() }).await;
    let started = Instant::now();
    let bodies = ["one", "two"].map(|word| say(&[("user", &format!("{word} ").repeat(97))]));
    let answers = bodies.iter().map(|body| post(worker.address(), CHAT, "", body)).collect::<Vec<_>>();
    let [first, second] = answers.try_into().unwrap_or_else(|_| unreachable!());
    tokio::join!(first, second);
    // Twice 0.1 s of prefill, then fifteen intervals of 5 ms.
    assert!(started.elapsed() >= Duration::from_millis(200 + 75), "{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_time_scale_of_zero_skips_all_waiting() {
    let speed =
        Speed { prefill_tokens_per_second: 1.0, decode_tokens_per_second: 1.0, time_scale: 0.0, ..Speed::default() };
    let worker = worker(Config { speed, ..Config::default() }).await;
    let started = Instant::now();
    post(worker.address(), CHAT, "", &say(&[("user", "hi")])).await;
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn who_finds_no_slot_waits_in_order_and_leaves_without_a_trace() {
    let speed = Speed { running_max: 1, waiting_max: 2, decode_tokens_per_second: 100.0, ..Speed::default() };
    let worker = worker(Config { speed, dialect: Dialect::Sglang, ..Config::default() }).await;
    let endless = with(say(&[("user", "hi")]), &json!({ "stream": true, "ignore_eos": true, "max_tokens": 30000 }));
    let mut clients = Vec::new();
    for place in 1..=3 {
        let mut client = Client::connect(worker.address()).await;
        client.request("POST", CHAT, "", endless.to_string().as_bytes()).await;
        worker.ledger().wait_for(|entries| entries.len() == place, PATIENCE).await.unwrap();
        client.read_until(b"\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    let load = get(worker.address(), "/get_load").await.json()[0].clone();
    assert_eq!((&load["num_running_reqs"], &load["num_waiting_reqs"]), (&json!(1), &json!(2)));
    assert_eq!(post(worker.address(), CHAT, "", &say(&[("user", "hi")])).await.status, 503);
    assert_eq!(get(worker.address(), "/flush_cache").await.status, 400);

    // The second waits; it leaves, and the third gets the slot when the first leaves.
    let chats = |entries: &[Entry], outcome| {
        entries.iter().filter(|entry| entry.path == CHAT && entry.outcome == outcome).count()
    };
    let third = clients.pop().unwrap();
    clients.pop();
    worker.ledger().wait_for(|entries| chats(entries, Outcome::Aborted) == 1, PATIENCE).await.unwrap();
    clients.pop();
    worker.ledger().wait_for(|entries| chats(entries, Outcome::Aborted) == 2, PATIENCE).await.unwrap();
    let mut third = third;
    third.read_until(b"\n\n").await.unwrap();
    drop(third);
    worker.ledger().wait_for(|entries| chats(entries, Outcome::Running) == 0, PATIENCE).await.unwrap();
    assert_eq!(get(worker.address(), "/get_load").await.json()[0]["num_total_reqs"], 0);
    assert_eq!(get(worker.address(), "/flush_cache").await.status, 200);
}

#[tokio::test]
async fn stopping_a_worker_breaks_its_connections() {
    let worker = worker(Config::default()).await;
    let mut client = Client::connect(worker.address()).await;
    client
        .request(
            "POST",
            CHAT,
            "x-mock-fault: stall@event:2\r\n",
            with(say(&[("user", "hi")]), &json!({ "stream": true })).to_string().as_bytes(),
        )
        .await;
    client.read_until(b"\n\n").await.unwrap();
    let (ledger, address) = (worker.ledger().clone(), worker.address());
    worker.stop().await;
    assert_eq!(ledger.entries()[0].outcome, Outcome::Stopped);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    assert_ne!(client.answer().await.end, crate::client::End::Whole);
}

#[tokio::test]
async fn who_finds_no_room_in_the_cache_waits_though_a_slot_is_free() {
    let speed = Speed { decode_tokens_per_second: 100.0, ..Speed::default() };
    let cache = CacheConfig { block_tokens: 16, blocks: 10 };
    let worker = worker(Config { speed, cache, dialect: Dialect::Sglang, ..Config::default() }).await;
    let body = |word: &str| {
        with(say(&[("user", &word.repeat(80))]), &json!({ "stream": true, "max_tokens": 40, "ignore_eos": true }))
    };
    let mut first = Client::connect(worker.address()).await;
    first.request("POST", CHAT, "", body("one ").to_string().as_bytes()).await;
    first.read_until(b"\n\n").await.unwrap();
    let mut second = Client::connect(worker.address()).await;
    second.request("POST", CHAT, "", body("two ").to_string().as_bytes()).await;
    second.read_until(b"\r\n\r\n").await.unwrap();
    let load = get(worker.address(), "/get_load").await.json()[0].clone();
    assert_eq!(
        (&load["num_running_reqs"], &load["num_waiting_reqs"], &load["token_usage"]),
        (&json!(1), &json!(1), &json!(0.8))
    );
    drop(first);
    second.read_until(b"\n\n").await.unwrap();
    assert_eq!(get(worker.address(), "/get_load").await.json()[0]["num_waiting_reqs"], 0);
}
