//! Each dialect's engine answers through the gateway as it answers directly.

use serde_json::Value;
use smg_mock_worker::{Config, Dialect};

use crate::harness::{Answer, Cluster, Stream, ask, on, serving};

/// Endpoints of each dialect: the path, and whether its answers can be streamed.
const OFFERED: &[(Dialect, &[(&str, Stream)])] = &[
    (
        Dialect::Vllm,
        &[
            ("/v1/chat/completions", Stream::Yes),
            ("/v1/completions", Stream::Yes),
            ("/v1/messages", Stream::Yes),
            ("/v1/messages/count_tokens", Stream::No),
            ("/v1/responses", Stream::Yes),
            ("/v1/embeddings", Stream::No),
            ("/v1/rerank", Stream::No),
            ("/rerank", Stream::No),
            ("/v1/score", Stream::No),
        ],
    ),
    (
        Dialect::Sglang,
        &[
            ("/v1/chat/completions", Stream::Yes),
            ("/v1/completions", Stream::Yes),
            ("/v1/messages", Stream::Yes),
            ("/v1/responses", Stream::Yes),
            ("/generate", Stream::Yes),
            ("/v1/embeddings", Stream::No),
            ("/v1/rerank", Stream::No),
            ("/v1/classify", Stream::No),
            ("/v1/tokenize", Stream::No),
            ("/v1/detokenize", Stream::No),
        ],
    ),
    (
        Dialect::Openai,
        &[
            ("/v1/chat/completions", Stream::Yes),
            ("/v1/completions", Stream::Yes),
            ("/v1/responses", Stream::Yes),
            ("/v1/embeddings", Stream::No),
        ],
    ),
    (Dialect::Anthropic, &[("/v1/messages", Stream::Yes), ("/v1/messages/count_tokens", Stream::No)]),
];

/// What two answers to one request may differ in.
fn without_ids(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|name, _| {
                let is_id = name == "id" || name.ends_with("_id");
                !is_id && !name.starts_with("created") && !name.ends_with("_at") && !name.ends_with("latency")
            });
            fields.values_mut().for_each(without_ids);
            // The second answer finds its prompt in the cache.
            fields.retain(|name, _| !name.contains("cached") && !name.contains("tokens_details") && name != "usage");
        }
        Value::Array(items) => items.iter_mut().for_each(without_ids),
        _ => {}
    }
}

fn essence(answer: &Answer) -> Vec<Value> {
    let is_stream = answer.field("content-type").is_some_and(|value| value.starts_with("text/event-stream"));
    let mut values = if is_stream {
        let value = |data: &str| serde_json::from_str(data).unwrap_or_else(|_| Value::from(data));
        answer.events().iter().map(|event| value(&event.data)).collect()
    } else {
        vec![answer.value()]
    };
    values.iter_mut().for_each(without_ids);
    values
}

#[tokio::test]
async fn engines_answer_as_they_do_directly() {
    for (dialect, endpoints) in OFFERED {
        let cluster = Cluster::of(vec![Config { dialect: *dialect, ..Config::default() }], &[]).await;
        let engine = &cluster.engines[0];
        for (path, streams) in *endpoints {
            for stream in
                [Stream::No, Stream::Yes].into_iter().filter(|stream| *stream == Stream::No || stream == streams)
            {
                let request = on(path, "demo", stream).field("anthropic-version", "2023-06-01");
                let through = cluster.gateway.ask(&request).await;
                assert_eq!(through.status, 200, "{dialect:?} {path}: {}", through.text());
                let entry = engine.ledger().select(serving).pop().unwrap();
                assert_eq!(entry.body, request.body, "{dialect:?} {path}");
                // The gateway knows other names for some of the engine's paths.
                let mut same = request.clone();
                same.path.clone_from(&entry.path);
                let direct = ask(engine.address(), &same).await;
                assert_eq!(essence(&through), essence(&direct), "{dialect:?} {path} {stream:?}");
                assert_eq!(through.field("content-type"), direct.field("content-type"));
                assert_eq!(through.field("x-mock-worker"), Some("mock"));
            }
        }
        cluster.idle().await;
    }
}

#[tokio::test]
async fn an_endpoint_that_no_engine_has_is_refused_without_asking_one() {
    let cluster = Cluster::start(2, &[]).await;
    for path in ["/generate", "/v1/classify"] {
        let answer = cluster.gateway.ask(&on(path, "demo", Stream::No)).await;
        let is_offered = path == "/v1/classify";
        assert_eq!(answer.status == 200, is_offered, "{path}: {}", answer.text());
        if !is_offered {
            assert_eq!(
                (answer.status, answer.value()["error"]["code"].clone()),
                (404, "endpoint_not_supported".into())
            );
        }
    }
    let paths: Vec<String> = cluster.entries().into_iter().map(|entry| entry.path).collect();
    assert_eq!(paths, ["/classify"], "vLLM has it without the prefix only");
}

#[tokio::test]
async fn what_an_engine_says_it_lacks_comes_back_as_it_says_it() {
    let cluster = Cluster::of(vec![Config { dialect: Dialect::Openai, ..Config::default() }], &[]).await;
    let request = on("/v1/messages", "demo", Stream::No);
    let (through, direct) = (cluster.gateway.ask(&request).await, ask(cluster.engines[0].address(), &request).await);
    assert_eq!((through.status, through.text()), (404, direct.text()));
}
