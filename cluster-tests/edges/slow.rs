//! Clients that take their time, or all of it.

use std::time::Duration;

use smg_mock_worker::Outcome;

use super::{assert_refused, chat};
use crate::harness::{Ask, Cluster, Gateway, Stream, on, within};

const SHORT: &[&str] =
    &["--header-timeout", "500ms", "--body-timeout", "500ms", "--idle-timeout", "600ms", "--write-timeout", "600ms"];

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let gateway = Gateway::launch(SHORT, &[]).await;
    for sent in ["", "P", "PRI", "PRI * HTTP/2.0\r\n\r\n", "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-a: "] {
        let mut connection = gateway.connect().await;
        connection.write(sent.as_bytes()).await;
        connection.until_closed().await;
    }
    // Dripping is no better than silence.
    let mut connection = gateway.connect().await;
    connection.write(b"GET /health HTTP/1.1\r\n").await;
    within("the end of a connection that drips", async {
        while connection.try_write(b"x: y\r\n").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    gateway.metric_is("smg_http_connections_active", &[], 0.0).await;
}

#[tokio::test]
async fn a_connection_may_not_idle_for_ever() {
    let gateway = Gateway::launch(SHORT, &[]).await;
    let health = Ask::get("/health");
    for begun in ["", "GET /hea", "GET /health HTTP/1.1\r\nhost: a\r\n"] {
        let mut connection = gateway.begin(&health).await;
        assert_eq!(connection.answer().await.status, 200);
        connection.write(begun.as_bytes()).await;
        assert!(connection.is_closed_by_peer().await, "{begun:?}");
    }
}

/// Begins a body and does not go on.
async fn stops_in_the_body(gateway: &Gateway, path: &str) {
    let fields = "host: a\r\ncontent-type: application/json\r\ncontent-length: 500\r\n";
    let head = format!("POST {path} HTTP/1.1\r\n{fields}\r\n");
    for sent in ["", "{\"model\":"] {
        let mut connection = gateway.connect().await;
        connection.write(format!("{head}{sent}").as_bytes()).await;
        assert_refused(path, &connection.answer().await, 408, "request_timeout");
        assert!(connection.is_closed_by_peer().await);
    }
    let mut connection = gateway.connect().await;
    connection.write(head.as_bytes()).await;
    let drip = async {
        while connection.try_write(b" ").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    // The answer is there long before the body is, but this client does not look.
    within("the end of a body that drips", drip).await;
}

#[tokio::test]
async fn a_body_that_does_not_come_is_refused_in_the_apis_shape() {
    let cluster = Cluster::start(1, SHORT).await;
    let gateway = &cluster.gateway;
    tokio::join!(
        stops_in_the_body(gateway, "/v1/chat/completions"),
        stops_in_the_body(gateway, "/v1/messages"),
        stops_in_the_body(gateway, "/generate"),
        stops_in_the_body(gateway, "/workers"),
    );
    assert_eq!(cluster.shares(), [0]);
    cluster.gateway.metric_is("smg_http_requests_in_flight", &[], 0.0).await;
}

#[tokio::test]
async fn who_takes_nothing_of_an_answer_loses_it() {
    let cluster = Cluster::start(1, SHORT).await;
    let request = on("/v1/chat/completions", "demo", Stream::Yes).fault("endless");
    let mut lazy = cluster.gateway.begin(&request).await;
    assert_eq!(lazy.head().await.status, 200);
    // Reads no further. The engine is told as soon as the gateway has lost patience.
    cluster.entry(0, |entry| entry.outcome == Outcome::Aborted).await;
    cluster.idle().await;
    cluster.gateway.metric_is("smg_http_client_disconnects_total", &[("phase", "streaming")], 1.0).await;
}

#[tokio::test]
async fn an_answer_that_takes_long_is_no_slow_client() {
    let cluster = Cluster::start(1, SHORT).await;
    assert_eq!(cluster.gateway.ask(&chat().fault("delay=1200ms@head")).await.status, 200);
    let request = on("/v1/chat/completions", "demo", Stream::Yes).fault("delay=70ms@event:*");
    let answer = cluster.gateway.ask(&request).await;
    assert!(answer.is_whole && answer.text().ends_with("data: [DONE]\n\n"), "{answer:?}");
}
