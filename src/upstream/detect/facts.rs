//! What engines' answers say. Pure: bytes in, facts out; what is missing, of another type or out of range counts as
//! not said. Field names are those of the engines' own sources and documentation, as of late 2026.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;
use smg_base::ModelId;
use smg_fleet::{Engine, KvEventsSpec, ModelCard};

use crate::exposition;

/// The most models that are taken from one worker, and the longest name of one.
const MODELS_MAX: usize = 1_024;
const MODEL_NAME_BYTES_MAX: usize = 256;
/// The most paths that are taken from one worker.
const PATHS_MAX: usize = 2_048;
const VERSION_BYTES_MAX: usize = 64;
/// No engine's cache or context holds more tokens than this.
const TOKENS_MAX: u64 = 1 << 40;

/// What `/v1/models` says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listing {
    /// The engine, where its way of listing models gives it away.
    pub(crate) engine: Option<Engine>,
    pub(crate) models: Vec<ModelCard>,
}

/// Reads a list of models in the OpenAI or the Anthropic shape.
pub(crate) fn listing(body: &[u8]) -> Option<Listing> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let entries = answer.get("data")?.as_array()?;
    let models: Vec<ModelCard> = entries.iter().filter_map(model).take(MODELS_MAX).collect();
    Some(Listing { engine: entries.iter().find_map(listed_by), models })
}

fn model(entry: &Value) -> Option<ModelCard> {
    let id = name(entry.get("id")?)?;
    let mut card = ModelCard::new(id.clone());
    card.display_name = entry.get("display_name").and_then(name).map(|name| name.as_str().to_owned());
    // vLLM, SGLang; llama.cpp; OpenRouter and its like; LM Studio.
    let lengths = ["/max_model_len", "/meta/n_ctx", "/context_length", "/max_context_length"];
    card.context_length = lengths.iter().find_map(|path| tokens(entry.pointer(path)));
    let aliases = entry.get("aliases").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    card.aliases = aliases.iter().filter_map(name).filter(|alias| *alias != id).take(16).collect();
    Some(card)
}

fn name(value: &Value) -> Option<ModelId> {
    let text = value.as_str()?;
    let usable = !text.is_empty() && text.len() <= MODEL_NAME_BYTES_MAX && !text.chars().any(char::is_control);
    usable.then(|| text.into())
}

fn listed_by(entry: &Value) -> Option<Engine> {
    // Anthropic's entries are told by `type`, all others' by `object`.
    if entry.get("type").and_then(Value::as_str) == Some("model") && entry.get("object").is_none() {
        return Some(Engine::Anthropic);
    }
    match entry.get("owned_by")?.as_str()? {
        "vllm" => Some(Engine::Vllm),
        "sglang" => Some(Engine::Sglang),
        "tensorrt_llm" | "tensorrt-llm" | "trtllm" => Some(Engine::TrtLlm),
        "llamacpp" => Some(Engine::LlamaCpp),
        _ => None,
    }
}

/// Reads `{"version": …}`, the answer of vLLM, TensorRT-LLM and Ollama under their paths.
pub(crate) fn version(body: &[u8]) -> Option<String> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    short(answer.get("version"))
}

fn short(value: Option<&Value>) -> Option<String> {
    let text = value?.as_str()?;
    (!text.is_empty() && text.len() <= VERSION_BYTES_MAX).then(|| text.to_owned())
}

fn tokens(value: Option<&Value>) -> Option<u64> {
    value?.as_u64().filter(|count| (1..=TOKENS_MAX).contains(count))
}

fn small(value: Option<&Value>) -> Option<u32> {
    value?.as_u64().and_then(|count| u32::try_from(count).ok()).filter(|count| *count > 0)
}

/// What SGLang's `/server_info` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct SglangServer {
    pub(crate) version: Option<String>,
    pub(crate) model: Option<ModelId>,
    pub(crate) context_length: Option<u64>,
    pub(crate) kv_capacity_tokens: Option<u64>,
    pub(crate) block_size: Option<u32>,
    pub(crate) max_running_requests: Option<u32>,
    pub(crate) kv_events: Option<KvEventsSpec>,
}

/// Reads SGLang's `/server_info`: its settings, flat, and one internal state for each data-parallel rank. In its
/// development mode vLLM has the same path; what it answers has none of these fields.
pub(crate) fn sglang_server(body: &[u8]) -> Option<SglangServer> {
    let info: Value = serde_json::from_slice(body).ok()?;
    let per_rank = tokens(info.get("max_total_num_tokens"));
    let states = info.get("internal_states").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    if per_rank.is_none() && states.is_empty() && info.get("tokenizer_path").is_none() {
        return None;
    }
    let ranks = tokens(info.get("dp_size")).unwrap_or(1).max(states.len() as u64);
    let of_states: u64 = states.iter().filter_map(|state| tokens(state.pointer("/memory_usage/token_capacity"))).sum();
    let of_ranks = per_rank.map(|tokens| tokens.saturating_mul(ranks));
    let running = |state: &Value| small(state.get("effective_max_running_requests_per_dp"));
    let running_of_states = states.iter().filter_map(running).fold(0, u32::saturating_add);
    Some(SglangServer {
        version: short(info.get("version")),
        model: info.get("served_model_name").and_then(name).or_else(|| info.get("model_path").and_then(name)),
        context_length: tokens(info.get("context_length")),
        kv_capacity_tokens: Some(of_states).filter(|sum| *sum > 0).or(of_ranks),
        block_size: small(info.get("page_size")),
        max_running_requests: small(info.get("max_running_requests"))
            .or(Some(running_of_states).filter(|sum| *sum > 0)),
        kv_events: kv_events(&info),
    })
}

