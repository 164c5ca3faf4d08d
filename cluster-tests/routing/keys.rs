//! Requests that belong together.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use smg_mock_worker::{Config, Dialect};

use crate::harness::{Ask, Cluster, Gateway, Stream, engine, on, settled};

const CHAT: &str = "/v1/chat/completions";
const KEYS: usize = 24;

fn keyed(key: &str) -> Ask {
    on(CHAT, "demo", Stream::No).field("x-smg-routing-key", key)
}

/// The worker that serves `request`, by id.
async fn place(gateway: &Gateway, request: Ask) -> String {
    let answer = gateway.ask(&request.field("x-smg-debug", "1")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.field("x-smg-worker").unwrap().to_owned()
}

/// Where each key goes.
async fn places(gateway: &Gateway) -> BTreeMap<String, String> {
    let mut places = BTreeMap::new();
    for number in 0..KEYS {
        let key = format!("key-{number}");
        let worker = place(gateway, keyed(&key)).await;
        places.insert(key, worker);
    }
    places
}

fn workers_in(places: &BTreeMap<String, String>) -> usize {
    let mut workers: Vec<&String> = places.values().collect();
    workers.sort();
    workers.dedup();
    workers.len()
}

#[tokio::test]
async fn a_key_keeps_its_worker() {
    let policies: &[&[&str]] = &[
        &["--policy=manual"],
        &["--policy=manual", "--assignment-mode=min_load"],
        &["--policy=manual", "--assignment-mode=min_group"],
        &["--policy=consistent_hashing"],
        &["--policy=round_robin", "--routing-key-override"],
        &["--policy=cache_aware"],
    ];
    for flags in policies {
        let cluster = Cluster::start(3, flags).await;
        let first = places(&cluster.gateway).await;
        assert!(workers_in(&first) > 1, "{flags:?}: {first:?}");
        for _ in 0..2 {
            assert_eq!(places(&cluster.gateway).await, first, "{flags:?}");
        }
        for entry in cluster.entries() {
            assert_eq!(entry.field("x-smg-routing-key"), None, "the header is the gateway's own");
        }
    }
}

#[tokio::test]
async fn keys_of_a_lost_worker_move_and_the_others_stay() {
    let probes =
        ["--health-check-interval-secs=250ms", "--health-check-timeout-secs=240ms", "--health-failure-threshold=1"];
    for policy in ["--policy=manual", "--policy=consistent_hashing"] {
        let mut cluster = Cluster::start(3, &[&probes[..], &[policy]].concat()).await;
        let before = places(&cluster.gateway).await;
        let lost = cluster.engines.remove(0);
        let (url, port) = (lost.url().to_owned(), lost.address().port());
        let id = cluster.gateway.worker(&url).await["id"].as_str().unwrap().to_owned();
        lost.stop().await;
        settled("the loss to be seen", async || cluster.gateway.worker(&url).await["is_healthy"] == false).await;
        let during = places(&cluster.gateway).await;
        for (key, worker) in &before {
            assert_eq!(&during[key] == worker, *worker != id, "{policy} {key}");
        }
        // It returns, and so do its keys: its cache is there.
        cluster.engines.push(engine(Config { port, ..Config::default() }).await);
        cluster.gateway.worker_is(&url, "ready").await;
        assert_eq!(places(&cluster.gateway).await, before, "{policy}");
    }
}

#[tokio::test]
async fn a_new_worker_takes_its_part_of_the_hashed_keys_and_no_more() {
    let cluster = Cluster::start(3, &["--policy=consistent_hashing"]).await;
    let before = places(&cluster.gateway).await;
    let added = engine(Config::default()).await;
    cluster.gateway.admin("POST", "/workers", &json!({ "url": added.url() })).await;
    cluster.gateway.worker_is(added.url(), "ready").await;
    let id = cluster.gateway.worker(added.url()).await["id"].as_str().unwrap().to_owned();
    let after = places(&cluster.gateway).await;
    let moved: Vec<_> = before.iter().filter(|(key, worker)| after[*key] != **worker).collect();
    assert!(moved.len() <= KEYS / 2, "{moved:?}");
    assert!(moved.iter().all(|(key, _)| after[*key] == id), "only to the new one");
}

#[tokio::test]
async fn gateways_that_never_spoke_agree() {
    let engines = [engine(Config::default()).await, engine(Config::default()).await, engine(Config::default()).await];
    let urls: Vec<&str> = engines.iter().map(|engine| engine.url()).collect();
    let reversed: Vec<&str> = urls.iter().rev().copied().collect();
    for policy in ["consistent_hashing", "cache_aware"] {
        let flags = ["--policy", policy, "--node-name", "one"];
        let (one, other) = (Gateway::start(&flags, &urls).await, Gateway::start(&flags, &reversed).await);
        assert_eq!(places(&one).await, places(&other).await, "{policy}");
    }
}

#[tokio::test]
async fn users_and_conversations_are_keys_too() {
    let cluster = Cluster::start(3, &["--policy=consistent_hashing"]).await;
    let fields =
        [("user", CHAT), ("prompt_cache_key", CHAT), ("conversation", "/v1/responses"), ("metadata", "/v1/messages")];
    for (field, path) in fields {
        let mut seen = BTreeMap::new();
        for round in 0..3 {
            for number in 0..8 {
                let name = format!("{field}-{number}");
                let value = if field == "metadata" { json!({ "user_id": name }) } else { json!(name) };
                let mut body = json!({"model": "demo", "max_tokens": 4, field: value});
                let text = json!(format!("round {round}"));
                match path {
                    "/v1/responses" => body["input"] = text,
                    _ => body["messages"] = json!([{"role": "user", "content": text}]),
                }
                let worker = place(&cluster.gateway, Ask::json(path, &body)).await;
                let known = seen.entry(name.clone()).or_insert_with(|| worker.clone());
                assert_eq!(*known, worker, "{name}");
            }
        }
        assert!(workers_in(&seen) > 1, "{field}");
    }
}

#[tokio::test]
async fn prompts_that_begin_alike_go_together() {
    let cluster = Cluster::start(3, &["--policy=prefix_hash"]).await;
    let mut seen = BTreeMap::new();
    for number in 0..12 {
        let beginning = format!("document {number} ").repeat(150);
        for question in ["what?", "who?", "when?"] {
            let body = json!({"model": "demo", "prompt": format!("{beginning}{question}")});
            let worker = place(&cluster.gateway, Ask::json("/v1/completions", &body)).await;
            let known = seen.entry(number.to_string()).or_insert_with(|| worker.clone());
            assert_eq!(*known, worker, "{number} {question}");
        }
    }
    assert!(workers_in(&seen) > 1);
}

#[tokio::test]
async fn a_follow_up_goes_where_the_response_is_stored() {
    let engine = || Config { dialect: Dialect::Openai, ..Config::default() };
    let cluster = Cluster::of(vec![engine(), engine(), engine()], &["--policy=random"]).await;
    for stream in [Stream::No, Stream::Yes] {
        for _ in 0..6 {
            let answer = cluster.gateway.ask(&on("/v1/responses", "demo", stream).field("x-smg-debug", "1")).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let id = match stream {
                Stream::No => answer.value()["id"].as_str().unwrap().to_owned(),
                Stream::Yes => answer.events()[0].value()["response"]["id"].as_str().unwrap().to_owned(),
            };
            let body = json!({"model": "demo", "input": "more", "previous_response_id": id});
            let next = cluster.gateway.ask(&Ask::json("/v1/responses", &body).field("x-smg-debug", "1")).await;
            assert_eq!(next.status, 200, "{}", next.text());
            assert_eq!(next.field("x-smg-worker"), answer.field("x-smg-worker"));
            let stored = cluster.gateway.ask(&Ask::get(&format!("/v1/responses/{id}"))).await;
            assert_eq!((stored.status, stored.value()["id"].clone()), (200, Value::from(id.clone())));
            let below = cluster.gateway.ask(&Ask::get(&format!("/v1/responses/{id}/input_items"))).await;
            assert_eq!(below.status, 200, "{}", below.text());
            let deleted = cluster.gateway.ask(&Ask::new("DELETE", &format!("/v1/responses/{id}"), "")).await;
            assert_eq!(deleted.status, 200, "{}", deleted.text());
            assert_eq!(cluster.gateway.ask(&Ask::get(&format!("/v1/responses/{id}"))).await.status, 404);
        }
    }
}
