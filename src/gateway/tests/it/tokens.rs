//! Prompts compared by their tokens.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::StatusCode;
use serde_json::{Value, json};
use smg_api::Endpoint;
use smg_base::ModelId;
use smg_gateway::PromptTokens;
use smg_mock_worker::{Config, Dialect, MockWorker};
use smg_prefix::Space;

use crate::support::{Node, post};

/// Takes every four bytes of a body for a token, unless it says something else.
#[derive(Default)]
struct FourBytes {
    asked: AtomicUsize,
}

impl PromptTokens for FourBytes {
    fn tokens(&self, model: &ModelId, endpoint: Endpoint, body: &[u8]) -> Option<Vec<u32>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert_eq!(model.as_str(), "demo");
        assert!(matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Generate));
        let body: Value = serde_json::from_slice(body).unwrap();
        let text = body["messages"][0]["content"].as_str()?;
        Some(text.as_bytes().chunks(4).map(|four| four.iter().fold(0, |id, byte| id << 8 | u32::from(*byte))).collect())
    }
}

struct Stage {
    node: Node,
    tokens: Arc<FourBytes>,
    _engine: MockWorker,
}

impl Stage {
    async fn new() -> Self {
        let engine = MockWorker::start(Config { dialect: Dialect::Sglang, ..Config::default() }).await.unwrap();
        let tokens = Arc::new(FourBytes::default());
        let node = Node::with_tokens("n", tokens.clone());
        node.adopt(&engine);
        Self { node, tokens, _engine: engine }
    }

    /// Prompt tokens as the decision had them, and how many of those the chosen worker was taken to hold.
    async fn ask(&self, path: &str, body: Value) -> (u64, u64) {
        let answer = self.node.call(post(path, &body, &[("x-request-id", "r")])).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        crate::support::text_of(answer).await;
        let decision = self.node.explain("r").await["attempts"][0]["decision"].clone();
        (decision["input_tokens"].as_u64().unwrap(), decision["predicted_tokens"].as_u64().unwrap())
    }

    async fn chat(&self, text: &str, fields: Value) -> (u64, u64) {
        let mut body = json!({ "model": "demo", "messages": [{ "role": "user", "content": text }] });
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        self.ask("/v1/chat/completions", body).await
    }

    /// Chunks known of the worker, of text and of tokens.
    fn held(&self) -> (u64, u64) {
        let (_, policy) = self.node.gateway.prefix_models().pop().expect("the model was asked for");
        let worker = self.node.fleet.snapshot().workers()[0].id;
        (policy.chunks_held(worker, Space::Text), policy.chunks_held(worker, Space::Tokens))
    }
}

#[tokio::test]
async fn a_prompt_is_cut_by_its_tokens_where_they_are_known() {
    let stage = Stage::new().await;
    let text = "abcd".repeat(1_000);
    assert_eq!(stage.chat(&text, json!({})).await, (1_000, 0));
    assert_eq!(stage.held(), (0, 7));
    assert_eq!(stage.chat(&text, json!({})).await, (1_000, 896), "whole chunks of 128 tokens");
    assert_eq!(stage.chat(&"abcd".repeat(200), json!({})).await, (200, 128), "a short one is computed at once");
    // The same tokens, given as such.
    let ids = vec![u32::from_be_bytes(*b"abcd"); 1_000];
    assert_eq!(stage.ask("/v1/completions", json!({ "model": "demo", "prompt": ids })).await, (1_000, 896));
    assert_eq!(stage.ask("/generate", json!({ "input_ids": [ids] })).await, (1_000, 896));
    assert_eq!(stage.tokens.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn what_has_no_known_tokens_is_compared_as_text() {
    let stage = Stage::new().await;
    let body = json!({ "model": "demo", "prompt": "abcd".repeat(1_000) });
    assert_eq!(stage.ask("/v1/completions", body.clone()).await.1, 0);
    assert_eq!(stage.held(), (7, 0));
    assert!(stage.ask("/v1/completions", body).await.1 > 0);
    // Other endpoints are not asked about.
    let asked = stage.tokens.asked.load(Ordering::SeqCst);
    stage.ask("/v1/responses", json!({ "model": "demo", "input": "abcd".repeat(1_000) })).await;
    assert_eq!(stage.tokens.asked.load(Ordering::SeqCst), asked);
}

#[tokio::test]
async fn salts_share_nothing_in_either_space() {
    let stage = Stage::new().await;
    let text = "abcd".repeat(1_000);
    let completion = |salt: Value| json!({ "model": "demo", "prompt": text, "cache_salt": salt });
    for salt in [json!(null), json!("one"), json!("two")] {
        assert_eq!(stage.chat(&text, json!({ "cache_salt": salt })).await, (1_000, 0), "{salt}");
        assert_eq!(stage.ask("/v1/completions", completion(salt.clone())).await.1, 0, "{salt}");
        assert_eq!(stage.chat(&text, json!({ "cache_salt": salt })).await, (1_000, 896), "{salt}");
        assert!(stage.ask("/v1/completions", completion(salt)).await.1 > 0);
    }
}

#[tokio::test]
async fn a_policy_that_is_built_anew_must_be_fed_again() {
    let stage = Stage::new().await;
    assert_eq!(stage.node.gateway.prefix_models().len(), 1, "before anybody asks for the model");
    let generation = stage.node.gateway.prefix_generation();
    stage.chat("y", json!({})).await;
    assert_eq!(stage.node.gateway.prefix_generation(), generation);
    let mut settings = smg_gateway::Settings { admin_access: smg_gateway::AdminAccess::Anyone, ..Default::default() };
    stage.node.gateway.reconfigure(settings.clone());
    stage.chat("z", json!({})).await;
    assert_eq!(stage.node.gateway.prefix_generation(), generation, "nothing has changed for the policy");
    settings.defaults.policy.kind = smg_routing::PolicyKind::RoundRobin;
    stage.node.gateway.reconfigure(settings);
    stage.chat("z", json!({})).await;
    assert_ne!(stage.node.gateway.prefix_generation(), generation);
    assert!(stage.node.gateway.prefix_models().is_empty(), "it goes by no cache");
}
