//! Engines' answers in the form in which they come, what is made of them, and what is made of anything else.

use std::collections::BTreeMap;

use smg_base::{Random, SplitMix};
use smg_fleet::{Engine, EngineProfile, KvEventsSpec, ModelCard, Origin};
use smg_infer::FailureCode;

use super::{DetectError, detect, facts};
use crate::{
    Config,
    testing::{self, Server, read_request, reply, spec, until_closed, upstream, worker, worker_of, write},
};

const VLLM_MODELS: &str = r#"{"object":"list","data":[
    {"id":"qwen","object":"model","created":1764000000,"owned_by":"vllm","root":"Qwen/Qwen3-8B","parent":null,
     "max_model_len":40960,"permission":[{"id":"modelperm-1","object":"model_permission","allow_sampling":true}]},
    {"id":"qwen-sql","object":"model","created":1764000000,"owned_by":"vllm","root":"/adapters/sql","parent":"qwen",
     "max_model_len":null,"permission":[]}]}"#;
const VLLM_METRICS: &str = r#"# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.9",num_cpu_blocks="None",num_gpu_blocks="27283",sliding_window="None"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="True",engine="1",gpu_memory_utilization="0.9",num_cpu_blocks="None",num_gpu_blocks="27000",sliding_window="None"} 1.0
vllm:num_requests_running{engine="0",model_name="qwen"} 3.0
"#;
const OPENAPI: &str = r#"{"openapi":"3.1.0","info":{"title":"FastAPI","version":"0.1.0"},"paths":{
    "/health":{"get":{}},"/v1/models":{"get":{}},"/v1/chat/completions":{"post":{"requestBody":{"content":{}}}},
    "/v1/responses/{response_id}":{"get":{}},"/tokenize":{"post":{}}},"components":{"schemas":{}}}"#;
const SGLANG_MODELS: &str = r#"{"object":"list","data":[{"id":"meta-llama/Llama-3.1-8B-Instruct","object":"model",
    "created":1764000000,"owned_by":"sglang","root":"meta-llama/Llama-3.1-8B-Instruct","parent":null,"max_model_len":131072}]}"#;
const SGLANG_SERVER: &str = r#"{"model_path":"meta-llama/Llama-3.1-8B-Instruct","tokenizer_path":"meta-llama/Llama-3.1-8B-Instruct",
    "context_length":null,"served_model_name":"meta-llama/Llama-3.1-8B-Instruct","page_size":64,"dp_size":2,"api_key":null,
    "max_running_requests":null,"max_total_tokens":null,"status":"ready","max_total_num_tokens":480000,"max_req_input_len":131066,
    "internal_states":[{"last_gen_throughput":0.0,"memory_usage":{"weight":14.9,"kvcache":55.0,"token_capacity":480000},
    "effective_max_running_requests_per_dp":2048},{"memory_usage":{"token_capacity":480000},
    "effective_max_running_requests_per_dp":2048}],"version":"0.5.6","enable_dp_attention":true,
    "kv_events_config":"{\"publisher\":\"zmq\",\"topic\":\"kv-events\",\"endpoint\":\"tcp://*:5557\"}"}"#;
const SGLANG_MODEL: &str = r#"{"model_path":"meta-llama/Llama-3.1-8B-Instruct","tokenizer_path":"meta-llama/Llama-3.1-8B-Instruct",
    "is_generation":true,"preferred_sampling_params":null,"weight_version":"default","reasoning_parser":null,
    "tool_call_parser":"llama3","model_type":"llama","architectures":["LlamaForCausalLM"]}"#;
const TRTLLM_MODELS: &str = r#"{"object":"list","data":[{"id":"TinyLlama-1.1B-Chat-v1.0","object":"model","created":1764000000,"owned_by":"tensorrt_llm"}]}"#;
const LLAMA_MODELS: &str = r#"{"models":[{"name":"gemma-3-4b","model":"gemma-3-4b","type":"model","details":{"format":"gguf"}}],
    "object":"list","data":[{"id":"gemma-3-4b","aliases":["gemma-3-4b","gemma"],"tags":[],"object":"model","created":1764000000,
    "owned_by":"llamacpp","meta":{"vocab_type":2,"n_vocab":262144,"n_ctx_train":131072,"n_embd":2560,"n_params":3880099328,"size":4}}]}"#;
const LLAMA_PROPS: &str = r#"{"default_generation_settings":{"id":0,"n_ctx":8192,"speculative":false,"is_processing":false,
    "params":{"temperature":0.8}},"total_slots":4,"model_alias":"gemma-3-4b","model_path":"/models/gemma.gguf",
    "modalities":{"vision":false},"chat_template":"{{ bos_token }}","build_info":"b9992-abcdef12"}"#;
