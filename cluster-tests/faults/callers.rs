//! Callers that go away: engines stop within a moment, and nothing is left behind.

use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use smg_mock_worker::{Config, Dialect, Entry, MockWorker, Outcome};

use super::shapes::ENDPOINTS;
use crate::harness::{Ask, Cluster, Connection, Http2, Stream, on, serving, settled, within};

/// How soon an engine must learn that its caller is gone.
const SOON: Duration = Duration::from_millis(100);

/// How a caller goes.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Closes,
    Resets,
    ClosesItsSide,
    CancelsItsStream,
}

const MANNERS: &[Manner] = &[Manner::Closes, Manner::Resets, Manner::ClosesItsSide, Manner::CancelsItsStream];

/// When: what the engine is told to do, and whether the caller asked for a stream.
const MOMENTS: &[(&str, Stream)] = &[
    ("stall@request", Stream::Yes),
    ("stall@head", Stream::No),
    ("stall@body", Stream::No),
    ("stall@body", Stream::Yes),
    ("stall@event:3", Stream::Yes),
];

/// Lets a caller go at one moment; how long the engine took to notice.
async fn goes(cluster: &Cluster, request: &Ask, manner: Manner) -> Duration {
    let engine = &cluster.engines[0];
    let mark = request.fields.iter().find(|(name, _)| name == "x-cell").map(|(_, mark)| mark.clone());
    let is_its = |entry: &Entry| serving(entry) && entry.field("x-cell") == mark.as_deref();
    let has_begun = request.fields.iter().any(|(_, value)| value.contains("@event"));
    let left = if let Manner::CancelsItsStream = manner {
        let client = Http2::new(&cluster.gateway);
        let mut answer = None;
        {
            let mut asked = Box::pin(client.begin(request));
            if has_begun {
                answer = Some(within("an answer", &mut asked).await.unwrap());
            } else {
                tokio::select! {
                    early = &mut asked => panic!("an answer that should not be: {early:?}"),
                    _ = cluster.entry(0, is_its) => {}
                }
            }
        }
        if let Some(answer) = &mut answer {
            within("an event", answer.frame()).await.unwrap().unwrap();
        }
        let left = Instant::now();
        drop(answer);
        left
    } else {
        let mut connection = cluster.gateway.begin(request).await;
        if has_begun {
            connection.head().await;
            connection.read_until("data:").await;
        }
        cluster.entry(0, is_its).await;
        hang_up(connection, manner).await
    };
    let ended = cluster.entry(0, |entry| is_its(entry) && entry.finished.is_some()).await;
    assert_eq!(ended.outcome, Outcome::Aborted, "{manner:?} {ended:?}");
    assert_eq!(engine.ledger().count(is_its), 1, "{manner:?} {ended:?}");
    ended.finished.unwrap().into_std().saturating_duration_since(left)
}

/// Goes, and stays to be dropped where that would say more than was meant.
async fn hang_up(mut connection: Connection, manner: Manner) -> Instant {
    let left = Instant::now();
    match manner {
        Manner::Resets => connection.reset(),
        Manner::ClosesItsSide => {
            connection.half_close().await;
            connection.drain().await;
        }
        _ => connection.close(),
    }
    left
}

#[tokio::test]
async fn engines_see_within_a_moment_that_a_caller_has_gone() {
    let cluster = Cluster::of(vec![Config { dialect: Dialect::Sglang, ..Config::default() }], &[]).await;
    let mut times = Vec::new();
    for (path, _) in ENDPOINTS {
        for (fault, stream) in MOMENTS.iter().filter(|moment| *path != "/v1/embeddings" || moment.1 == Stream::No) {
            for manner in MANNERS {
                let mark = format!("{}", times.len());
                let request = on(path, "demo", *stream).fault(fault).field("x-cell", &mark);
                let took = goes(&cluster, &request, *manner).await;
                times.push((took, format!("{path} {fault} {manner:?}")));
            }
        }
    }
    cluster.idle().await;
    times.sort();
    // One in twenty may be late, for machines that do other things as well.
    let late = &times[times.len() * 19 / 20];
    assert!(late.0 <= SOON, "late: {:?}", &times[times.len() * 19 / 20..]);
    let disconnects = cluster.gateway.metric("smg_http_client_disconnects_total", &[]).await;
    assert_eq!(disconnects, times.len() as f64);
}

#[tokio::test]
async fn other_streams_of_the_connection_go_on() {
    let cluster = Cluster::start(1, &[]).await;
    let client = Http2::new(&cluster.gateway);
    let request = on("/v1/chat/completions", "demo", Stream::Yes);
    let stays = client.begin(&request.clone().fault("delay=15ms@event:*").field("x-cell", "stays")).await.unwrap();
    let goes = client.begin(&request.fault("stall@event:3").field("x-cell", "goes")).await.unwrap();
    drop(goes);
    let is = |mark: &'static str| move |entry: &Entry| entry.field("x-cell") == Some(mark) && entry.finished.is_some();
    assert_eq!(cluster.entry(0, is("goes")).await.outcome, Outcome::Aborted);
    let body = within("the other stream", stays.into_body().collect()).await.unwrap().to_bytes();
    assert!(body.ends_with(b"data: [DONE]\n\n"), "{body:?}");
    assert_eq!(cluster.entry(0, is("stays")).await.outcome, Outcome::Completed);
    cluster.idle().await;
}

