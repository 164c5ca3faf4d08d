//! Bounds on bodies, memory, connections and heads.

use std::fs;

use super::{JSON_PATHS, assert_refused, assert_shape, chat};
use crate::harness::{Ask, Cluster, Gateway, Http2, settled};

/// A JSON body of exactly so many bytes, good for every endpoint but for what engines may say of it.
fn body(bytes: usize) -> String {
    let head = r#"{"model":"demo","messages":[{"role":"user","content":""#;
    let tail = r#""}],"prompt":"a","input":"a","text":"a","query":"a","documents":["a"],"text_1":"a","text_2":"b","tokens":[1],"max_tokens":1}"#;
    format!("{head}{}{tail}", "a".repeat(bytes - head.len() - tail.len()))
}

fn chunked(path: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let mut bytes = head.into_bytes();
    for part in body.as_bytes().chunks(9_000) {
        bytes.extend([format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat());
    }
    bytes.extend(b"0\r\n\r\n");
    bytes
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_in_every_apis_shape() {
    const LIMIT: usize = 64 << 10;
    let cluster = Cluster::start(1, &["--max-payload-size", "64KiB"]).await;
    for path in JSON_PATHS {
        let answer = cluster.gateway.ask(&Ask::post(path, body(LIMIT + 1))).await;
        assert_refused(path, &answer, 413, "payload_too_large");
        assert_eq!(answer.field("connection"), Some("close"));
        // What it says must help: the limit.
        assert!(answer.text().contains("64KiB"), "{answer:?}");

        let mut connection = cluster.gateway.connect().await;
        connection.write(&chunked(path, &body(LIMIT + 1))).await;
        assert_refused(path, &connection.answer().await, 413, "payload_too_large");
    }
    assert_eq!(cluster.shares(), [0]);
    assert_eq!(cluster.gateway.ask(&Ask::post("/v1/chat/completions", body(LIMIT))).await.status, 200);
    let mut connection = cluster.gateway.connect().await;
    connection.write(&chunked("/v1/chat/completions", &body(LIMIT))).await;
    assert_eq!(connection.answer().await.status, 200);

    let form = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ndemo\r\n--b\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n";
    let form = [form.as_bytes(), &vec![b'x'; LIMIT], b"\r\n--b--\r\n"].concat();
    let path = "/v1/audio/transcriptions";
    let upload = Ask::new("POST", path, form).field("content-type", "multipart/form-data; boundary=b");
    assert_refused(path, &cluster.gateway.ask(&upload).await, 413, "payload_too_large");

    let admin = cluster.gateway.ask(&Ask::post("/workers", body(2 << 20))).await;
    assert_refused("/workers", &admin, 413, "payload_too_large");
}

fn resident_kilobytes(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_hundred_megabytes_cost_no_memory() {
    let cluster = Cluster::start(1, &["--max-payload-size", "1MiB"]).await;
    let before = resident_kilobytes(&cluster.gateway);
    let huge = vec![b'['; 100_000_000];
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let answer = cluster.gateway.ask(&Ask::post(path, huge.clone())).await;
        assert_refused(path, &answer, 413, "payload_too_large");
    }
    let grown = resident_kilobytes(&cluster.gateway).saturating_sub(before);
    assert!(grown < 40_000, "{grown} kB more");
    assert_eq!(cluster.gateway.ask(&chat()).await.status, 200);
}

#[tokio::test]
async fn who_asks_first_need_not_send_what_is_too_large() {
    let cluster = Cluster::start(1, &["--max-payload-size", "1MiB"]).await;
    let head =
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n";
    let mut connection = cluster.gateway.connect().await;
    connection.write(format!("{head}content-length: 100000000\r\n\r\n").as_bytes()).await;
    assert_refused("/v1/chat/completions", &connection.answer().await, 413, "payload_too_large");
    assert!(connection.is_closed_by_peer().await);

    let body = body(300);
    let mut connection = cluster.gateway.connect().await;
    connection.write(format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes()).await;
    connection.write(body.as_bytes()).await;
    assert_eq!(connection.answer().await.status, 200);
}

#[tokio::test]
async fn bodies_share_one_memory() {
    let cluster = Cluster::start(1, &["--max-payload-size", "64KiB", "--body-memory-max", "100KiB"]).await;
    let large = Ask::post("/v1/chat/completions", body(60 << 10));
    let held = cluster.gateway.begin(&large.clone().fault("stall@head")).await;
    cluster.entry(0, |entry| entry.request_bytes > 0).await;
    cluster.gateway.metric_is("smg_http_body_budget_used_bytes", &[], f64::from(60 << 10)).await;

    for path in ["/v1/chat/completions", "/v1/messages"] {
        let answer = cluster.gateway.ask(&Ask::post(path, body(60 << 10))).await;
        assert_refused(path, &answer, 503, "body_budget_exhausted");
        assert_eq!(answer.field("retry-after"), Some("1"));
    }
    assert_eq!(cluster.gateway.ask(&chat()).await.status, 200, "a small one still fits");

    held.close();
    cluster.gateway.metric_is("smg_http_body_budget_used_bytes", &[], 0.0).await;
    assert_eq!(cluster.gateway.ask(&large).await.status, 200);
    cluster.idle().await;
    cluster.gateway.metric_is("smg_http_body_budget_used_bytes", &[], 0.0).await;
}

/// Opens `count` connections that are in use, finds one more refused, and one that came free taken again.
async fn assert_capped(gateway: &Gateway, count: usize) {
    let health = Ask::get("/health");
    gateway.metric_is("smg_http_connections_active", &[], 0.0).await;
    let mut open = Vec::new();
    for _ in 0..count {
        let mut connection = gateway.begin(&health).await;
        assert_eq!(connection.answer().await.status, 200);
        open.push(connection);
    }
    let mut one_more = gateway.connect().await;
    assert!(one_more.is_closed_by_peer().await);
    gateway.metric_is("smg_http_connections_total", &[("result", "refused")], 1.0).await;
    gateway.metric_is("smg_http_connections_active", &[], count as f64).await;
    // Those that are in notice nothing.
    open[0].send(&health).await;
    assert_eq!(open[0].answer().await.status, 200);

    open.pop();
    settled("a free place", async || {
        let mut connection = gateway.connect().await;
        connection.try_write(&health.bytes()).await && connection.try_head().await.is_some()
    })
    .await;
}

#[tokio::test]
async fn connections_are_counted() {
    let gateway = Gateway::launch(&["--connections-max", "3"], &[]).await;
    assert_capped(&gateway, 3).await;
}

#[tokio::test]
async fn connections_are_counted_by_address() {
    let gateway = Gateway::launch(&["--connections-per-address-max", "2"], &[]).await;
    assert_capped(&gateway, 2).await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let cluster = Cluster::start(1, &["--head-bytes-max", "16KiB"]).await;
    let with_fields = |count: usize| (0..count).fold(chat(), |ask, number| ask.field(&format!("x-{number}"), "v"));
    assert_eq!(cluster.gateway.ask(&with_fields(85)).await.status, 200);
    for request in [
        with_fields(128),
        with_fields(3_000),
        chat().field("x-long", &"v".repeat(20 << 10)),
        chat().field(&"n".repeat(20 << 10), "v"),
        Ask::get(&format!("/{}", "p".repeat(20 << 10))),
    ] {
        let mut connection = cluster.gateway.connect().await;
        let _refused_before_the_end = connection.try_write(&request.bytes()).await;
        let answer = connection.head().await;
        assert_eq!(answer.status, 431);
    }
    assert_eq!(cluster.shares(), [1]);

    let http2 = Http2::new(&cluster.gateway);
    assert_eq!(http2.begin(&chat()).await.unwrap().status(), 200);
    let long = http2.begin(&chat().field("x-long", &"v".repeat(40 << 10))).await;
    assert!(long.is_err() || long.is_ok_and(|answer| answer.status() == 431));
    assert_eq!(cluster.shares(), [2]);
}

#[tokio::test]
async fn a_refusal_before_the_body_is_in_the_apis_shape_too() {
    let cluster = Cluster::start(1, &["--api-key", "sk"]).await;
    for path in JSON_PATHS {
        let answer = cluster.gateway.ask(&Ask::post(path, body(30_000))).await;
        assert_eq!(answer.status, 401);
        assert_shape(path, &answer);
    }
}
