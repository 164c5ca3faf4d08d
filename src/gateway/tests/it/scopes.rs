//! Keys that are for some families of endpoints: which family each endpoint belongs to, and that nothing else lets a caller
//! past it.

use axum::body::Body;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use smg_auth::{KeyRecord, KeyState, Origin, Scope, Scopes};
use smg_base::Secret;
use smg_mock_worker::{Config, MockWorker};

use crate::support::{Node, json_of};

/// Every endpoint that callers use, and its scope; none where any key will do.
const ENDPOINTS: [(&str, &str, Option<Scope>); 26] = [
    ("POST", "/v1/chat/completions", Some(Scope::Chat)),
    ("POST", "/chat/completions", Some(Scope::Chat)),
    ("POST", "/v1/chat/completions/", Some(Scope::Chat)),
    ("POST", "/v1/messages", Some(Scope::Chat)),
    ("POST", "/v1/messages/count_tokens", Some(Scope::Chat)),
    ("POST", "/v1/completions", Some(Scope::Completions)),
    ("POST", "/generate", Some(Scope::Completions)),
    ("GET", "/health_generate", Some(Scope::Completions)),
    ("POST", "/v1/responses", Some(Scope::Responses)),
    ("GET", "/v1/responses/resp_1", Some(Scope::Responses)),
    ("DELETE", "/v1/responses/resp_1", Some(Scope::Responses)),
    ("GET", "/v1/responses/resp_1/input_items", Some(Scope::Responses)),
    ("POST", "/v1/responses/resp_1/cancel", Some(Scope::Responses)),
    ("POST", "/v1/embeddings", Some(Scope::Embeddings)),
    ("POST", "/v1/rerank", Some(Scope::Rerank)),
    ("POST", "/rerank", Some(Scope::Rerank)),
    ("POST", "/v1/score", Some(Scope::Rerank)),
    ("POST", "/v1/classify", Some(Scope::Classify)),
    ("POST", "/v1/audio/transcriptions", Some(Scope::Audio)),
    ("POST", "/v1/tokenize", Some(Scope::Tokenize)),
    ("POST", "/v1/detokenize", Some(Scope::Tokenize)),
    ("GET", "/v1/models", Some(Scope::Models)),
    ("GET", "/v1/models/demo", Some(Scope::Models)),
    ("GET", "/get_model_info", Some(Scope::Models)),
    ("GET", "/get_server_info", Some(Scope::Models)),
    ("GET", "/v1/limits", None),
];

fn request(method: &str, path: &str, key: &str) -> Request<Body> {
    let body = json!({
        "model": "demo", "max_tokens": 1, "messages": [{ "role": "user", "content": "hello" }], "prompt": "hello",
        "input": "hello", "text": "hello", "query": "hello", "documents": ["a"], "tokens": [1],
    });
    let request = Request::builder().method(method).uri(path).header("x-api-key", key);
    let request = request.header("content-type", "application/json");
    request.body(if method == "POST" { body.to_string().into() } else { Body::empty() }).unwrap()
}

fn record(key: &str, scopes: Scopes) -> KeyRecord {
    let record = KeyRecord { id: key.into(), scopes, ..KeyRecord::new(key.to_owned(), "acme", 0) };
    record.of_key(&Secret::new(key))
}

fn scopes<'a>(names: impl IntoIterator<Item = &'a Scope>) -> Scopes {
    Scopes::named(names.into_iter().map(|scope| scope.as_str())).unwrap()
}

/// A node that knows these keys, and an engine of it.
async fn node_of(records: Vec<KeyRecord>) -> (Node, MockWorker) {
    let node = Node::new("n", |_| {});
    node.authenticator.set_keys(Origin::File, records);
    let engine = MockWorker::start(Config::default()).await.unwrap();
    node.adopt(&engine);
    (node, engine)
}

/// What it says to somebody whose key is for other endpoints, in the shape of the endpoint's family.
fn assert_names_the_scope(path: &str, answer: &Value, scope: Scope) {
    let is_anthropic = path.starts_with("/v1/messages");
    let code = if is_anthropic { &answer["error"]["details"]["error_code"] } else { &answer["error"]["code"] };
    assert_eq!((code, &answer["error"]["type"]), (&json!("missing_scope"), &json!("permission_error")), "{path}");
    assert_eq!(answer["type"], if is_anthropic { json!("error") } else { Value::Null }, "{path}: {answer}");
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains(&format!("'{}'", scope.as_str())), "{path}: {message}");
}

