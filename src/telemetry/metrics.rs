//! The metrics port.

use std::io;

use axum::{Router, http::header::CONTENT_TYPE, routing::get};
use smg_runtime::{Phase, Shutdown, metrics::Registrar};
use tokio::net::TcpListener;

/// Prometheus's text format.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves `GET /metrics` until the process stops, those of [`process_metrics`] included.
pub async fn serve_metrics(listener: TcpListener, registrar: Registrar, shutdown: Shutdown) -> io::Result<()> {
    process_metrics(&registrar);
    let stopped = async move { shutdown.reached(Phase::Stopped).await };
    axum::serve(listener, router(registrar)).with_graceful_shutdown(stopped).await
}

fn router(registrar: Registrar) -> Router {
    let text = move || {
        let text = registrar.encode();
        async move { ([(CONTENT_TYPE, TEXT_FORMAT)], text) }
    };
    Router::new().route("/metrics", get(text))
}

/// Registers what is known of the process itself: `smg_build_info` and, on Linux, the usual `process_…` metrics.
pub fn process_metrics(registrar: &Registrar) {
    let help = "The build that runs; always 1.";
    let build = registrar.gauge_vec("smg_build_info", help, &["version", "revision"]);
    let revision = option_env!("SMG_REVISION").unwrap_or("unknown");
    build.with_label_values(&[env!("CARGO_PKG_VERSION"), revision]).set(1);
    #[cfg(target_os = "linux")]
    registrar.collector(Box::new(prometheus::process_collector::ProcessCollector::for_self()));
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::{Request, StatusCode},
    };
    use tower::ServiceExt;

    use super::*;

    async fn asked(method: &str, path: &str) -> (StatusCode, Option<String>, String) {
        let registrar = Registrar::new();
        process_metrics(&registrar);
        process_metrics(&registrar);
        registrar.counter("smg_things_total", "Things.").inc();
        let request = Request::builder().method(method).uri(path).body(Body::empty()).expect("a request");
        let response = router(registrar).oneshot(request).await.expect("an answer");
        let format = response.headers().get(CONTENT_TYPE).map(|value| value.to_str().expect("text").to_owned());
        let status = response.status();
        let body = to_bytes(response.into_body(), usize::MAX).await.expect("a body");
        (status, format, String::from_utf8(body.to_vec()).expect("text"))
    }

    #[tokio::test]
    async fn metrics_are_served_as_text() {
        let (status, format, text) = asked("GET", "/metrics").await;
        assert_eq!((status, format.as_deref()), (StatusCode::OK, Some(TEXT_FORMAT)));
        for line in ["smg_things_total 1", "smg_build_info{revision=", "process_resident_memory_bytes "] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    }

    #[tokio::test]
    async fn nothing_else_is() {
        assert_eq!(asked("GET", "/").await.0, StatusCode::NOT_FOUND);
        assert_eq!(asked("POST", "/metrics").await.0, StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn the_server_ends_with_the_process() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let shutdown = Shutdown::new();
        shutdown.advance(Phase::Stopped);
        serve_metrics(listener, Registrar::new(), shutdown).await.expect("an orderly end");
    }
}
