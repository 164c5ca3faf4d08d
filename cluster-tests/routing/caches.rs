//! Whether conversations find their caches, by what the engines themselves say they had cached.

use serde_json::{Value, json};

use crate::harness::{Ask, Cluster};

/// Not a multiple of the number of engines: taking turns would keep conversations together by chance.
const CONVERSATIONS: usize = 13;
const ENGINES: usize = 4;
const TURNS: usize = 5;

/// Plays conversations of several turns; the share of the prompts' tokens that was cached.
async fn hit_rate(policy: &str, path: &str) -> f64 {
    let cluster = Cluster::start(ENGINES, &["--policy", policy]).await;
    let mut histories: Vec<Vec<Value>> = vec![Vec::new(); CONVERSATIONS];
    for turn in 0..TURNS {
        for (number, history) in histories.iter_mut().enumerate() {
            let question = format!("conversation {number} turn {turn}: ").repeat(40);
            history.push(json!({"role": "user", "content": question}));
            let body = json!({"model": "demo", "max_tokens": 16, "messages": history});
            let answer = cluster.gateway.ask(&Ask::json(path, &body)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let value = answer.value();
            let text = match path {
                "/v1/messages" => value["content"][0]["text"].clone(),
                _ => value["choices"][0]["message"]["content"].clone(),
            };
            assert!(text.is_string(), "{value}");
            history.push(json!({"role": "assistant", "content": text}));
        }
    }
    let entries = cluster.entries();
    assert_eq!(entries.len(), CONVERSATIONS * TURNS);
    let shares = cluster.shares();
    // Thirteen conversations may by chance leave out one engine, but not all but one.
    assert!(shares.iter().filter(|share| **share > 0).count() > 1, "{policy}: {shares:?}");
    let sum = |of: fn(&smg_mock_worker::Entry) -> u64| entries.iter().map(of).sum::<u64>() as f64;
    sum(|entry| entry.cached_tokens) / sum(|entry| entry.prompt_tokens)
}

#[tokio::test]
async fn cache_aware_finds_the_caches_that_round_robin_misses() {
    // Each turn is as long as those before it: of all tokens sent, two thirds were sent before.
    let possible = 1.0 - 2.0 / (TURNS as f64 + 1.0);
    for path in ["/v1/chat/completions", "/v1/messages"] {
        let aware = hit_rate("cache_aware", path).await;
        let blind = hit_rate("round_robin", path).await;
        assert!(aware > possible - 0.1, "{path}: {aware:.2} of at most about {possible:.2}");
        assert!(aware > 2.0 * blind, "{path}: {aware:.2} against {blind:.2}");
    }
}
