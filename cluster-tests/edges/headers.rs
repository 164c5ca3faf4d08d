//! Header hygiene: what concerns one connection, or the gateway itself, goes no further.

use super::chat;
use crate::harness::{Ask, Gateway, RawAnswer, RawEngine};

#[tokio::test]
async fn engines_see_nothing_of_the_callers_connection() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let stopped = [
        ("connection", "x-hop, Keep-Alive, x-request-id"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=9"),
        ("proxy-connection", "keep-alive"),
        ("proxy-authorization", "Basic abc"),
        ("te", "trailers"),
        ("trailer", "x-t"),
        ("upgrade", "h2c"),
        ("accept-encoding", "gzip"),
        ("cookie", "session=1"),
        ("x-forwarded-host", "evil.test"),
        ("x-smg-routing-key", "k"),
        ("x-smg-anything", "v"),
        ("X-Smg-Debug", "1"),
    ];
    let passed =
        [("x-custom", "kept"), ("user-agent", "test"), ("traceparent", "00-aa-bb-01"), ("openai-organization", "o")];
    let mut request = chat();
    for (name, value) in stopped.into_iter().chain(passed) {
        request = request.field(name, value);
    }
    let answer = gateway.ask(&request).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = engine.taken().await.remove(0);
    for (name, _) in stopped {
        assert_eq!(seen.field(name), None, "{name} in {}", seen.head);
    }
    for (name, value) in passed {
        assert_eq!(seen.field(name), Some(value), "{name} in {}", seen.head);
    }
    assert_eq!(seen.field("host"), Some(engine.url().trim_start_matches("http://")));
    assert_eq!(seen.head.to_ascii_lowercase().matches("\r\ncontent-length:").count(), 1, "{}", seen.head);
    assert!(seen.field("x-request-id").is_some());
}

#[tokio::test]
async fn callers_see_nothing_of_the_engines_connection() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let fields = "connection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nproxy-authenticate: Basic\r\n\
        upgrade: h2c\r\nx-smg-worker: forged\r\nx-smg-secret: 1\r\nx-request-id: the-engines\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\
        x-custom: kept\r\nopenai-processing-ms: 7\r\n";
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{fields}content-length: 2\r\n\r\n{{}}");
    engine.next(RawAnswer(vec![head.into_bytes()])).await;
    let answer = gateway.ask(&chat().field("x-request-id", "the-callers")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    for name in ["x-hop", "keep-alive", "proxy-authenticate", "upgrade", "x-smg-worker", "x-smg-secret", "connection"] {
        assert_eq!(answer.field(name), None, "{name} in {answer:?}");
    }
    assert_eq!((answer.field("x-custom"), answer.field("openai-processing-ms")), (Some("kept"), Some("7")));
    assert_eq!(answer.field("x-request-id"), Some("the-callers"));
    assert!(!answer.field("date").unwrap().contains("1970"));
}

#[tokio::test]
async fn request_ids_are_taken_from_callers_when_they_are_harmless() {
    let engine = RawEngine::start().await;
    let gateway = Gateway::start(&[], &[&engine.url()]).await;
    let long = "a".repeat(200);
    for (name, value, is_kept) in [
        ("x-request-id", "mine-1", true),
        ("x-correlation-id", "mine-2", true),
        ("request-id", "mine-3", true),
        ("x-request-id", "a b", false),
        ("x-request-id", "a\"b", false),
        ("x-request-id", "{\"a\":1}", false),
        ("x-request-id", long.as_str(), false),
    ] {
        let answer = gateway.ask(&chat().field(name, value)).await;
        let id = answer.field("x-request-id").unwrap().to_owned();
        assert_eq!(id == value, is_kept, "{value} became {id}");
        let seen = engine.taken().await.remove(0);
        let at_engine = seen.field("x-request-id").unwrap();
        // Engines key their requests by it, so a caller's, which may come twice, is made unique.
        assert!(at_engine.starts_with(&id) && (at_engine == id) != is_kept, "{id} became {at_engine}");
    }
    let answer = gateway.ask(&Ask::get("/nothing").field("x-request-id", "mine-4")).await;
    assert_eq!((answer.status, answer.field("x-request-id")), (404, Some("mine-4")));
}