/// Where SGLang publishes KV events, if it was told to: `kv_events_config` is JSON in a text, as it was given on the command
/// line. Every address of the engine's host is the worker's own.
fn kv_events(info: &Value) -> Option<KvEventsSpec> {
    let config: Value = serde_json::from_str(info.get("kv_events_config")?.as_str()?).ok()?;
    if config.get("publisher")?.as_str()? != "zmq" {
        return None;
    }
    let bound = |field: &str, default: Option<&str>| {
        let endpoint = config.get(field).and_then(Value::as_str).or(default)?;
        let (host, port) = endpoint.strip_prefix("tcp://")?.rsplit_once(':')?;
        let port: u16 = port.parse().ok()?;
        let host = if matches!(host, "0.0.0.0" | "[::]") { "*" } else { host };
        Some(format!("tcp://{host}:{port}"))
    };
    let each_rank_publishes = info.get("enable_dp_attention").and_then(Value::as_bool) == Some(true);
    let ranks = small(info.get("dp_size")).filter(|_| each_rank_publishes).unwrap_or(1);
    let topic = config.get("topic").and_then(Value::as_str).unwrap_or_default().to_owned();
    let replay = bound("replay_endpoint", None);
    Some(KvEventsSpec { replay, topic, ranks, ..KvEventsSpec::new(bound("endpoint", Some("tcp://*:5557"))?) })
}

/// Adds what SGLang's `/model_info` says to a card.
pub(crate) fn add_sglang_model(body: &[u8], card: &mut ModelCard) {
    let Ok(info) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    card.hf_model_type = short(info.get("model_type"));
    card.reasoning_parser = short(info.get("reasoning_parser"));
    card.tool_parser = short(info.get("tool_call_parser"));
    card.tokenizer_path = info.get("tokenizer_path").and_then(name).map(|path| path.as_str().to_owned());
    let architectures = info.get("architectures").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    card.architectures = architectures.iter().filter_map(|text| short(Some(text))).take(8).collect();
}

/// What llama.cpp's `/props` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LlamaProps {
    pub(crate) version: Option<String>,
    pub(crate) model: Option<ModelId>,
    pub(crate) context_length: Option<u64>,
    pub(crate) slots: Option<u32>,
}

/// Reads llama.cpp's `/props`.
pub(crate) fn llama_props(body: &[u8]) -> Option<LlamaProps> {
    let props: Value = serde_json::from_slice(body).ok()?;
    let settings = props.get("default_generation_settings")?;
    Some(LlamaProps {
        version: short(props.get("build_info")),
        model: props.get("model_alias").and_then(name).or_else(|| props.get("model_path").and_then(name)),
        context_length: tokens(settings.get("n_ctx")),
        slots: small(props.get("total_slots")),
    })
}

/// Reads Ollama's `/api/ps`: the loaded models with the context length they were loaded with.
pub(crate) fn ollama_contexts(body: &[u8]) -> Vec<(String, u64)> {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let models = answer.get("models").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let context = |model: &Value| Some((model.get("name")?.as_str()?.to_owned(), tokens(model.get("context_length"))?));
    models.iter().filter_map(context).take(MODELS_MAX).collect()
}

/// The KV cache of vLLM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VllmCache {
    pub(crate) capacity_tokens: Option<u64>,
    pub(crate) block_size: Option<u32>,
}

/// Reads vLLM's metrics: `vllm:cache_config_info` has the settings of each engine core's cache as labels. Newer
/// versions state the size in tokens, which counts layers that share blocks rightly; older ones only blocks.
pub(crate) fn vllm_cache(text: &str) -> Option<VllmCache> {
    let mut sum = 0_u64;
    let mut block_size = None;
    for sample in exposition::samples(text, |name| name == "vllm:cache_config_info") {
        let number = |label| sample.labels.value(label).and_then(|text| text.parse::<u64>().ok());
        block_size = number("block_size").and_then(|size| u32::try_from(size).ok()).filter(|size| *size > 0);
        let of_blocks = || Some(number("num_gpu_blocks")?.saturating_mul(u64::from(block_size?)));
        sum = sum.saturating_add(number("kv_cache_size_tokens").or_else(of_blocks).unwrap_or(0));
    }
    let capacity_tokens = Some(sum).filter(|sum| (1..=TOKENS_MAX).contains(sum));
    (capacity_tokens.is_some() || block_size.is_some()).then_some(VllmCache { capacity_tokens, block_size })
}

/// Paths at least one of which an inference server has.
const INFERENCE_PATHS: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/messages", "/generate"];

/// Reads the paths in an OpenAPI description. One that has no inference path describes something else, and one that
/// has a path for everything says nothing; neither is believed.
pub(crate) fn offers(body: &[u8]) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct OpenApi {
        paths: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
    }
    let paths = serde_json::from_slice::<OpenApi>(body).ok()?.paths;
    let serves = |path: &str| paths.contains_key(path);
    let is_catch_all = |path: &String| path.starts_with("/{");
    if paths.len() > PATHS_MAX || !INFERENCE_PATHS.iter().any(|path| serves(path)) || paths.keys().any(is_catch_all) {
        return None;
    }
    Some(paths.into_keys().collect())
}
