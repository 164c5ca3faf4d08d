//! How many seconds a worker is expected to take to the first token of a request.
//!
//! The cost is a sum of parts that each have a reason, in one unit, so that none needs a threshold:
//!
//! - *path*: the time to the peer that hands the request on and back, if one does.
//! - *queue*: prompt tokens the gateways have pending there, less what the engine has likely done of the prompt that it works
//!   on, and requests others have waiting there, at the worker's measured rate; and, once it runs all it can at a time, the
//!   wait for a place.
//! - *prefill*: the part of this prompt that its cache lacks, at the same rate.
//! - *displace*: what that costs others. Who computes a prompt anew keeps the engine from other prompts for as long, and its
//!   cache lets others go for it, which somebody will compute anew; more so where the cache has taken in more than elsewhere.
//! - *decode*: what each request it works on takes of its compute.
//! - *kv*: λ·k ÷ (1 − k) for a cache filled to k: nothing when there is room, a wall when there is none.
//! - *error*: the share of its requests that fail.

use std::time::Duration;

use serde::Serialize;
use smallvec::SmallVec;
use smg_base::Timestamp;
use smg_fleet::{Prefilling, Speed, WorkerState};
use smg_prefix::Held;

use crate::{
    Ask, PolicyConfig,
    candidates::{Candidate, Candidates},
};

/// The parts of a worker's cost, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Terms {
    /// The way there.
    pub path: f32,
    /// Work queued there.
    pub queue: f32,
    /// The part of the prompt its cache lacks.
    pub prefill: f32,
    /// What computing that part costs others.
    pub displace: f32,
    /// Requests that share its compute.
    pub decode: f32,
    /// Pressure on its KV cache.
    pub kv: f32,
    /// Its failures.
    pub error: f32,
}

/// What one candidate costs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub(crate) terms: Terms,
    /// Their sum; what depends on the worker's strength is divided by its share relative to the mean.
    pub(crate) total: f32,
    /// Prompt tokens its cache is taken to hold.
    pub(crate) matched_tokens: u32,
}

/// What the candidates cost, in their order. Sums are kept for all of them, and from what they were made; the parts are worked
/// out again for the few of which they are told.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    works: SmallVec<[Work; 128]>,
    pub(crate) totals: SmallVec<[f32; 128]>,
    /// Up to this, a candidate is as good as the best.
    pub(crate) limit: f32,
}

/// What the candidates' caches hold of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cached<'a> {
    /// By candidate; empty if none holds anything.
    pub(crate) holders: &'a [Held],
    pub(crate) tokens_per_chunk: f32,
}

/// The two halves of the candidates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Among {
    /// As good as the best.
    TheGood,
    TheOthers,
}

impl Costs {
    /// What one candidate costs, if they were compared by that.
    pub(crate) fn of(&self, index: usize) -> Option<Cost> {
        let (work, total) = (self.works.get(index)?, *self.totals.get(index)?);
        let terms = Terms {
            path: work.path,
            queue: work.pending_tokens * work.seconds_per_token + work.wait,
            prefill: work.uncached_tokens * work.seconds_per_token,
            displace: work.displaced * work.uncached_tokens * work.seconds_per_token,
            decode: work.decode,
            kv: work.kv,
            error: work.error,
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of tokens")]
        let matched_tokens = work.matched_tokens as u32;
        Some(Cost { terms, total, matched_tokens })
    }

    /// The halves there are, the better first.
    pub(crate) fn halves(&self) -> &'static [Among] {
        if self.totals.is_empty() { &[Among::TheOthers] } else { &[Among::TheGood, Among::TheOthers] }
    }

    /// In which half a candidate is.
    pub(crate) fn among(&self, index: usize) -> Among {
        match self.totals.get(index) {
            Some(total) if *total <= self.limit => Among::TheGood,
            _ => Among::TheOthers,
        }
    }
}

impl Cached<'_> {
    /// Nothing.
    pub(crate) const NONE: Self = Self { holders: &[], tokens_per_chunk: 0.0 };
}