#[tokio::test]
async fn a_key_reaches_the_endpoints_of_its_scopes_and_no_others() {
    let only = |scope: &Scope| (format!("only-{}", scope.as_str()), vec![*scope]);
    let but = |scope: &Scope| {
        let others = Scope::ALL.iter().copied().filter(|other| other != scope).collect();
        (format!("but-{}", scope.as_str()), others)
    };
    let mut keys: Vec<(String, Vec<Scope>)> = Scope::ALL.iter().flat_map(|scope| [only(scope), but(scope)]).collect();
    keys.push(("nothing".to_owned(), Vec::new()));
    let mut records: Vec<KeyRecord> = keys.iter().map(|(key, list)| record(key, scopes(list))).collect();
    records.push(record("everything", Scopes::All));
    keys.push(("everything".to_owned(), Scope::ALL.to_vec()));
    let (node, engine) = node_of(records).await;
    let mut refused = 0.0;
    for (key, list) in &keys {
        for (method, path, wanted) in ENDPOINTS {
            let asked = engine.ledger().count(|_| true);
            let answer = node.call(request(method, path, key)).await;
            let status = answer.status();
            match wanted.filter(|scope| !list.contains(scope)) {
                Some(scope) => {
                    assert_eq!(status, StatusCode::FORBIDDEN, "{key}: {method} {path}");
                    assert_names_the_scope(path, &json_of(answer).await, scope);
                    assert_eq!(engine.ledger().count(|_| true), asked, "{key}: {method} {path} reached a worker");
                    refused += 1.0;
                }
                None => {
                    let is_let_in = !matches!(status, StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED);
                    assert!(is_let_in, "{key}: {method} {path}: {status}");
                }
            }
        }
    }
    let counted = r#"smg_http_auth_failures_total{reason="scope",surface="serving"}"#;
    assert_eq!(node.metric(counted), refused);
}

#[tokio::test]
async fn what_is_described_names_the_scope_that_is_asked_for() {
    let described = smg_gateway::openapi();
    let mut told = 0;
    for (path, operations) in described["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if operation["tags"] != json!(["serving"]) || path == "/v1/usage" {
                continue;
            }
            let concrete = path.replace("{below}", if method == "get" { "input_items" } else { "cancel" });
            let concrete = concrete.replace("models/{id}", "models/demo").replace("{id}", "resp_1");
            let is_it =
                |(one, at, _): &&(&str, &str, Option<Scope>)| one.eq_ignore_ascii_case(method) && *at == concrete;
            let (_, _, scope) = ENDPOINTS.iter().find(is_it).unwrap_or_else(|| panic!("{method} {path} has no scope"));
            let expected = scope.map_or(Value::Null, |scope| json!([scope.as_str()]));
            assert_eq!(operation["security"][0]["bearer"], expected, "{method} {path}");
            assert_eq!(operation["security"][1]["key"], expected, "{method} {path}");
            told += 1;
        }
    }
    assert_eq!(told, ENDPOINTS.len() - 2, "two of them are other spellings");
}

#[test]
fn the_page_for_operators_names_each_endpoint_at_its_scope() {
    let page = include_str!("../../../../docs/auth.md");
    for (_, path, scope) in ENDPOINTS.iter().filter(|(_, path, _)| !path.contains("resp_1")) {
        let Some(scope) = scope else { continue };
        let beginning = format!("| `{}` |", scope.as_str());
        let row = page.lines().find(|line| line.starts_with(&beginning)).unwrap_or_else(|| panic!("{beginning}"));
        let path = path.trim_end_matches('/').trim_end_matches("/demo");
        let is_spelled_so = |path: &str| row.contains(&format!("`{path}`"));
        assert!(is_spelled_so(path) || is_spelled_so(&format!("/v1{path}")), "{path} in {row}");
    }
    for name in Scope::NAMES {
        assert!(page.contains(&format!("\n| `{name}` | `/")), "{name}");
    }
}

#[tokio::test]
async fn who_is_not_known_is_not_told_of_scopes() {
    let mut revoked = record("revoked", scopes(&[]));
    revoked.state = KeyState::Revoked;
    let expired = KeyRecord { expires: Some(1), ..record("expired", scopes(&[])) };
    let (node, engine) = node_of(vec![revoked, expired, record("chat", scopes(&[Scope::Chat]))]).await;
    let check = async |key: &str, path: &str, expected: StatusCode, code: &str| {
        let answer = node.call(request("POST", path, key)).await;
        assert_eq!(answer.status(), expected, "{key}: {path}");
        assert_eq!(json_of(answer).await["error"]["code"], code, "{key}: {path}");
    };
    for key in ["revoked", "expired", "unknown", ""] {
        check(key, "/v1/embeddings", StatusCode::UNAUTHORIZED, "invalid_api_key").await;
    }
    check("chat", "/v1/embeddings", StatusCode::FORBIDDEN, "missing_scope").await;
    check("chat", "/v1/nonsense", StatusCode::NOT_FOUND, "route_not_found").await;
    let mut of_two = request("POST", "/v1/embeddings", "chat");
    of_two.headers_mut().insert("authorization", "Bearer unknown".parse().unwrap());
    assert_eq!(node.call(of_two).await.status(), StatusCode::FORBIDDEN, "another's credential beside it adds nothing");
    assert_eq!(engine.ledger().count(|_| true), 0);
    let answer = node.call(request("POST", "/v1/chat/completions", "chat")).await;
    assert_eq!(answer.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_change_of_scopes_is_in_force_for_the_next_request() {
    let (node, _engine) = node_of(vec![record("key", Scopes::All)]).await;
    let ask = async || node.call(request("POST", "/v1/chat/completions", "key")).await.status();
    assert_eq!(ask().await, StatusCode::OK);
    node.authenticator.set_keys(Origin::File, vec![record("key", scopes(&[Scope::Models]))]);
    assert_eq!(ask().await, StatusCode::FORBIDDEN);
    node.authenticator.set_keys(Origin::File, vec![record("key", scopes(&[Scope::Models, Scope::Chat]))]);
    assert_eq!(ask().await, StatusCode::OK);
}
