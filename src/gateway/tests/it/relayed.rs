//! Workers that only a peer reaches.

use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use smg_base::WorkerId;
use smg_fleet::{ClusterVerdict, DirectPath, ProbeDuty, Reach, Via, WorkerSpec};
use smg_mock_worker::{Config, MockWorker, Outcome, Rule, Speed};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};

use crate::support::{Manner, Node, PATIENCE, json_of, post, spec, text_of, until};

async fn engine(name: &str, change: impl FnOnce(&mut Config)) -> MockWorker {
    let mut config = Config { name: name.to_owned(), ..Config::default() };
    change(&mut config);
    MockWorker::start(config).await.unwrap()
}

/// A node that callers reach, a node that reaches the engine, and the engine's id.
struct Pair {
    near: Node,
    far: Node,
    engine: MockWorker,
    worker: WorkerId,
}

impl Pair {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let engine = engine("far", change).await;
        let (near, far) = (Node::new("near", |_| {}), Node::new("far", |_| {}));
        near.meet(&far);
        let worker = far.adopt(&engine);
        near.import(worker, spec(&engine), &far);
        Self { near, far, engine, worker }
    }

    /// Adds a worker that the near node reaches itself, and that comes after the far one.
    async fn with_second(&self) -> MockWorker {
        let second = engine("near", |_| {}).await;
        let spec = WorkerSpec { priority: 1, ..spec(&second) };
        self.near.fleet.add(spec, smg_fleet::Origin::Api, self.near.clock.now()).unwrap();
        second
    }
}

fn internal(headers: &HeaderMap) -> Vec<&str> {
    headers.keys().map(http::HeaderName::as_str).filter(|name| name.starts_with("x-smg-")).collect()
}

