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
use smg_fleet::{Look, Speed, Tick, Way, WorkerState};
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

/// What the candidates cost, in their order.
#[derive(Debug, Default)]
pub(crate) struct Costs {
    parts: SmallVec<[Parts; 128]>,
    /// What computing anew costs others: so much for each second that it takes, and so much more for each second that what the cache
    /// took in lately took.
    displaced: f32,
    displaced_by_taken_in: f32,
    pub(crate) totals: SmallVec<[f32; 128]>,
    /// Up to this, a candidate is as good as the best.
    pub(crate) limit: f32,
}

/// The parts of a worker's cost, in seconds, as far as it takes no other worker to know them.
#[derive(Clone, Copy, Debug)]
struct Parts {
    path: f32,
    queue: f32,
    prefill: f32,
    /// How long it took to compute what its cache took in lately.
    taken_in: f32,
    decode: f32,
    kv: f32,
    error: f32,
    matched_tokens: f32,
}

/// What the candidates' caches hold of a prompt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cached<'a> {
    /// By candidate; empty if none holds anything.
    pub(crate) holders: &'a [Held],
    pub(crate) tokens_per_chunk: f32,
}

impl Costs {
    /// What one candidate costs, if they were compared by that.
    pub(crate) fn of(&self, index: usize) -> Option<Cost> {
        let (total, parts) = (*self.totals.get(index)?, self.parts.get(index)?);
        let terms = Terms {
            path: parts.path,
            queue: parts.queue,
            prefill: parts.prefill,
            displace: parts.prefill * (self.displaced + self.displaced_by_taken_in * parts.taken_in),
            decode: parts.decode,
            kv: parts.kv,
            error: parts.error,
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of tokens")]
        let matched_tokens = parts.matched_tokens as u32;
        Some(Cost { terms, total, matched_tokens })
    }

    /// The candidates by index, those as good as the best first.
    pub(crate) fn in_order(&self, count: usize) -> impl Iterator<Item = usize> {
        let is_good = |index: &usize| self.totals.get(*index).is_some_and(|total| *total <= self.limit);
        let good = (0..self.totals.len()).filter(is_good);
        good.chain((0..count).filter(move |index| !is_good(index)))
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
        let times = Times { engine_since: ask.now - ENGINE_AGE_MAX, now: ask.now, tick: ask.now.into() };
        let mean_rate = self.mean_rate(candidates);
        let mut holders = cached.holders.iter();
        let mut taken_in = 0.0;
        costs.parts.clear();
        // Not `extend`, which goes on in two places and therefore calls what would be inlined in one.
        for candidate in candidates.iter() {
            let (matched_tokens, uncached_tokens) = match holders.next() {
                Some(held) => credit(*held, cached.tokens_per_chunk, input_tokens),
                None => (0.0, input_tokens),
            };
            let parts = self.parts(candidate, mean_rate, uncached_tokens, times);
            taken_in += parts.taken_in;
            costs.parts.push(Parts { matched_tokens, ..parts });
        }
        // By half for what is computed, by half for where: who took in much will go on to let go of much.
        (costs.displaced, costs.displaced_by_taken_in) = match taken_in > 0.0 {
            true => (0.5 * self.displace_ratio, 0.5 * self.displace_ratio * candidates.len() as f32 / taken_in),
            false => (self.displace_ratio, 0.0),
        };
        costs.totals.clear();
        let mean_share = candidates.mean_share();
        for (parts, candidate) in costs.parts.iter().zip(candidates.iter()) {
            let displaced = costs.displaced + costs.displaced_by_taken_in * parts.taken_in;
            let own = parts.queue + parts.prefill * (1.0 + displaced) + parts.decode;
            let own = if candidates.are_equal() { own } else { own * (mean_share / candidate.share) };
            costs.totals.push(own + (parts.kv + parts.error + parts.path));
        }
        let best = least_of(&costs.totals);
        costs.limit = best + self.band_seconds.max(self.band_ratio * best);
    }

    /// The mean of what was measured of the candidates' speeds, each by its weight. Several at a time: each addition would wait for the
    /// one before otherwise.
    fn mean_rate(&self, candidates: &Candidates<'_>) -> f32 {
        let (mut weights, mut rates) = ([0.0; 4], [0.0; 4]);
        for (candidate, lane) in candidates.iter().zip((0..4).cycle()) {
            let speed = candidate.state().rates.speed();
            weights[lane] += speed.weight;
            rates[lane] += speed.weight * speed.tokens_per_second;
        }
        let weight: f32 = weights.iter().sum();
        if weight > 0.0 { rates.iter().sum::<f32>() / weight } else { self.default_rate }
    }

    /// A worker is as fast as the others until many measurements say otherwise; those that nobody has measured are neither
    /// shunned nor swamped. What the engine has likely done of the prompt that it works on is pending no more.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than seven digits")]
    fn parts(&self, candidate: Candidate<'_>, mean_rate: f32, uncached_tokens: f32, times: Times) -> Parts {
        let state = candidate.state();
        let look = Look::at(state, times.engine_since, times.now);
        let requests = look.requests();
        let wait = match candidate.member.running_max {
            Some(running_max) if running_max.get() <= requests => wait_for_a_place(state, running_max.get(), requests),
            _ => 0.0,
        };
        let rate = mean_rate + look.weight() * (look.tokens_per_second() - mean_rate);
        let seconds_per_token = 1.0 / rate;
        let done = lesser(look.prefilling_seconds() * rate * CERTAINTY, look.prefilling_tokens_max());
        let foreign_tokens = look.foreign_waiting() as f32 * self.mean_prefill_tokens;
        Parts {
            path: match candidate.way {
                Way::Direct => 0.0,
                Way::Via => state.beyond(Way::Via).path_seconds,
            },
            queue: (look.pending_tokens() - done + foreign_tokens) * seconds_per_token + wait,
            prefill: uncached_tokens * seconds_per_token,
            taken_in: look.taken_in(times.tick) * seconds_per_token,
            decode: requests as f32 * self.decode_seconds,
            kv: look.kv_pressure() * self.kv_pressure_seconds,
            error: look.error_rate(times.tick) * self.error_seconds,
            matched_tokens: 0.0,
        }
    }
}

/// When a decision is made, as its parts need to know.
#[derive(Clone, Copy, Debug)]
struct Times {
    engine_since: Timestamp,
    now: Timestamp,
    tick: Tick,
}

/// What a cache holds of a prompt, and what it lacks: never more than there is, and as far as predictions have been borne out.
#[inline]
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn credit(held: Held, tokens_per_chunk: f32, input_tokens: f32) -> (f32, f32) {
    let matched = lesser(held.chunks as f32 * tokens_per_chunk, input_tokens);
    (matched, input_tokens - matched * held.trust)
}

/// The lesser of two, neither of which is NaN.
#[inline]
fn lesser(one: f32, other: f32) -> f32 {
    if other < one { other } else { one }
}

/// The least of some costs, none of which is NaN. Several at a time: each step would wait for the one before otherwise.
fn least_of(totals: &[f32]) -> f32 {
    let mut least = [f32::INFINITY; 16];
    let (groups, rest) = totals.as_chunks();
    for group in groups {
        let group: &[f32; 16] = group;
        for (least, total) in least.iter_mut().zip(group) {
            *least = lesser(*least, *total);
        }
    }
    rest.iter().chain(&least).copied().fold(f32::INFINITY, lesser)
}

/// How long a request waits until one of those running makes place for it.
#[cold]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate")]
fn wait_for_a_place(state: &WorkerState, running_max: u32, requests: u32) -> f32 {
    let gap = state.rates.gap_seconds().map_or(DEFAULT_GAP_SECONDS, |gap| gap as f32);
    let ahead = (requests + 1 - running_max) as f32;
    ahead * gap * ANSWER_TOKENS / running_max as f32
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};
    use smg_fleet::{EngineLoad, LoadGuard, Outcome, PeerLoad};

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
        let random = SplitMix::new(1);
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
        workers.state(3).rates.observe_outcome(Outcome::Failure, at(10));
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