const OLLAMA_MODELS: &str = r#"{"object":"list","data":[
    {"id":"llama3.2:latest","object":"model","created":1764000000,"owned_by":"library"},
    {"id":"mistral:7b","object":"model","created":1764000000,"owned_by":"library"}]}"#;
const OLLAMA_PS: &str = r#"{"models":[{"name":"llama3.2:latest","model":"llama3.2:latest","size":3000000000,
    "details":{"family":"llama"},"expires_at":"2026-11-24T00:00:00Z","size_vram":3000000000,"context_length":4096}]}"#;
const ANTHROPIC_MODELS: &str = r#"{"data":[{"type":"model","id":"claude-sonnet-4-5","display_name":"Claude Sonnet 4.5",
    "created_at":"2025-09-29T00:00:00Z"}],"has_more":false,"first_id":"claude-sonnet-4-5","last_id":"claude-sonnet-4-5"}"#;
const PLAIN_MODELS: &str = r#"{"object":"list","data":[{"id":"gpt-x","object":"model","owned_by":"somebody","context_length":200000},{"id":"gpt-y"}]}"#;

fn card(id: &str, context_length: Option<u64>) -> ModelCard {
    ModelCard { context_length, ..ModelCard::new(id) }
}

async fn profile_of(routes: &[(&str, u16, &str)]) -> EngineProfile {
    let engine = testing::Engine::start(routes).await;
    detect(&upstream(&Config::default()), &worker(&engine.server.url())).await.unwrap()
}

#[tokio::test]
async fn vllm_is_told_by_its_models_and_its_cache_by_its_metrics() {
    let version = r#"{"version":"0.11.2"}"#;
    let routes = [
        ("/v1/models", 200, VLLM_MODELS),
        ("/version", 200, version),
        ("/metrics", 200, VLLM_METRICS),
        ("/openapi.json", 200, OPENAPI),
    ];
    let paths = ["/health", "/v1/models", "/v1/chat/completions", "/v1/responses/{response_id}", "/tokenize"];
    let expected = EngineProfile {
        engine: Engine::Vllm,
        version: Some("0.11.2".to_owned()),
        models: vec![card("qwen", Some(40960)), card("qwen-sql", None)],
        context_length: None,
        kv_capacity_tokens: Some((27283 + 27000) * 16),
        block_size: Some(16),
        max_running_requests: None,
        offers: Some(paths.map(str::to_owned).into()),
        kv_events: None,
    };
    assert_eq!(profile_of(&routes).await, expected);
    // Without its metrics and description it is still vLLM.
    let expected = EngineProfile { kv_capacity_tokens: None, block_size: None, offers: None, ..expected };
    assert_eq!(profile_of(&routes[..2]).await, expected);
}

