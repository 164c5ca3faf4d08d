//! Completions, SGLang's generate, tokens, audio.

use serde_json::{Value, json};
use smg_mock_worker::Dialect;

use crate::{
    client::{Client, post},
    of, with,
};

#[tokio::test]
async fn completions_take_batches_and_several_choices() {
    let worker = of(Dialect::Vllm).await;
    let body = json!({ "model": "demo", "prompt": ["echo a b", "echo c"], "n": 2, "echo": true });
    let plain = post(worker.address(), "/v1/completions", "", &body).await.json();
    let texts: Vec<_> =
        plain["choices"].as_array().unwrap().iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["echo a ba b", "echo a ba b", "echo cc", "echo cc"]);
    let options = json!({ "stream": true, "stream_options": { "include_usage": true } });
    let events = post(worker.address(), "/v1/completions", "", &with(body, &options)).await.events();
    for (index, text) in texts.iter().enumerate() {
        let own = events.iter().filter(|event| event["choices"][0]["index"] == index);
        let streamed: String = own.filter_map(|event| event["choices"][0]["text"].as_str()).collect();
        assert_eq!(streamed, *text);
    }
    assert_eq!(events[events.len() - 2]["usage"], plain["usage"]);
    for bad in [
        json!({ "prompt": 5 }),
        json!({ "prompt": [] }),
        json!({ "prompt": ["a", 1] }),
        json!({ "prompt": "a", "n": 0 }),
    ] {
        assert_eq!(post(worker.address(), "/v1/completions", "", &bad).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn generate_streams_the_text_so_far() {
    let worker = of(Dialect::Sglang).await;
    let body = json!({ "text": "echo a b c", "sampling_params": { "max_new_tokens": 2 } });
    let plain = post(worker.address(), "/generate", "", &body).await.json();
    assert_eq!((&plain["text"], &plain["meta_info"]["finish_reason"]["type"]), (&json!("a b"), &json!("length")));
    let events =
        post(worker.address(), "/generate", "", &with(body.clone(), &json!({ "stream": true }))).await.events();
    let texts: Vec<_> = events.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!(texts, ["a", "a b", "a b"]);
    assert_eq!(events.last().unwrap(), "[DONE]");
    let ids =
        post(worker.address(), "/v1/tokenize", "", &json!({ "prompt": "echo a b c" })).await.json()["tokens"].clone();
    let by_ids = with(body, &json!({ "text": null, "input_ids": ids }));
    assert_eq!(post(worker.address(), "/generate", "", &by_ids).await.json()["text"], "a b");
    let batch = json!({ "text": ["echo a", "echo b"], "sampling_params": {} });
    let batch = post(worker.address(), "/generate", "", &batch).await.json();
    assert_eq!((&batch[0]["text"], &batch[1]["text"]), (&json!("a"), &json!("b")));
}

#[tokio::test]
async fn tokens_come_back_as_text() {
    let text = "Hello, wörld! 🦀";
    for (dialect, encode, decode, name) in [
        (Dialect::Vllm, "/tokenize", "/detokenize", "prompt"),
        (Dialect::Sglang, "/v1/tokenize", "/v1/detokenize", "text"),
    ] {
        let worker = of(dialect).await;
        let encoded = post(worker.address(), encode, "", &json!({ "prompt": text })).await.json();
        assert_eq!(encoded["count"], encoded["tokens"].as_array().unwrap().len());
        let decoded = post(worker.address(), decode, "", &json!({ "tokens": encoded["tokens"] })).await.json();
        assert_eq!(decoded[name], text);
        let batch = post(worker.address(), encode, "", &json!({ "prompt": ["a", "b c"] })).await.json();
        assert_eq!(batch["count"], json!([1, 2]));
    }
    let worker = of(Dialect::Vllm).await;
    let messages = json!({ "messages": [{ "role": "user", "content": "hi" }] });
    let counted = post(worker.address(), "/tokenize", "", &messages).await.json()["count"].clone();
    let used =
        post(worker.address(), "/v1/chat/completions", "", &messages).await.json()["usage"]["prompt_tokens"].clone();
    assert_eq!(counted, used);
}

#[tokio::test]
async fn a_sound_becomes_text() {
    let worker = of(Dialect::Vllm).await;
    let send = async |fields: &[(&str, &str)]| {
        let part = |(name, value): &(&str, &str)| {
            format!("--b\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let mut body: String = fields.iter().map(part).collect();
        body.push_str("--b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n");
        body.push_str(&"x".repeat(40_000));
        body.push_str("\r\n--b--\r\n");
        let mut client = Client::connect(worker.address()).await;
        let content_type = "content-type: multipart/form-data; boundary=b\r\n";
        client.request("POST", "/v1/audio/transcriptions", content_type, body.as_bytes()).await;
        client.answer().await
    };
    let plain = send(&[("model", "demo")]).await.json();
    assert_eq!(plain["usage"]["seconds"], 2);
    assert_eq!(send(&[("model", "demo"), ("response_format", "text")]).await.text().trim_end(), plain["text"]);
    let events = send(&[("model", "demo"), ("stream", "true")]).await.events();
    let text: String = events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(Value::from(text), plain["text"]);
    assert_eq!(send(&[("model", "none")]).await.status, 404);
    assert_eq!(worker.ledger().entries()[2].model.as_deref(), Some("demo"));
    assert!(worker.ledger().entries()[2].stream);
    assert_eq!(post(worker.address(), "/v1/audio/transcriptions", "", &json!({})).await.status, 400);
}
