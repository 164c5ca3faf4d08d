//! Servers that misbehave, and what is said of it.

use std::time::Duration;

use http_body_util::BodyExt;
use smg_infer::{Dispatched, FailureCode};
use tokio::{net::TcpListener, sync::mpsc};

use super::sending::stream_of;
use crate::{
    Config, Outbound,
    testing::{Server, post, read_request, reply, text, until_closed, upstream, worker, write},
};

type Outcome = Result<u16, (FailureCode, Dispatched)>;

async fn outcome_of(url: &str, outbound: Outbound) -> Outcome {
    let upstream = upstream(&Config::default());
    let sent = upstream.send(&worker(url), outbound).await;
    sent.map(|response| response.status().as_u16()).map_err(|failure| (failure.code, failure.dispatched))
}

/// A server that reads the request, writes `bytes` and closes.
async fn writing(bytes: impl Into<Vec<u8>>) -> Server {
    let bytes = bytes.into();
    Server::start(move |mut stream, _| {
        let bytes = bytes.clone();
        async move {
            read_request(&mut stream).await;
            write(&mut stream, bytes).await;
        }
    })
    .await
}

#[tokio::test]
async fn nobody_listening_means_that_nothing_was_sent() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert_eq!(outcome_of(&url, post("{}")).await, Err((FailureCode::ConnectFailed, Dispatched::No)));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_is_a_connect_timeout() {
    let server = Server::start(|mut stream, _| async move { until_closed(&mut stream).await }).await;
    let url = format!("https://{}", server.address);
    assert_eq!(outcome_of(&url, post("{}")).await, Err((FailureCode::ConnectTimeout, Dispatched::No)));
}

#[tokio::test]
async fn a_connection_closed_at_once_is_told_truthfully() {
    let server = Server::start(|stream, _| async move { drop(stream) }).await;
    for _ in 0..50 {
        let outcome = outcome_of(&server.url(), post("{}")).await;
        // Whether the close is noticed before the request is written is a race; the answer must fit either way.
        let unsent = Err((FailureCode::ConnectFailed, Dispatched::No));
        let sent = Err((FailureCode::UpstreamClosed, Dispatched::Maybe));
        assert!(outcome == unsent || outcome == sent, "{outcome:?}");
    }
}

#[tokio::test]
async fn a_worker_that_got_the_request_may_have_run_it() {
    let check = async |bytes: &[u8], expected: Outcome| {
        let server = writing(bytes).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!(outcome_of(&server.url(), post("{}")).await, expected, "{shown:?}");
        assert_eq!(server.accepted(), 1, "{shown:?} was sent again");
    };
    let closed = Err((FailureCode::UpstreamClosed, Dispatched::Maybe));
    let garbage = Err((FailureCode::UpstreamGarbage, Dispatched::Maybe));
    check(b"", closed).await;
    check(b"HTTP/1.1 200 OK\r\ncontent-le", closed).await;
    check(b"hello there\r\n\r\n", garbage).await;
    check(b"\x16\x03\x01\x02\x00\x01\x00", garbage).await;
    check(b"HTTP/1.1 2000 OK\r\n\r\n", garbage).await;
    check(b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", garbage).await;
    check(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n", garbage).await;
    check(b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n", garbage).await;
    let upgrade = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n";
    check(upgrade, Err((FailureCode::UpstreamGarbage, Dispatched::Yes))).await;
    check(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Ok(200)).await;
    check(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", Ok(302)).await;
}

#[tokio::test]
async fn a_head_has_a_largest_size_and_a_largest_number_of_headers() {
    let check = async |lines: usize, bytes: usize, expected: Outcome| {
        let line = format!("x: {}\r\n", "y".repeat(bytes));
        let head = format!("HTTP/1.1 200 OK\r\n{}content-length: 0\r\n\r\n", line.repeat(lines));
        assert_eq!(outcome_of(&writing(head).await.url(), post("{}")).await, expected, "{lines} x {bytes}");
    };
    let garbage = Err((FailureCode::UpstreamGarbage, Dispatched::Maybe));
    check(1, 60_000, Ok(200)).await;
    check(1, 70_000, garbage).await;
    check(90, 700, Ok(200)).await;
    check(90, 750, garbage).await;
    check(99, 1, Ok(200)).await;
    check(100, 1, garbage).await;
    check(1, 3_000_000, garbage).await;
}

#[tokio::test]
async fn an_answer_that_is_cut_ends_in_an_error() {
    let check = async |answer: &str| {
        let server = writing(answer).await;
        let upstream = upstream(&Config::default());
        let body = upstream.send(&worker(&server.url()), post("{}")).await.unwrap().into_body();
        assert!(text(body).await.is_err(), "{answer:?}");
        assert_eq!(upstream.metrics().connections_open.get(), 0, "{answer:?}");
    };
    check("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n").await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nab").await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
}

#[tokio::test]
async fn what_came_before_a_cut_is_delivered_first() {
    let server = writing("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await;
    let upstream = upstream(&Config::default());
    let mut body = upstream.send(&worker(&server.url()), post("{}")).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_request_body_that_breaks_off_is_the_callers_fault() {
    let server = Server::start(|mut stream, _| async move { until_closed(&mut stream).await }).await;
    let body = stream_of(vec![Ok("abc"), Err("gone")]);
    let outcome = outcome_of(&server.url(), Outbound { body, ..post("") }).await;
    assert_eq!(outcome, Err((FailureCode::ClientClosed, Dispatched::Maybe)));
}

#[tokio::test]
async fn giving_up_closes_the_connection_at_once() {
    let (closed, mut seen) = mpsc::channel(4);
    let server = Server::start(move |mut stream, number| {
        let closed = closed.clone();
        async move {
            read_request(&mut stream).await;
            // The first stays silent, the second begins to answer.
            if number == 1 {
                write(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
            }
            until_closed(&mut stream).await;
            closed.send(number).await.unwrap();
        }
    })
    .await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    let patience = Duration::from_millis(50);
    assert!(tokio::time::timeout(patience, upstream.send(&worker, post("{}"))).await.is_err());
    assert_eq!(seen.recv().await, Some(0));

    let mut body = upstream.send(&worker, post("{}")).await.unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "abc");
    drop(body);
    assert_eq!(seen.recv().await, Some(1));
    assert_eq!(upstream.metrics().connections_open.get(), 0);
}

#[tokio::test]
async fn a_worker_may_refuse_a_body_before_it_has_all_of_it() {
    let server = Server::start(|mut stream, _| async move {
        write(&mut stream, reply(413, "{}")).await;
        until_closed(&mut stream).await;
    })
    .await;
    let upstream = upstream(&Config::default());
    let response = upstream.send(&worker(&server.url()), post(vec![b'x'; 32 << 20])).await.unwrap();
    assert_eq!(response.status().as_u16(), 413);
    assert_eq!(text(response.into_body()).await.unwrap(), "{}");
    assert_eq!(upstream.metrics().connections_idle.get(), 0, "a connection with half a request on it was kept");
}
