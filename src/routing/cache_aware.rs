//! The policy that knows what the caches hold.
//!
//! Every candidate's cost is the seconds it is expected to need to the first token, of which the part of the prompt that
//! its cache lacks is one. Those within a band of the best are as good as it: what is known of them is too old and too
//! rough to tell them apart, and always taking the very best sends everybody who knows the same to the same worker. Within the
//! band a hash of the conversation decides, so that its turns stay together, gateways that never spoke agree, and different
//! conversations spread.

use smg_base::{Random, hash};
use smg_fleet::Worker;
use smg_prefix::{CHUNK_TOKENS, Found, Source, Space};

use crate::{
    Ask, PolicyConfig, Reason, Seen,
    candidates::{Candidate, Candidates},
    cost::{Cached, Costs, Estimate},
    known::Known,
    pick::{Choice, Rendezvous},
};

/// The state of the `cache_aware` policy.
#[derive(Debug)]
pub(crate) struct CacheAware {
    texts: Known,
    tokens: Known,
    estimate: Estimate,
    chunk_bytes: usize,
    default_capacity_tokens: u64,
    tree_bytes_max: u64,
}

/// Smaller predictions are not judged: a block more or less decides them.
const JUDGED_TOKENS_MIN: u64 = 256;

impl CacheAware {
    pub(crate) fn new(config: &PolicyConfig) -> Self {
        Self {
            texts: Known::new(config.prefix_index_bytes_max),
            tokens: Known::new(config.prefix_index_bytes_max),
            estimate: Estimate::of_caches(config),
            chunk_bytes: config.chunk_bytes.max(1),
            default_capacity_tokens: config.default_kv_capacity_tokens,
            tree_bytes_max: config.tree_bytes_max,
        }
    }

    /// Chooses; leaves what it weighed in `costs`.
    pub(crate) fn pick(&self, candidates: &Candidates<'_>, ask: &Ask<'_>, costs: &mut Costs) -> Choice {
        let mut found = Found::default();
        if let Some(prompt) = ask.prompt.filter(|prompt| !prompt.chunks.is_empty()) {
            let workers = candidates.iter().map(|candidate| candidate.member.id);
            self.known(prompt.space).lookup(&prompt.chunks, workers, ask.now, &mut found);
        }
        let cached = Cached { holders: &found.holders, tokens_per_chunk: self.tokens_per_chunk(ask) };
        self.estimate.costs(candidates, ask, cached, costs);
        let limit = costs.limit;
        let good = candidates.iter().zip(&costs.totals).filter(|(_, total)| **total <= limit);
        let Some(key) = affinity(ask).or(found.branch) else {
            let chosen = cheaper_of_two(good, ask.random).unwrap_or_else(|| candidates.at(0));
            return chosen.because(Reason::CacheUnkeyed);
        };
        let placed = Rendezvous::new(key, candidates).best(good.map(|(candidate, _)| candidate));
        let chosen = placed.unwrap_or_else(|| candidates.at(0));
        let is_hit = costs.of(chosen.index()).is_some_and(|cost| cost.matched_tokens > 0);
        chosen.because(if is_hit { Reason::CacheHit } else { Reason::CachePlaced })
    }

    /// The request went to `worker`: its cache will hold the prompt.
    pub(crate) fn dispatched(&self, worker: &Worker, ask: &Ask<'_>, bytes_per_token: f64) {
        if let Some(prompt) = ask.prompt.filter(|prompt| !prompt.chunks.is_empty()) {
            let capacity = self.capacity_chunks(worker, prompt.space, bytes_per_token);
            self.known(prompt.space).dispatched(worker.id, &prompt.chunks, capacity, ask.now);
        }
    }

    /// What is known of caches in one space.
    pub(crate) fn known(&self, space: Space) -> &Known {
        match space {
            Space::Text => &self.texts,
            Space::Tokens => &self.tokens,
        }
    }

    /// Both spaces.
    pub(crate) fn spaces(&self) -> [(Space, &Known); 2] {
        [(Space::Text, &self.texts), (Space::Tokens, &self.tokens)]
    }

    /// The answer says how far the prediction was right.
    pub(crate) fn observed(&self, worker: &Worker, seen: &Seen) {
        let predicted = seen.input_tokens.map_or(seen.predicted_tokens, |tokens| tokens.min(seen.predicted_tokens));
        if let Some(cached) = seen.cached_tokens.filter(|_| predicted >= JUDGED_TOKENS_MIN) {
            let known = self.known(seen.space);
            // What an engine reports is no prediction.
            if known.source(worker.id) != Source::Fed {
                known.index().calibrate(worker.id, predicted, cached);
            }
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn tokens_per_chunk(&self, ask: &Ask<'_>) -> f32 {
        match ask.prompt {
            Some(prompt) if prompt.space == Space::Tokens => CHUNK_TOKENS as f32,
            Some(prompt) => ask.input_tokens as f32 * self.chunk_bytes as f32 / prompt.bytes.max(1) as f32,
            None => 0.0,
        }
    }

    /// About how many tokens so many chunks are.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate of a positive number"
    )]
    pub(crate) fn tokens_of_chunks(&self, chunks: usize, space: Space, bytes_per_token: f64) -> u64 {
        match space {
            Space::Tokens => chunks.saturating_mul(CHUNK_TOKENS) as u64,
            Space::Text => (chunks.saturating_mul(self.chunk_bytes) as f64 / bytes_per_token) as u64,
        }
    }

    /// How many chunks of a space `worker` is taken to have room for.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate of a positive number"
    )]
    pub(crate) fn capacity_chunks(&self, worker: &Worker, space: Space, bytes_per_token: f64) -> u64 {
        let tokens = worker.kv_capacity_tokens().unwrap_or(self.default_capacity_tokens);
        if space == Space::Tokens {
            return (tokens / CHUNK_TOKENS as u64).max(1);
        }
        let bytes = (tokens as f64 * bytes_per_token) as u64;
        (bytes.min(self.tree_bytes_max) / self.chunk_bytes as u64).max(1)
    }
}

/// What ties the request to others, if it says so itself.
fn affinity(ask: &Ask<'_>) -> Option<u64> {
    ask.routing_key.map(|key| hash::stable64(key.as_bytes())).or(ask.session)
}

/// Draws two, by share, and takes the cheaper.
fn cheaper_of_two<'a, 'b>(
    good: impl Iterator<Item = (Candidate<'a>, &'b f32)> + Clone,
    random: &dyn Random,
) -> Option<Candidate<'a>> {
    let shares: f64 = good.clone().map(|(candidate, _)| f64::from(candidate.share)).sum();
    let draw = || {
        let mut point = random.unit() * shares;
        let drawn = good.clone().find(|(candidate, _)| {
            point -= f64::from(candidate.share);
            point < 0.0
        });
        drawn.or_else(|| good.clone().next())
    };
    let (one, other) = (draw()?, draw()?);
    Some(if other.1 < one.1 { other.0 } else { one.0 })
}
