//! Settings of the way a request takes. Those of these sections may be overridden per model.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use clap::Args;
use smg_base::ByteSize;
use smg_routing::{AssignmentMode, PolicyConfig, PolicyKind};

use super::super::value::{
    Timeout, at_least_one, chunk_size, millis, not_negative, one_of, positive, ratio, seconds, some_seconds,
};

/// Which worker gets a request.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Routing")]
pub struct Routing {
    /// How a worker is chosen.
    #[arg(long, default_value = "cache_aware", value_parser = one_of(PolicyKind::ALL, PolicyKind::as_str))]
    pub policy: PolicyKind,
    /// Whether `X-SMG-Routing-Key` ties requests to a worker whatever the policy.
    #[arg(long)]
    pub routing_key_override: bool,
    /// manual: how a key that is new gets its worker: any, the one with the fewest requests, or the one with the
    /// fewest active keys.
    #[arg(long, default_value = "random", value_parser = one_of(ASSIGNMENTS, assignment))]
    pub assignment_mode: AssignmentMode,
    /// manual: how long an unused key is remembered, in seconds.
    #[arg(long, default_value = "14400", value_parser = some_seconds)]
    pub max_idle_secs: Duration,
    /// manual: most keys remembered.
    #[arg(long, default_value = "1000000")]
    pub routing_keys_max: NonZeroUsize,
    /// Time between sweeps of what was unused for too long, in seconds.
    #[arg(long, default_value = "120", value_parser = some_seconds)]
    pub eviction_interval: Duration,
    /// prefix_hash: how many tokens at the start of a prompt make the key; four bytes of text count as one.
    #[arg(long, default_value = "256")]
    pub prefix_token_count: NonZeroUsize,
    /// prefix_hash: load, as a multiple of the mean, above which the key's worker is passed over.
    #[arg(long, default_value = "1.25", value_parser = at_least_one)]
    pub prefix_hash_load_factor: f64,
    /// bucket: difference in load, in characters, from which the least loaded worker is taken.
    #[arg(long, default_value_t = 64)]
    pub balance_abs_threshold: u64,
    /// bucket: ratio of loads from which, with the difference, the least loaded worker is taken.
    #[arg(long, default_value = "1.5", value_parser = at_least_one)]
    pub balance_rel_threshold: f64,
    /// bucket: how often the sizes are divided anew.
    #[arg(long, default_value = "5s", value_parser = some_seconds)]
    pub bucket_interval: Duration,
    /// least_load: prompt tokens per second taken for a worker as long as none has been measured.
    #[arg(long, default_value = "2000", value_parser = positive)]
    pub least_load_default_throughput: f64,
    /// least_load, cache_aware: tokens taken for each request that another gateway has waiting in an engine.
    #[arg(long, default_value = "1024", value_parser = positive)]
    pub least_load_mean_prefill_tokens: f64,
    /// least_load, cache_aware: weight w, in seconds, of the pressure w·k/(1−k) of an engine's KV cache filled to k.
    #[arg(long, default_value = "0.15", value_parser = not_negative)]
    pub least_load_kv_pressure_weight: f64,
    /// least_load, cache_aware: the time that each other request at a worker adds, for sharing its compute.
    #[arg(long, default_value = "20ms", value_parser = seconds)]
    pub cost_per_request: Duration,
    /// least_load, cache_aware: the time that a worker which fails every request adds.
    #[arg(long, default_value = "2s", value_parser = seconds)]
    pub cost_of_errors: Duration,
    /// cache_aware: prompt tokens per second taken for a worker as long as none has been measured.
    #[arg(long, default_value = "8000", value_parser = positive)]
    pub cache_default_throughput: f64,
    /// cache_aware: what computing a part of a prompt anew costs others, as a share of the time that it takes.
    #[arg(long, default_value = "1", value_parser = not_negative)]
    pub cache_displace_ratio: f64,
    /// cache_aware: workers whose first token is expected this much later than the best one's count as equal to it.
    #[arg(long, default_value = "100ms", value_parser = seconds)]
    pub cache_band: Duration,
    /// cache_aware: the same as a share of the best one's time; the greater counts.
    #[arg(long, default_value = "0.1", value_parser = not_negative)]
    pub cache_band_ratio: f64,
    /// cache_aware: size of the chunks in which text is followed.
    #[arg(long, default_value = "512B", value_parser = chunk_size)]
    pub cache_chunk_size: ByteSize,
    /// cache_aware: tokens that an engine's KV cache is taken to hold if it does not say.
    #[arg(long, default_value_t = 524_288)]
    pub default_kv_capacity: u64,
    /// cache_aware: most text remembered per worker, whatever its engine holds, in bytes.
    #[arg(long, default_value = "67108864")]
    pub max_tree_size: ByteSize,
    /// cache_aware: memory for the prefix index of one model.
    #[arg(long, default_value = "256MiB")]
    pub prefix_index_max: ByteSize,
}