/// Estimates costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    mean_prefill_tokens: f32,
    kv_pressure_seconds: f32,
    decode_seconds: f32,
    error_seconds: f32,
    displace_ratio: f32,
    band_seconds: f32,
    band_ratio: f32,
    /// Taken where no rate has been measured.
    default_rate: f32,
}

/// An engine's word on its load counts no longer than this.
const ENGINE_AGE_MAX: Duration = Duration::from_secs(60);
/// Tokens taken for an answer, where it matters when a place becomes free.
const ANSWER_TOKENS: f32 = 256.0;
/// Seconds taken between two tokens of an answer as long as none were measured.
const DEFAULT_GAP_SECONDS: f32 = 0.02;
/// The part of what an engine may have done that it is taken to have done: to wait a little for one that is taken for busy costs
/// less than to wait long for one that is taken for free.
const CERTAINTY: f32 = 0.95;

impl Estimate {
    /// With the parameters of `least_load`.
    pub(crate) fn of_load(config: &PolicyConfig) -> Self {
        Self {
            displace_ratio: 0.0,
            band_seconds: 0.0,
            band_ratio: 0.0,
            ..Self::new(config, config.least_load_default_throughput)
        }
    }

    /// With the parameters of `cache_aware`.
    pub(crate) fn of_caches(config: &PolicyConfig) -> Self {
        Self::new(config, config.default_prefill_tokens_per_second)
    }

    #[expect(clippy::cast_possible_truncation, reason = "parameters of an estimate")]
    fn new(config: &PolicyConfig, default_rate: f64) -> Self {
        Self {
            mean_prefill_tokens: config.mean_prefill_tokens as f32,
            kv_pressure_seconds: config.kv_pressure_seconds as f32,
            decode_seconds: config.decode_seconds as f32,
            error_seconds: config.error_seconds as f32,
            displace_ratio: config.displace_ratio as f32,
            band_seconds: config.band_seconds as f32,
            band_ratio: config.band_ratio as f32,
            default_rate: (default_rate as f32).clamp(Speed::MIN, Speed::MAX),
        }
    }

    /// The cost of each candidate.
    pub(crate) fn costs(&self, candidates: &Candidates<'_>, ask: &Ask<'_>, cached: Cached<'_>, costs: &mut Costs) {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let input_tokens = ask.input_tokens as f32;
        let engine_since = ask.now - ENGINE_AGE_MAX;
        costs.works.clear();
        let (mut weights, mut rates) = (0.0, 0.0);
        // Not `extend`, which goes on in two places and therefore calls what would be inlined in one.
        for candidate in candidates.iter() {
            let work = self.work_at(candidate, engine_since, ask.now);
            weights += work.weight;
            rates += work.weight * work.tokens_per_second;
            costs.works.push(Work { uncached_tokens: input_tokens, ..work });
        }
        credit(&mut costs.works, input_tokens, cached);
        let mean_rate = if weights > 0.0 { rates / weights } else { self.default_rate };
        let mut taken_in = 0.0;
        for work in &mut costs.works {
            work.settle_rate(mean_rate);
            work.taken_in *= work.seconds_per_token;
            taken_in += work.taken_in;
        }
        // By half for what is computed, by half for where: who took in much will go on to let go of much.
        let (even, by_taken_in) = match taken_in > 0.0 {
            true => (0.5 * self.displace_ratio, 0.5 * self.displace_ratio * costs.works.len() as f32 / taken_in),
            false => (self.displace_ratio, 0.0),
        };
        costs.totals.clear();
        for work in &mut costs.works {
            work.displaced = even + by_taken_in * work.taken_in;
            costs.totals.push(work.own());
        }
        if !candidates.are_equal() {
            let mean_share = candidates.mean_share();
            for (total, candidate) in costs.totals.iter_mut().zip(candidates.iter()) {
                *total *= mean_share / candidate.share;
            }
        }
        for (total, work) in costs.totals.iter_mut().zip(&costs.works) {
            *total += work.kv + work.error + work.path;
        }
        let best = least_of(&costs.totals);
        costs.limit = best + self.band_seconds.max(self.band_ratio * best);
    }

    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than seven digits")]
    fn work_at(&self, candidate: Candidate<'_>, engine_since: Timestamp, now: Timestamp) -> Work {
        let state = candidate.state();
        let (load, engine) = (&state.load, state.load.look_at_engine(engine_since));
        let beyond = state.beyond(candidate.way);
        let active = load.in_flight().saturating_add(beyond.load.requests).saturating_add(engine.foreign);
        let speed = state.rates.speed();
        let pending_tokens = load.pending_tokens().saturating_add(beyond.load.pending_tokens).cast_signed() as f32;
        let wait = match candidate.member.running_max {
            Some(running_max) if running_max.get() <= active => wait_for_a_place(state, running_max.get(), active),
            _ => 0.0,
        };
        Work {
            tokens_per_second: speed.tokens_per_second,
            seconds_per_token: 0.0,
            weight: speed.weight,
            pending_tokens: pending_tokens + engine.foreign_waiting as f32 * self.mean_prefill_tokens,
            prefilling: load.prefilling(beyond.load, now),
            taken_in: state.rates.taken_in(now),
            displaced: 0.0,
            uncached_tokens: 0.0,
            matched_tokens: 0.0,
            wait,
            decode: active as f32 * self.decode_seconds,
            path: beyond.path_seconds,
            kv: self.kv_pressure_seconds * engine.kv_pressure,
            error: error_rate(state, now) * self.error_seconds,
        }
    }
}

