//! The parameters of all policies.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_prefix::{CHUNK_BYTES, Chunker, Space, TOKEN_BYTES};

/// What policies can be told. Each reads its own part; the defaults are the reference gateway's command line where it has
/// the parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyConfig {
    /// Whether a routing key ties requests to a worker under every policy, as under `manual`.
    pub routing_key_override: bool,

    /// Whether several gateways are to give one routing key the same worker: where a key's worker would be remembered, the
    /// key's hash decides instead, as under `consistent_hashing`.
    pub shared_keys: bool,

    /// `manual`: how a key that is new gets its worker.
    pub assignment_mode: AssignmentMode,
    /// `manual`: how long an unused key is remembered.
    pub key_idle_max: Duration,
    /// `manual`: how many keys are remembered.
    pub routing_keys_max: usize,

    /// `prefix_hash`: how many tokens at the start of a prompt make the key; four bytes of text count as one.
    pub prefix_token_count: usize,
    /// `prefix_hash`: load, as a multiple of the mean, above which the key's worker is passed over.
    pub prefix_hash_load_factor: f64,

    /// `bucket`: difference in load, in characters, from which the least loaded worker is taken.
    pub balance_abs_threshold: u64,
    /// `bucket`: ratio of loads from which, with the difference, the least loaded worker is taken.
    pub balance_rel_threshold: f64,
    /// `bucket`: how often the sizes are divided anew.
    pub bucket_interval: Duration,

    /// `least_load`: prompt tokens per second taken for a worker as long as none has been measured.
    pub least_load_default_throughput: f64,
    /// `least_load`, `cache_aware`: tokens taken for each request another gateway has waiting in an engine.
    pub mean_prefill_tokens: f64,
    /// `least_load`, `cache_aware`: λ, in seconds, of the pressure λ·k ÷ (1 − k) of an engine's KV cache filled to k.
    pub kv_pressure_seconds: f64,
    /// `least_load`, `cache_aware`: what each other request at a worker adds, for sharing its compute.
    pub decode_seconds: f64,
    /// `least_load`, `cache_aware`: what a worker that fails every request adds.
    pub error_seconds: f64,

    /// `cache_aware`: prompt tokens per second taken for a worker as long as none has been measured.
    pub default_prefill_tokens_per_second: f64,
    /// `cache_aware`: what computing a part of a prompt anew costs others, whom it keeps waiting and whose cached prompts it pushes
    /// out, as a share of the time that it takes.
    pub displace_ratio: f64,
    /// `cache_aware`: workers whose first token is expected this much later than the best one's are as good as it.
    pub band_seconds: f64,
    /// `cache_aware`: the same as a share of the best; the greater counts.
    pub band_ratio: f64,
    /// `cache_aware`: size of the chunks in which text is followed.
    pub chunk_bytes: usize,
    /// `cache_aware`: tokens an engine's KV cache is taken to hold if it does not say.
    pub default_kv_capacity_tokens: u64,
    /// `cache_aware`: most text remembered per worker, whatever its engine holds.
    pub tree_bytes_max: u64,
    /// `cache_aware`: memory for the prefix index of one model.
    pub prefix_index_bytes_max: usize,
}

impl Default for PolicyConfig {
    fn default() -> Self {
        Self {
            routing_key_override: false,
            shared_keys: false,
            assignment_mode: AssignmentMode::Random,
            key_idle_max: Duration::from_secs(14_400),
            routing_keys_max: 1_000_000,
            prefix_token_count: 256,
            prefix_hash_load_factor: 1.25,
            balance_abs_threshold: 64,
            balance_rel_threshold: 1.5,
            bucket_interval: Duration::from_secs(5),
            least_load_default_throughput: 2_000.0,
            mean_prefill_tokens: 1_024.0,
            kv_pressure_seconds: 0.15,
            decode_seconds: 0.02,
            error_seconds: 2.0,
            default_prefill_tokens_per_second: 8_000.0,
            displace_ratio: 1.0,
            band_seconds: 0.1,
            band_ratio: 0.1,
            chunk_bytes: CHUNK_BYTES,
            default_kv_capacity_tokens: 524_288,
            tree_bytes_max: 67_108_864,
            prefix_index_bytes_max: 256 << 20,
        }
    }
}

impl PolicyConfig {
    /// Bytes of text taken for one token until a model's own ratio is learned.
    pub const BYTES_PER_TOKEN: f64 = 4.0;

    /// What `cache_aware` wants of a text.
    pub(crate) fn chunker(&self, salt: u64) -> Chunker {
        Chunker::new(self.chunk_bytes, salt)
    }

    /// What `prefix_hash` wants of a prompt.
    pub(crate) fn head_chunker(&self, space: Space, salt: u64) -> Chunker {
        if space == Space::Tokens {
            let head_bytes = self.prefix_token_count.saturating_mul(TOKEN_BYTES);
            return Chunker::of_tokens(salt).with_head_bytes(head_bytes).head_only();
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "four")]
        let head_bytes = self.prefix_token_count.saturating_mul(Self::BYTES_PER_TOKEN as usize);
        Chunker::new(self.chunk_bytes, salt).with_head_bytes(head_bytes).head_only()
    }
}

/// How a routing key that is new gets its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentMode {
    /// By chance.
    #[default]
    Random,
    /// The worker with the fewest requests.
    MinLoad,
    /// The worker with the fewest active keys.
    MinGroup,
}
