//! `/openapi.json` says what is served, no more and no less.

use std::collections::BTreeMap;

use super::{CHAT, chat};
use crate::harness::{Ask, Cluster, Gateway};

const METHODS: [&str; 5] = ["get", "post", "put", "patch", "delete"];

/// The described paths with their methods.
async fn described(gateway: &Gateway) -> BTreeMap<String, Vec<String>> {
    let answer = gateway.ask(&Ask::get("/openapi.json")).await;
    assert_eq!((answer.status, answer.field("content-type")), (200, Some("application/json")));
    let value = answer.value();
    assert_eq!(value["openapi"], "3.1.0");
    let paths = value["paths"].as_object().unwrap();
    let methods = |item: &serde_json::Value| item.as_object().unwrap().keys().cloned().collect();
    paths.iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}

/// A concrete path for a described one.
fn concrete(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "some-id" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn what_is_described_is_served_and_nothing_else_is() {
    let gateway = Gateway::launch(&[], &[]).await;
    let described = described(&gateway).await;
    assert!(described.len() >= 30 && described.contains_key(CHAT), "{described:?}");
    for (path, methods) in &described {
        for method in METHODS {
            let answer = gateway.ask(&Ask::new(&method.to_uppercase(), &concrete(path), "")).await;
            let refused = matches!(answer.field("x-smg-error-code"), Some("route_not_found" | "method_not_allowed"));
            let is_described = methods.iter().any(|one| one == method);
            assert_eq!(is_described, !refused, "{method} {path}: {answer:?}");
            if !is_described {
                assert_eq!(answer.status, 405, "{method} {path}: {answer:?}");
            }
        }
    }
    for path in [
        "/",
        "/v1",
        "/docs",
        "/redoc",
        "/metrics",
        "/version",
        "/ping",
        "/v1/loads",
        "/get_load",
        "/server_info",
        "/v1/batches",
        "/v1/files",
        "/v1/images/generations",
        "/v1/audio/speech",
        "/v1/audio/translations",
        "/v1/moderations",
        "/v1/conversations",
        "/v1/realtime",
        "/workers/some-id/other",
        "/list_workers",
        "/add_worker",
        "/admin",
        "/debug",
        "/debug/pprof",
        "/config",
        "/explain",
        "/tokenizers",
        "/wasm",
        "/ha/status",
        "/v2/rerank",
    ] {
        let answer = gateway.ask(&Ask::get(path)).await;
        assert_eq!((answer.status, described.contains_key(path)), (404, false), "{path}: {answer:?}");
        assert_eq!(answer.field("x-smg-error-code"), Some("route_not_found"), "{path}");
    }
}

#[tokio::test]
async fn paths_may_be_written_without_their_version() {
    let cluster = Cluster::start(1, &[]).await;
    for path in ["/chat/completions", "/v1/chat/completions/"] {
        let mut request = chat();
        request.path = path.to_owned();
        assert_eq!(cluster.gateway.ask(&request).await.status, 200, "{path}");
    }
    let text = cluster.gateway.ask(&Ask::get("/openapi.json")).await.value()["info"]["description"].to_string();
    assert!(text.contains("/v1"), "the description says so: {text}");
}

#[tokio::test]
async fn the_probe_port_serves_probes_only() {
    let port = crate::harness::free_port();
    let gateway = Gateway::launch(&["--health-check-port", &port.to_string(), "--api-key", "sk"], &[]).await;
    let probes = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    for (path, status) in [("/livez", 200), ("/readyz", 503), ("/workers", 404), ("/v1/models", 404), (CHAT, 404)] {
        let answer = crate::harness::ask(probes, &Ask::get(path)).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
    }
    assert_eq!(gateway.ask(&Ask::get("/livez")).await.status, 200);
}