/// What a worker has to do already, read in one go, and what this prompt would add.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    /// As measured.
    tokens_per_second: f32,
    /// As taken for true.
    seconds_per_token: f32,
    /// Of the measured speed, against that of all workers.
    weight: f32,
    pending_tokens: f32,
    prefilling: Prefilling,
    /// Tokens that its cache took in lately, and then the seconds that computing them took.
    taken_in: f32,
    /// What computing a token costs others, as a share of what it costs the request.
    displaced: f32,
    uncached_tokens: f32,
    matched_tokens: f32,
    wait: f32,
    decode: f32,
    path: f32,
    kv: f32,
    error: f32,
}

impl Work {
    /// A worker is as fast as the others until many measurements say otherwise; those that nobody has measured are neither
    /// shunned nor swamped. What the engine has likely done of the prompt that it works on is pending no more.
    #[inline]
    fn settle_rate(&mut self, mean_rate: f32) {
        let rate = mean_rate + self.weight * (self.tokens_per_second - mean_rate);
        self.seconds_per_token = 1.0 / rate;
        let done = self.prefilling.seconds * rate * CERTAINTY;
        self.pending_tokens -= if done < self.prefilling.tokens_max { done } else { self.prefilling.tokens_max };
    }

    /// The part of the cost that depends on the worker's strength.
    fn own(&self) -> f32 {
        (self.pending_tokens + self.uncached_tokens * (1.0 + self.displaced)) * self.seconds_per_token
            + self.wait
            + self.decode
    }
}

/// Takes off what caches hold: never more than there is, and as far as predictions have been borne out.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn credit(works: &mut [Work], input_tokens: f32, cached: Cached<'_>) {
    for (work, held) in works.iter_mut().zip(cached.holders) {
        let matched = (held.chunks as f32 * cached.tokens_per_chunk).min(input_tokens);
        work.matched_tokens = matched;
        work.uncached_tokens = input_tokens - matched * held.trust;
    }
}