#[tokio::test]
async fn sglang_is_told_by_its_models_or_its_own_paths_old_and_new() {
    let llama = "meta-llama/Llama-3.1-8B-Instruct";
    let model = ModelCard {
        hf_model_type: Some("llama".to_owned()),
        architectures: vec!["LlamaForCausalLM".to_owned()],
        tool_parser: Some("llama3".to_owned()),
        tokenizer_path: Some(llama.to_owned()),
        ..card(llama, Some(131_072))
    };
    let expected = EngineProfile {
        engine: Engine::Sglang,
        version: Some("0.5.6".to_owned()),
        models: vec![model.clone()],
        context_length: None,
        kv_capacity_tokens: Some(960_000),
        block_size: Some(64),
        max_running_requests: Some(4096),
        offers: None,
        kv_events: Some(KvEventsSpec { topic: "kv-events".to_owned(), ranks: 2, ..KvEventsSpec::new("tcp://*:5557") }),
    };
    let new =
        [("/v1/models", 200, SGLANG_MODELS), ("/server_info", 200, SGLANG_SERVER), ("/model_info", 200, SGLANG_MODEL)];
    assert_eq!(profile_of(&new).await, expected);
    let old = [
        ("/v1/models", 200, SGLANG_MODELS),
        ("/get_server_info", 200, SGLANG_SERVER),
        ("/get_model_info", 200, SGLANG_MODEL),
    ];
    assert_eq!(profile_of(&old).await, expected);
    // It also speaks Ollama's API, and must not be taken for it.
    let unnamed = [
        ("/server_info", 200, SGLANG_SERVER),
        ("/model_info", 200, SGLANG_MODEL),
        ("/api/tags", 200, "{}"),
        ("/api/version", 200, r#"{"version":"0.5.0"}"#),
    ];
    let models = vec![ModelCard { context_length: None, ..model }];
    assert_eq!(profile_of(&unnamed).await, EngineProfile { models, ..expected });
}

#[tokio::test]
async fn the_others_are_told_by_their_models_their_paths_or_their_shape() {
    let check = async |routes: &[(&str, u16, &str)], expected: EngineProfile| {
        assert_eq!(profile_of(routes).await, expected);
    };
    let plain = EngineProfile::default;
    check(
        &[("/v1/models", 200, TRTLLM_MODELS), ("/version", 200, r#"{"version":"1.2.0"}"#)],
        EngineProfile {
            engine: Engine::TrtLlm,
            version: Some("1.2.0".to_owned()),
            models: vec![card("TinyLlama-1.1B-Chat-v1.0", None)],
            ..plain()
        },
    )
    .await;
    let gemma = ModelCard { aliases: vec!["gemma".into()], ..card("gemma-3-4b", Some(8192)) };
    let llama = EngineProfile {
        engine: Engine::LlamaCpp,
        version: Some("b9992-abcdef12".to_owned()),
        models: vec![gemma],
        context_length: Some(8192),
        kv_capacity_tokens: Some(4 * 8192),
        max_running_requests: Some(4),
        ..plain()
    };
    check(&[("/v1/models", 200, LLAMA_MODELS), ("/props", 200, LLAMA_PROPS)], llama.clone()).await;
    let models = vec![card("gemma-3-4b", Some(8192))];
    check(&[("/props", 200, LLAMA_PROPS)], EngineProfile { models, ..llama }).await;
    let tagged = ModelCard { aliases: vec!["llama3.2".into()], ..card("llama3.2:latest", Some(4096)) };
    check(
        &[
            ("/v1/models", 200, OLLAMA_MODELS),
            ("/api/version", 200, r#"{"version":"0.13.0"}"#),
            ("/api/ps", 200, OLLAMA_PS),
        ],
        EngineProfile {
            engine: Engine::Ollama,
            version: Some("0.13.0".to_owned()),
            models: vec![tagged, card("mistral:7b", None)],
            ..plain()
        },
    )
    .await;
    let claude = ModelCard { display_name: Some("Claude Sonnet 4.5".to_owned()), ..card("claude-sonnet-4-5", None) };
    check(
        &[("/v1/models", 200, ANTHROPIC_MODELS)],
        EngineProfile { engine: Engine::Anthropic, models: vec![claude], ..plain() },
    )
    .await;
    let models = vec![card("gpt-x", Some(200_000)), card("gpt-y", None)];
    check(&[("/v1/models", 200, PLAIN_MODELS)], EngineProfile { engine: Engine::OpenAi, models, ..plain() }).await;
    check(&[], plain()).await;
    check(&[("/v1/models", 200, "<html>")], plain()).await;
    check(&[("/v1/models", 200, r#"{"data":[]}"#)], EngineProfile { engine: Engine::OpenAi, ..plain() }).await;
}

#[tokio::test]
async fn an_engine_that_was_named_is_believed() {
    let engine =
        testing::Engine::start(&[("/v1/models", 200, PLAIN_MODELS), ("/server_info", 200, SGLANG_SERVER)]).await;
    let mut spec = spec(&engine.server.url());
    spec.runtime_type = Some(Engine::Sglang);
    let profile = detect(&upstream(&Config::default()), &worker_of(spec, Origin::Flag)).await.unwrap();
    assert_eq!((profile.engine, profile.kv_capacity_tokens), (Engine::Sglang, Some(960_000)));
    assert!(!engine.asked.lock().contains(&"/props".to_owned()), "what is known was asked for");
}

#[tokio::test]
async fn a_worker_that_cannot_say_yet_is_told_apart_from_one_that_never_will() {
    let check = async |status, expected: Result<Engine, DetectError>| {
        let engine = testing::Engine::start(&[("/v1/models", status, "{}")]).await;
        let found = detect(&upstream(&Config::default()), &worker(&engine.server.url())).await;
        assert_eq!(found.map(|profile| profile.engine), expected, "{status}");
    };
    check(401, Err(DetectError::Unauthorized(401))).await;
    check(403, Err(DetectError::Unauthorized(403))).await;
    check(429, Err(DetectError::NotReady(429))).await;
    check(500, Err(DetectError::NotReady(500))).await;
    check(503, Err(DetectError::NotReady(503))).await;
    check(404, Ok(Engine::Unknown)).await;
    check(501, Ok(Engine::Unknown)).await;

    let gone = Server::start(|mut stream, _| async move { drop(read_request(&mut stream).await) }).await;
    match detect(&upstream(&Config::default()), &worker(&gone.url())).await {
        Err(DetectError::Unreachable(failure)) => assert_eq!(failure.code, FailureCode::UpstreamClosed),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn answers_are_bounded_in_time() {
    // The list of models is there; all else stalls, some before and some after the head.
    let server = Server::start(|mut stream, number| async move {
        while let Some(request) = read_request(&mut stream).await {
            if request.starts_with("GET /v1/models ") {
                write(&mut stream, reply(200, VLLM_MODELS)).await;
                continue;
            }
            if number % 2 == 0 {
                write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{").await;
            }
            until_closed(&mut stream).await;
        }
    })
    .await;
    let started = tokio::time::Instant::now();
    let profile = detect(&upstream(&Config::default()), &worker(&server.url())).await.unwrap();
    assert_eq!((profile.engine, profile.models.len(), profile.version), (Engine::Vllm, 2, None));
    assert!(started.elapsed() <= super::DETECT_TIMEOUT, "{:?}", started.elapsed());

    let silent = Server::start(|mut stream, _| async move { until_closed(&mut stream).await }).await;
    let found = detect(&upstream(&Config::default()), &worker(&silent.url())).await;
    assert_eq!(found, Err(DetectError::Timeout));
}

#[tokio::test]
async fn answers_are_bounded_in_size() {
    let endless = Server::start(|mut stream, _| async move {
        use tokio::io::AsyncWriteExt;
        read_request(&mut stream).await;
        write(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = format!("10000\r\n{}\r\n", "[".repeat(0x10000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    let found = detect(&upstream(&Config::default()), &worker(&endless.url())).await;
    assert!(matches!(found, Err(DetectError::Unreadable(crate::FetchError::TooLarge(_)))), "{found:?}");

    let entries: Vec<String> = (0..5_000).map(|number| format!(r#"{{"id":"m{number}"}}"#)).collect();
    let listing = facts::listing(format!(r#"{{"data":[{}]}}"#, entries.join(",")).as_bytes()).unwrap();
    assert_eq!(listing.models.len(), 1_024);
    let long = "x".repeat(257);
    let odd =
        format!(r#"{{"data":[{{"id":"{long}"}},{{"id":"a\u0000b"}},{{"id":""}},{{"id":7}},{{}},3,{{"id":"ok"}}]}}"#);
    assert_eq!(facts::listing(odd.as_bytes()).unwrap().models, [ModelCard::new("ok")]);
}

#[test]
fn descriptions_that_say_nothing_are_not_believed() {
    let check = |body: &str, expected: Option<usize>| {
        assert_eq!(facts::offers(body.as_bytes()).map(|paths| paths.len()), expected, "{body}");
    };
    check(OPENAPI, Some(5));
    check(r#"{"paths":{"/generate":{}}}"#, Some(1));
    check(r#"{"paths":{"/pets":{}}}"#, None);
    check(r#"{"paths":{"/v1/chat/completions":{},"/{path}":{}}}"#, None);
    check(r#"{"paths":[]}"#, None);
    check(r#"{"paths":{}}"#, None);
    check("{}", None);
    let many: BTreeMap<String, u8> = (0..3_000).map(|number| (format!("/generate{number}"), 0)).collect();
    check(&serde_json::json!({ "paths": many }).to_string(), None);
}

#[test]
fn sizes_that_cannot_be_are_not_believed() {
    let cache = |labels: &str| facts::vllm_cache(&format!("vllm:cache_config_info{{{labels}}} 1.0\n"));
    let check = |labels: &str, capacity_tokens, block_size| {
        let found = cache(labels).map(|cache| (cache.capacity_tokens, cache.block_size));
        assert_eq!(found, Some((capacity_tokens, block_size)), "{labels}");
    };
    check(r#"block_size="16",num_gpu_blocks="1000""#, Some(16_000), Some(16));
    check(r#"block_size="16",num_gpu_blocks="1000",kv_cache_size_tokens="9000""#, Some(9_000), Some(16));
    check(r#"block_size="16",num_gpu_blocks="None""#, None, Some(16));
    check(r#"block_size="16",num_gpu_blocks="99999999999999999999""#, None, Some(16));
    check(r#"block_size="16",num_gpu_blocks="18446744073709551615""#, None, Some(16));
    assert_eq!(cache(r#"block_size="0",num_gpu_blocks="5""#), None);
    assert_eq!(cache(""), None);
    let sglang = |body: &str| facts::sglang_server(body.as_bytes());
    assert_eq!(sglang(r#"{"vllm_config":"...","vllm_env":{},"system_env":{}}"#), None, "vLLM's development mode");
    let found = sglang(r#"{"max_total_num_tokens":100,"dp_size":4,"page_size":-1,"version":7}"#).unwrap();
    assert_eq!((found.kv_capacity_tokens, found.block_size, found.version), (Some(400), None, None));
}

/// Whatever a worker sends, reading it neither fails nor takes long. 20 000 answers made from those above.
#[test]
fn no_answer_does_harm() {
    let corpus = [
        VLLM_MODELS,
        VLLM_METRICS,
        OPENAPI,
        SGLANG_MODELS,
        SGLANG_SERVER,
        SGLANG_MODEL,
        TRTLLM_MODELS,
        LLAMA_MODELS,
        LLAMA_PROPS,
        OLLAMA_MODELS,
        OLLAMA_PS,
        ANTHROPIC_MODELS,
        PLAIN_MODELS,
    ];
    let random = SplitMix::new(0x5eed);
    for _ in 0..20_000 {
        let bytes = mangled(&corpus, &random);
        facts::listing(&bytes);
        facts::version(&bytes);
        facts::sglang_server(&bytes);
        facts::add_sglang_model(&bytes, &mut ModelCard::new("m"));
        facts::llama_props(&bytes);
        facts::ollama_contexts(&bytes);
        facts::offers(&bytes);
        facts::vllm_cache(&String::from_utf8_lossy(&bytes));
    }
    facts::listing("[".repeat(1 << 20).as_bytes());
}

/// One of `corpus` with some bytes changed, removed, doubled or taken from another.
pub(crate) fn mangled(corpus: &[&str], random: &SplitMix) -> Vec<u8> {
    let pick = |length: usize| usize::try_from(random.below(length as u64)).unwrap();
    let mut bytes = corpus[pick(corpus.len())].as_bytes().to_vec();
    for _ in 0..=pick(8) {
        let at = pick(bytes.len().max(1));
        match random.below(6) {
            0 if !bytes.is_empty() => bytes[at] = random.next_u64().to_le_bytes()[0],
            1 => bytes.truncate(at),
            2 => bytes.insert(at.min(bytes.len()), b"{}[]\",:0-.e\\\n "[pick(14)]),
            3 if !bytes.is_empty() => drop(bytes.remove(at)),
            4 => {
                let other = corpus[pick(corpus.len())].as_bytes();
                let from = pick(other.len());
                let piece = &other[from..(from + pick(64)).min(other.len())];
                let at = at.min(bytes.len());
                bytes.splice(at..at, piece.iter().copied());
            }
            _ => {
                let end = (at + pick(64)).min(bytes.len());
                let piece = bytes[at.min(end)..end].to_vec();
                bytes.extend_from_slice(&piece);
            }
        }
    }
    bytes
}

#[test]
fn sglang_says_where_it_publishes() {
    let check = |config: &str, expected: Option<&str>| {
        let server = serde_json::json!({ "tokenizer_path": "m", "kv_events_config": config, "dp_size": 4 });
        let found = facts::sglang_server(server.to_string().as_bytes()).unwrap().kv_events;
        let shown = found.map(|spec| serde_json::to_string(&spec).unwrap());
        assert_eq!(shown.as_deref(), expected, "{config}");
    };
    check(r#"{"publisher":"zmq"}"#, Some(r#"{"endpoint":"tcp://*:5557"}"#));
    check(
        r#"{"publisher":"zmq","endpoint":"tcp://0.0.0.0:7","replay_endpoint":"tcp://*:8"}"#,
        Some(r#"{"endpoint":"tcp://*:7","replay":"tcp://*:8"}"#),
    );
    check(r#"{"publisher":"zmq","endpoint":"tcp://10.0.0.1:7"}"#, Some(r#"{"endpoint":"tcp://10.0.0.1:7"}"#));
    check(r#"{"publisher":"zmq","endpoint":"ipc:///x"}"#, None);
    check(r#"{"publisher":"null"}"#, None);
    check("", None);
}

#[test]
fn a_worker_names_no_other_host_to_listen_to() {
    let check = |endpoint: &str, replay: Option<&str>, expected: bool| {
        let spec = KvEventsSpec { replay: replay.map(str::to_owned), ..KvEventsSpec::new(endpoint) };
        assert_eq!(super::is_own(&spec, &"http://10.0.0.1:30000".parse().unwrap()), expected, "{endpoint} {replay:?}");
    };
    check("tcp://*:7", Some("tcp://*:8"), true);
    check("tcp://10.0.0.1:7", None, true);
    check("tcp://10.0.0.2:7", None, false);
    check("tcp://*:7", Some("tcp://10.0.0.2:8"), false);
}
