//! The queue for a free slot.

use std::time::Instant;

use crate::harness::{Cluster, Stream, check_refused, on};

const CHAT: &str = "/v1/chat/completions";
const MESSAGES: &str = "/v1/messages";

#[tokio::test]
async fn a_full_queue_refuses_and_the_queued_are_served_in_turn() {
    let cluster = Cluster::start(1, &["--max-concurrent-requests=1", "--queue-size=2"]).await;
    let mut first = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:3")).await;
    first.head().await;
    let mut queued = Vec::new();
    for number in 1..=2 {
        queued.push(cluster.gateway.begin(&on(CHAT, "demo", Stream::No).field("x-cell", &number.to_string())).await);
        cluster.gateway.metric_is("smg_admission_queue_depth", &[], f64::from(number)).await;
    }
    for path in [CHAT, MESSAGES] {
        check_refused(&cluster.gateway.ask(&on(path, "demo", Stream::No)).await, path, (429, "queue_full"));
    }
    assert_eq!(cluster.entries().len(), 1);
    // Probes and operators do not queue.
    assert_eq!(cluster.gateway.worker(cluster.engines[0].url()).await["load"], 1);
    first.close();
    for connection in &mut queued {
        assert_eq!(connection.answer().await.status, 200);
    }
    let order: Vec<_> = cluster.entries().iter().filter_map(|entry| entry.field("x-cell").map(str::to_owned)).collect();
    assert_eq!(order, ["1", "2"]);
    cluster.idle().await;
}

#[tokio::test]
async fn a_wait_that_is_too_long_ends() {
    let flags = ["--max-concurrent-requests=1", "--queue-size=5", "--queue-timeout-secs=150ms"];
    let cluster = Cluster::start(1, &flags).await;
    let mut first = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:3")).await;
    first.head().await;
    for path in [CHAT, MESSAGES] {
        let started = Instant::now();
        check_refused(&cluster.gateway.ask(&on(path, "demo", Stream::Yes)).await, path, (503, "queue_timeout"));
        assert!(started.elapsed().as_millis() >= 150);
    }
    cluster.gateway.metric_is("smg_admission_queue_depth", &[], 0.0).await;
    first.close();
    cluster.idle().await;
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
}

#[tokio::test]
async fn a_slot_is_held_until_the_end_of_the_stream_and_freed_by_every_end() {
    let cluster =
        Cluster::start(1, &["--max-concurrent-requests=1", "--queue-size=0", "--disable-circuit-breaker"]).await;
    let ends = ["fin@event:3", "garble@event:3", "rst@head", "status=400", "status=500", "error@event:3", "garbage"];
    for fault in ends {
        cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes).fault(fault)).await;
        cluster.gateway.metric_is("smg_admission_in_flight", &[], 0.0).await;
        let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await;
        assert_eq!(answer.status, 200, "after {fault}: {}", answer.text());
        cluster.gateway.metric_is("smg_admission_in_flight", &[], 0.0).await;
    }
    let answer = cluster.gateway.ask(&on(CHAT, "nobody", Stream::No)).await;
    assert_eq!(answer.status, 404);
    cluster.gateway.metric_is("smg_admission_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn a_rate_is_kept() {
    let cluster = Cluster::start(1, &["--rate-limit-tokens-per-second=1", "--queue-size=0"]).await;
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
    check_refused(&cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await, CHAT, (429, "queue_full"));
    assert_eq!(cluster.entries().len(), 1);
}
