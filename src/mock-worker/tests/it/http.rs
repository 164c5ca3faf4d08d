//! HTTP itself: what is refused, what is bounded.

use smg_mock_worker::{Config, Limits};

use crate::{
    client::{Client, End},
    worker,
};

#[tokio::test]
async fn requests_that_allow_two_readings_or_are_too_large_are_refused() {
    let limits = Limits { head_bytes_max: 2000, body_bytes_max: 1000, ..Limits::default() };
    let worker = worker(Config { limits, ..Config::default() }).await;
    let post = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n";
    let many = "a: b\r\n".repeat(101);
    let long = "y".repeat(3000);
    let cases = [
        (format!("{post}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}content-length: 5\r\ncontent-length: 5\r\n\r\nhello"), 400),
        (format!("{post}content-length: +5\r\n\r\nhello"), 400),
        (format!("{post}content-length: 5, 5\r\n\r\nhello"), 400),
        (format!("{post}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 400),
        (format!("{post}transfer-encoding: chunked\r\n\r\nxyz\r\n"), 400),
        (format!("{post}transfer-encoding: chunked\r\n\r\n2\r\nabcd\r\n"), 400),
        (format!("{post} folded: x\r\n\r\n"), 400),
        (format!("{post}{many}\r\n"), 431),
        (format!("{post}x: {long}\r\n\r\n"), 431),
        (format!("{post}content-length: 1001\r\n\r\n{}", "z".repeat(1001)), 413),
        ("\x16\x03\x01\x02".to_owned(), 400),
    ];
    for (request, status) in cases {
        let mut client = Client::connect(worker.address()).await;
        client.send(&request).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, status, "{request:.200}\n{answer:?}");
        assert_eq!(answer.field("connection"), Some("close"), "{request:.200}");
    }
}

#[tokio::test]
async fn older_and_pickier_callers_are_served() {
    let worker = worker(Config::default()).await;
    let mut client = Client::connect(worker.address()).await;
    client.send("GET /v1/models HTTP/1.0\r\n\r\n").await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));

    let body = r#"{"model":"demo","stream":true,"messages":[{"role":"user","content":"echo hi"}]}"#;
    let mut client = Client::connect(worker.address()).await;
    client.send(format!("POST /v1/chat/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}", body.len())).await;
    let answer = client.answer().await;
    assert_eq!((answer.field("transfer-encoding"), answer.end), (None, End::Whole));
    assert!(answer.text().ends_with("data: [DONE]\n\n"));

    let mut client = Client::connect(worker.address()).await;
    client
        .send(format!(
            "POST /v1/chat/completions HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        ))
        .await;
    client.read_until(b"100 Continue\r\n\r\n").await.unwrap();
    client.send(body).await;
    assert_eq!(client.answer().await.status, 200);

    let mut client = Client::connect(worker.address()).await;
    client
        .send("HEAD /health HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await;
    client.read_until(b"\r\n\r\n").await.unwrap();
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
}

#[tokio::test]
async fn one_connection_more_than_allowed_is_closed() {
    let limits = Limits { connections_max: 1, ..Limits::default() };
    let worker = worker(Config { limits, ..Config::default() }).await;
    let mut first = Client::connect(worker.address()).await;
    assert_eq!(first.get("/health").await.status, 200);
    assert_ne!(Client::connect(worker.address()).await.get("/health").await.end, End::Whole);
    assert_eq!(first.get("/health").await.status, 200);
}