/// The least of some costs, none of which is NaN. Several at a time: each step would wait for the one before otherwise.
fn least_of(totals: &[f32]) -> f32 {
    let less = |one: f32, other: f32| if other < one { other } else { one };
    let mut least = [f32::INFINITY; 16];
    let (groups, rest) = totals.as_chunks();
    for group in groups {
        let group: &[f32; 16] = group;
        for (least, total) in least.iter_mut().zip(group) {
            *least = less(*least, *total);
        }
    }
    rest.iter().chain(&least).copied().fold(f32::INFINITY, less)
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "an estimate needs no more than seven digits")]
fn error_rate(state: &WorkerState, now: Timestamp) -> f32 {
    state.rates.error_rate(now) as f32
}

/// How long a request waits until one of those running makes place for it.
#[cold]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate")]
fn wait_for_a_place(state: &WorkerState, running_max: u32, active: u32) -> f32 {
    let gap = state.rates.gap_seconds().map_or(DEFAULT_GAP_SECONDS, |gap| gap as f32);
    let ahead = (active + 1 - running_max) as f32;
    ahead * gap * ANSWER_TOKENS / running_max as f32
}

#[cfg(test)]
mod tests {
    use smg_fleet::EngineLoad;

    use super::*;
    use crate::{
        candidates::Offers,
        testing::{Workers, ask, at},
    };

    fn costs(workers: &Workers) -> Vec<Cost> {
        costs_at(workers, at(10))
    }

    fn costs_at(workers: &Workers, now: Timestamp) -> Vec<Cost> {
        costs_by(&PolicyConfig { displace_ratio: 0.0, ..PolicyConfig::default() }, workers, now)
    }

    fn costs_by(config: &PolicyConfig, workers: &Workers, now: Timestamp) -> Vec<Cost> {
        let random = smg_base::SplitMix::new(1);
        let ask = Ask { now, input_tokens: 8_000, ..ask(&random) };
        let pool = workers.pool();
        let (mut candidates, mut costs) = (Candidates::default(), Costs::default());
        candidates.gather(&pool, &ask, Offers::Assumed).unwrap();
        Estimate::of_caches(config).costs(&candidates, &ask, Cached::NONE, &mut costs);
        (0..candidates.len()).map(|index| costs.of(index).unwrap()).collect()
    }

    fn near(found: f32, expected: f32) {
        assert!((found - expected).abs() <= 0.01 * expected.abs().max(0.01), "{found} is not {expected}");
    }

    #[test]
    fn each_part_is_counted_in_seconds() {
        let workers = Workers::of(4);
        let idle = 8_000.0 / 8_000.0;
        for cost in costs(&workers) {
            near(cost.total, idle);
        }
        let _pending = workers.begin(0, 4_000);
        let found = costs(&workers);
        near(found[0].terms.queue, 0.5);
        near(found[0].terms.decode, 0.02);
        near(found[0].total, idle + 0.52);
        near(found[1].total, idle);

        let engine = EngineLoad { running: 5, waiting: 2, kv_usage: 0.5, generation_tokens_per_second: 0.0, at: at(9) };
        workers.state(1).load.set_engine(engine);
        let found = costs(&workers);
        near(found[1].terms.queue, 2.0 * 1_024.0 / 8_000.0);
        near(found[1].terms.decode, 0.14);
        near(found[1].terms.kv, 0.15);

        workers.state(2).load.set_engine(EngineLoad { kv_usage: 1.0, ..engine });
        assert!(costs(&workers)[2].terms.kv > 100.0, "a full cache is a wall");
        workers.state(2).load.set_engine(EngineLoad { at: at(0), ..engine });
        near(costs_at(&workers, at(60))[2].terms.kv, 0.15);
        near(costs_at(&workers, at(61))[2].terms.kv, 0.0);
        workers.state(3).rates.observe_outcome(smg_fleet::Outcome::Failure, at(10));
        near(costs(&workers)[3].terms.error, 0.05 * 2.0);
    }

