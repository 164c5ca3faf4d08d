//! The breaker of a worker, by what it lets through.

use std::time::Instant;

use smg_mock_worker::Rule;

use crate::harness::{Cluster, Stream, on, settled};

const CHAT: &str = "/v1/chat/completions";

const FLAGS: &[&str] =
    &["--cb-failure-threshold=3", "--cb-success-threshold=2", "--cb-timeout-duration-secs=400ms", "--disable-retries"];

async fn state(cluster: &Cluster) -> String {
    cluster.gateway.worker(cluster.engines[0].url()).await["breaker"]["state"].as_str().unwrap().to_owned()
}

async fn open(cluster: &Cluster, fault: &str, status: u16) {
    for _ in 0..3 {
        assert_eq!(state(cluster).await, "closed");
        let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::No).fault(fault)).await;
        assert_eq!(answer.status, status, "{fault}: {}", answer.text());
    }
    assert_eq!(state(cluster).await, "open", "{fault}");
}

async fn lets_one_through(cluster: &Cluster) {
    cluster.gateway.ready().await;
}

#[tokio::test]
async fn errors_of_the_callers_never_trip_it() {
    let cluster = Cluster::start(1, FLAGS).await;
    for status in [400, 401, 403, 404, 409, 413, 422, 499] {
        for _ in 0..4 {
            let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::No).fault(&format!("status={status}"))).await;
            assert_eq!(answer.status, status);
        }
        assert_eq!(state(&cluster).await, "closed", "{status}");
    }
    // Neither do callers that leave.
    for _ in 0..4 {
        let mut connection = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:3")).await;
        connection.head().await;
        connection.reset();
    }
    cluster.idle().await;
    let breaker = &cluster.gateway.worker(cluster.engines[0].url()).await["breaker"];
    assert_eq!((&breaker["state"], &breaker["consecutive_failures"]), (&"closed".into(), &0.into()));
}

#[tokio::test]
async fn it_opens_tries_and_closes() {
    let cluster = Cluster::start(1, FLAGS).await;
    for (fault, status) in [("status=500", 500), ("rst@head", 502), ("garble@event:1", 502)] {
        open(&cluster, fault, status).await;
        // Open: nothing gets through, the caller is told when to come back, and readiness says no.
        let before = cluster.entries().len();
        let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await;
        assert_eq!((answer.status, answer.field("x-smg-error-code")), (503, Some("no_available_workers")));
        assert!(answer.field("retry-after").is_some());
        assert_eq!(cluster.entries().len(), before);
        // Half-open: a failure opens it again.
        lets_one_through(&cluster).await;
        assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No).fault(fault)).await.status, status);
        assert_eq!(state(&cluster).await, "open");
        // Half-open: two successes close it.
        lets_one_through(&cluster).await;
        assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes)).await.status, 200);
        assert_eq!(state(&cluster).await, "half_open");
        assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
        assert_eq!(state(&cluster).await, "closed");
    }
    let url = cluster.engines[0].url();
    for (from, to, times) in [("closed", "open", 3.0), ("half_open", "open", 3.0), ("half_open", "closed", 3.0)] {
        let labels = [("worker", url), ("from", from), ("to", to)];
        assert_eq!(cluster.gateway.metric("smg_worker_cb_transitions_total", &labels).await, times, "{from} {to}");
    }
}

#[tokio::test]
async fn a_trial_always_ends() {
    let cluster = Cluster::start(1, FLAGS).await;
    // However the trial ends without a verdict, the next request may try.
    for leaves_at in ["stall@head", "stall@event:3"] {
        open(&cluster, "status=500", 500).await;
        lets_one_through(&cluster).await;
        let trial = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault(leaves_at)).await;
        cluster.entry(0, |entry| entry.finished.is_none()).await;
        if leaves_at == "stall@head" {
            // While it is out, no other gets through.
            assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 503);
        }
        trial.reset();
        cluster.idle().await;
        let started = Instant::now();
        settled("the breaker to close", async || {
            cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await;
            state(&cluster).await == "closed"
        })
        .await;
        assert!(started.elapsed().as_millis() < 2_000, "{leaves_at}: {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn the_others_take_over() {
    let cluster = Cluster::start(2, &["--cb-failure-threshold=3", "--cb-timeout-duration-secs=3600"]).await;
    cluster.engines[0].faults().add(Rule::always("rst@head".parse().unwrap()).on_path("/v1/*"));
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status != 200);
    }
    assert_eq!((failed, cluster.shares()), (3, vec![3, 17]));
}

#[tokio::test]
async fn streams_that_break_count_as_failures() {
    let cluster = Cluster::start(1, FLAGS).await;
    for fault in ["rst@event:3", "garble@event:3", "error@event:3"] {
        let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes).fault(fault)).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(state(&cluster).await, "open");
}

#[tokio::test]
async fn it_can_be_turned_off() {
    let cluster =
        Cluster::start(1, &["--cb-failure-threshold=1", "--disable-circuit-breaker", "--disable-retries"]).await;
    for _ in 0..5 {
        assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No).fault("status=500")).await.status, 500);
    }
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
}