#[tokio::test]
async fn a_plain_answer_comes_through_the_peer() {
    let pair = Pair::new().await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = [("x-request-id", "mine"), ("traceparent", trace), ("x-smg-routing-key", "user-1")];
    let answer = pair.near.chat(json!({}), &headers).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["x-request-id"], "mine");
    assert_eq!(internal(answer.headers()), [""; 0]);
    assert_eq!(json_of(answer).await["object"], "chat.completion");

    let asked = pair.engine.ledger().select(|entry| entry.method == "POST");
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].field("traceparent"), Some(trace));
    assert!(asked[0].request_id.as_deref().unwrap().starts_with("mine-"), "{:?}", asked[0].request_id);
    assert!(asked[0].fields.iter().all(|(name, _)| !name.to_ascii_lowercase().starts_with("x-smg-")));

    let near = pair.near.explain("mine").await;
    let attempt = &near["attempts"][0];
    assert_eq!(attempt["worker"], pair.worker.to_string());
    assert_eq!(attempt["path"], pair.far.id.to_string());
    assert_eq!(attempt["decision"]["workers"][0]["path"], pair.far.id.to_string());
    assert_eq!(attempt["decision"]["workers"][0]["seconds"]["path"], 0.001);
    let far = pair.far.explain("mine").await;
    assert_eq!(far["from_peer"], pair.near.id.to_string());
    assert_eq!(far["attempts"][0]["path"], "direct");

    assert_eq!(pair.near.metric(r#"smg_mesh_relay_requests_total{direction="out",outcome="answered"}"#), 1.0);
    assert_eq!(pair.far.metric(r#"smg_mesh_relay_requests_total{direction="in",outcome="answered"}"#), 1.0);
    let requests = r#"smg_http_requests_total{method="POST",path="/v1/chat/completions"}"#;
    assert_eq!((pair.near.metric(requests), pair.far.metric(requests)), (1.0, 0.0), "it is counted once");
    assert_eq!((pair.near.in_flight(pair.worker), pair.far.in_flight(pair.worker)), (0, 0));
}

#[tokio::test]
async fn a_stream_comes_through_the_peer_and_counts_at_the_node_with_the_caller() {
    let pair = Pair::with(|config| config.speed = Speed { decode_tokens_per_second: 200.0, ..Speed::default() }).await;
    let mut body = pair.near.chat(json!({ "stream": true }), &[]).await.into_body();
    let first = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"data: "));
    let far_load = || pair.far.fleet.snapshot().worker(pair.worker).unwrap().state.load.relayed();
    assert_eq!((pair.near.in_flight(pair.worker), pair.far.in_flight(pair.worker), far_load()), (1, 0, 1));
    let rest = timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
    until("the guards are given back", || pair.near.in_flight(pair.worker) == 0 && far_load() == 0).await;
}

#[tokio::test]
async fn a_caller_that_goes_is_seen_by_the_engine() {
    let slow = Speed { decode_tokens_per_second: 2.0, ..Speed::default() };
    let pair = Pair::with(|config| config.speed = slow).await;
    let mut body = pair.near.chat(json!({ "stream": true, "max_tokens": 1_000 }), &[]).await.into_body();
    timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
    drop(body);
    let aborted = |entries: &[smg_mock_worker::Entry]| entries.iter().any(|entry| entry.outcome == Outcome::Aborted);
    pair.engine.ledger().wait_for(aborted, Duration::from_millis(500)).await.unwrap();
    until("the load is given back", || pair.near.in_flight(pair.worker) == 0).await;
}

#[tokio::test]
async fn a_caller_that_goes_before_the_answer_is_seen_by_the_engine() {
    let slow = Speed { decode_tokens_per_second: 1.0, ..Speed::default() };
    let pair = Pair::with(|config| config.speed = slow).await;
    let answer = pair.near.chat(json!({ "max_tokens": 1_000 }), &[]);
    let running = |entries: &[smg_mock_worker::Entry]| entries.iter().any(|entry| entry.method == "POST");
    tokio::select! {
        _ = answer => panic!("it answered at once"),
        began = pair.engine.ledger().wait_for(running, PATIENCE) => began.unwrap(),
    }
    let aborted = |entries: &[smg_mock_worker::Entry]| entries.iter().any(|entry| entry.outcome == Outcome::Aborted);
    pair.engine.ledger().wait_for(aborted, Duration::from_millis(500)).await.unwrap();
}

/// An engine that sends events for as long as they are taken, and says when it had to wait.
async fn endless() -> (String, tokio::sync::oneshot::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_exact(&mut [0; 16]).await.unwrap();
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let event = format!("data: {}\n\n", json!({ "choices": [{ "delta": { "content": "x".repeat(4_000) } }] }));
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        let mut sent = 0;
        while timeout(Duration::from_millis(300), stream.write_all(chunk.as_bytes()))
            .await
            .is_ok_and(|sent| sent.is_ok())
        {
            sent += event.len();
        }
        tell.send(sent).unwrap();
        std::future::pending::<()>().await;
    });
    (url, told)
}

#[tokio::test]
async fn a_caller_that_does_not_read_makes_the_engine_wait() {
    let (near, far) = (Node::new("near", |_| {}), Node::new("far", |_| {}));
    near.meet(&far);
    let (url, waited) = endless().await;
    let models = vec![smg_fleet::ModelCard::new("demo")];
    let spec = WorkerSpec { models, ..WorkerSpec::new(url.parse().unwrap()) };
    let worker = far.fleet.add(spec.clone(), smg_fleet::Origin::Api, far.clock.now()).unwrap().worker.id;
    near.import(worker, spec, &far);
    let answer = near.chat(json!({ "stream": true }), &[]).await;
    let sent = timeout(PATIENCE, waited).await.expect("the engine was never made to wait").unwrap();
    // What the sockets between engine and gateway hold; nothing here keeps more than a few pieces.
    assert!(sent < 16 << 20, "{sent} bytes were taken from the engine");
    let mut body = answer.into_body();
    assert!(timeout(PATIENCE, body.frame()).await.unwrap().unwrap().is_ok());
}