impl Routing {
    /// The parameters as the policies take them.
    pub fn policy_config(&self) -> PolicyConfig {
        PolicyConfig {
            routing_key_override: self.routing_key_override,
            assignment_mode: self.assignment_mode,
            key_idle_max: self.max_idle_secs,
            routing_keys_max: self.routing_keys_max.get(),
            prefix_token_count: self.prefix_token_count.get(),
            prefix_hash_load_factor: self.prefix_hash_load_factor,
            balance_abs_threshold: self.balance_abs_threshold,
            balance_rel_threshold: self.balance_rel_threshold,
            bucket_interval: self.bucket_interval,
            least_load_default_throughput: self.least_load_default_throughput,
            mean_prefill_tokens: self.least_load_mean_prefill_tokens,
            kv_pressure_seconds: self.least_load_kv_pressure_weight,
            decode_seconds: self.cost_per_request.as_secs_f64(),
            error_seconds: self.cost_of_errors.as_secs_f64(),
            default_prefill_tokens_per_second: self.cache_default_throughput,
            displace_ratio: self.cache_displace_ratio,
            band_seconds: self.cache_band.as_secs_f64(),
            band_ratio: self.cache_band_ratio,
            chunk_bytes: self.cache_chunk_size.as_usize(),
            default_kv_capacity_tokens: self.default_kv_capacity,
            tree_bytes_max: self.max_tree_size.0,
            prefix_index_bytes_max: self.prefix_index_max.as_usize(),
            ..PolicyConfig::default()
        }
    }
}

const ASSIGNMENTS: [AssignmentMode; 3] = [AssignmentMode::Random, AssignmentMode::MinLoad, AssignmentMode::MinGroup];

fn assignment(mode: AssignmentMode) -> &'static str {
    match mode {
        AssignmentMode::Random => "random",
        AssignmentMode::MinLoad => "min_load",
        AssignmentMode::MinGroup => "min_group",
    }
}

/// When a request is tried again, on another worker. A request that may have reached a worker is not sent again
/// unless its caller or `--retry-dispatched` allows it; nothing is sent again after the first byte of an answer.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Retries")]
pub struct Retries {
    /// Attempts in all, the first included.
    #[arg(long, default_value = "5")]
    pub retry_max_retries: NonZeroU32,
    /// Wait before the second retry, in milliseconds; the first is made at once.
    #[arg(long, default_value = "50", value_parser = millis)]
    pub retry_initial_backoff_ms: Duration,
    /// Longest wait before a retry, in milliseconds.
    #[arg(long, default_value = "30000", value_parser = millis)]
    pub retry_max_backoff_ms: Duration,
    /// Growth of the wait from one retry to the next.
    #[arg(long, default_value = "1.5", value_parser = at_least_one)]
    pub retry_backoff_multiplier: f64,
    /// Spread of the wait, as a share of it.
    #[arg(long, default_value = "0.2", value_parser = ratio)]
    pub retry_jitter_factor: f64,
    /// Try every request once only.
    #[arg(long)]
    pub disable_retries: bool,
    /// Also send again what a worker may have begun to generate. By default only callers can allow it, with
    /// `Idempotency-Key` or `X-SMG-Allow-Replay: true`.
    #[arg(long)]
    pub retry_dispatched: bool,
    /// Retries allowed, as a share of requests.
    #[arg(long, default_value = "0.2", value_parser = ratio)]
    pub retry_budget_ratio: f64,
    /// Retries per second that are allowed however few requests there are.
    #[arg(long, default_value = "10", value_parser = not_negative)]
    pub retry_budget_per_second: f64,
}

/// How long a worker may take.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Timeouts")]
pub struct Timeouts {
    /// Longest time for a request, retries and streaming included.
    #[arg(long, default_value = "1800", value_parser = some_seconds)]
    pub request_timeout_secs: Duration,
    /// Longest time from sending a request to the first byte of the answer's body. By default only the request's
    /// own limit holds, because prompts may wait long in an engine's queue.
    #[arg(long, default_value = "off")]
    pub first_token_timeout: Timeout,
    /// Longest pause within a streamed answer.
    #[arg(long, default_value = "5m")]
    pub stall_timeout: Timeout,
}

/// When a worker that fails requests is left alone for a while.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Circuit breaker")]
pub struct CircuitBreaker {
    /// Failures in a row that open the breaker. Answers in the 400s never count.
    #[arg(long, default_value = "10")]
    pub cb_failure_threshold: NonZeroU32,
    /// Successes in a row that close a half-open breaker.
    #[arg(long, default_value = "3")]
    pub cb_success_threshold: NonZeroU32,
    /// How long an open breaker stays open before it lets one request try.
    #[arg(long, default_value = "60", value_parser = some_seconds)]
    pub cb_timeout_duration_secs: Duration,
    /// Failures further apart than this are not in a row.
    #[arg(long, default_value = "120", value_parser = seconds)]
    pub cb_window_duration_secs: Duration,
    /// Never leave a worker alone.
    #[arg(long)]
    pub disable_circuit_breaker: bool,
}

#[cfg(test)]
mod tests {
    use clap::{Command, FromArgMatches};

    use super::*;

    #[test]
    fn the_defaults_are_the_policies_own() {
        let matches = Routing::augment_args(Command::new("smg")).get_matches_from(["smg"]);
        let routing = Routing::from_arg_matches(&matches).expect("the defaults parse");
        assert_eq!(routing.policy_config(), PolicyConfig::default());
    }
}
