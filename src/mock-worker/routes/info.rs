//! What the engine tells about itself, and what its operator may ask of it.

use serde_json::{Value, json};

use super::{
    metrics,
    table::{self, Route},
};
use crate::{
    config::{Canned, Dialect},
    kv_events::KvPublisher,
    reply::{Cut, Plain, Reply},
    tokens::Namespace,
    worker::{Worker, unix_now},
};

const TEXT: &str = "text/plain; charset=utf-8";

/// Answers what has no body to read.
pub(super) async fn answer(
    worker: &Worker,
    route: Route,
    variable: &str,
    reply: &mut Reply<'_, '_>,
) -> Result<(), Cut> {
    let is_sglang = worker.config.dialect == Dialect::Sglang;
    let plain = match route {
        Route::HealthGenerate => {
            if let Ok(place) = worker.scheduler.enter(vec![0], Vec::new(), Namespace::default())
                && let Some(mut grant) = place.granted().await
            {
                grant.prefill().await;
            }
            empty()
        }
        Route::Health | Route::Abort => empty(),
        Route::Models => worker.json(200, &models(worker)),
        Route::Model => match worker.config.models.iter().find(|model| *model == variable) {
            Some(model) => worker.json(200, &model_json(worker, model)),
            None => worker.error(404, &format!("The model '{variable}' does not exist")),
        },
        Route::Version => worker.json(200, &json!({ "version": version(worker) })),
        Route::ServerInfo => worker.json(200, &server_info(worker)),
        Route::ModelInfo => worker.json(200, &model_info(worker)),
        Route::OpenApi => worker.json(200, &table::openapi(worker.config.dialect, &version(worker))),
        Route::Metrics => text("text/plain; version=0.0.4; charset=utf-8", metrics::text(worker)),
        Route::Load if is_sglang => worker.json(200, &json!([metrics::load(worker)])),
        Route::Load => worker.json(200, &json!({ "server_load": worker.scheduler.load().running })),
        Route::Loads => worker.json(200, &loads(worker)),
        Route::FlushCache => flush_cache(worker),
        Route::KvCacheEvents => {
            worker.json(200, &worker.journal.as_ref().map(|journal| journal.drain()).unwrap_or_else(|| json!([])))
        }
        Route::Profile if is_sglang => text(TEXT, "Start profiling.\n".to_owned()),
        _ => empty(),
    };
    reply.plain(plain).await
}

/// An answer that the configuration gives.
pub(super) fn canned(canned: &Canned) -> Plain {
    let fields = vec![("content-type", canned.content_type.clone())];
    Plain { status: canned.status, content_type: "", fields, body: canned.body.clone().into_bytes() }
}

fn empty() -> Plain {
    Plain { status: 200, ..Plain::default() }
}

fn text(content_type: &'static str, body: String) -> Plain {
    Plain { status: 200, content_type, body: body.into_bytes(), ..Plain::default() }
}

fn flush_cache(worker: &Worker) -> Plain {
    let is_flushed = worker.scheduler.flush_cache();
    match worker.config.dialect {
        Dialect::Sglang => Plain {
            status: if is_flushed { 200 } else { 400 },
            ..text(TEXT, "Cache flushed.\nPlease check backend logs for more details.\n".to_owned())
        },
        _ => empty(),
    }
}

/// What `/version` and the like say.
pub(super) fn version(worker: &Worker) -> String {
    let usual = match worker.config.dialect {
        Dialect::Vllm => "0.20.1",
        Dialect::Sglang => "0.5.9",
        Dialect::Trtllm => "1.2.0",
        Dialect::Openai | Dialect::Anthropic => "1",
    };
    worker.config.version.clone().unwrap_or_else(|| usual.to_owned())
}

fn models(worker: &Worker) -> Value {
    let data: Vec<_> = worker.config.models.iter().map(|model| model_json(worker, model)).collect();
    match worker.config.dialect {
        Dialect::Anthropic => {
            let (first, last) = (worker.config.models.first(), worker.config.models.last());
            json!({ "data": data, "has_more": false, "first_id": first, "last_id": last })
        }
        _ => json!({ "object": "list", "data": data }),
    }
}

fn model_json(worker: &Worker, id: &str) -> Value {
    let base = worker.config.model();
    let parent = Some(base).filter(|base| *base != id);
    let length = worker.config.context_length;
    match worker.config.dialect {
        Dialect::Vllm => json!({
            "id": id, "object": "model", "created": unix_now(), "owned_by": "vllm", "root": id, "parent": parent,
            "max_model_len": parent.is_none().then_some(length),
        }),
        Dialect::Sglang => json!({
            "id": id, "object": "model", "created": unix_now(), "owned_by": "sglang", "root": id, "parent": parent,
            "max_model_len": length,
        }),
        Dialect::Trtllm => {
            json!({ "id": id, "object": "model", "created": unix_now(), "owned_by": "tensorrt_llm" })
        }
        Dialect::Openai => json!({ "id": id, "object": "model", "created": 1_700_000_000, "owned_by": "system" }),
        Dialect::Anthropic => {
            json!({ "type": "model", "id": id, "display_name": id, "created_at": "2026-01-01T00:00:00Z" })
        }
    }
}

fn server_info(worker: &Worker) -> Value {
    let config = &worker.config;
    if config.dialect == Dialect::Vllm {
        return json!({ "vllm_config": format!("model='{}', max_seq_len={}", config.model(), config.context_length) });
    }
    let load = metrics::load(worker);
    json!({
        "model_path": config.model(),
        "served_model_name": config.model(),
        "tokenizer_path": config.model(),
        "version": version(worker),
        "context_length": config.context_length,
        "page_size": config.cache.block_tokens,
        "max_running_requests": config.speed.running_max,
        "max_total_num_tokens": metrics::capacity_tokens(worker),
        "max_req_input_len": config.context_length,
        "tp_size": 1,
        "dp_size": 1,
        "disaggregation_mode": "null",
        "kv_events_config": worker.kv_publisher.as_ref().map(kv_events_config),
        "internal_states": [{
            "last_gen_throughput": 0.0,
            "memory_usage": { "token_capacity": metrics::capacity_tokens(worker) },
            "effective_max_running_requests_per_dp": config.speed.running_max,
            "load": load["num_reqs"],
        }],
    })
}

/// The flag of SGLang that made it publish, which it shows as it was given.
fn kv_events_config(publisher: &KvPublisher) -> String {
    let mut config = json!({ "publisher": "zmq", "topic": publisher.topic(), "endpoint": publisher.endpoint() });
    if let Some(replay) = publisher.replay() {
        config["replay_endpoint"] = json!(replay);
    }
    config.to_string()
}

fn model_info(worker: &Worker) -> Value {
    json!({
        "model_path": worker.config.model(),
        "tokenizer_path": worker.config.model(),
        "is_generation": true,
        "preferred_sampling_params": null,
        "weight_version": "default",
        "has_image_understanding": false,
        "has_audio_understanding": false,
        "model_type": "mock",
        "architectures": ["MockForCausalLM"],
    })
}

fn loads(worker: &Worker) -> Value {
    json!({
        "timestamp": unix_now().to_string(),
        "version": version(worker),
        "dp_rank_count": 1,
        "loads": [metrics::load(worker)],
    })
}
