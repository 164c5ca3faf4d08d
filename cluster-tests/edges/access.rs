//! Who may call, who may administer, and whose credentials go where.

use std::net::{SocketAddr, UdpSocket};

use serde_json::json;
use smg_mock_worker::Config;
use smg_node::config::Secret;

use super::{assert_refused, chat};
use crate::harness::{Ask, Cluster, Gateway, Stream, ask, on};

const KEY: &str = "sk-callers-5f0c";
const ADMIN_KEY: &str = "sk-operators-77ab";

#[tokio::test]
async fn callers_present_their_key_in_either_way() {
    let cluster = Cluster::start(1, &["--api-key", KEY]).await;
    let bearer = format!("Bearer {KEY}");
    let cases = [
        ("authorization", bearer.as_str(), 200),
        ("authorization", &format!("bearer   {KEY}"), 200),
        ("x-api-key", KEY, 200),
        ("x-other", KEY, 401),
        ("authorization", KEY, 401),
        ("authorization", &format!("Basic {KEY}"), 401),
        ("authorization", &format!("Bearer {KEY}x"), 401),
        ("authorization", "Bearer", 401),
        ("authorization", &bearer[..bearer.len() - 1], 401),
        ("x-api-key", "", 401),
        ("x-api-key", "sk-wrong", 401),
    ];
    let mut let_in = 0;
    for (name, value, status) in cases {
        for path in ["/v1/chat/completions", "/v1/messages"] {
            let answer = cluster.gateway.ask(&on(path, "demo", Stream::No).field(name, value)).await;
            assert_eq!(answer.status, status, "{name}: {value}");
            if status == 200 {
                let_in += 1;
                continue;
            }
            assert_refused(path, &answer, 401, "invalid_api_key");
            assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
            assert!(!answer.text().contains(KEY) && !answer.text().contains("sk-wrong"));
        }
        let models = cluster.gateway.ask(&Ask::get("/v1/models").field(name, value)).await;
        assert_eq!(models.status, status, "{name}: {value}");
        assert_eq!(cluster.gateway.ask(&Ask::get("/readyz").field(name, value)).await.status, 200);
    }
    assert_eq!(cluster.shares(), [let_in]);
    let refused = (cases.len() * 3 - let_in - let_in / 2) as f64;
    cluster.gateway.metric_is("smg_http_auth_failures_total", &[("surface", "serving")], refused).await;
    assert!(!cluster.gateway.log().contains(KEY));
}

#[tokio::test]
async fn the_gateways_key_stays_with_the_gateway() {
    let cluster = Cluster::start(1, &["--api-key", KEY]).await;
    let both =
        chat().field("authorization", &format!("Bearer {KEY}")).field("x-api-key", "mine").field("x-goog-api-key", "g");
    assert_eq!(cluster.gateway.ask(&both).await.status, 200);
    let seen = cluster.entries().remove(0);
    for name in ["authorization", "x-api-key", "x-goog-api-key"] {
        assert_eq!(seen.field(name), None, "{name}");
    }
}

#[tokio::test]
async fn without_a_key_of_the_gateways_credentials_are_the_engines() {
    let cluster = Cluster::start(1, &[]).await;
    let both = chat().field("authorization", "Bearer for-the-engine").field("x-api-key", "too");
    assert_eq!(cluster.gateway.ask(&both).await.status, 200);
    let seen = cluster.entries().remove(0);
    assert_eq!((seen.field("authorization"), seen.field("x-api-key")), (Some("Bearer for-the-engine"), Some("too")));
}

