//! What goes out, and what comes back.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderValue, Method, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use parking_lot::Mutex;
use smg_fleet::{Engine, Origin};

use crate::{
    BodyError, Config, Outbound, OutboundBody,
    rules::Unlisted,
    testing::{Server, keyed_worker, post, read_request, reply, spec, text, upstream, worker, worker_of, write},
};

/// A server that answers 200 and keeps what it was sent.
async fn recorder() -> (Server, Arc<Mutex<Vec<String>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let server = Server::start(move |mut stream, _| {
        let log = log.clone();
        async move {
            while let Some(request) = read_request(&mut stream).await {
                log.lock().push(request);
                write(&mut stream, reply(200, "{}")).await;
            }
        }
    })
    .await;
    (server, seen)
}

#[tokio::test]
async fn a_request_is_framed_addressed_and_authorized_here() {
    let (server, seen) = recorder().await;
    let upstream = upstream(&Config::default());
    let worker = keyed_worker(&format!("{}/base", server.url()), "sk-worker");
    let mut outbound = post("{\"a\":1}");
    for (name, value) in [
        ("content-length", "99"),
        ("transfer-encoding", "chunked"),
        ("connection", "close"),
        ("host", "evil"),
        ("authorization", "Bearer sk-caller"),
        ("x-request-id", "r1"),
    ] {
        outbound.headers.insert(name, HeaderValue::from_static(value));
    }
    let response = upstream.send(&worker, outbound).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(text(response.into_body()).await.unwrap(), "{}");

    let sent = seen.lock()[0].clone();
    let (head, body) = sent.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<&str> = head.lines().collect();
    assert_eq!(lines.remove(0), "POST /base/v1/x HTTP/1.1");
    lines.sort_unstable();
    let host = format!("host: {}", server.address);
    let expected =
        ["authorization: Bearer sk-worker", "content-length: 7", &host, "x-api-key: sk-worker", "x-request-id: r1"];
    assert_eq!(lines, expected);
    assert_eq!(body, "{\"a\":1}");
}

#[tokio::test]
async fn the_key_is_sent_in_the_form_the_engine_wants_and_the_callers_stays_here() {
    let (server, seen) = recorder().await;
    let check = async |engine, key: Option<&str>, expected: &[&str]| {
        let upstream = upstream(&Config::default());
        let mut spec = spec(&server.url());
        spec.runtime_type = engine;
        spec.api_key = key.map(smg_base::Secret::new);
        let mut outbound = post("");
        outbound.headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer caller"));
        outbound.headers.insert("x-api-key", HeaderValue::from_static("caller"));
        let body = upstream.send(&worker_of(spec, Origin::Flag), outbound).await.unwrap().into_body();
        text(body).await.unwrap();
        let sent = seen.lock().pop().unwrap();
        let mut keys: Vec<&str> =
            sent.lines().filter(|line| line.starts_with("authorization") || line.starts_with("x-api-key")).collect();
        keys.sort_unstable();
        assert_eq!(keys, expected, "{engine:?}");
    };
    check(Some(Engine::Vllm), Some("k"), &["authorization: Bearer k"]).await;
    check(Some(Engine::OpenAi), Some("k"), &["authorization: Bearer k"]).await;
    check(Some(Engine::Anthropic), Some("k"), &["x-api-key: k"]).await;
    check(None, Some("k"), &["authorization: Bearer k", "x-api-key: k"]).await;
    check(None, None, &["authorization: Bearer caller", "x-api-key: caller"]).await;
}

