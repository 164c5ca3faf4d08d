//! Workers that fail, come back, drain, and go.

use serde_json::{Value, json};
use smg_mock_worker::{Config, MockWorker, Outcome, Rule};

use crate::harness::{Cluster, Stream, engine, on, settled};

const CHAT: &str = "/v1/chat/completions";

const PROBES: &[&str] = &[
    "--health-check-interval-secs=250ms",
    "--health-check-timeout-secs=240ms",
    "--health-failure-threshold=2",
    "--health-success-threshold=2",
];

fn sick(fault: &str) -> Rule {
    Rule::always(fault.parse().unwrap()).on_path("/health")
}

async fn id(cluster: &Cluster, url: &str) -> String {
    cluster.gateway.worker(url).await["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_worker_that_fails_its_probes_comes_back_by_itself() {
    let cluster = Cluster::start(2, PROBES).await;
    let (first, url) = (&cluster.engines[0], cluster.engines[0].url());
    for fault in ["status=503", "rst@head", "stall@head"] {
        first.faults().add(sick(fault));
        settled("the worker to be given up", async || cluster.gateway.worker(url).await["is_healthy"] == false).await;
        let before = cluster.shares();
        for _ in 0..4 {
            assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
        }
        assert_eq!(cluster.shares(), [before[0], before[1] + 4], "{fault}");
        first.faults().clear();
        cluster.gateway.worker_is(url, "ready").await;
        for _ in 0..4 {
            assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
        }
        assert_eq!(cluster.shares(), [before[0] + 2, before[1] + 6], "{fault}");
    }
}

#[tokio::test]
async fn a_restarted_engine_comes_back_by_itself() {
    let mut cluster = Cluster::start(1, PROBES).await;
    let gone = cluster.engines.remove(0);
    let (url, port) = (gone.url().to_owned(), gone.address().port());
    gone.stop().await;
    settled("the worker to be given up", async || cluster.gateway.worker(&url).await["is_healthy"] == false).await;
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 503);
    cluster.engines.push(engine(Config { port, ..Config::default() }).await);
    cluster.gateway.worker_is(&url, "ready").await;
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
}

#[tokio::test]
async fn unhealthy_workers_are_removed_where_that_is_wanted() {
    let flags = [PROBES, &["--remove-unhealthy-workers"]].concat();
    let mut cluster = Cluster::start(2, &flags).await;
    let url = cluster.engines[0].url().to_owned();
    cluster.engines.remove(0).stop().await;
    settled("the worker to be removed", async || cluster.gateway.worker(&url).await.is_null()).await;
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
    assert_eq!(cluster.gateway.metric("smg_worker_cb_state", &[("worker", &url)]).await, 0.0);
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has() {
    let cluster = Cluster::start(2, &[]).await;
    let url = cluster.engines[0].url();
    let target = on(CHAT, "demo", Stream::Yes).field("x-smg-target-worker", url).fault("delay=30ms@event:*");
    let mut stream = cluster.gateway.begin(&target).await;
    stream.head().await;
    let drained =
        cluster.gateway.admin("POST", &format!("/workers/{}/drain", id(&cluster, url).await), &Value::Null).await;
    assert_eq!((drained.status, drained.value()["in_flight"].clone()), (202, 1.into()));
    cluster.gateway.worker_is(url, "draining").await;
    for _ in 0..4 {
        assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
    }
    assert_eq!(cluster.shares(), [1, 4]);
    let refused = cluster.gateway.ask(&on(CHAT, "demo", Stream::No).field("x-smg-target-worker", url)).await;
    assert_eq!((refused.status, refused.field("x-smg-error-code")), (503, Some("target_worker_unavailable")));
    let (body, is_whole) = stream.rest().await;
    assert!(is_whole && body.ends_with(b"data: [DONE]\n\n"));
    assert_eq!(cluster.gateway.worker(url).await["status"], "draining", "it stays until it is removed");
}

#[tokio::test]
async fn a_worker_removed_during_a_stream_finishes_it_first() {
    let cluster = Cluster::start(2, &[]).await;
    let url = cluster.engines[0].url();
    let target = on(CHAT, "demo", Stream::Yes).field("x-smg-target-worker", url).fault("delay=90ms@event:*");
    let mut stream = cluster.gateway.begin(&target).await;
    stream.head().await;
    let removed = cluster.gateway.admin("DELETE", &format!("/workers/{}", id(&cluster, url).await), &Value::Null).await;
    assert_eq!(removed.status, 202, "{}", removed.text());
    for _ in 0..4 {
        assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
    }
    let (body, is_whole) = stream.rest().await;
    assert!(is_whole && body.ends_with(b"data: [DONE]\n\n"));
    settled("the worker to be removed", async || cluster.gateway.worker(url).await.is_null()).await;
    assert_eq!(cluster.shares(), [1, 4]);
    // It may come back.
    let added = cluster.gateway.admin("POST", "/workers", &json!({ "url": url })).await;
    assert_eq!(added.status, 202, "{}", added.text());
    cluster.gateway.worker_is(url, "ready").await;
}

#[tokio::test]
async fn a_removal_does_not_wait_for_ever() {
    let cluster = Cluster::start(1, &["--worker-drain-timeout=200ms"]).await;
    let url = cluster.engines[0].url();
    let mut stream = cluster.gateway.begin(&on(CHAT, "demo", Stream::Yes).fault("stall@event:3")).await;
    stream.head().await;
    cluster.gateway.admin("DELETE", &format!("/workers/{}", id(&cluster, url).await), &Value::Null).await;
    settled("the worker to be removed", async || cluster.gateway.worker(url).await.is_null()).await;
    // What it still has goes on, and ends with its caller.
    assert_eq!(cluster.entry(0, |_| true).await.outcome, Outcome::Running);
    stream.close();
    let ended = cluster.entry(0, |entry| entry.finished.is_some()).await;
    assert_eq!(ended.outcome, Outcome::Aborted);
    cluster.idle().await;
}

#[tokio::test]
async fn a_gateway_without_workers_says_so_and_takes_one_later() {
    let cluster = Cluster::start(0, &[]).await;
    let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await;
    assert_eq!((answer.status, answer.field("x-smg-error-code")), (503, Some("no_workers")));
    let worker: MockWorker = engine(Config::default()).await;
    cluster.gateway.admin("POST", "/workers", &json!({ "url": worker.url() })).await;
    cluster.gateway.worker_is(worker.url(), "ready").await;
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
}
