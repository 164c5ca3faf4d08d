//! Connections that are used again, and those that must not be.

use std::{sync::Arc, time::Duration};

use http_body_util::BodyExt;
use smg_infer::{Dispatched, FailureCode};
use tokio::sync::{Barrier, Notify, mpsc};

use super::sending::stream_of;
use crate::{
    Config, Outbound,
    testing::{Server, post, read_request, reply, settle_sockets, text, until_closed, upstream, worker, write},
};

/// A server whose first `count` connections serve one request each, all of them together, and close when `leave` is
/// notified. Each tells when it has.
async fn leaving(count: usize) -> (Server, Arc<Notify>, mpsc::Receiver<()>) {
    let (closed, seen) = mpsc::channel(16);
    let leave = Arc::new(Notify::new());
    let together = Arc::new(Barrier::new(count));
    let told = leave.clone();
    let server = Server::start(move |mut stream, number| {
        let (closed, told, together) = (closed.clone(), told.clone(), together.clone());
        async move {
            while let Some(request) = read_request(&mut stream).await {
                if number < count {
                    together.wait().await;
                }
                let leaving = told.notified();
                let body = request.split_once("\r\n\r\n").unwrap().1.to_owned();
                write(&mut stream, reply(200, &body)).await;
                if number < count {
                    leaving.await;
                    break;
                }
            }
            drop(stream);
            let _ = closed.send(()).await;
        }
    })
    .await;
    (server, leave, seen)
}

#[tokio::test]
async fn a_connection_closed_while_idle_costs_no_request() {
    let (server, leave, mut closed) = leaving(1).await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    text(upstream.send(&worker, post("1")).await.unwrap().into_body()).await.unwrap();
    leave.notify_waiters();
    closed.recv().await.unwrap();
    settle_sockets().await;
    assert_eq!(upstream.metrics().connections_idle.get(), 1);

    // A body that can be sent only once is still whole after the first connection turned out to be closed.
    let outbound = Outbound { body: stream_of(vec![Ok("t"), Ok("wo")]), ..post("") };
    let answer = text(upstream.send(&worker, outbound).await.unwrap().into_body()).await.unwrap();
    assert!(answer.contains("t\r\n") && answer.contains("wo\r\n"), "{answer:?}");
    assert_eq!((server.accepted(), upstream.metrics().resent.get()), (2, 1));
}

#[tokio::test]
async fn a_request_that_reached_an_old_connection_is_not_sent_again() {
    let server = Server::start(|mut stream, _| async move {
        read_request(&mut stream).await;
        write(&mut stream, reply(200, "1")).await;
        read_request(&mut stream).await;
    })
    .await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    text(upstream.send(&worker, post("{}")).await.unwrap().into_body()).await.unwrap();
    let failure = upstream.send(&worker, post("{}")).await.unwrap_err();
    assert_eq!((failure.code, failure.dispatched), (FailureCode::UpstreamClosed, Dispatched::Maybe));
    assert_eq!((server.accepted(), upstream.metrics().resent.get()), (1, 0));
}

#[tokio::test]
async fn a_restarted_worker_is_reached_through_all_its_dead_connections() {
    let (server, leave, mut closed) = leaving(6).await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    let send = async || text(upstream.send(&worker, post("1")).await.unwrap().into_body()).await.unwrap();
    futures_util::future::join_all((0..6).map(|_| send())).await;
    leave.notify_waiters();
    for _ in 0..6 {
        closed.recv().await.unwrap();
    }
    settle_sockets().await;
    assert_eq!(upstream.metrics().connections_idle.get(), 6);
    assert_eq!(send().await, "1");
    assert_eq!(upstream.metrics().resent.get(), 3, "after three dead connections a new one is opened");
}

#[tokio::test]
async fn only_a_connection_that_is_clean_goes_back() {
    let check = async |answer: &'static str, idle: i64| {
        let server = Server::start(move |mut stream, _| async move {
            read_request(&mut stream).await;
            write(&mut stream, answer).await;
            until_closed(&mut stream).await;
        })
        .await;
        let upstream = upstream(&Config::default());
        let body = upstream.send(&worker(&server.url()), post("{}")).await.unwrap().into_body();
        text(body).await.unwrap();
        settle_sockets().await;
        assert_eq!(upstream.metrics().connections_idle.get(), idle, "{answer:?}");
        assert_eq!(upstream.metrics().connections_open.get(), idle, "{answer:?}");
    };
    check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", 1).await;
    check("HTTP/1.1 204 No Content\r\n\r\n", 1).await;
    check("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 1).await;
    check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}", 0).await;
    check("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}", 0).await;
    // More bytes than the answer has belong to nobody.
    check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 0).await;
}

#[tokio::test]
async fn a_reader_that_stops_at_the_last_event_does_not_cost_the_connection() {
    let server = Server::start(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            write(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            write(&mut stream, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    for _ in 0..3 {
        let mut body = upstream.send(&worker, post("{}")).await.unwrap().into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: [DONE]\n\n");
        drop(body);
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn idle_connections_grow_old_and_are_closed() {
    let (closed, mut seen) = mpsc::channel(4);
    let server = Server::start(move |mut stream, number| {
        let closed = closed.clone();
        async move {
            while read_request(&mut stream).await.is_some() {
                write(&mut stream, reply(200, "{}")).await;
            }
            closed.send(number).await.unwrap();
        }
    })
    .await;
    let upstream = upstream(&Config { pool_idle_timeout: Duration::from_millis(100), ..Config::default() });
    let worker = worker(&server.url());
    let send = async || text(upstream.send(&worker, post("{}")).await.unwrap().into_body()).await.unwrap();
    send().await;
    send().await;
    assert_eq!(server.accepted(), 1);

    // Too old when asked for.
    tokio::time::pause();
    tokio::time::advance(Duration::from_millis(120)).await;
    tokio::time::resume();
    send().await;
    assert_eq!(server.accepted(), 2);
    assert_eq!(seen.recv().await, Some(0));

    // Too old when looked at.
    let shutdown = smg_runtime::Shutdown::new();
    let sweeper = tokio::spawn(upstream.clone().run_sweeper(shutdown.clone()));
    assert_eq!(seen.recv().await, Some(1));
    shutdown.advance(smg_runtime::Phase::Closing);
    sweeper.await.unwrap();
    assert_eq!(upstream.metrics().connections_open.get(), 0);
}

#[tokio::test]
async fn new_settings_of_a_worker_keep_its_connections() {
    use smg_base::{Secret, Timestamp};
    use smg_fleet::{Fleet, FleetConfig, Origin};

    let server = Server::start(|mut stream, _| async move {
        while let Some(request) = read_request(&mut stream).await {
            let key = request.lines().find(|line| line.starts_with("authorization")).unwrap_or("none").to_owned();
            write(&mut stream, reply(200, &key)).await;
        }
    })
    .await;
    let upstream = upstream(&Config::default());
    let fleet = Fleet::new(FleetConfig::default());
    for (key, expected) in
        [(None, "none"), (Some("a"), "authorization: Bearer a"), (Some("b"), "authorization: Bearer b")]
    {
        let mut spec = crate::testing::spec(&server.url());
        spec.api_key = key.map(Secret::new);
        let worker = fleet.add(spec, Origin::Flag, Timestamp::ORIGIN).unwrap().worker;
        let answer = text(upstream.send(&worker, post("{}")).await.unwrap().into_body()).await.unwrap();
        assert_eq!(answer, expected);
    }
    assert_eq!(server.accepted(), 1);
}
