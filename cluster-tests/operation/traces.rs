//! Traces: spans reach a collector, and their context the worker.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Mutex,
    task::JoinSet,
};

use super::{CHAT, chat};
use crate::harness::{Cluster, Gateway, Stream, engine, on, serving, settled};

/// Takes OTLP exports over HTTP/2 and keeps their bytes. It knows just enough of the protocol to say yes.
struct Collector {
    url: String,
    exports: Arc<Mutex<Vec<u8>>>,
    _accepting: JoinSet<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let exports = Arc::new(Mutex::new(Vec::new()));
        let mut accepting = JoinSet::new();
        accepting.spawn({
            let exports = exports.clone();
            async move {
                let mut connections = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    connections.spawn(collect(stream, exports.clone()));
                }
            }
        });
        Self { url, exports, _accepting: accepting }
    }

    /// Waits until `bytes` have been exported.
    async fn gets(&self, what: &str, bytes: &[u8]) {
        settled(what, async || {
            let exports = self.exports.lock().await;
            exports.windows(bytes.len()).any(|window| window == bytes)
        })
        .await;
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// An empty answer with status zero, in literal header fields.
fn accepted(stream: u32) -> Vec<u8> {
    let head = [&[0x88, 0x0f, 0x10, 16][..], b"application/grpc"].concat();
    let trailers = [&[0x00, 11][..], b"grpc-status", &[1], b"0"].concat();
    [
        frame(HEADERS, END_HEADERS, stream, &head),
        frame(DATA, 0, stream, &[0; 5]),
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &trailers),
    ]
    .concat()
}

async fn collect(mut stream: TcpStream, exports: Arc<Mutex<Vec<u8>>>) -> Option<()> {
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).await.ok()?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.ok()?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let (kind, flags) = (head[3], head[4]);
        let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.ok()?;
        let mut reply = Vec::new();
        match kind {
            SETTINGS if flags & ACK == 0 => reply.extend(frame(SETTINGS, ACK, 0, &[])),
            PING if flags & ACK == 0 => reply.extend(frame(PING, ACK, 0, &payload)),
            DATA => {
                exports.lock().await.extend(&payload);
                if length > 0 {
                    reply.extend(frame(WINDOW_UPDATE, 0, 0, &length.to_be_bytes()));
                }
                if flags & END_STREAM != 0 {
                    reply.extend(accepted(id));
                }
            }
            _ => {}
        }
        stream.write_all(&reply).await.ok()?;
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|place| u8::from_str_radix(&hex[place * 2..place * 2 + 2], 16).unwrap()).collect()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn spans_reach_the_collector_and_their_context_the_worker() {
    let collector = Collector::start().await;
    let engine = engine(smg_mock_worker::Config::default()).await;
    let flags = ["--enable-trace=true", "--otlp-traces-endpoint", &collector.url];
    let environment = [("OTEL_BSP_SCHEDULE_DELAY", "50")];
    let gateway = Gateway::launch_in(&flags, &[engine.url()], &environment, &[]).await;
    gateway.described(&[engine.url()]).await;
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let request = on(CHAT, "demo", Stream::No).field("traceparent", &parent).field("tracestate", "vendor=1");
    assert_eq!(gateway.ask(&request.field("x-request-id", "traced")).await.status, 200);

    let seen = engine.ledger().select(serving).remove(0);
    let context = seen.field("traceparent").unwrap().to_owned();
    let parts: Vec<&str> = context.split('-').collect();
    assert_eq!((parts[0], parts[1], parts[3]), ("00", TRACE, "01"), "{context}");
    assert_ne!(parts[2], CALLER, "the worker's parent is the gateway's span");
    assert_eq!(seen.field("tracestate"), Some("vendor=1"));

    collector.gets("the trace", &bytes(TRACE)).await;
    collector.gets("the caller's span as the parent", &bytes(CALLER)).await;
    collector.gets("the gateway's own span", &bytes(parts[2])).await;
    for text in [
        "chat demo",
        "gen_ai.operation.name",
        "gen_ai.request.model",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "http.response.status_code",
        "smg.request_id",
        "traced",
        "service.name",
    ] {
        collector.gets(text, text.as_bytes()).await;
    }
}

#[tokio::test]
async fn a_request_without_a_trace_begins_one_and_the_end_loses_none() {
    let collector = Collector::start().await;
    let flags = ["--enable-trace=true", "--otlp-traces-endpoint", &collector.url];
    let mut cluster = Cluster::start(1, &flags).await;
    assert_eq!(cluster.gateway.ask(&chat().fault("status=500").field("x-request-id", "last-words")).await.status, 500);
    let seen = cluster.entries().remove(0);
    let trace = seen.field("traceparent").unwrap().split('-').nth(1).unwrap().to_owned();
    // Spans leave every few seconds; those that have not left do so at the end.
    cluster.gateway.signal("TERM");
    collector.gets("the trace", &bytes(&trace)).await;
    collector.gets("the request", b"last-words").await;
    assert!(cluster.gateway.ended().await.success());
}

#[tokio::test]
async fn a_collector_that_is_not_there_holds_nothing_up() {
    let port = crate::harness::free_port();
    let flags = ["--enable-trace=true", "--otlp-traces-endpoint", &format!("http://127.0.0.1:{port}")];
    let mut cluster = Cluster::start(1, &flags).await;
    for _ in 0..20 {
        assert_eq!(cluster.gateway.ask(&chat()).await.status, 200);
    }
    cluster.gateway.signal("TERM");
    assert!(cluster.gateway.ended().await.success());
}