#[tokio::test]
async fn a_caller_that_leaves_the_queue_is_never_dispatched() {
    let cluster = Cluster::start(1, &["--max-concurrent-requests=1"]).await;
    let request = on("/v1/chat/completions", "demo", Stream::Yes);
    let mut first = cluster.gateway.begin(&request.clone().fault("stall@event:3")).await;
    first.head().await;
    for manner in MANNERS {
        let client = Http2::new(&cluster.gateway);
        if let Manner::CancelsItsStream = manner {
            let mut asked = Box::pin(client.begin(&request));
            tokio::select! {
                early = &mut asked => panic!("an answer that should not be: {early:?}"),
                () = cluster.gateway.metric_is("smg_admission_queue_depth", &[], 1.0) => {}
            }
        } else {
            let queued = cluster.gateway.begin(&request).await;
            cluster.gateway.metric_is("smg_admission_queue_depth", &[], 1.0).await;
            hang_up(queued, *manner).await;
        }
        cluster.gateway.metric_is("smg_admission_queue_depth", &[], 0.0).await;
    }
    first.close();
    cluster.idle().await;
    assert_eq!(cluster.entries().len(), 1);
    // The slot is free again.
    assert_eq!(cluster.gateway.ask(&request).await.status, 200);
}

#[tokio::test]
async fn a_caller_that_leaves_during_its_upload_is_never_dispatched() {
    let cluster = Cluster::start(1, &["--max-concurrent-requests=1"]).await;
    let bytes = on("/v1/chat/completions", "demo", Stream::Yes).bytes();
    for manner in [Manner::Closes, Manner::Resets, Manner::ClosesItsSide] {
        let mut connection = cluster.gateway.connect().await;
        connection.write(&bytes[..bytes.len() - 10]).await;
        cluster.gateway.metric_is("smg_admission_in_flight", &[], 1.0).await;
        hang_up(connection, manner).await;
        cluster.gateway.metric_is("smg_admission_in_flight", &[], 0.0).await;
    }
    cluster.idle().await;
    assert_eq!(cluster.entries().len(), 0);
}

#[tokio::test]
async fn a_caller_that_leaves_between_two_attempts_ends_them() {
    let cluster = Cluster::start(1, &["--retry-initial-backoff-ms=60000", "--retry-max-backoff-ms=60000"]).await;
    let connection = cluster.gateway.begin(&on("/v1/embeddings", "demo", Stream::No).fault("status=500")).await;
    cluster.entry(0, |entry| entry.finished.is_some()).await;
    connection.close();
    cluster.idle().await;
    assert_eq!(cluster.entries().len(), 1);
    settled("the worker to be idle", async || cluster.gateway.worker(cluster.engines[0].url()).await["load"] == 0)
        .await;
}

/// Streams opened at once, all of them left at once.
const STORM: usize = 300;

#[tokio::test]
async fn a_storm_of_disconnects_leaves_nothing_behind() {
    let cluster = Cluster::start(2, &["--max-concurrent-requests=200", "--queue-size=1000"]).await;
    let request = on("/v1/chat/completions", "demo", Stream::Yes).fault("stall@event:3");
    let mut connections = Vec::new();
    for _ in 0..STORM {
        connections.push(cluster.gateway.begin(&request).await);
    }
    cluster.gateway.metric_is("smg_router_streams_open", &[], 200.0).await;
    cluster.gateway.metric_is("smg_admission_queue_depth", &[], 100.0).await;
    for (place, connection) in connections.into_iter().enumerate() {
        if place % 2 == 0 { connection.reset() } else { connection.close() }
    }
    cluster.idle().await;
    cluster.gateway.metric_is("smg_admission_queue_depth", &[], 0.0).await;
    cluster.gateway.metric_is("smg_http_body_budget_used_bytes", &[], 0.0).await;
    let entries = cluster.entries();
    assert!(entries.iter().all(|entry| entry.outcome == Outcome::Aborted), "{entries:?}");
    for url in cluster.engines.iter().map(MockWorker::url) {
        assert_eq!(cluster.gateway.worker(url).await["load"], 0);
        assert_eq!(cluster.gateway.worker(url).await["pending_tokens"], 0);
    }
    // Every slot is free again.
    let mut after = Vec::new();
    for _ in 0..200 {
        after.push(cluster.gateway.begin(&on("/v1/chat/completions", "demo", Stream::No)).await);
    }
    for mut connection in after {
        assert_eq!(connection.answer().await.status, 200);
    }
    let opened = cluster.gateway.metric("process_open_fds", &[]).await;
    assert!(opened < 400.0, "{opened} descriptors are open");
}