#[tokio::test]
async fn an_engines_key_replaces_the_callers() {
    let config = Config { api_key: Some(Secret::new("sk-engine-1c")), ..Config::default() };
    let cluster = Cluster::of(vec![config], &["--worker-api-key", "sk-engine-1c"]).await;
    let answer =
        cluster.gateway.ask(&chat().field("authorization", "Bearer sk-somebody").field("x-api-key", "else")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let seen = cluster.entries().remove(0);
    assert_eq!((seen.field("authorization"), seen.field("x-api-key")), (Some("Bearer sk-engine-1c"), None));
    let listed = cluster.gateway.worker(cluster.engines[0].url()).await;
    assert_eq!(listed["has_api_key"], true);
    assert!(!listed.to_string().contains("sk-engine-1c") && !cluster.gateway.log().contains("sk-engine-1c"));
}

#[tokio::test]
async fn operators_have_a_key_of_their_own() {
    let gateway = Gateway::launch(&["--api-key", KEY, "--admin-api-key", ADMIN_KEY], &[]).await;
    let paths = [("GET", "/workers"), ("POST", "/workers"), ("POST", "/flush_cache"), ("GET", "/explain/some-id")];
    for (method, path) in paths {
        for (key, is_let_in) in [(None, false), (Some(KEY), false), (Some(ADMIN_KEY), true)] {
            let request = Ask::new(method, path, "");
            let request = if let Some(key) = key { request.field("x-api-key", key) } else { request };
            let answer = gateway.ask(&request).await;
            if is_let_in {
                assert!(!matches!(answer.status, 401 | 403), "{path}: {answer:?}");
            } else {
                assert_refused(path, &answer, 401, "invalid_api_key");
            }
        }
    }
    // The operators' key opens nothing else.
    assert_eq!(gateway.ask(&Ask::get("/v1/models").field("x-api-key", ADMIN_KEY)).await.status, 401);
    assert_eq!(gateway.ask(&Ask::get("/v1/models").field("x-api-key", KEY)).await.status, 200);
    gateway.metric_is("smg_http_auth_failures_total", &[("surface", "admin")], 8.0).await;
}

#[tokio::test]
async fn one_key_opens_both_doors_where_there_is_only_one() {
    let gateway = Gateway::launch(&["--api-key", KEY], &[]).await;
    assert_eq!(gateway.ask(&Ask::get("/workers")).await.status, 401);
    assert_eq!(gateway.ask(&Ask::get("/workers").field("x-api-key", KEY)).await.status, 200);
}

/// The address under which this machine is known to others, if it has a network.
fn outer_address(port: u16) -> Option<SocketAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Sends nothing: it only makes the system choose a source address.
    socket.connect("192.0.2.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback()).then(|| SocketAddr::new(address, port))
}

#[tokio::test]
async fn without_a_key_only_this_machine_administers() {
    for (access, status) in [("loopback", 403), ("anyone", 200)] {
        let gateway = Gateway::launch(&["--host", "0.0.0.0", "--admin-access", access], &[]).await;
        assert_eq!(gateway.ask(&Ask::get("/workers")).await.status, 200);
        let Some(outer) = outer_address(gateway.address().port()) else {
            eprintln!("skipped in part: this machine has no address beyond loopback");
            continue;
        };
        let answer = ask(outer, &Ask::get("/workers")).await;
        assert_eq!(answer.status, status, "{answer:?}");
        if status == 403 {
            assert_refused("/workers", &answer, 403, "forbidden");
        }
        assert_eq!(ask(outer, &Ask::get("/v1/models")).await.status, 200, "callers need none");
    }
}

#[tokio::test]
async fn web_pages_administer_nothing_where_there_is_no_key() {
    let flags = ["--cors-allowed-origins", "https://console.test"];
    let open = Gateway::launch(&flags, &[]).await;
    let add =
        |origin: &str| Ask::post("/workers", json!({"url": "http://127.0.0.1:9"}).to_string()).field("origin", origin);
    assert_refused("/workers", &open.ask(&add("https://evil.test")).await, 403, "forbidden");
    assert_refused("/workers", &open.ask(&add("null")).await, 403, "forbidden");
    assert_eq!(open.admin("GET", "/workers", &json!(null)).await.value()["total"], 0);
    assert_eq!(open.ask(&add("https://console.test")).await.status, 202);

    let every_page = Gateway::launch(&["--cors-allowed-origins", "*"], &[]).await;
    assert_eq!(every_page.ask(&add("https://evil.test")).await.status, 403);

    let with_key = Gateway::launch(&["--api-key", KEY], &[]).await;
    assert_eq!(with_key.ask(&add("https://evil.test").field("x-api-key", KEY)).await.status, 202);
}
