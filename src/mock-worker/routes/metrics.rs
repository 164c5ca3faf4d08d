//! What a scraper or a load monitor reads.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::{config::Dialect, scheduler::Load, worker::Worker};

/// Tokens that the cache holds.
pub(super) fn capacity_tokens(worker: &Worker) -> u64 {
    u64::from(worker.config.cache.blocks) * u64::from(worker.config.cache.block_tokens)
}

/// SGLang's load of one rank.
pub(super) fn load(worker: &Worker) -> Value {
    let load = worker.scheduler.load();
    let used_tokens = load.used_blocks as u64 * u64::from(worker.config.cache.block_tokens);
    json!({
        "dp_rank": 0,
        "num_reqs": load.running as usize + load.waiting,
        "num_running_reqs": load.running,
        "num_waiting_reqs": load.waiting,
        "num_total_reqs": load.running as usize + load.waiting,
        "num_tokens": used_tokens,
        "num_used_tokens": used_tokens,
        "max_total_num_tokens": capacity_tokens(worker),
        "token_usage": load.usage(),
        "gen_throughput": load.tokens_per_second,
        "cache_hit_rate": hit_rate(&load),
        "utilization": f64::from(load.running) / f64::from(worker.config.speed.running_max.max(1)),
        "max_running_requests": worker.config.speed.running_max,
    })
}

/// The Prometheus text of the dialect.
pub(super) fn text(worker: &Worker) -> String {
    let load = worker.scheduler.load();
    match worker.config.dialect {
        Dialect::Sglang => sglang(worker, &load),
        Dialect::Trtllm => iterations(worker, &load),
        _ => vllm(worker, &load),
    }
}

fn vllm(worker: &Worker, load: &Load) -> String {
    let labels = format!("engine=\"0\",model_name=\"{}\"", worker.config.model());
    let totals = &load.totals;
    let cache = &worker.config.cache;
    let mut page = Page { text: String::new(), labels };
    page.add("gauge", "vllm:num_requests_running", load.running);
    page.add("gauge", "vllm:num_requests_waiting", load.waiting);
    page.add("gauge", "vllm:kv_cache_usage_perc", load.usage());
    page.add("counter", "vllm:prefix_cache_queries_total", totals.prompt_tokens);
    page.add("counter", "vllm:prefix_cache_hits_total", totals.cached_tokens);
    page.add("counter", "vllm:num_preemptions_total", 0);
    page.add("counter", "vllm:prompt_tokens_total", totals.prompt_tokens);
    page.add("counter", "vllm:generation_tokens_total", totals.output_tokens);
    page.add("counter", "vllm:request_success_total", totals.requests);
    page.labels = format!(
        "block_size=\"{}\",cache_dtype=\"auto\",enable_prefix_caching=\"{}\",engine=\"0\",kv_cache_size_tokens=\"{}\",num_gpu_blocks=\"{}\"",
        cache.block_tokens,
        if cache.blocks > 0 { "True" } else { "False" },
        capacity_tokens(worker),
        cache.blocks,
    );
    page.add("gauge", "vllm:cache_config_info", 1.0);
    page.text
}

/// TensorRT-LLM's statistics, of one iteration: the last.
fn iterations(worker: &Worker, load: &Load) -> String {
    let cache = &worker.config.cache;
    let used = load.used_blocks;
    json!([{
        "iter": load.totals.requests,
        "numActiveRequests": load.running,
        "numQueuedRequests": load.waiting,
        "maxNumActiveRequests": worker.config.speed.running_max,
        "kvCacheStats": {
            "maxNumBlocks": cache.blocks,
            "freeNumBlocks": load.blocks - used,
            "usedNumBlocks": used,
            "tokensPerBlock": cache.block_tokens,
        },
    }])
    .to_string()
}

fn sglang(worker: &Worker, load: &Load) -> String {
    let labels = format!("engine_type=\"unified\",model_name=\"{}\",tp_rank=\"0\"", worker.config.model());
    let totals = &load.totals;
    let used_tokens = load.used_blocks as u64 * u64::from(worker.config.cache.block_tokens);
    let mut page = Page { text: String::new(), labels };
    page.add("gauge", "sglang:num_running_reqs", load.running);
    page.add("gauge", "sglang:num_queue_reqs", load.waiting);
    page.add("gauge", "sglang:num_used_tokens", used_tokens);
    page.add("gauge", "sglang:max_total_num_tokens", capacity_tokens(worker));
    page.add("gauge", "sglang:token_usage", load.usage());
    page.add("gauge", "sglang:gen_throughput", load.tokens_per_second);
    page.add("gauge", "sglang:cache_hit_rate", hit_rate(load));
    page.add("counter", "sglang:prompt_tokens_total", totals.prompt_tokens);
    page.add("counter", "sglang:generation_tokens_total", totals.output_tokens);
    page.add("counter", "sglang:cached_tokens_total", totals.cached_tokens);
    page.add("counter", "sglang:num_requests_total", totals.requests);
    page.text
}

/// A page of metrics that share their labels.
struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn add(&mut self, kind: &str, name: &str, value: impl std::fmt::Display) {
        let Self { text, labels } = self;
        write!(text, "# HELP {name} As the engine has it.\n# TYPE {name} {kind}\n{name}{{{labels}}} {value}\n")
            .expect("a text takes every write");
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn hit_rate(load: &Load) -> f64 {
    let totals = &load.totals;
    if totals.prompt_tokens == 0 { 0.0 } else { totals.cached_tokens as f64 / totals.prompt_tokens as f64 }
}