    #[test]
    fn computing_anew_costs_others_most_where_most_was_computed() {
        let workers = Workers::of(4);
        let displaced = |workers: &Workers| -> Vec<f32> {
            costs_by(&PolicyConfig::default(), workers, at(10)).iter().map(|cost| cost.terms.displace).collect()
        };
        for seconds in displaced(&workers) {
            near(seconds, 1.0);
        }
        drop(workers.begin(0, 3_000));
        drop(workers.begin(1, 1_000));
        let found = displaced(&workers);
        for (seconds, expected) in found.iter().zip([2.0, 1.0, 0.5, 0.5]) {
            near(*seconds, expected);
        }
        let cost = costs_by(&PolicyConfig::default(), &workers, at(10))[0];
        near(cost.total, 1.0 + 2.0);
    }

    #[test]
    fn the_way_and_the_other_gateways_requests_count() {
        use smg_base::PeerId;
        use smg_fleet::{ClusterVerdict, DirectPath, PeerLoad, ProbeDuty, Reach, Via};
        let workers = Workers::of(3);
        let idle = 8_000.0 / 8_000.0;
        let worker = workers.pool().workers[1].clone();
        let via = Some(Via { peer: PeerId(7), rtt: Duration::from_millis(80) });
        let reach = Reach { verdict: ClusterVerdict::Up, via, duty: ProbeDuty::Full };
        workers.fleet().set_reach(worker.id, reach);
        near(costs(&workers)[1].total, idle);
        workers.fleet().import(worker.id, worker.spec.clone(), DirectPath::Forbidden, at(0)).unwrap();
        let found = costs(&workers);
        near(found[1].terms.path, 0.08);
        near(found[1].total, idle + 0.08);
        near(found[0].terms.path, 0.0);
        let peers = PeerLoad { requests: 3, decoding: 1, pending_tokens: 4_000 };
        workers.fleet().set_peer_load(workers.pool().workers[2].id, peers, at(10));
        let found = costs(&workers);
        near(found[2].terms.queue, 0.5);
        near(found[2].terms.decode, 0.06);
    }

    #[test]
    fn the_rates_are_the_workers_own_once_they_are_certain_and_the_unmeasured_get_the_mean() {
        let workers = Workers::of(3);
        let measure = |times: u32| {
            for _ in 0..times {
                workers.state(0).rates.observe_ttft(10_000, 0, Duration::from_secs(1));
                workers.state(1).rates.observe_ttft(2_000, 0, Duration::from_secs(1));
            }
            costs(&workers)
        };
        let once = measure(1);
        assert!(once[0].total > 1.2 && once[1].total < 1.5, "{once:?}");
        let often = measure(20_000);
        near(often[0].total, 0.8);
        near(often[1].total, 4.0);
        near(often[2].total, 8_000.0 / 6_000.0);
    }

    #[test]
    fn what_an_engine_has_done_of_a_prompt_is_no_queue() {
        let workers = Workers::of(2);
        let mut first = workers.begin(0, 16_000);
        let _second = workers.begin(0, 16_000);
        near(costs(&workers)[0].terms.queue, 4.0);
        near(costs_at(&workers, at(11))[0].terms.queue, 3.0 + (1.0 - CERTAINTY));
        near(costs_at(&workers, at(50))[0].terms.queue, 2.0);
        first.first_token(at(50));
        near(costs_at(&workers, at(50))[0].terms.queue, 2.0);
        near(costs_at(&workers, at(100))[0].terms.queue, 0.0);
        near(costs(&workers)[1].terms.queue, 0.0);
    }

    #[test]
    fn a_full_worker_makes_wait_for_a_place() {
        let workers = Workers::with(2, |_, spec| spec.max_running_requests = Some(4));
        let _running: Vec<_> = (0..8).map(|_| workers.begin(0, 0)).collect();
        let found = costs(&workers);
        near(found[0].terms.queue, 5.0 * 0.02 * 256.0 / 4.0);
        near(found[1].terms.queue, 0.0);
    }

    #[test]
    fn a_greater_share_makes_work_cheaper() {
        let workers = Workers::with(2, |index, spec| spec.weight = if index == 0 { 3.0 } else { 1.0 });
        let found = costs(&workers);
        near(found[1].total / found[0].total, 3.0);
    }
}
