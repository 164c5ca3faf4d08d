//! Embeddings, rerank, classify, score.

use serde_json::json;
use smg_mock_worker::Dialect;

use crate::{client::post, of};

#[tokio::test]
async fn embeddings_are_unit_vectors_that_depend_on_the_text() {
    let worker = of(Dialect::Openai).await;
    let body = json!({ "model": "demo", "input": ["a", "b", "a"], "dimensions": 5 });
    let answer = post(worker.address(), "/v1/embeddings", "", &body).await.json();
    let vector = |index: usize| -> Vec<f64> {
        answer["data"][index]["embedding"].as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
    };
    assert_eq!((vector(0).len(), vector(0)), (5, vector(2)));
    assert_ne!(vector(0), vector(1));
    assert!((vector(1).iter().map(|number| number * number).sum::<f64>() - 1.0).abs() < 1e-5);
    let coded = json!({ "model": "demo", "input": "a", "encoding_format": "base64", "dimensions": 5 });
    let coded = post(worker.address(), "/v1/embeddings", "", &coded).await.json();
    assert_eq!(coded["data"][0]["embedding"].as_str().unwrap().len(), 28);
    assert_eq!(post(worker.address(), "/v1/embeddings", "", &json!({ "model": "demo" })).await.status, 400);
}

#[tokio::test]
async fn documents_are_ranked() {
    let body = json!({ "model": "demo", "query": "q", "documents": ["a", "b", "c", "d"], "top_n": 3 });
    for (dialect, path, results, score) in [
        (Dialect::Vllm, "/rerank", "/results", "relevance_score"),
        (Dialect::Vllm, "/v1/rerank", "/results", "relevance_score"),
        (Dialect::Sglang, "/v1/rerank", "", "score"),
    ] {
        let worker = of(dialect).await;
        let answer = post(worker.address(), path, "", &body).await.json();
        let scores: Vec<_> = answer
            .pointer(results)
            .unwrap()
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one[score].as_f64().unwrap())
            .collect();
        assert_eq!(scores.len(), 3, "{answer}");
        assert!(scores.is_sorted_by(|left, right| left >= right), "{answer}");
        assert!(worker.ledger().entries()[0].prompt_tokens >= 8);
    }
}

#[tokio::test]
async fn classes_and_scores_are_given() {
    let worker = of(Dialect::Vllm).await;
    let classes =
        post(worker.address(), "/classify", "", &json!({ "model": "demo", "input": ["a", "b"] })).await.json();
    assert_eq!(classes["data"].as_array().unwrap().len(), 2);
    let scores = post(worker.address(), "/score", "", &json!({ "text_1": "a", "text_2": ["b", "c"] })).await.json();
    assert_eq!(scores["data"].as_array().unwrap().len(), 2);
    let uneven = json!({ "text_1": ["a", "b"], "text_2": ["c"] });
    assert_eq!(post(worker.address(), "/v1/score", "", &uneven).await.status, 400);
    let worker = of(Dialect::Sglang).await;
    let body = json!({ "query": "a", "items": ["b", "c"], "label_token_ids": [1, 2] });
    let scores = post(worker.address(), "/v1/score", "", &body).await.json();
    assert_eq!(scores["scores"].as_array().unwrap().len(), 2);
    assert_eq!(post(worker.address(), "/v1/classify", "", &json!({ "input": "a" })).await.status, 200);
}