#[tokio::test]
async fn bodies_are_framed_by_what_is_known_of_their_length() {
    let (server, seen) = recorder().await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    let check = async |method: Method, body, expected: Option<&str>| {
        let outbound = Outbound { method: method.clone(), ..Outbound::get("/") };
        let body = upstream.send(&worker, Outbound { body, ..outbound }).await.unwrap().into_body();
        text(body).await.unwrap();
        let sent = seen.lock().pop().unwrap();
        let found = sent.lines().find(|line| line.starts_with("content-length") || line.starts_with("transfer-enc"));
        assert_eq!(found, expected, "{method}");
    };
    check(Method::POST, OutboundBody::Full(Bytes::new()), Some("content-length: 0")).await;
    check(Method::GET, OutboundBody::Full(Bytes::new()), None).await;
    check(Method::POST, OutboundBody::Full("abc".into()), Some("content-length: 3")).await;
    check(Method::POST, stream_of(vec![Ok("abc"), Ok("def")]), Some("transfer-encoding: chunked")).await;
}

pub(crate) fn stream_of(pieces: Vec<Result<&'static str, &'static str>>) -> OutboundBody {
    let frames = pieces.into_iter().map(|piece| match piece {
        Ok(text) => Ok(Frame::data(Bytes::from_static(text.as_bytes()))),
        Err(error) => Err(BodyError::from(error)),
    });
    let body: Pin<Box<dyn http_body::Body<Data = Bytes, Error = BodyError> + Send>> =
        Box::pin(StreamBody::new(futures_util::stream::iter(frames)));
    OutboundBody::Stream(body)
}

