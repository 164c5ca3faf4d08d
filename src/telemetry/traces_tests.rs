use std::sync::Arc;

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::Request,
    http::HeaderMap as Trailers,
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt, Full};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tracing::{Dispatch, dispatcher, info_span, warn};

use super::*;
use crate::{
    config::Environment,
    telemetry::{Telemetry, build},
};

const CALLER_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER_SPAN: &str = "00f067aa0ba902b7";

/// Takes exports as a collector does, and keeps their bytes: names, attributes and ids stand in them as they are.
struct Collector {
    address: std::net::SocketAddr,
    exports: Arc<Mutex<Vec<u8>>>,
    _runtime: Runtime,
}

impl Collector {
    fn start() -> Self {
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a port");
        let address = listener.local_addr().expect("an address");
        let exports = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&exports);
        let export = move |request: Request| {
            let kept = Arc::clone(&kept);
            async move {
                let body = to_bytes(request.into_body(), 1 << 20).await.expect("a body");
                kept.lock().extend_from_slice(&body);
                accepted()
            }
        };
        let router = Router::new().route("/opentelemetry.proto.collector.trace.v1.TraceService/Export", post(export));
        let tasks = smg_runtime::Tasks::new(smg_runtime::Shutdown::new());
        let entered = runtime.enter();
        tasks.spawn(smg_runtime::TaskKind::Background, "collector", async move {
            axum::serve(listener, router).await.expect("a server");
        });
        drop(entered);
        Self { address, exports, _runtime: runtime }
    }

    fn telemetry(&self) -> (Dispatch, Telemetry) {
        let config = Config {
            otlp_endpoint: Some(self.address.to_string()),
            node_name: "node-7".to_owned(),
            // Spans do not depend on what is logged.
            level: "off".to_owned(),
            ..Config::default()
        };
        build(&config, &Environment::default(), std::io::sink()).expect("telemetry")
    }

    fn holds(&self, what: &[u8]) -> bool {
        self.exports.lock().windows(what.len()).any(|found| found == what)
    }
}

/// An empty message, and the status in trailers.
fn accepted() -> Response {
    let trailers = Trailers::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async move { Some(Ok(trailers)) });
    ([("content-type", "application/grpc")], Body::new(body)).into_response()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("ASCII"));
    digits.map(|pair| u8::from_str_radix(pair, 16).expect("hexadecimal")).collect()
}

fn caller() -> HeaderMap {
    let traceparent = format!("00-{CALLER_TRACE}-{CALLER_SPAN}-01");
    HeaderMap::from_iter([
        (HeaderName::from_static("traceparent"), HeaderValue::from_str(&traceparent).expect("a value")),
        (HeaderName::from_static("tracestate"), HeaderValue::from_static("vendor=1")),
    ])
}

fn traceparent(headers: &HeaderMap) -> [String; 4] {
    let value = headers.get("traceparent").expect("a traceparent").to_str().expect("text");
    let parts: Vec<_> = value.split('-').map(str::to_owned).collect();
    parts.try_into().expect("four parts")
}

