//! Who is asked again, and who is not.

use smg_mock_worker::{Entry, MockWorker, Rule};

use crate::harness::{Cluster, Stream, on, serving};

const CHAT: &str = "/v1/chat/completions";
const EMBEDDINGS: &str = "/v1/embeddings";

fn fails(engine: &MockWorker, fault: &str) {
    engine.faults().add(Rule::always(fault.parse().unwrap()).on_path("/v1/*"));
}

#[tokio::test]
async fn a_refused_connection_goes_elsewhere() {
    let mut cluster = Cluster::start(2, &[]).await;
    // A used connection to it is in the pool.
    for _ in 0..4 {
        assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
    }
    cluster.engines.remove(0).stop().await;
    for stream in [Stream::Yes, Stream::No, Stream::Yes, Stream::No] {
        let answer = cluster.gateway.ask(&on(CHAT, "demo", stream)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(cluster.shares(), [2 + 4]);
    assert!(cluster.gateway.metric("smg_worker_retries_total", &[]).await >= 2.0);
}

#[tokio::test]
async fn nobody_there_is_a_502_and_not_a_hang() {
    let mut cluster = Cluster::start(1, &["--retry-initial-backoff-ms=1", "--retry-max-retries=3"]).await;
    cluster.engines.remove(0).stop().await;
    let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await;
    assert_eq!((answer.status, answer.field("x-smg-error-code")), (502, Some("call_upstream_connection_failed")));
    assert_eq!(cluster.gateway.metric("smg_worker_retries_exhausted_total", &[("reason", "attempts")]).await, 1.0);
}

#[tokio::test]
async fn connections_that_engines_close_cost_no_request() {
    let cluster = Cluster::start(2, &[]).await;
    // One connection of the caller, so that requests follow each other as closely as they can.
    let mut connection = cluster.gateway.connect().await;
    for number in 0..100 {
        connection.send(&on(CHAT, "demo", Stream::No).fault("hangup")).await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, 200, "request {number}: {}", answer.text());
    }
}

#[tokio::test]
async fn the_engine_that_failed_is_not_asked_again() {
    let cluster =
        Cluster::start(3, &["--policy=random", "--disable-circuit-breaker", "--retry-budget-per-second=1000"]).await;
    fails(&cluster.engines[0], "status=500");
    for number in 0..40 {
        let mark = number.to_string();
        let answer = cluster.gateway.ask(&on(EMBEDDINGS, "demo", Stream::No).field("x-cell", &mark)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let is_its = |entry: &Entry| serving(entry) && entry.field("x-cell") == Some(&mark);
        assert!(cluster.engines[0].ledger().count(is_its) <= 1);
    }
    assert!(cluster.shares()[0] > 0, "the failing one was never chosen: {:?}", cluster.shares());
}

#[tokio::test]
async fn when_all_have_failed_the_first_to_recover_answers() {
    let cluster = Cluster::start(2, &["--retry-initial-backoff-ms=1", "--retry-max-retries=4"]).await;
    for engine in &cluster.engines {
        engine.faults().add(Rule::always("status=500".parse().unwrap()).on_path("/v1/*").times(1));
    }
    assert_eq!(cluster.gateway.ask(&on(EMBEDDINGS, "demo", Stream::No)).await.status, 200);
    assert_eq!(cluster.entries().len(), 3);
}

#[tokio::test]
async fn retries_have_a_budget() {
    let flags = ["--retry-budget-ratio=0.5", "--retry-budget-per-second=0", "--disable-circuit-breaker"];
    let cluster =
        Cluster::start(2, &[&flags[..], &["--retry-max-retries=2", "--retry-initial-backoff-ms=1"]].concat()).await;
    for engine in &cluster.engines {
        fails(engine, "status=500");
    }
    const REQUESTS: usize = 40;
    for _ in 0..REQUESTS {
        assert_eq!(cluster.gateway.ask(&on(EMBEDDINGS, "demo", Stream::No)).await.status, 500);
    }
    let retries = cluster.entries().len() - REQUESTS;
    // Half of the requests, and what a fresh budget may hold.
    assert!((REQUESTS / 2 - 1..=REQUESTS / 2 + 10).contains(&retries), "{retries} retries");
    let refused = cluster.gateway.metric("smg_worker_retries_exhausted_total", &[("reason", "budget")]).await;
    assert_eq!(refused, (REQUESTS - retries) as f64);
}

#[tokio::test]
async fn busy_is_passed_on_and_is_no_fault() {
    let cluster = Cluster::start(2, &["--cb-failure-threshold=2", "--retry-max-retries=2"]).await;
    for fault in ["status=429,retry-after=9", "status=503,retry-after=9"] {
        // One busy engine is nobody's concern.
        fails(&cluster.engines[0], fault);
        for _ in 0..6 {
            assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes)).await.status, 200);
        }
        // Where all are, the caller learns when to come back.
        fails(&cluster.engines[1], fault);
        for _ in 0..6 {
            let answer = cluster.gateway.ask(&on(CHAT, "demo", Stream::Yes)).await;
            assert_eq!((u64::from(answer.status), answer.field("retry-after")), (status_in(fault), Some("9")));
            assert!(answer.text().contains("a scripted fault"), "{}", answer.text());
        }
        for engine in &cluster.engines {
            engine.faults().clear();
            let breaker = &cluster.gateway.worker(engine.url()).await["breaker"];
            assert_eq!((&breaker["state"], &breaker["consecutive_failures"]), (&"closed".into(), &0.into()));
        }
    }
}

fn status_in(fault: &str) -> u64 {
    fault[7..10].parse().unwrap()
}

#[tokio::test]
async fn a_short_wait_is_kept_here() {
    let cluster = Cluster::start(1, &["--retry-initial-backoff-ms=1"]).await;
    let rule = Rule::always("status=429,retry-after=1".parse().unwrap()).on_path("/v1/*").times(1);
    cluster.engines[0].faults().add(rule);
    assert_eq!(cluster.gateway.ask(&on(CHAT, "demo", Stream::No)).await.status, 200);
    let entries = cluster.entries();
    let waited = entries[1].received - entries[0].finished.unwrap();
    assert!(waited.as_secs_f32() > 0.99, "{waited:?}");
}

#[tokio::test]
async fn no_retries_means_none() {
    let cluster = Cluster::start(2, &["--disable-retries"]).await;
    fails(&cluster.engines[0], "status=503");
    fails(&cluster.engines[1], "status=503");
    assert_eq!(cluster.gateway.ask(&on(EMBEDDINGS, "demo", Stream::No)).await.status, 503);
    assert_eq!(cluster.entries().len(), 1);
}