#[tokio::test]
async fn a_body_of_many_pieces_arrives_as_it_is_written() {
    let server = Server::start(|mut stream, _| async move {
        while read_request(&mut stream).await.is_some() {
            write(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            for number in 0..100 {
                let event = format!("data: {{\"n\":{number}}}\n\n");
                write(&mut stream, format!("{:x}\r\n{event}\r\n", event.len())).await;
                tokio::task::yield_now().await;
            }
            write(&mut stream, "0\r\n\r\n").await;
        }
    })
    .await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    for _ in 0..3 {
        let body = upstream.send(&worker, post("{}")).await.unwrap().into_body();
        let all = text(body).await.unwrap();
        let expected: String = (0..100).map(|number| format!("data: {{\"n\":{number}}}\n\n")).collect();
        assert_eq!(all, expected);
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn a_large_body_goes_out_while_the_answer_comes_in() {
    // The server answers piece by piece as it reads, so neither side can finish before the other.
    let server = Server::start(|mut stream, _| async move {
        use tokio::io::AsyncReadExt;
        let mut piece = vec![0; 64 << 10];
        let mut read = stream.read(&mut piece).await.unwrap();
        write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 4000000\r\n\r\n").await;
        let mut written = 0;
        while written < 4_000_000 {
            let count = read.clamp(1, 4_000_000 - written);
            write(&mut stream, vec![b'x'; count]).await;
            written += count;
            read = if written < 4_000_000 { stream.read(&mut piece).await.unwrap() } else { 0 };
        }
    })
    .await;
    let upstream = upstream(&Config::default());
    let body = vec![b'y'; 4_000_000];
    let mut answer = upstream.send(&worker(&server.url()), post(body)).await.unwrap().into_body();
    let mut received = 0;
    while let Some(frame) = answer.frame().await {
        received += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(received, 4_000_000);
}

#[tokio::test]
async fn many_requests_at_once_share_nothing_but_the_pool() {
    let server = Server::start(|mut stream, _| async move {
        while let Some(request) = read_request(&mut stream).await {
            let body = request.split_once("\r\n\r\n").unwrap().1.to_owned();
            write(&mut stream, reply(200, &body)).await;
        }
    })
    .await;
    let upstream = upstream(&Config { pool_idle_per_worker: 8, ..Config::default() });
    let worker = worker(&server.url());
    let answers: Vec<bool> = futures_util::stream::iter(0..500)
        .map(|number| {
            let (upstream, worker) = (upstream.clone(), worker.clone());
            async move {
                let body = upstream.send(&worker, post(number.to_string())).await.unwrap().into_body();
                text(body).await.unwrap() == number.to_string()
            }
        })
        .buffer_unordered(32)
        .collect()
        .await;
    assert!(answers.into_iter().all(|same| same));
    assert!(upstream.metrics().connections_idle.get() <= 8);
    assert_eq!(upstream.metrics().connections_idle.get(), upstream.metrics().connections_open.get());
    upstream.forget(worker.id);
    assert_eq!(upstream.metrics().connections_open.get(), 0);
}

/// Connections are polled with wakers that do nothing before they are polled with the true one. Whatever the timing,
/// no stream may be left waiting for bytes that are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_stream_is_forgotten_however_its_pieces_fall() {
    use smg_base::{Random, SplitMix};

    let server = Server::start(|mut stream, number| async move {
        let random = SplitMix::new(number as u64);
        while let Some(request) = read_request(&mut stream).await {
            let seed = request.len() as u64 ^ random.next_u64();
            let random = SplitMix::new(seed);
            write(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            for _ in 0..50 {
                let event = "e".repeat(1 + usize::try_from(random.below(300)).unwrap());
                let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                let cut = usize::try_from(random.below(chunk.len() as u64)).unwrap();
                write(&mut stream, &chunk[..cut]).await;
                for _ in 0..random.below(4) {
                    tokio::task::yield_now().await;
                }
                write(&mut stream, &chunk[cut..]).await;
            }
            write(&mut stream, "0\r\n\r\n").await;
        }
    })
    .await;
    let upstream = upstream(&Config::default());
    let worker = worker(&server.url());
    let readers = (0..32_u64).map(|seed| {
        let (upstream, worker) = (upstream.clone(), worker.clone());
        tokio::spawn(async move {
            let random = SplitMix::new(seed);
            for _ in 0..20 {
                let body = vec![b'x'; usize::try_from(random.below(100_000)).unwrap()];
                let mut body = upstream.send(&worker, post(body)).await.unwrap().into_body();
                while let Some(frame) = body.frame().await {
                    frame.unwrap();
                    for _ in 0..random.below(3) {
                        tokio::task::yield_now().await;
                    }
                }
            }
        })
    });
    let all = futures_util::future::join_all(readers);
    let all = tokio::time::timeout(std::time::Duration::from_secs(50), all).await.expect("a stream was forgotten");
    assert!(all.iter().all(Result::is_ok));
    assert!(server.accepted() <= 32, "{} connections for 32 readers", server.accepted());
}

#[tokio::test]
async fn rules_hold_for_what_a_name_resolves_to_now() {
    use crate::{resolve::Resolver, rules::UrlRules, testing::upstream_with};
    use smg_infer::{Dispatched, FailureCode};

    let server = Server::answering(reply(200, "{}")).await;
    let port = server.address.port();
    let resolver = Resolver::table([
        ("rebound.test", vec!["169.254.169.254"]),
        ("mixed.test", vec!["169.254.169.254", "127.0.0.1"]),
        ("home.test", vec!["127.0.0.1"]),
    ]);
    let api_rules = UrlRules { unlisted: Unlisted::Public, ..UrlRules::default() };
    let upstream = upstream_with(&Config { api_rules, ..Config::default() }, resolver);
    let send = async |host: &str, origin| {
        let worker = worker_of(spec(&format!("http://{host}:{port}")), origin);
        let sent = upstream.send(&worker, post("{}")).await;
        sent.map(|response| response.status().as_u16()).map_err(|failure| (failure.code, failure.dispatched))
    };
    let refused = Err((FailureCode::ConnectFailed, Dispatched::No));
    assert_eq!(send("rebound.test", Origin::Flag).await, refused);
    assert_eq!(send("unknown.test", Origin::Flag).await, refused);
    assert_eq!(send("home.test", Origin::Api).await, refused);
    assert_eq!(send("127.0.0.1", Origin::Api).await, refused);
    assert_eq!(server.accepted(), 0);
    assert_eq!(send("mixed.test", Origin::Flag).await, Ok(200));
    assert_eq!(send("home.test", Origin::Flag).await, Ok(200));
}