#[test]
fn spans_reach_the_collector_with_their_attributes_and_their_caller() {
    let collector = Collector::start();
    let (dispatch, telemetry) = collector.telemetry();
    let hooks = telemetry.trace_hooks();
    let injected = dispatcher::with_default(&dispatch, || {
        let span = info_span!(
            "http_request",
            "otel.name" = tracing::field::Empty,
            "otel.kind" = "server",
            "gen_ai.operation.name" = "chat",
            "gen_ai.usage.output_tokens" = tracing::field::Empty,
        );
        (hooks.adopt)(&caller(), &span);
        span.record("otel.name", "chat llama");
        span.record("gen_ai.usage.output_tokens", 42);
        let mut headers = HeaderMap::new();
        (hooks.inject)(&span, &mut headers);
        span.in_scope(|| {
            warn!(target: "smg_upstream::http", "worker answered late");
            warn!(target: "hyper::client", "noise of a dependency");
            drop(info_span!(target: "h2::connection", "noise_span").entered());
        });
        headers
    });
    telemetry.shutdown();

    let named = ["chat llama", "gen_ai.operation.name", "gen_ai.usage.output_tokens", "node-7", "worker answered late"];
    for name in named {
        assert!(collector.holds(name.as_bytes()), "{name} is missing in what was exported");
    }
    for noise in ["noise of a dependency", "noise_span", "busy_ns", "thread.id"] {
        assert!(!collector.holds(noise.as_bytes()), "{noise} was exported");
    }
    assert!(collector.holds(&bytes(CALLER_TRACE)) && collector.holds(&bytes(CALLER_SPAN)), "it has its caller's ids");

    let [_, trace, span, flags] = traceparent(&injected);
    assert_eq!((trace.as_str(), flags.as_str()), (CALLER_TRACE, "01"));
    assert_ne!(span, CALLER_SPAN);
    assert!(collector.holds(&bytes(&span)), "the worker is told the span that was exported");
    assert_eq!(injected["tracestate"], "vendor=1");
}

#[test]
fn a_span_without_a_caller_begins_a_trace() {
    let collector = Collector::start();
    let (dispatch, telemetry) = collector.telemetry();
    let hooks = telemetry.trace_hooks();
    let check = |headers: HeaderMap| {
        dispatcher::with_default(&dispatch, || {
            let span = info_span!("http_request");
            (hooks.adopt)(&headers, &span);
            let mut outgoing = headers.clone();
            (hooks.inject)(&span, &mut outgoing);
            let [_, trace, ..] = traceparent(&outgoing);
            assert_ne!(trace, CALLER_TRACE);
            assert!(!outgoing.contains_key("tracestate"), "it belongs to the trace that was not adopted");
        });
    };
    check(HeaderMap::new());
    for broken in ["", "00-xyz", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "ff-a-b-c"] {
        let mut headers = caller();
        headers.insert("traceparent", HeaderValue::from_static(broken));
        check(headers);
    }
}

#[test]
fn what_the_caller_does_not_sample_is_not_exported() {
    let collector = Collector::start();
    let (dispatch, telemetry) = collector.telemetry();
    let hooks = telemetry.trace_hooks();
    dispatcher::with_default(&dispatch, || {
        let mut headers = caller();
        let value = format!("00-{CALLER_TRACE}-{CALLER_SPAN}-00");
        headers.insert("traceparent", HeaderValue::from_str(&value).expect("a value"));
        let span = info_span!("unsampled_request");
        (hooks.adopt)(&headers, &span);
        let mut outgoing = HeaderMap::new();
        (hooks.inject)(&span, &mut outgoing);
        assert_eq!(traceparent(&outgoing)[3], "00");
    });
    telemetry.shutdown();
    assert!(!collector.holds(b"unsampled_request"));
}

#[test]
fn with_traces_off_headers_stay_as_they_are() {
    let (dispatch, telemetry) = build(&Config::default(), &Environment::default(), std::io::sink()).expect("telemetry");
    let hooks = telemetry.trace_hooks();
    dispatcher::with_default(&dispatch, || {
        let span = info_span!("http_request");
        let mut headers = caller();
        (hooks.adopt)(&headers, &span);
        (hooks.inject)(&span, &mut headers);
        assert_eq!(headers, caller());
    });
}

/// A collector that is not there must neither hold up the start nor the end.
#[test]
fn a_collector_that_is_away_is_no_obstacle() {
    let config = Config { otlp_endpoint: Some("127.0.0.1:9".to_owned()), ..Config::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (dispatch, telemetry) = build(&config, &Environment::default(), std::io::sink()).expect("telemetry");
        dispatcher::with_default(&dispatch, || drop(info_span!("http_request").entered()));
        telemetry.shutdown();
    });
}

#[test]
fn endpoints_may_lack_a_scheme() {
    let check = |endpoint: &str, expected: &str| assert_eq!(url(endpoint), expected);
    check("localhost:4317", "http://localhost:4317");
    check("http://collector:4317", "http://collector:4317");
    check("https://collector", "https://collector");
}
