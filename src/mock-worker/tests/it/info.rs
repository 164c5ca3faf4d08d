//! What each dialect has, and what it tells about itself.

use serde_json::json;
use smg_mock_worker::{CacheConfig, Canned, Config, Dialect};

use crate::{
    client::{Client, get, post},
    of, worker,
};

use Dialect::{Anthropic, Openai, Sglang, Vllm};

#[tokio::test]
async fn a_dialect_has_its_engines_paths_and_no_others() {
    let cases = [
        ("/health", [200, 200, 404, 404]),
        ("/health_generate", [404, 200, 404, 404]),
        ("/version", [200, 404, 404, 404]),
        ("/get_server_info", [404, 200, 404, 404]),
        ("/server_info", [200, 200, 404, 404]),
        ("/get_model_info", [404, 200, 404, 404]),
        ("/openapi.json", [200, 200, 404, 404]),
        ("/metrics", [200, 200, 404, 404]),
        ("/load", [200, 404, 404, 404]),
        ("/get_load", [404, 200, 404, 404]),
        ("/v1/loads", [404, 200, 404, 404]),
        ("/v1/models", [200, 200, 200, 200]),
        ("/v1/models/demo", [404, 200, 200, 200]),
        ("/flush_cache", [404, 200, 404, 404]),
        ("/generate", [404, 405, 404, 404]),
        ("/v1/messages", [405, 405, 404, 405]),
        ("/v1/chat/completions", [405, 405, 405, 404]),
        ("/v1/responses/resp_1/nothing", [404, 404, 404, 404]),
    ];
    for (place, dialect) in [Vllm, Sglang, Openai, Anthropic].into_iter().enumerate() {
        let worker = of(dialect).await;
        let mut client = Client::connect(worker.address()).await;
        for (path, statuses) in &cases {
            assert_eq!(client.get(path).await.status, statuses[place], "{dialect:?} {path}");
        }
    }
}

#[tokio::test]
async fn what_detection_reads_is_there() {
    let cache = CacheConfig { block_tokens: 32, blocks: 1000 };
    let config = |dialect| Config { dialect, cache: cache.clone(), context_length: 4096, ..Config::default() };
    let vllm = worker(config(Vllm)).await;
    let model = get(vllm.address(), "/v1/models").await.json()["data"][0].clone();
    assert_eq!(
        (&model["owned_by"], &model["max_model_len"], &model["root"]),
        (&json!("vllm"), &json!(4096), &json!("demo"))
    );
    let metrics = get(vllm.address(), "/metrics").await.text();
    assert!(
        metrics.contains(r#"vllm:cache_config_info{block_size="32","#) && metrics.contains(r#"num_gpu_blocks="1000""#),
        "{metrics}"
    );
    assert!(metrics.contains("vllm:num_requests_running{engine=\"0\",model_name=\"demo\"} 0\n"));
    let paths = get(vllm.address(), "/openapi.json").await.json()["paths"].clone();
    assert!(paths["/v1/chat/completions"]["post"].is_object() && paths["/generate"].is_null());

    let sglang = worker(config(Sglang)).await;
    let info = get(sglang.address(), "/get_server_info").await.json();
    assert_eq!((&info["max_total_num_tokens"], &info["page_size"]), (&json!(32_000), &json!(32)));
    assert_eq!(get(sglang.address(), "/get_model_info").await.json()["is_generation"], true);
    assert_eq!(get(sglang.address(), "/v1/loads?include=core").await.json()["loads"][0]["num_running_reqs"], 0);
    assert!(get(sglang.address(), "/metrics").await.text().contains("sglang:max_total_num_tokens{"));
}

#[tokio::test]
async fn a_key_is_asked_for_where_the_engine_asks_for_it() {
    let cases = [
        (Vllm, "/v1/models", "", 401),
        (Vllm, "/v1/models", "authorization: Bearer key\r\n", 200),
        (Vllm, "/v1/models", "authorization: Bearer kez\r\n", 401),
        (Vllm, "/metrics", "", 200),
        (Sglang, "/get_server_info", "", 401),
        (Sglang, "/health", "", 200),
        (Anthropic, "/v1/models", "x-api-key: key\r\n", 200),
        (Anthropic, "/v1/models", "x-api-key: other\r\n", 401),
        (Openai, "/v1/models", "x-api-key: key\r\n", 401),
    ];
    for (dialect, path, fields, status) in cases {
        let worker = worker(Config { dialect, api_key: Some("key".parse().unwrap()), ..Config::default() }).await;
        let mut client = Client::connect(worker.address()).await;
        client.request("GET", path, fields, b"").await;
        assert_eq!(client.answer().await.status, status, "{dialect:?} {path} {fields}");
    }
}

#[tokio::test]
async fn canned_answers_let_it_pass_for_another_engine() {
    let canned = Canned {
        method: "GET".into(),
        path: "/props".into(),
        status: 200,
        content_type: "application/json".into(),
        body: r#"{"build_info":"b1"}"#.into(),
    };
    let worker = worker(Config { canned: vec![canned], ..Config::default() }).await;
    let answer = get(worker.address(), "/props").await;
    assert_eq!(
        (answer.field("content-type"), answer.json()["build_info"].as_str()),
        (Some("application/json"), Some("b1"))
    );
    assert_eq!(post(worker.address(), "/props", "", &json!({})).await.status, 404);
}
