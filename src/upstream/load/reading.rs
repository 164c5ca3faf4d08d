//! What engines' answers say of their load. Pure: text in, figures out. Data-parallel ranks are added up; of shares
//! the mean is taken, because which rank a request lands on is not decided here.

use serde_json::Value;

use crate::exposition;

/// The load of one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    pub(crate) running: u32,
    pub(crate) waiting: u32,
    /// The used share of the KV cache.
    pub(crate) kv_usage: f32,
    pub(crate) generation: Generation,
}

/// How fast tokens are generated, as the engine tells it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Generation {
    #[default]
    Unknown,
    /// Tokens per second.
    Rate(f32),
    /// Tokens since the engine started.
    Total(f64),
}

/// Adds up ranks.
#[derive(Default)]
struct Sum {
    running: f64,
    waiting: f64,
    usage: f64,
    usages: f64,
}

impl Sum {
    fn usage(&mut self, share: f64) {
        self.usage += share;
        self.usages += 1.0;
    }

    fn reading(&self, generation: Generation) -> Reading {
        let usage = if self.usages > 0.0 { self.usage / self.usages } else { 0.0 };
        Reading { running: count(self.running), waiting: count(self.waiting), kv_usage: share(usage), generation }
    }
}

fn count(value: f64) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast of a double saturates")]
    let count = value.round() as u32;
    count
}

fn share(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "clamped first")]
    let share = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) as f32 };
    share
}

fn rate(value: f64) -> Generation {
    #[expect(clippy::cast_possible_truncation, reason = "clamped first")]
    let rate = if value.is_nan() { 0.0 } else { value.clamp(0.0, 1e9) as f32 };
    Generation::Rate(rate)
}

fn number(entry: &Value, name: &str) -> Option<f64> {
    entry.get(name)?.as_f64()
}

/// Reads SGLang's `/v1/loads`: one entry for each rank.
pub(crate) fn sglang_loads(body: &[u8]) -> Option<Reading> {
    let answer: Value = serde_json::from_slice(body).ok()?;
    let ranks = answer.get("loads")?.as_array()?;
    let mut sum = Sum::default();
    let mut throughput = 0.0;
    for rank in ranks {
        sum.running += number(rank, "num_running_reqs")?;
        sum.waiting += number(rank, "num_waiting_reqs").unwrap_or(0.0);
        sum.usage(number(rank, "token_usage").unwrap_or(0.0));
        throughput += number(rank, "gen_throughput").unwrap_or(0.0);
    }
    (!ranks.is_empty()).then(|| sum.reading(rate(throughput)))
}

/// Reads the metrics of SGLang; the prefix has a colon, or an underscore where a collector has been in between.
pub(crate) fn sglang_metrics(text: &str) -> Option<Reading> {
    let plain = |name: &str| name.strip_prefix("sglang").and_then(|rest| rest.strip_prefix([':', '_']).map(str::len));
    let mut sum = Sum::default();
    let mut throughput = 0.0;
    let mut seen = false;
    for sample in exposition::samples(text, move |name| plain(name).is_some()) {
        match &sample.name["sglang:".len()..] {
            "num_running_reqs" => {
                seen = true;
                sum.running += sample.value;
            }
            "num_queue_reqs" => sum.waiting += sample.value,
            "token_usage" => sum.usage(sample.value),
            "gen_throughput" => throughput += sample.value,
            _ => {}
        }
    }
    seen.then(|| sum.reading(rate(throughput)))
}

/// Reads the metrics of vLLM, under the names of its present and its earlier versions.
pub(crate) fn vllm_metrics(text: &str) -> Option<Reading> {
    let mut sum = Sum::default();
    let mut total = 0.0;
    let mut seen = false;
    for sample in exposition::samples(text, |name| name.starts_with("vllm:")) {
        match &sample.name["vllm:".len()..] {
            "num_requests_running" => {
                seen = true;
                sum.running += sample.value;
            }
            "num_requests_waiting" => sum.waiting += sample.value,
            "kv_cache_usage_perc" | "gpu_cache_usage_perc" => sum.usage(sample.value),
            "generation_tokens_total" => total += sample.value,
            _ => {}
        }
    }
    seen.then(|| sum.reading(Generation::Total(total)))
}

/// Reads the metrics of llama.cpp.
pub(crate) fn llama_metrics(text: &str) -> Option<Reading> {
    let mut sum = Sum::default();
    let mut total = 0.0;
    let mut seen = false;
    for sample in exposition::samples(text, |name| name.starts_with("llamacpp:")) {
        match &sample.name["llamacpp:".len()..] {
            "requests_processing" => {
                seen = true;
                sum.running += sample.value;
            }
            "requests_deferred" => sum.waiting += sample.value,
            "kv_cache_usage_ratio" => sum.usage(sample.value),
            "tokens_predicted_total" => total += sample.value,
            _ => {}
        }
    }
    seen.then(|| sum.reading(Generation::Total(total)))
}

/// Reads llama.cpp's `/slots`, which is on where metrics are not. How many requests wait is not in it.
pub(crate) fn llama_slots(body: &[u8]) -> Option<Reading> {
    let slots: Value = serde_json::from_slice(body).ok()?;
    let slots = slots.as_array()?;
    let is_busy = |slot: &&Value| slot.get("is_processing").and_then(Value::as_bool) == Some(true);
    let running = u32::try_from(slots.iter().filter(is_busy).count()).unwrap_or(u32::MAX);
    (!slots.is_empty()).then_some(Reading { running, ..Reading::default() })
}

/// Reads TensorRT-LLM's `/metrics`: statistics of the iterations since they were last read, oldest first. None means
/// that it had nothing to do.
pub(crate) fn trtllm_iterations(body: &[u8]) -> Option<Reading> {
    let iterations: Value = serde_json::from_slice(body).ok()?;
    let Some(last) = iterations.as_array()?.last() else {
        return Some(Reading::default());
    };
    let active = number(last, "numActiveRequests")?;
    let queued = number(last, "numQueuedRequests").unwrap_or(0.0);
    let blocks = |name| number(last.get("kvCacheStats")?, name);
    let usage = blocks("usedNumBlocks").zip(blocks("maxNumBlocks")).filter(|(_, most)| *most > 0.0);
    Some(Reading {
        running: count(active),
        waiting: count(queued),
        kv_usage: share(usage.map_or(0.0, |(used, most)| used / most)),
        generation: Generation::Unknown,
    })
}
