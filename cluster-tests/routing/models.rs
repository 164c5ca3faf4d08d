//! Several models behind one gateway.

use serde_json::{Value, json};
use smg_mock_worker::{Config, Dialect};

use crate::harness::{Ask, Cluster, Gateway, Stream, engine, on};

const CHAT: &str = "/v1/chat/completions";

fn serves(models: &[&str]) -> Config {
    Config { models: models.iter().map(|model| (*model).to_owned()).collect(), ..Config::default() }
}

async fn cluster() -> Cluster {
    let configs = vec![serves(&["a"]), serves(&["b"]), serves(&["a", "c/d"])];
    Cluster::of(configs, &["--model-alias", "nick=b", "--model-alias", "other=c/d"]).await
}

#[tokio::test]
async fn requests_go_to_engines_that_have_the_model() {
    let cluster = cluster().await;
    let cases = [("a", [2, 0, 2]), ("b", [0, 4, 0]), ("c/d", [0, 0, 4]), ("nick", [0, 4, 0]), ("other", [0, 0, 4])];
    for (model, expected) in cases {
        let before = cluster.shares();
        for path in [CHAT, "/v1/messages", "/v1/completions", "/v1/embeddings"] {
            let answer = cluster.gateway.ask(&on(path, model, Stream::No)).await;
            assert_eq!(answer.status, 200, "{model} {path}: {}", answer.text());
        }
        let now: Vec<usize> = cluster.shares().iter().zip(before).map(|(now, before)| now - before).collect();
        assert_eq!(now, expected, "{model}");
    }
}

#[tokio::test]
async fn models_and_aliases_are_listed() {
    let cluster = cluster().await;
    let list = cluster.gateway.ask(&Ask::get("/v1/models")).await.value();
    let names: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["a", "b", "c/d", "nick", "other"]);
    for (path, root) in [("a", "a"), ("nick", "b"), ("c%2Fd", "c/d")] {
        let one = cluster.gateway.ask(&Ask::get(&format!("/v1/models/{path}"))).await;
        assert_eq!((one.status, one.value()["root"].clone()), (200, Value::from(root)), "{path}");
    }
    let list = cluster.gateway.ask(&Ask::get("/v1/models").field("anthropic-version", "2023-06-01")).await.value();
    assert_eq!((&list["data"][0]["type"], &list["has_more"]), (&"model".into(), &false.into()));
    assert_eq!(cluster.gateway.ask(&Ask::get("/v1/models/nobody")).await.status, 404);
}

#[tokio::test]
async fn an_unknown_model_is_refused_with_the_known_ones() {
    let cluster = cluster().await;
    let cases =
        [(CHAT, "nobody", 404, "model_not_found"), (CHAT, "", 400, "model_required"), ("/v1/messages", "x", 404, "")];
    for (path, model, status, code) in cases {
        let answer = cluster.gateway.ask(&on(path, model, Stream::Yes)).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        let body = answer.value();
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains("a, b, c/d"), "{message}");
        if path == CHAT {
            assert_eq!((&body["error"]["code"], &body["error"]["param"]), (&code.into(), &"model".into()), "{body}");
        } else {
            assert_eq!((&body["type"], &body["error"]["type"]), (&"error".into(), &"not_found_error".into()), "{body}");
        }
    }
    assert_eq!(cluster.entries().len(), 0);
}

#[tokio::test]
async fn an_engines_own_endpoint_needs_no_model_where_there_is_one() {
    let cluster = Cluster::of(vec![Config { dialect: Dialect::Sglang, ..Config::default() }], &[]).await;
    let answer = cluster.gateway.ask(&Ask::json("/generate", &json!({"text": "hi"}))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let several = cluster_of_two_models().await;
    let answer = several.gateway.ask(&Ask::json("/generate", &json!({"text": "hi"}))).await;
    assert_eq!((answer.status, answer.field("x-smg-error-code")), (400, Some("model_required")));
}

async fn cluster_of_two_models() -> Cluster {
    let sglang = |model| Config { dialect: Dialect::Sglang, ..serves(&[model]) };
    Cluster::of(vec![sglang("a"), sglang("b")], &[]).await
}

#[tokio::test]
async fn a_worker_added_by_the_admin_api_brings_its_model() {
    let gateway = Gateway::start(&[], &[]).await;
    let first = engine(serves(&["a"])).await;
    let second = engine(serves(&["b", "adapter"])).await;
    for worker in [&first, &second] {
        let added = gateway.admin("POST", "/workers", &json!({"url": worker.url(), "labels": {"zone": "x"}})).await;
        assert_eq!(added.status, 202, "{}", added.text());
        gateway.worker_is(worker.url(), "ready").await;
    }
    for model in ["a", "b", "adapter"] {
        assert_eq!(gateway.ask(&on(CHAT, model, Stream::No)).await.status, 200, "{model}");
    }
    let again = gateway.admin("POST", "/workers", &json!({"url": first.url()})).await;
    assert_eq!(again.status, 409, "{}", again.text());
    let shown = gateway.worker(second.url()).await;
    assert_eq!((&shown["origin"], &shown["engine"]), (&"api".into(), &"vllm".into()));
    // What the operator says of the models holds, not what the engine says.
    let third = engine(serves(&["real", "hidden"])).await;
    let spec = json!({"url": third.url(), "models": [{"id": "real", "aliases": ["public"]}]});
    assert_eq!(gateway.admin("POST", "/workers", &spec).await.status, 202);
    gateway.worker_is(third.url(), "ready").await;
    assert_eq!(gateway.ask(&on(CHAT, "public", Stream::No)).await.status, 200);
    assert_eq!(gateway.ask(&on(CHAT, "hidden", Stream::No)).await.status, 404);
}
