//! The fault matrix: {cut, stall, garble, 4xx, 5xx, slow} × {before dispatch, before the first byte, in mid-stream} ×
//! endpoints.

use std::{sync::Arc, time::Duration};

use smg_mock_worker::{Config, Dialect, Entry, Fault, Outcome, Rule};
use tokio::task::JoinSet;

use super::shapes::{ENDPOINTS, Shape};
use crate::harness::{Ask, Cluster, PATIENCE, Stream, on, serving};

const CUT_BEFORE_HEAD: Seen = Seen::Error(502, "call_upstream_request_error");
const CUT: Seen = Seen::Error(502, "read_response_body_failed");
const GARBAGE: Seen = Seen::Error(502, "upstream_protocol_error");
const SILENT: Seen = Seen::Error(504, "upstream_first_byte_timeout");
const STALLED: Seen = Seen::Error(504, "upstream_stall_timeout");
const LATE: Seen = Seen::Error(504, "call_upstream_timeout");

/// What the caller sees.
#[derive(Clone, Copy, Debug)]
enum Seen {
    /// An error of the gateway's own: status and code.
    Error(u16, &'static str),
    /// The engine's own answer with this status.
    Engines(u16),
    /// A complete answer.
    Whole,
    /// A stream that ends with the gateway's error event of this code.
    BreaksOff(&'static str),
    /// A stream that ends with the engine's error event.
    EnginesEvent,
}

/// When another engine is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// Never.
    Never,
    /// Where running a request twice does no harm.
    IfHarmless,
    /// Always: it was certainly not run.
    Always,
}

type Row = (&'static str, Stream, Seen, Again);

/// Before the engine runs the request: it has read the head at most, or says that it will not run it.
const BEFORE_DISPATCH: &[Row] = &[
    ("fin@request", Stream::Yes, CUT_BEFORE_HEAD, Again::IfHarmless),
    ("rst@request", Stream::Yes, CUT_BEFORE_HEAD, Again::IfHarmless),
    ("fin@request", Stream::No, CUT_BEFORE_HEAD, Again::IfHarmless),
    ("rst@request", Stream::No, CUT_BEFORE_HEAD, Again::IfHarmless),
    ("status=400", Stream::Yes, Seen::Engines(400), Again::Never),
    ("status=404", Stream::No, Seen::Engines(404), Again::Never),
    ("status=422", Stream::No, Seen::Engines(422), Again::Never),
    ("status=429,retry-after=7", Stream::Yes, Seen::Engines(429), Again::Always),
    ("status=503,retry-after=7", Stream::No, Seen::Engines(503), Again::Always),
    ("delay=60ms@request", Stream::Yes, Seen::Whole, Again::Never),
    ("delay=60ms@request", Stream::No, Seen::Whole, Again::Never),
];

/// After the request was read, before the first byte of the answer's body.
const BEFORE_FIRST_BYTE: &[Row] = &[
    ("fin@head", Stream::Yes, CUT_BEFORE_HEAD, Again::IfHarmless),
    ("rst@head", Stream::No, CUT_BEFORE_HEAD, Again::IfHarmless),
    ("fin@body", Stream::Yes, CUT, Again::IfHarmless),
    ("rst@body", Stream::Yes, CUT, Again::IfHarmless),
    ("fin@body", Stream::No, CUT, Again::IfHarmless),
    ("rst@body", Stream::No, CUT, Again::IfHarmless),
    ("length=+5,hangup", Stream::No, CUT, Again::IfHarmless),
    ("fin@byte:20", Stream::No, CUT, Again::IfHarmless),
    ("garble@event:1", Stream::Yes, GARBAGE, Again::IfHarmless),
    ("garble@event:1", Stream::No, GARBAGE, Again::IfHarmless),
    ("garbage", Stream::Yes, GARBAGE, Again::IfHarmless),
    ("badchunk@body", Stream::Yes, CUT, Again::IfHarmless),
    ("status=500", Stream::Yes, Seen::Engines(500), Again::IfHarmless),
    ("delay=20ms@head,status=502", Stream::No, Seen::Engines(502), Again::IfHarmless),
    ("error@event:1", Stream::Yes, Seen::EnginesEvent, Again::Never),
    ("delay=60ms@head", Stream::Yes, Seen::Whole, Again::Never),
    ("delay=60ms@body", Stream::Yes, Seen::Whole, Again::Never),
    ("delay=60ms@body", Stream::No, Seen::Whole, Again::Never),
    ("fragment=1", Stream::Yes, Seen::Whole, Again::Never),
    ("fragment=3", Stream::No, Seen::Whole, Again::Never),
    ("hangup", Stream::No, Seen::Whole, Again::Never),
];

/// After the caller has seen events.
const MID_STREAM: &[Row] = &[
    ("fin@event:3", Stream::Yes, Seen::BreaksOff("read_response_body_failed"), Again::Never),
    ("rst@event:3", Stream::Yes, Seen::BreaksOff("read_response_body_failed"), Again::Never),
    ("badchunk@event:3", Stream::Yes, Seen::BreaksOff("read_response_body_failed"), Again::Never),
    ("garble@event:3", Stream::Yes, Seen::BreaksOff("upstream_protocol_error"), Again::Never),
    ("error@event:3", Stream::Yes, Seen::EnginesEvent, Again::Never),
    ("delay=60ms@event:3", Stream::Yes, Seen::Whole, Again::Never),
    ("fin@end", Stream::Yes, Seen::Whole, Again::Never),
    ("rst@end", Stream::Yes, Seen::Whole, Again::Never),
    ("badchunk@end", Stream::Yes, Seen::Whole, Again::Never),
    ("delay=5ms@event:*", Stream::Yes, Seen::Whole, Again::Never),
];

/// Silence: these take as long as the limits of [`FLAGS`], so they run at once.
const SILENCES: &[Row] = &[
    ("stall@request", Stream::Yes, SILENT, Again::IfHarmless),
    ("stall@request", Stream::No, LATE, Again::Never),
    ("stall@head", Stream::Yes, SILENT, Again::IfHarmless),
    ("stall@head", Stream::No, LATE, Again::Never),
    ("stall@body", Stream::Yes, SILENT, Again::IfHarmless),
    ("stall@body", Stream::No, LATE, Again::Never),
    ("stall@byte:20", Stream::No, STALLED, Again::IfHarmless),
    ("stall@event:3", Stream::Yes, Seen::BreaksOff("upstream_stall_timeout"), Again::Never),
    ("stall@end", Stream::Yes, Seen::Whole, Again::Never),
];

const FLAGS: &[&str] = &[
    "--retry-max-retries=2",
    "--retry-initial-backoff-ms=1",
    "--retry-budget-per-second=10000",
    "--disable-circuit-breaker",
    "--first-token-timeout=700ms",
    "--stall-timeout=700ms",
    "--request-timeout-secs=3s",
];

async fn cluster() -> Arc<Cluster> {
    let engine = || Config { dialect: Dialect::Sglang, ..Config::default() };
    Arc::new(Cluster::of(vec![engine(), engine()], FLAGS).await)
}

/// One cell of the matrix. `number` marks its request.
async fn cell(cluster: Arc<Cluster>, (path, shape): (&'static str, Shape), row: Row, number: usize) {
    let (fault, stream, seen, again) = row;
    let what = format!("{path} {stream:?} {fault}");
    let mark = format!("cell-{number}");
    let request = on(path, "demo", stream).fault(fault).field("x-cell", &mark);
    let answer = cluster.gateway.ask(&request).await;
    match seen {
        Seen::Error(status, code) => shape.check_answer(&answer, (status, code), &what),
        Seen::Engines(status) => {
            assert_eq!((answer.status, answer.is_whole), (status, true), "{what}: {}", answer.text());
            assert!(answer.text().contains("a scripted fault"), "{what}: {}", answer.text());
            let wanted = fault.split_once("retry-after=").map(|(_, seconds)| seconds);
            assert_eq!(answer.field("retry-after"), wanted, "{what}");
        }
        Seen::Whole => {
            assert_eq!((answer.status, answer.is_whole), (200, true), "{what}: {}", answer.text());
            match stream {
                Stream::Yes => shape.check_complete(&answer.events(), &what),
                Stream::No => assert!(answer.value().is_object() || answer.value().is_array(), "{what}"),
            }
        }
        Seen::BreaksOff(code) => {
            assert_eq!((answer.status, answer.is_whole), (200, true), "{what}: {}", answer.text());
            assert_eq!(answer.events().len(), 3, "{what}: two events of the engine and the error: {}", answer.text());
            shape.check_stream(&answer.events(), code, &what);
        }
        Seen::EnginesEvent => {
            assert_eq!((answer.status, answer.is_whole), (200, true), "{what}: {}", answer.text());
            assert!(!answer.text().contains("upstream_"), "{what}: {}", answer.text());
            assert!(answer.text().to_lowercase().contains("error"), "{what}: {}", answer.text());
        }
    }
    let is_its = |entry: &Entry| serving(entry) && entry.field("x-cell") == Some(&mark);
    let dispatches: usize = cluster.engines.iter().map(|engine| engine.ledger().count(is_its)).sum();
    let allowed = match again {
        Again::Always => 2,
        Again::IfHarmless if path == "/v1/embeddings" => 2,
        _ => 1,
    };
    assert_eq!(dispatches, allowed, "{what}: dispatches");
}

/// The cells of `rows` × endpoints, numbered; embeddings do not stream.
fn cells(rows: &'static [Row]) -> impl Iterator<Item = (usize, (&'static str, Shape), Row)> {
    let all = ENDPOINTS.iter().flat_map(move |endpoint| rows.iter().map(move |row| (*endpoint, *row)));
    all.filter(|((path, _), row)| *path != "/v1/embeddings" || row.1 == Stream::No)
        .enumerate()
        .map(|(number, (endpoint, row))| (number, endpoint, row))
}

async fn in_turn(rows: &'static [Row]) {
    let cluster = cluster().await;
    for (number, endpoint, row) in cells(rows) {
        cell(cluster.clone(), endpoint, row, number).await;
    }
    cluster.idle().await;
}

#[tokio::test]
async fn before_dispatch() {
    in_turn(BEFORE_DISPATCH).await;
}

#[tokio::test]
async fn before_the_first_byte() {
    in_turn(BEFORE_FIRST_BYTE).await;
}

#[tokio::test]
async fn in_mid_stream() {
    in_turn(MID_STREAM).await;
}

#[tokio::test]
async fn silence() {
    let cluster = cluster().await;
    let mut running = JoinSet::new();
    for (number, endpoint, row) in cells(SILENCES) {
        running.spawn(cell(cluster.clone(), endpoint, row, number));
    }
    while let Some(ended) = running.join_next().await {
        ended.unwrap();
    }
    // Engines that were given up on see their requests aborted.
    cluster.idle().await;
    let stalled = cluster.entries().into_iter().filter(|entry| entry.fault.as_deref().unwrap_or("").contains("stall"));
    for entry in stalled {
        assert_eq!(entry.outcome, Outcome::Aborted, "{entry:?}");
    }
}

#[tokio::test]
async fn an_engine_that_hangs_up_on_connections_is_not_asked_twice_for_a_generation() {
    let cluster = Cluster::start(1, &["--disable-circuit-breaker", "--retry-max-retries=3"]).await;
    let engine = &cluster.engines[0];
    for fault in ["rst@accept", "fin@accept"] {
        engine.faults().clear();
        let fault: Fault = fault.parse().unwrap();
        engine.faults().add(Rule::always(fault));
        // The connections that the probes left are used up first.
        let answer = cluster.gateway.ask(&on("/v1/chat/completions", "demo", Stream::No)).await;
        let is_known = [200, 502].contains(&answer.status);
        assert!(is_known, "{}", answer.text());
    }
    engine.faults().clear();
    assert!(engine.ledger().count(serving) <= 2);
    let answer = cluster.gateway.ask(&on("/v1/chat/completions", "demo", Stream::No)).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn callers_may_allow_that_a_generation_is_run_again() {
    let cluster = Cluster::start(2, &["--retry-initial-backoff-ms=1"]).await;
    for (name, value) in [("idempotency-key", "k1"), ("x-smg-allow-replay", "true")] {
        for engine in &cluster.engines {
            engine.ledger().clear();
            engine.faults().clear();
        }
        // Whichever engine is asked first fails once.
        for engine in &cluster.engines {
            engine.faults().add(Rule::always("rst@head".parse().unwrap()).on_path("/v1/chat/completions").times(1));
        }
        let mut request = on("/v1/chat/completions", "demo", Stream::Yes).field(name, value);
        request.fields.push(("x-id".to_owned(), "a".to_owned()));
        let answer = cluster.gateway.ask(&request).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
        assert!(cluster.entries().len() > 1, "{name}");
    }
}

#[tokio::test]
async fn an_answer_beyond_all_bounds_is_not_held() {
    let cluster = Cluster::start(1, &["--buffered-answer-max=4096"]).await;
    // A plain answer that is larger than what is held back comes as it is, and its break cannot be told by a status.
    let text = "word ".repeat(4_000);
    let body = serde_json::json!({
        "model": "demo", "max_tokens": 30_000, "messages": [{"role": "user", "content": format!("say {text}")}]
    });
    let request = Ask::json("/v1/chat/completions", &body);
    let answer = cluster.gateway.ask(&request).await;
    assert_eq!((answer.status, answer.is_whole), (200, true));
    assert!(answer.body.len() > 4_096, "{}", answer.body.len());
    let answer = cluster.gateway.ask(&request.clone().fault("rst@byte:6000")).await;
    assert_eq!((answer.status, answer.is_whole), (200, false), "the break is seen by the caller");
    // A head without end is refused.
    let answer = cluster.gateway.ask(&request.fault("header-padding=200000")).await;
    assert_eq!(answer.status, 502, "{}", answer.text());
    cluster.idle().await;
}

#[tokio::test]
async fn an_endless_stream_ends_with_its_caller() {
    let cluster = Cluster::start(1, &[]).await;
    let mut connection = cluster.gateway.begin(&on("/v1/chat/completions", "demo", Stream::Yes).fault("endless")).await;
    connection.head().await;
    connection.read_until("data: ").await;
    connection.close();
    let over = |entries: &[Entry]| entries.iter().any(|entry| entry.outcome == Outcome::Aborted);
    cluster.engines[0].ledger().wait_for(over, PATIENCE.min(Duration::from_secs(20))).await.unwrap();
    cluster.idle().await;
}
