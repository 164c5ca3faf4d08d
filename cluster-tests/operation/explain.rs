//! Why a request went where it went, and what became of every attempt.

use serde_json::{Value, json};
use smg_mock_worker::{Outcome, Rule};

use super::{CHAT, chat, complained, said, smg_in};
use crate::harness::{Ask, Cluster, Gateway, Stream, free_port, on, wait_for};

/// The record of a request, once there is one.
async fn explained(gateway: &Gateway, id: &str) -> Value {
    wait_for("an explanation", async || {
        let answer = gateway.admin("GET", &format!("/explain/{id}"), &Value::Null).await;
        (answer.status == 200).then(|| answer.value())
    })
    .await
}

/// Result and dispatch of each attempt.
fn attempts(record: &Value) -> Vec<(String, String)> {
    let attempts = record["attempts"].as_array().unwrap().iter();
    let text = |attempt: &Value, name: &str| attempt[name].as_str().unwrap_or("none").to_owned();
    attempts.map(|attempt| (text(attempt, "result"), text(attempt, "dispatched"))).collect()
}

/// Sends `request` with an id of its own and checks what is remembered of it.
async fn check(cluster: &Cluster, request: Ask, outcome: &str, expected: &[(&str, &str)]) -> Value {
    static NUMBER: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let id = format!("explained-{}", NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    let answer = cluster.gateway.ask(&request.field("x-request-id", &id)).await;
    let record = explained(&cluster.gateway, &id).await;
    let seen = attempts(&record);
    let seen: Vec<(&str, &str)> =
        seen.iter().map(|(result, dispatched)| (result.as_str(), dispatched.as_str())).collect();
    assert_eq!((seen.as_slice(), record["outcome"].as_str()), (expected, Some(outcome)), "{record:#}");
    assert_eq!(record["status"], answer.status, "{record:#}");
    assert_eq!(record["request_id"], id);
    record
}

#[tokio::test]
async fn every_attempt_says_how_it_ended() {
    let cluster = Cluster::start(1, &["--retry-max-retries", "2"]).await;
    let stream = || on(CHAT, "demo", Stream::Yes);
    let answered = check(&cluster, chat(), "answered", &[("answered", "yes")]).await;
    assert_eq!(
        (&answered["model"], &answered["endpoint"], &answered["streaming"]),
        (&json!("demo"), &json!("chat"), &json!(false))
    );
    let worker = cluster.gateway.worker(cluster.engines[0].url()).await["id"].clone();
    assert_eq!(answered["attempts"][0]["worker"], worker);
    assert_eq!(answered["attempts"][0]["decision"]["chosen"], worker);
    assert_eq!(answered["attempts"][0]["decision"]["reason"], "turn");
    assert!(answered["timing_ms"]["total"].as_f64().unwrap() >= answered["timing_ms"]["first_byte"].as_f64().unwrap());

    check(&cluster, stream(), "answered", &[("answered", "yes")]).await;
    check(&cluster, chat().fault("status=400"), "answered", &[("answered", "yes")]).await;
    check(&cluster, chat().fault("status=500"), "answered", &[("upstream_error", "yes")]).await;
    check(
        &cluster,
        chat().fault("rst@head"),
        "call_upstream_request_error",
        &[("call_upstream_request_error", "maybe")],
    )
    .await;
    check(
        &cluster,
        stream().fault("fin@event:2"),
        "read_response_body_failed",
        &[("read_response_body_failed", "yes")],
    )
    .await;
    check(&cluster, stream().fault("garble@event:2"), "upstream_protocol_error", &[("upstream_protocol_error", "yes")])
        .await;
    check(&cluster, stream().fault("error@event:2"), "upstream_error", &[("upstream_error", "yes")]).await;
    check(&cluster, Ask::post(CHAT, "{"), "invalid_request", &[]).await;
    check(&cluster, on(CHAT, "nobodys", Stream::No), "model_not_found", &[]).await;
    let lost = chat().field("x-smg-target-worker", "http://127.0.0.1:1");
    let record = check(&cluster, lost, "target_worker_unavailable", &[("target_unavailable", "no")]).await;
    assert_eq!(record["attempts"][0]["worker"], Value::Null);

    cluster.engines[0].faults().add(Rule::always("status=503".parse().unwrap()).on_path(CHAT).times(1));
    check(&cluster, chat(), "answered", &[("upstream_error", "no"), ("answered", "yes")]).await;
}

#[tokio::test]
async fn a_caller_that_leaves_is_remembered_too() {
    let cluster = Cluster::start(1, &[]).await;
    for (fault, stream, dispatched) in [("stall@head", Stream::No, "maybe"), ("stall@event:2", Stream::Yes, "yes")] {
        let request = on(CHAT, "demo", stream).fault(fault).field("x-request-id", fault);
        let mut connection = cluster.gateway.begin(&request).await;
        cluster.entry(0, |entry| entry.fault.as_deref() == Some(fault)).await;
        if stream == Stream::Yes {
            connection.head().await;
        }
        connection.close();
        cluster.entry(0, |entry| entry.fault.as_deref() == Some(fault) && entry.outcome == Outcome::Aborted).await;
        let record = explained(&cluster.gateway, fault).await;
        assert_eq!(attempts(&record), [("client_closed_request".to_owned(), dispatched.to_owned())], "{record:#}");
    }
}

#[tokio::test]
async fn a_worker_that_is_not_there_was_not_asked() {
    let cluster = Cluster::start(0, &["--retry-max-retries", "1"]).await;
    let spec = json!({
        "url": format!("http://127.0.0.1:{}", free_port()), "models": ["demo"], "health": {"disable_health_check": true}
    });
    assert_eq!(cluster.gateway.admin("POST", "/workers", &spec).await.status, 202);
    cluster.gateway.ready().await;
    let failed = ("call_upstream_connection_failed", "no");
    check(&cluster, chat(), failed.0, &[failed]).await;
}

#[tokio::test]
async fn the_command_line_tells_it() {
    let cluster = Cluster::start(1, &[]).await;
    cluster.gateway.ask(&chat().field("x-request-id", "a/b:c")).await;
    let (folder, url) = (cluster.gateway.folder(), cluster.gateway.url());
    let told = smg_in(&folder, &["explain", "a/b:c", "--url", &url], &[]).await;
    assert!(told.status.success(), "{}", complained(&told));
    assert!(said(&told).contains("round_robin") && said(&told).contains("it is this worker's turn"), "{}", said(&told));
    let told = smg_in(&folder, &["explain", "a/b:c", "--output", "json"], &[("SMG_URL", &url)]).await;
    let record: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(attempts(&record), [("answered".to_owned(), "yes".to_owned())]);
    let told = smg_in(&folder, &["explain", "nobody", "--url", &url], &[]).await;
    assert_eq!(told.status.code(), Some(1));
    assert!(complained(&told).contains("no record"), "{}", complained(&told));
}

#[tokio::test]
async fn memory_is_bounded_and_can_be_done_without() {
    let few = Cluster::start(1, &["--explanations-max", "2"]).await;
    for id in ["a", "b", "c"] {
        few.gateway.ask(&chat().field("x-request-id", id)).await;
    }
    explained(&few.gateway, "c").await;
    let first = few.gateway.admin("GET", "/explain/a", &Value::Null).await;
    assert_eq!(first.status, 404);
    let none = Cluster::start(1, &["--explanations-max", "0"]).await;
    none.gateway.ask(&chat().field("x-request-id", "a")).await;
    none.idle().await;
    assert_eq!(none.gateway.admin("GET", "/explain/a", &Value::Null).await.status, 404);
}

#[tokio::test]
async fn answers_tell_their_route_to_those_who_ask() {
    let cluster = Cluster::start(2, &[]).await;
    for stream in [Stream::No, Stream::Yes] {
        let request = on(CHAT, "demo", stream);
        let quiet = cluster.gateway.ask(&request).await;
        assert!(!quiet.head.fields.iter().any(|(name, _)| name.starts_with("x-smg-")), "{quiet:?}");
        let told = cluster.gateway.ask(&request.clone().field("x-smg-debug", "1")).await;
        let worker = told.field("x-smg-worker").unwrap().to_owned();
        let served = told.field("x-mock-worker").is_some();
        assert!(
            served && cluster.gateway.admin("GET", &format!("/workers/{worker}"), &Value::Null).await.status == 200
        );
        assert_eq!((told.field("x-smg-route"), told.field("x-smg-attempts")), (Some("round_robin turn"), Some("1")));
    }
    cluster.engines.iter().for_each(|engine| {
        engine.faults().add(Rule::always("status=503".parse().unwrap()).on_path(CHAT).times(1));
    });
    let told = cluster.gateway.ask(&chat().field("x-smg-debug", "1")).await;
    assert_eq!((told.status, told.field("x-smg-attempts")), (200, Some("3")), "{told:?}");

    let silent = Cluster::start(1, &["--debug-headers=false"]).await;
    let answer = silent.gateway.ask(&chat().field("x-smg-debug", "1")).await;
    assert_eq!((answer.status, answer.field("x-smg-worker")), (200, None));
}
