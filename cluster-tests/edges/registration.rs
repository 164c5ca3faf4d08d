//! Workers registered through the admin API: no way to places that operators of the gateway must not reach.

use std::net::TcpListener as Listener;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::{assert_refused, chat};
use crate::harness::{Answer, Cluster, Gateway, settled};

async fn add(gateway: &Gateway, url: &str) -> Answer {
    gateway.admin("POST", "/workers", &json!({ "url": url })).await
}

#[tokio::test]
async fn addresses_that_are_never_workers_are_refused_in_every_spelling() {
    let gateway = Gateway::launch(&["--worker-url-deny", "10.9.0.0/16"], &[]).await;
    for url in [
        "http://169.254.169.254",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]:8000",
        "http://[fd00:ec2::254]",
        "http://[::ffff:169.254.169.254]",
        "http://[::ffff:a9fe:a9fe]",
        "http://[64:ff9b::a9fe:a9fe]",
        "http://[2002:a9fe:a9fe::1]",
        "http://100.100.100.200",
        "http://168.63.129.16",
        "http://0.0.0.0:8000",
        "http://[::]:8000",
        "http://224.0.0.1",
        "http://255.255.255.255",
        "http://10.9.1.2:8000",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://0251.0376.0251.0376",
        "http://169.254.43518",
    ] {
        let answer = add(&gateway, url).await;
        assert_refused("/workers", &answer, 400, "invalid_request");
    }
    for url in [
        "http://user:hunter2@127.0.0.1:8000",
        "http://hunter2@127.0.0.1:8000",
        "http://127.0.0.1:8000/?token=hunter2",
        "http://127.0.0.1:8000/#hunter2",
        "ftp://127.0.0.1",
        "file:///etc/passwd",
        "unix:/tmp/socket",
        "gopher://127.0.0.1:8000",
        "javascript:alert(1)",
        "http://",
        "http:///v1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1:8000\r\nx: y",
        "http://127.0.0.1\\@evil.test",
        "",
        " ",
    ] {
        let answer = add(&gateway, url).await;
        assert_refused("/workers", &answer, 400, "invalid_request");
        assert!(!answer.text().contains("hunter2"), "{answer:?}");
    }
    let list = gateway.admin("GET", "/workers", &Value::Null).await.value();
    assert_eq!(list["total"], 0, "{list}");
    gateway.metric_is("smg_admin_operations_total", &[("operation", "add"), ("result", "refused")], 35.0).await;
    assert!(!gateway.log().contains("hunter2"));

    for url in ["http://127.0.0.1:9", "http://10.8.1.2:8000", "http://[::1]:9"] {
        assert_eq!(add(&gateway, url).await.status, 202, "{url}");
    }
    assert_refused("/workers", &add(&gateway, "http://127.0.0.1:9/").await, 409, "already_exists");
}

#[tokio::test]
async fn names_are_judged_by_what_they_stand_for() {
    let gateway = Gateway::launch(&["--worker-url-unlisted", "public"], &[]).await;
    for url in ["http://localhost:8000", "http://127.0.0.1:8000", "http://[::1]:8000", "http://does-not-exist.invalid"]
    {
        assert_refused("/workers", &add(&gateway, url).await, 400, "invalid_request");
    }
    let flags = ["--worker-url-unlisted", "nothing", "--worker-url-allow", "127.0.0.0/8", "::1"];
    let gateway = Gateway::launch(&flags, &[]).await;
    for url in ["http://localhost:8000", "http://127.0.0.1:8001"] {
        assert_eq!(add(&gateway, url).await.status, 202, "{url}");
    }
    assert_eq!(add(&gateway, "http://10.0.0.1:8000").await.status, 400);
}

#[tokio::test]
async fn the_rules_are_not_for_those_who_write_the_configuration() {
    let cluster = Cluster::start(1, &["--worker-url-unlisted", "nothing"]).await;
    assert_eq!(cluster.gateway.ask(&chat()).await.status, 200);
}

/// Answers everything with a redirect to `target`.
async fn redirecting(target: String) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let target = target.clone();
            connections.spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|size| size > 0) {
                    let head =
                        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(head.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (url, tasks)
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let victim = Listener::bind("127.0.0.1:0").unwrap();
    victim.set_nonblocking(true).unwrap();
    let (url, _redirecting) = redirecting(format!("http://{}/secret", victim.local_addr().unwrap())).await;
    let gateway = Gateway::launch(&[], &[]).await;
    let spec = json!({ "url": url, "models": ["demo"], "health": { "disable_health_check": true } });
    assert_eq!(gateway.admin("POST", "/workers", &spec).await.status, 202);
    gateway.ready().await;
    let answer = gateway.ask(&chat()).await;
    assert_eq!(answer.status, 307, "{answer:?}");
    settled("an attempt to find out what the worker is", async || {
        gateway.metric("smg_worker_detections_total", &[]).await > 0.0
    })
    .await;
    assert!(victim.accept().is_err(), "somebody came");
}

#[tokio::test]
async fn keys_of_workers_are_never_shown() {
    let cluster = Cluster::start(1, &["--log-level", "debug"]).await;
    let url = cluster.engines[0].url();
    let id = cluster.gateway.worker(url).await["id"].as_str().unwrap().to_owned();
    let path = format!("/workers/{id}");
    let patched = cluster.gateway.admin("PATCH", &path, &json!({"api_key": "sk-worker-31"})).await;
    assert_eq!(patched.status, 202, "{patched:?}");
    for answer in [patched, cluster.gateway.admin("GET", &path, &Value::Null).await] {
        assert_eq!(answer.value()["has_api_key"], true);
        assert!(!answer.text().contains("sk-worker-31"));
    }
    let broken = cluster.gateway.admin("PATCH", &path, &json!({"api_key": ["sk-worker-31"]})).await;
    assert_eq!(broken.status, 400);
    assert!(!cluster.gateway.log().contains("sk-worker-31"));
}
