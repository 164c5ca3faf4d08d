//! What goes wrong when it is told to.

use std::time::Duration;

use serde_json::{Value, json};
use smg_mock_worker::{Config, Fault, Outcome, Rule};

use crate::{
    client::{Answer, Client, End, PATIENCE, get, post},
    worker,
};

const CHAT: &str = "/v1/chat/completions";

/// How an answer comes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Plain,
    Stream,
}
use Mode::{Plain, Stream};

fn chat(mode: Mode) -> Value {
    json!({ "model": "demo", "stream": mode == Stream, "messages": [{ "role": "user", "content": "echo a b c d" }] })
}

/// What the caller sees of `fault`.
async fn suffer(fault: &str, mode: Mode) -> (Answer, Outcome) {
    let worker = worker(Config::default()).await;
    let answer = post(worker.address(), CHAT, &format!("x-mock-fault: {fault}\r\n"), &chat(mode)).await;
    worker.ledger().wait_for(|entries| entries[0].finished.is_some(), PATIENCE).await.unwrap();
    (answer, worker.ledger().entries()[0].outcome)
}

#[tokio::test]
async fn a_connection_ends_where_it_is_told_to() {
    // The fault, whether the answer is a stream, how it ends, and how many events and bytes come whole.
    let cases = [
        ("fin@head", Plain, End::Cut, 0, None),
        ("rst@head", Stream, End::Reset, 0, None),
        ("fin@body", Stream, End::Cut, 0, Some(0)),
        ("rst@event:3", Stream, End::Reset, 2, None),
        ("fin@event:3", Stream, End::Cut, 2, None),
        ("fin@byte:5", Stream, End::Cut, 0, Some(5)),
        ("rst@byte:300", Stream, End::Reset, 1, Some(300)),
        ("fin@byte:17", Plain, End::Cut, 0, Some(17)),
        ("fin@end", Stream, End::Cut, 7, None),
        ("badchunk@event:2", Stream, End::Cut, 1, None),
        ("length=+5,hangup", Plain, End::Cut, 0, None),
    ];
    for (fault, mode, end, events, bytes) in cases {
        let (answer, _) = suffer(fault, mode).await;
        assert_eq!(answer.end, end, "{fault}: {answer:?}");
        if mode == Stream {
            assert_eq!(answer.chunks.len(), events, "{fault}: {answer:?}");
        }
        if let Some(bytes) = bytes {
            assert_eq!(answer.body.len(), bytes, "{fault}: {answer:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_lies_as_it_is_told_to() {
    let (answer, outcome) = suffer("garble@event:2", Stream).await;
    assert_eq!((answer.end, outcome), (End::Whole, Outcome::Completed));
    assert!(answer.events()[1].is_string(), "{answer:?}");
    assert!(answer.events()[2].is_object(), "{answer:?}");

    let (answer, _) = suffer("drop@event:2", Stream).await;
    assert_eq!(answer.chunks.len(), 6, "{answer:?}");

    let (answer, outcome) = suffer("error@event:3", Stream).await;
    assert_eq!((answer.end, outcome), (End::Whole, Outcome::Faulted));
    assert_eq!(answer.events().last().unwrap()["error"]["code"], 500);

    let (answer, _) = suffer("nodone", Stream).await;
    assert_eq!((answer.end, answer.text().contains("[DONE]")), (End::Whole, false));

    let (answer, _) = suffer("garbage", Stream).await;
    assert_eq!((answer.end, answer.events().len()), (End::Whole, 0));

    let (answer, _) = suffer("content-type=text/html,fragment=1", Stream).await;
    assert_eq!((answer.field("content-type"), answer.chunks.len()), (Some("text/html"), 7));

    let (answer, _) = suffer("header-padding=100000", Plain).await;
    assert!(answer.head.len() > 100_000);

    let (answer, _) = suffer("rawhead", Plain).await;
    assert_eq!(answer.status, 0, "{answer:?}");
}

#[tokio::test]
async fn a_status_comes_with_its_body_and_when_to_come_back() {
    let (answer, outcome) = suffer("status=429, retry-after=7", Stream).await;
    assert_eq!((answer.status, answer.field("retry-after"), outcome), (429, Some("7"), Outcome::Completed));
    assert_eq!(answer.json()["error"]["type"], "RateLimitError");
    let (answer, _) = suffer("status=502,content-type=text/plain,body=a, b=c", Plain).await;
    assert_eq!((answer.status, answer.text().as_str()), (502, "a, b=c"));
    let (answer, _) = suffer("explode@noon", Plain).await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn delays_and_stalls_hold_until_the_caller_goes() {
    let worker = worker(Config::default()).await;
    let started = tokio::time::Instant::now();
    let answer =
        post(worker.address(), CHAT, "x-mock-fault: delay=20ms@head,delay=5ms@event:*\r\n", &chat(Stream)).await;
    assert_eq!(answer.end, End::Whole);
    assert!(started.elapsed() >= Duration::from_millis(20 + 7 * 5));
    for point in ["request", "head", "body", "event:2", "byte:9", "end"] {
        worker.ledger().clear();
        let mut client = Client::connect(worker.address()).await;
        let fault = format!("x-mock-fault: stall@{point}\r\n");
        client.request("POST", CHAT, &fault, chat(Stream).to_string().as_bytes()).await;
        worker.ledger().wait_for(|entries| entries.iter().any(|entry| entry.fault.is_some()), PATIENCE).await.unwrap();
        drop(client);
        let is_aborted = |entries: &[smg_mock_worker::Entry]| entries[0].outcome == Outcome::Aborted;
        worker.ledger().wait_for(is_aborted, PATIENCE).await.unwrap();
    }
}

#[tokio::test]
async fn rules_pick_their_requests() {
    let worker = worker(Config::default()).await;
    let fault = |text: &str| text.parse::<Fault>().unwrap();
    let status = async |path: &str| get(worker.address(), path).await.status;
    let rule = Rule { nth: 2, count: 2, ..Rule::always(fault("status=503")).on_path("/health") };
    let id = worker.faults().add(rule).unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(status("/health").await);
    }
    assert_eq!(seen, [200, 503, 503, 200]);
    assert_eq!(status("/v1/models").await, 200);
    assert_eq!(worker.faults().befell(id), 2);
    assert!(worker.faults().remove(id));

    let body = json!({ "path": "/v1/*", "model": "demo", "contains": "echo a", "fault": "status=418" });
    assert_eq!(post(worker.address(), "/mock/faults", "", &body).await.status, 200);
    assert_eq!(status("/v1/models").await, 200);
    assert_eq!(post(worker.address(), CHAT, "", &chat(Plain)).await.status, 418);
    assert_eq!(get(worker.address(), "/mock/faults").await.json()["rules"][0]["befell"], 1);
    let mut client = Client::connect(worker.address()).await;
    client.request("DELETE", "/mock/faults", "", b"").await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(get(worker.address(), "/mock/faults").await.json()["rules"], json!([]));

    worker.faults().add(Rule { reused: Some(true), ..Rule::always(fault("fin@head")) });
    let mut client = Client::connect(worker.address()).await;
    assert_eq!(client.get("/health").await.status, 200);
    assert_eq!(client.get("/health").await.end, End::Cut);

    worker.faults().clear();
    worker.faults().add(Rule { every: 3, ..Rule::always(fault("status=500")) });
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(status("/health").await);
    }
    assert_eq!(seen, [500, 200, 200, 500, 200]);

    worker.faults().clear();
    worker.faults().add(Rule::always(fault("rst@accept")).times(1));
    assert_ne!(get(worker.address(), "/health").await.end, End::Whole);
    assert_eq!(status("/health").await, 200);
}

#[test]
fn a_faults_text_says_the_same_after_being_read() {
    for text in [
        "rst@event:3,delay=20000us@head",
        "stall@byte:100,fragment=1",
        "status=503,retry-after=1,endless,body=x, y",
        "",
    ] {
        assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
    }
    for text in [
        "rst",
        "rst@",
        "@head",
        "rst@event:0",
        "delay@head",
        "delay=5@head",
        "delay=-1s@head",
        "status=99",
        "fragment=0",
        "nope",
    ] {
        assert!(text.parse::<Fault>().is_err(), "{text}");
    }
}