    /// The cost of each worker by the formula as it is written down, with twice as many digits and nothing done to be fast.
    fn by_the_formula(config: &PolicyConfig, workers: &Workers, ask: &Ask<'_>, cached: Cached<'_>) -> Vec<f64> {
        let pool = workers.pool();
        let input = ask.input_tokens as f64;
        let looks: Vec<Look> =
            pool.members().iter().map(|member| Look::at(&member.state, ask.now - ENGINE_AGE_MAX, ask.now)).collect();
        let speeds: Vec<_> = pool.members().iter().map(|member| member.state.rates.speed()).collect();
        let weight: f64 = speeds.iter().map(|speed| f64::from(speed.weight)).sum();
        let weighed: f64 =
            speeds.iter().map(|speed| f64::from(speed.weight) * f64::from(speed.tokens_per_second)).sum();
        let mean = if weight > 0.0 { weighed / weight } else { config.default_prefill_tokens_per_second };
        let rate_of =
            |at: usize| mean + f64::from(speeds[at].weight) * (f64::from(speeds[at].tokens_per_second) - mean);
        let taken_in = |at: usize| f64::from(pool.members()[at].state.rates.taken_in(ask.now)) / rate_of(at);
        let taken_in_mean = (0..looks.len()).map(taken_in).sum::<f64>() / looks.len() as f64;
        let share_mean = pool.members().iter().map(|member| f64::from(member.share)).sum::<f64>() / looks.len() as f64;
        let cost_of = |at: usize| {
            let (member, look) = (&pool.members()[at], &looks[at]);
            let load = &member.state.load;
            let engine = load.engine().filter(|engine| engine.at >= ask.now - ENGINE_AGE_MAX);
            let foreign = engine.map_or(0, |_| load.foreign_requests());
            let foreign_waiting = engine.map_or(0, |engine| engine.waiting.min(foreign));
            let requests = f64::from(member.state.requests() + foreign);
            let done = f64::from(look.prefilling_seconds()) * rate_of(at) * f64::from(CERTAINTY);
            let pending = member.state.pending_tokens() as f64 - done.min(f64::from(look.prefilling_tokens_max()))
                + f64::from(foreign_waiting) * config.mean_prefill_tokens;
            let wait = match member.running_max.map(|most| f64::from(most.get())) {
                Some(most) if most <= requests => {
                    (requests + 1.0 - most) * f64::from(DEFAULT_GAP_SECONDS) * f64::from(ANSWER_TOKENS) / most
                }
                _ => 0.0,
            };
            let held = cached.holders.get(at).copied().unwrap_or_default();
            let matched = (f64::from(held.chunks) * f64::from(cached.tokens_per_chunk)).min(input);
            let prefill = (input - matched * f64::from(held.trust)) / rate_of(at);
            let displaced = match taken_in_mean > 0.0 {
                true => 0.5 * config.displace_ratio * (1.0 + taken_in(at) / taken_in_mean),
                false => config.displace_ratio,
            };
            let kv_usage = f64::from(engine.map_or(0.0, |engine| engine.kv_usage).min(0.999));
            let own = pending / rate_of(at) + wait + prefill * (1.0 + displaced) + requests * config.decode_seconds;
            own * share_mean / f64::from(member.share)
                + config.kv_pressure_seconds * kv_usage / (1.0 - kv_usage)
                + config.error_seconds * member.state.rates.error_rate(ask.now)
        };
        (0..looks.len()).map(cost_of).collect()
    }

