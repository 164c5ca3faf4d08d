//! Input that is wrong in every way: an answer in the API's shape, nothing sent on, nothing secret in the log.

use serde_json::json;
use smg_node::config::Secret;

use super::{JSON_PATHS, assert_refused, assert_shape};
use crate::harness::{Ask, Cluster, Gateway, Http2, Stream, on};

/// Stands in every prompt, and must never stand in the log.
const PROMPT: &str = "PROMPT-9f3c51";
const KEY: &str = "sk-caller-4be0";
const ENGINE_KEY: &str = "sk-engine-8d27";

/// Bodies that no endpoint can take.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.replace('~', PROMPT).into_bytes();
    let nested = |open: &str, close: &str| {
        let (open, close) = (open.repeat(1_000_000), close.repeat(1_000_000));
        format!(r#"{{"model":"demo","messages":[],"x":{open}"{PROMPT}"{close}}}"#).into_bytes()
    };
    vec![
        ("empty", text("")),
        ("white space", text(" \r\n\t ")),
        ("cut short", text(r#"{"model":"demo","messages":[{"role":"user","content":"~"#)),
        ("no object", text(r#"["~"]"#)),
        ("a string", text(r#""~""#)),
        ("a number", text("1")),
        ("null", text("null")),
        ("no JSON", text("model=demo&prompt=~")),
        ("two values", text(r#"{"model":"demo","messages":[]} {"x":"~"}"#)),
        ("a comma too many", text(r#"{"model":"demo","messages":[],"x":"~",}"#)),
        ("single quotes", text("{'model':'demo','x':'~'}")),
        ("a comment", text(r#"{"model":"demo"/* ~ */,"messages":[]}"#)),
        ("a model that is a number", text(r#"{"model":7,"messages":[],"x":"~"}"#)),
        ("a model that is a list", text(r#"{"model":["~"],"messages":[]}"#)),
        ("a model that is an object", text(r#"{"model":{"id":"~"},"messages":[]}"#)),
        ("two models", text(r#"{"model":"demo","messages":[],"model":"~"}"#)),
        ("two models, one escaped", text(r#"{"model":"demo","messages":[],"mod\u0065l":"~"}"#)),
        ("a control character", text("{\"model\":\"demo\",\"messages\":[],\"x\":\"~\u{1}\"}")),
        ("an escape that is none", text(r#"{"model":"demo","messages":[],"x":"\q~"}"#)),
        ("nested arrays", nested("[", "]")),
        ("nested objects", nested(r#"{"a":"#, "}")),
        ("nested without end", nested("[", "")),
        (
            "bytes that are no text",
            [br#"{"model":"demo","messages":[],"x":""#.as_slice(), &[0xff, 0xfe], br#""}"#].concat(),
        ),
        ("an overlong text", [br#"{"model":"demo","messages":[],"x":""#.as_slice(), &[0xc0, 0xaf], br#""}"#].concat()),
        ("NUL", b"\0\0\0\0".to_vec()),
    ]
}

/// Bodies that are wrong where an endpoint reads the field, and otherwise for the engine to judge.
fn odd_fields() -> Vec<&'static str> {
    vec![
        r#"{"model":"demo","messages":[],"stream":"yes"}"#,
        r#"{"model":"demo","messages":[],"stream":true,"stream":false}"#,
        r#"{"model":"demo","messages":"x","prompt":7,"input":{},"text":3}"#,
        r#"{"model":"demo","messages":[[[]],null,7,{"role":7,"content":{"a":[]}}]}"#,
        r#"{"model":"demo","messages":[],"max_tokens":1e999,"n":-1}"#,
        r#"{"model":"demo","messages":[],"max_tokens":99999999999999999999999999}"#,
        r#"{"model":"demo","messages":[{"role":"user","content":"\ud800 lone \udc00\ud800"}],"input":"\udfff","prompt":"\ud800"}"#,
        r#"{"model":"\ud800","messages":[]}"#,
        r#"{"model":"demo","messages":[],"metadata":{"user_id":[]},"user":7,"previous_response_id":{}}"#,
        r#"{"model":"demo","messages":[],"stream_options":"x","stream":true}"#,
        r#"{"model":"demo","messages":[],"stream_options":{"include_usage":"x"},"stream":true}"#,
    ]
}

async fn cluster() -> Cluster {
    let config = smg_mock_worker::Config { api_key: Some(Secret::new(ENGINE_KEY)), ..Default::default() };
    let flags =
        [["--api-key", KEY], ["--worker-api-key", ENGINE_KEY], ["--log-level", "debug"], ["--policy", "cache_aware"]];
    let mut flags = flags.concat();
    flags.push("--disable-circuit-breaker");
    Cluster::of(vec![config], &flags).await
}

fn assert_nothing_secret(gateway: &Gateway) {
    let log = gateway.log();
    assert!(log.len() > 200, "there is a log: {log}");
    for secret in [PROMPT, KEY, ENGINE_KEY] {
        let line = log.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret} is in the log");
    }
}

#[tokio::test]
async fn what_is_no_request_is_refused_everywhere() {
    let cluster = cluster().await;
    for (name, body) in corpus() {
        for path in JSON_PATHS {
            let answer = cluster.gateway.ask(&Ask::post(path, body.clone()).field("x-api-key", KEY)).await;
            assert_eq!(answer.status, 400, "{name}: {answer:?}");
            assert_refused(path, &answer, 400, "invalid_request");
            assert!(answer.body.len() < 1_000, "{name}: {}", answer.text());
        }
    }
    assert_eq!(cluster.shares(), [0]);
    let good = on("/v1/chat/completions", "demo", Stream::No).field("x-api-key", KEY);
    assert_eq!(cluster.gateway.ask(&good).await.status, 200);
    assert_nothing_secret(&cluster.gateway);
}

#[tokio::test]
async fn odd_fields_do_no_harm() {
    let cluster = cluster().await;
    for body in odd_fields() {
        for path in JSON_PATHS {
            let answer = cluster.gateway.ask(&Ask::post(path, body).field("x-api-key", KEY)).await;
            assert!(answer.is_whole, "{path} {body}: {answer:?}");
            assert_ne!(answer.status, 500, "{path} {body}: {answer:?}");
            if answer.field("x-smg-error-code").is_some() {
                assert_shape(path, &answer);
            }
        }
    }
    cluster.idle().await;
}

#[tokio::test]
async fn models_that_nobody_serves_are_named_with_those_that_somebody_does() {
    let cluster = cluster().await;
    for path in JSON_PATHS {
        let body = json!({"model": "nobodys", "messages": [], "input": "a", "prompt": "a"});
        let answer = cluster.gateway.ask(&Ask::json(path, &body).field("x-api-key", KEY)).await;
        assert_refused(path, &answer, 404, "model_not_found");
        assert!(answer.text().contains("demo") && answer.text().contains("nobodys"), "{answer:?}");
        let long = Ask::json(path, &json!({"model": "m".repeat(100_000), "messages": []})).field("x-api-key", KEY);
        let answer = cluster.gateway.ask(&long).await;
        assert_refused(path, &answer, 404, "model_not_found");
        assert!(answer.body.len() < 1_000);
    }
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/responses"] {
        for body in [json!({"messages": []}), json!({"model": "", "messages": []}), json!({"model": null})] {
            let answer = cluster.gateway.ask(&Ask::json(path, &body).field("x-api-key", KEY)).await;
            assert_shape(path, &answer);
            assert_eq!(answer.status, 400, "{body}: {answer:?}");
            assert!(answer.text().contains("demo"), "{body}: {answer:?}");
        }
    }
    assert_eq!(cluster.shares(), [0]);
}

#[tokio::test]
async fn wrong_media_types_paths_and_methods_are_refused() {
    let cluster = cluster().await;
    let gateway = &cluster.gateway;
    for path in JSON_PATHS {
        for media in
            ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b", "application/xml"]
        {
            let request = Ask::new("POST", path, "{}").field("content-type", media).field("x-api-key", KEY);
            assert_refused(path, &gateway.ask(&request).await, 415, "unsupported_media_type");
        }
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
            let answer = gateway.ask(&Ask::new(method, path, "").field("x-api-key", KEY)).await;
            assert_refused(path, &answer, 405, "method_not_allowed");
            assert_eq!(answer.field("allow"), Some("POST"), "{method} {path}");
        }
    }
    let upload = Ask::post("/v1/audio/transcriptions", "{}").field("x-api-key", KEY);
    assert_refused("/v1/audio/transcriptions", &gateway.ask(&upload).await, 415, "unsupported_media_type");
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v2/chat/completions",
        "/v1/messages/other",
        "/metrics",
        "/admin",
        "/v1/chat/completions/x",
    ] {
        for method in ["GET", "POST"] {
            let answer = gateway.ask(&Ask::new(method, path, "").field("x-api-key", KEY)).await;
            assert_refused(path, &answer, 404, "route_not_found");
        }
    }
    for (method, path) in [("POST", "/health"), ("DELETE", "/workers"), ("PUT", "/v1/models"), ("PATCH", "/get_loads")]
    {
        let answer = gateway.ask(&Ask::new(method, path, "").field("x-api-key", KEY)).await;
        assert_refused(path, &answer, 405, "method_not_allowed");
        assert!(answer.field("allow").is_some(), "{answer:?}");
    }
    assert_eq!(cluster.shares(), [0]);
}

#[tokio::test]
async fn wrong_admin_requests_are_refused() {
    let cluster = cluster().await;
    let gateway = &cluster.gateway;
    let id = {
        let list = gateway.ask(&Ask::get("/workers").field("x-api-key", KEY)).await.value();
        list["workers"][0]["id"].as_str().unwrap().to_owned()
    };
    let bodies: [&[u8]; 14] = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        br#"{"url":7}"#,
        br#"{"url":"http://127.0.0.1:9","colour":"blue"}"#,
        br#"{"url":"http://127.0.0.1:9","priority":-1}"#,
        br#"{"url":"http://127.0.0.1:9","priority":99999999999}"#,
        br#"{"url":"http://127.0.0.1:9","cost":"NaN"}"#,
        br#"{"url":"http://127.0.0.1:9","cost":-1}"#,
        br#"{"url":"http://127.0.0.1:9","weight":0}"#,
        br#"{"url":"http://127.0.0.1:9","health":{"endpoint":"http://evil.test/"}}"#,
        br#"{"url":"http://127.0.0.1:9","api_key":"a\r\nb: c"}"#,
    ];
    let deep = ["[".repeat(100_000), "]".repeat(100_000)].concat();
    let deep = format!(r#"{{"url":"http://127.0.0.1:9","labels":{deep}}}"#);
    for body in bodies.into_iter().chain([deep.as_bytes()]) {
        for (method, path) in [("POST", "/workers".to_owned()), ("PUT", format!("/workers/{id}"))] {
            let answer = gateway.ask(&Ask::new(method, &path, body).field("x-api-key", KEY)).await;
            let what = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
            assert_eq!(answer.status, 400, "{method} {what}: {answer:?}");
            assert_refused(&path, &answer, 400, "invalid_request");
        }
    }
    for (method, path, status) in [
        ("GET", "/workers/%FF", 400),
        ("GET", "/workers/none", 404),
        ("DELETE", "/workers/..%2f..", 404),
        ("POST", "/workers/none/drain", 404),
        ("PATCH", "/workers/none", 404),
        ("GET", "/workers?model=a&model=b", 400),
        ("GET", "/v1/models/%FF", 400),
        ("GET", "/v1/models/none", 404),
        ("GET", "/explain/none", 404),
        ("GET", "/v1/responses/none", 404),
        ("GET", "/v1/responses/a%2f..%2fb", 404),
        ("DELETE", "/v1/responses/none", 404),
        ("POST", "/v1/responses/none/other", 404),
    ] {
        let answer = gateway.ask(&Ask::new(method, path, "").field("x-api-key", KEY)).await;
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_shape(path, &answer);
    }
    let list = gateway.ask(&Ask::get("/workers").field("x-api-key", KEY)).await.value();
    assert_eq!(list["total"], 1, "{list}");
    assert_nothing_secret(gateway);
}

#[tokio::test]
async fn the_log_holds_no_prompt_and_no_key_whatever_happens() {
    let cluster = cluster().await;
    let body = |stream: bool| {
        json!({
            "model": "demo", "stream": stream, "messages": [{"role": "user", "content": PROMPT}], "user": PROMPT, "max_tokens": 4
        })
    };
    for fault in [
        "",
        "status=400",
        "status=500",
        "status=429",
        "rst@head",
        "rst@body",
        "garble@event:1",
        "garbage",
        "fin@event:2",
    ] {
        for stream in [false, true] {
            for path in ["/v1/chat/completions", "/v1/messages"] {
                let request = Ask::json(path, &body(stream)).field("authorization", &format!("Bearer {KEY}"));
                let request = if fault.is_empty() { request } else { request.fault(fault) };
                let mut connection = cluster.gateway.begin(&request).await;
                let answer = connection.answer().await;
                assert!(!answer.text().contains(KEY) && !answer.text().contains(ENGINE_KEY), "{answer:?}");
            }
        }
    }
    let http2 = Http2::new(&cluster.gateway);
    let request = Ask::json("/v1/chat/completions", &body(false)).field("x-api-key", KEY);
    assert_eq!(http2.begin(&request).await.unwrap().status(), 200);
    cluster.idle().await;
    let listed = cluster.gateway.ask(&Ask::get("/workers").field("x-api-key", KEY)).await;
    assert!(!listed.text().contains(ENGINE_KEY));
    let metrics = cluster.gateway.metrics().await;
    assert!(!metrics.contains(KEY) && !metrics.contains(ENGINE_KEY) && !metrics.contains(PROMPT));
    assert_nothing_secret(&cluster.gateway);
}