#[tokio::test]
async fn what_the_peer_refuses_goes_elsewhere() {
    let pair = Pair::new().await;
    let second = pair.with_second().await;
    pair.far.fleet.drain(pair.worker);
    let answer = pair.near.chat(json!({}), &[("x-request-id", "refused")]).await;
    assert_eq!((answer.status(), answer.headers().get("x-smg-relay-refused")), (StatusCode::OK, None));
    assert_eq!(second.ledger().count(|entry| entry.method == "POST"), 1);
    let told = pair.near.explain("refused").await;
    let attempts = told["attempts"].as_array().unwrap();
    let brief = |attempt: &Value| (attempt["result"].clone(), attempt["dispatched"].clone(), attempt["path"].clone());
    assert_eq!(brief(&attempts[0]), ("no_available_workers".into(), "no".into(), pair.far.id.to_string().into()));
    assert_eq!(brief(&attempts[1]).2, "direct");
    assert_eq!(pair.near.link.failures(), 0, "the peer is well");
    assert_eq!(pair.far.metric(r#"smg_mesh_relay_requests_total{direction="in",outcome="no_available_workers"}"#), 1.0);
}

#[tokio::test]
async fn a_peer_that_vanishes_costs_only_what_it_may_have_sent_on() {
    let check = async |manner: Manner, headers: &[(&str, &str)], expected: u16, dispatched: &str| {
        let pair = Pair::new().await;
        let second = pair.with_second().await;
        pair.near.link.behave(manner);
        let mut sent = vec![("x-request-id", "lost")];
        sent.extend(headers);
        let answer = pair.near.chat(json!({}), &sent).await;
        assert_eq!(answer.status(), expected, "{manner:?}");
        assert_eq!(second.ledger().count(|entry| entry.method == "POST") == 1, expected == 200, "{manner:?}");
        assert_eq!(pair.engine.ledger().count(|entry| entry.method == "POST"), 0);
        let told = pair.near.explain("lost").await;
        assert_eq!(told["attempts"][0]["dispatched"], dispatched, "{manner:?}");
        assert_eq!(pair.near.link.failures(), 1, "{manner:?}");
        let state = pair.near.fleet.snapshot().worker(pair.worker).unwrap().state.clone();
        assert_eq!(state.rates.error_rate(pair.near.clock.now()), 0.0, "the worker is not to blame");
    };
    check(Manner::Absent, &[], 200, "no").await;
    check(Manner::GoneAtOnce, &[], 200, "no").await;
    check(Manner::GoneWhenRead, &[], 502, "maybe").await;
    check(Manner::GoneWhenRead, &[("x-smg-allow-replay", "true")], 200, "maybe").await;
}

#[tokio::test]
async fn what_fails_behind_the_peer_is_no_refusal() {
    let pair = Pair::with(|config| config.faults = vec![Rule::always("rst@request".parse().unwrap())]).await;
    let second = pair.with_second().await;
    let answer = pair.near.chat(json!({}), &[("x-request-id", "broken")]).await;
    assert_eq!(answer.status(), 502);
    assert_eq!(second.ledger().count(|entry| entry.method == "POST"), 0, "it may have run");
    let told = pair.near.explain("broken").await;
    assert_eq!(told["attempts"][0]["result"], "call_upstream_request_error");
    assert_eq!(told["attempts"][0]["dispatched"], "maybe");
    assert_eq!(pair.near.link.failures(), 0, "the peer is well");
}

#[tokio::test]
async fn the_peer_knows_better_and_says_so() {
    let pair = Pair::with(|config| config.speed = Speed { decode_tokens_per_second: 100.0, ..Speed::default() }).await;
    let better = engine("better", |config| config.speed.decode_tokens_per_second = 100.0).await;
    let better_id = pair.far.adopt(&better);
    pair.near.import(better_id, spec(&better), &pair.far);
    pair.far.fleet.drain(pair.worker);
    // The near node does not know yet: only the drained one is a choice there.
    pair.near.fleet.patch(pair.worker, smg_fleet::WorkerPatch { priority: Some(90), ..Default::default() }).unwrap();
    let answer = pair.near.chat(json!({ "stream": true }), &[("x-request-id", "moved")]).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!((pair.near.in_flight(pair.worker), pair.near.in_flight(better_id)), (0, 1), "the ledger has moved");
    assert!(text_of(answer).await.ends_with("data: [DONE]\n\n"));
    let told = pair.near.explain("moved").await;
    assert_eq!(told["attempts"][0]["worker"], better_id.to_string());
    assert_eq!(told["attempts"][0]["instead_of"], pair.worker.to_string());
    assert_eq!(better.ledger().count(|entry| entry.method == "POST"), 1);
    // A caller that insists gets the worker it named or nobody.
    let answer = pair.near.chat(json!({}), &[("x-smg-target-worker", &pair.worker.to_string())]).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn what_callers_say_of_relays_is_not_heard() {
    let node = Node::new("near", |_| {});
    let engine = engine("near", |_| {}).await;
    node.adopt(&engine);
    let claims = [
        ("x-smg-relay-worker", "00000000000000000000000000000000"),
        ("x-smg-relay-deadline-ms", "0"),
        ("x-smg-relay-refused", "draining"),
        ("x-smg-relay-failed", "internal_error"),
        ("x-smg-relay-errand", "1"),
    ];
    let answer = node.chat(json!({}), &claims).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(internal(answer.headers()), [""; 0]);
    let asked = engine.ledger().select(|entry| entry.method == "POST");
    assert!(asked[0].fields.iter().all(|(name, _)| !name.to_ascii_lowercase().starts_with("x-smg-")));
}

#[tokio::test]
async fn a_request_goes_through_one_peer_at_most() {
    let engine = engine("nobodys", |_| {}).await;
    let (near, far) = (Node::new("near", |_| {}), Node::new("far", |_| {}));
    near.meet(&far);
    far.meet(&near);
    let id = near.fleet.id_of(&spec(&engine).url);
    near.import(id, spec(&engine), &far);
    far.import(id, spec(&engine), &near);
    let answer = near.chat(json!({}), &[("x-smg-target-worker", &id.to_string())]).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(engine.ledger().entries().len(), 0);
    assert_eq!(
        near.metric(r#"smg_mesh_relay_requests_total{direction="in",outcome="target_worker_unavailable"}"#),
        0.0
    );
    assert!(far.metric(r#"smg_mesh_relay_requests_total{direction="in",outcome="target_worker_unavailable"}"#) >= 1.0);
}

#[tokio::test]
async fn a_worker_is_used_directly_as_long_as_that_works() {
    let pair = Pair::new().await;
    let now = pair.near.clock.now();
    pair.near.fleet.import(pair.worker, spec(&pair.engine), DirectPath::Allowed, now).unwrap();
    assert_eq!(pair.near.chat(json!({}), &[("x-request-id", "a")]).await.status(), StatusCode::OK);
    assert_eq!(pair.near.explain("a").await["attempts"][0]["path"], "direct");
    let reach = Reach { verdict: ClusterVerdict::Down, via: None, duty: ProbeDuty::Full };
    pair.near.fleet.set_reach(pair.worker, reach);
    assert_eq!(pair.near.chat(json!({}), &[]).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let via = Some(Via { peer: pair.far.id, rtt: Duration::ZERO });
    pair.near.fleet.set_reach(pair.worker, Reach { verdict: ClusterVerdict::Up, via, duty: ProbeDuty::Full });
    assert_eq!(pair.near.chat(json!({}), &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_stored_response_is_fetched_through_the_peer() {
    let pair = Pair::new().await;
    let body = json!({ "model": "demo", "input": "hello", "store": true });
    let made = json_of(pair.near.call(post("/v1/responses", &body, &[])).await).await;
    let id = made["id"].as_str().unwrap();
    let fetch = Request::get(format!("/v1/responses/{id}")).body(Body::empty()).unwrap();
    let stored = pair.near.call(fetch).await;
    assert_eq!((stored.status(), internal(stored.headers())), (StatusCode::OK, vec![]));
    assert_eq!(json_of(stored).await["id"], id);
}

#[tokio::test]
async fn an_upload_is_handed_on_while_it_arrives() {
    let pair = Pair::new().await;
    let part = "--b\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\ndemo\r\n\
                --b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n";
    let pieces = [part.to_owned(), "RIFF".repeat(20_000), "\r\n--b--\r\n".to_owned()];
    let pieces = pieces.map(Ok::<_, std::convert::Infallible>);
    let body = Body::from_stream(futures_util::stream::iter(pieces));
    let request = Request::post("/v1/audio/transcriptions").header("content-type", "multipart/form-data; boundary=b");
    let answer = pair.near.call(request.body(body).unwrap()).await;
    assert_eq!(answer.status(), StatusCode::OK, "{}", text_of(answer).await);
    let asked = pair.engine.ledger().select(|entry| entry.method == "POST");
    assert!(asked[0].request_bytes > 80_000);
}