    /// Workers to which all sorts of things happened.
    fn workers_at_random(random: &SplitMix, count: usize) -> (Workers, Vec<LoadGuard>) {
        let (have_shares, have_limits, are_measured) =
            (random.below(2) == 0, random.below(2) == 0, random.below(4) > 0);
        let workers = Workers::with(count, |_, spec| {
            spec.weight = if have_shares { (1 + random.below(3)) as f64 } else { 1.0 };
            spec.max_running_requests = (have_limits && random.below(2) == 0).then(|| 1 + random.below(8) as u32);
        });
        let mut running = Vec::new();
        for (place, worker) in workers.pool().workers.iter().enumerate() {
            for _ in 0..random.below(5) {
                let mut guard = workers.begin(place, random.below(20_000));
                if random.below(2) == 0 {
                    guard.first_token(at(10 + random.below(3)));
                }
                running.push(guard);
            }
            for _ in 0..if are_measured { random.below(40) } else { 0 } {
                worker.state.rates.observe_ttft(1_000 + random.below(9_000), random.below(900), Duration::from_secs(1));
            }
            if random.below(3) == 0 {
                worker.state.rates.observe_outcome(Outcome::Failure, at(9));
            }
            if random.below(3) == 0 {
                let requests = random.below(6) as u32;
                let peers = PeerLoad { requests, decoding: requests / 2, pending_tokens: random.below(30_000) };
                workers.fleet().set_peer_load(worker.id, peers, at(11));
            }
            if random.below(3) > 0 {
                worker.state.load.set_engine(EngineLoad {
                    running: random.below(12) as u32,
                    waiting: random.below(6) as u32,
                    kv_usage: random.unit() as f32,
                    generation_tokens_per_second: 0.0,
                    at: at(random.below(12)),
                });
            }
        }
        (workers, running)
    }

    #[test]
    fn costs_are_those_of_the_formula() {
        for seed in 0..300 {
            let random = SplitMix::new(seed);
            let count = 1 + random.below(160) as usize;
            let (workers, _running) = workers_at_random(&random, count);
            let config = PolicyConfig::default();
            let input_tokens = random.below(30_000);
            let ask = Ask { now: at(12 + random.below(60)), input_tokens, ..ask(&random) };
            let held = |_| Held { chunks: random.below(input_tokens / 100 + 1) as u32, trust: random.unit() as f32 };
            let holders: Vec<Held> = (0..if random.below(4) > 0 { count } else { 0 }).map(held).collect();
            let cached = Cached { holders: &holders, tokens_per_chunk: 128.0 };
            let pool = workers.pool();
            let (mut candidates, mut costs) = (Candidates::default(), Costs::default());
            candidates.gather(&pool, &ask, Offers::Assumed).unwrap();
            Estimate::of_caches(&config).costs(&candidates, &ask, cached, &mut costs);
            let expected = by_the_formula(&config, &workers, &ask, cached);
            assert_eq!(costs.totals.len(), count);
            let check = |name: &str, found: f32, expected: f64| {
                let difference = (f64::from(found) - expected).abs();
                assert!(difference <= 1e-6 * expected.max(1.0), "seed {seed}, {name}: {found}, {expected}");
            };
            for (found, expected) in costs.totals.iter().zip(&expected) {
                check("total", *found, *expected);
            }
            let best = expected.iter().copied().fold(f64::INFINITY, f64::min);
            check("limit", costs.limit, best + config.band_seconds.max(config.band_ratio * best));
        }
    }
}
