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
use smg_fleet::{LANES, Speed, Way, WorkerState};
use smg_prefix::Held;

use crate::{
    Ask, PolicyConfig,
    candidates::{Candidate, Candidates},
    works::{Prices, Works, lesser, sum},
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
    works: SmallVec<[Works; 128 / LANES]>,
    /// What computing anew costs others: so much for each second that it takes, and so much more for each second that what the cache
    /// took in lately took.
    displaced: f32,
    displaced_by_taken_in: f32,
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

impl Costs {
    /// What one candidate costs, if they were compared by that.
    pub(crate) fn of(&self, index: usize) -> Option<Cost> {
        let (total, works, lane) = (*self.totals.get(index)?, self.works.get(index / LANES)?, index % LANES);
        let prefill = works.prefill[lane];
        let terms = Terms {
            path: works.path[lane],
            queue: works.queue[lane],
            prefill,
            displace: prefill * (self.displaced + self.displaced_by_taken_in * works.taken_in[lane]),
            decode: works.decode[lane],
            kv: works.kv[lane],
            error: works.error[lane],
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of tokens")]
        let matched_tokens = works.matched_tokens[lane] as u32;
        Some(Cost { terms, total, matched_tokens })
    }

    /// The candidates by index, those as good as the best first; in their order if they were not compared.
    pub(crate) fn in_order(&self, count: usize) -> impl Iterator<Item = usize> {
        let totals = || self.totals.iter().zip(0..);
        let good = totals().filter(|(total, _)| **total <= self.limit).map(|(_, index)| index);
        let others = totals().filter(|(total, _)| **total > self.limit).map(|(_, index)| index);
        good.chain(others).chain(self.totals.len()..count)
    }
}

impl Cached<'_> {
    /// Nothing.
    pub(crate) const NONE: Self = Self { holders: &[], tokens_per_chunk: 0.0 };
}

/// Estimates costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    prices: Prices,
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
            prices: Prices {
                mean_prefill_tokens: config.mean_prefill_tokens as f32,
                kv_pressure_seconds: config.kv_pressure_seconds as f32,
                decode_seconds: config.decode_seconds as f32,
                error_seconds: config.error_seconds as f32,
            },
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
        for group in candidates.groups() {
            costs.works.push(Works::NONE);
            if let Some(works) = costs.works.last_mut() {
                look_at(group, engine_since, ask.now, works);
            }
        }
        let mean_rate = self.mean_rate(&costs.works);
        let mut held = cached.holders.chunks(LANES);
        let mut taken_in = [0.0; LANES];
        for works in &mut costs.works {
            let held = held.next().unwrap_or_default();
            works.work_out(self.prices, mean_rate, input_tokens, held, cached.tokens_per_chunk);
            for (sum, taken_in) in taken_in.iter_mut().zip(works.taken_in) {
                *sum += taken_in;
            }
        }
        let taken_in = sum(taken_in);
        // By half for what is computed, by half for where: who took in much will go on to let go of much.
        (costs.displaced, costs.displaced_by_taken_in) = match taken_in > 0.0 {
            true => (0.5 * self.displace_ratio, 0.5 * self.displace_ratio * candidates.len() as f32 / taken_in),
            false => (self.displace_ratio, 0.0),
        };
        costs.totals.clear();
        let mean_share = candidates.mean_share();
        let mut best = [f32::INFINITY; LANES];
        for (works, group) in costs.works.iter().zip(candidates.groups()) {
            let mut totals = works.own(costs.displaced, costs.displaced_by_taken_in);
            if !candidates.are_equal() {
                for (total, candidate) in totals.iter_mut().zip(group) {
                    *total *= mean_share / candidate.share;
                }
            }
            for ((total, rest), best) in totals.iter_mut().zip(works.rest()).zip(&mut best) {
                *total += rest;
                *best = lesser(*best, *total);
            }
            costs.totals.extend_from_slice(&totals[..group.len()]);
        }
        let best = best.into_iter().fold(f32::INFINITY, lesser);
        costs.limit = best + self.band_seconds.max(self.band_ratio * best);
    }

    /// The mean of what was measured of the workers' speeds, each by its weight.
    fn mean_rate(&self, works: &[Works]) -> f32 {
        let (mut weights, mut rates) = ([0.0; LANES], [0.0; LANES]);
        for works in works {
            works.add_speeds(&mut weights, &mut rates);
        }
        let weight = sum(weights);
        if weight > 0.0 { sum(rates) / weight } else { self.default_rate }
    }
}

/// Reads what workers have to do. Those behind the last are infinitely far away.
#[inline]
fn look_at(group: &[Candidate<'_>], engine_since: Timestamp, now: Timestamp, works: &mut Works) {
    for (candidate, lane) in group.iter().zip(0..LANES) {
        let state = candidate.state();
        works.looks.look_at_load(lane, state, engine_since, now);
        if let Some(running_max) = candidate.member.running_max {
            works.wait[lane] = wait_for_a_place(state, running_max.get(), works.looks.requests_in(lane));
        }
        if candidate.way == Way::Via {
            works.path[lane] = state.beyond(Way::Via).path_seconds;
        }
    }
    for (candidate, lane) in group.iter().zip(0..LANES) {
        works.looks.look_at_rates(lane, candidate.state(), now);
    }
    works.path[group.len()..].fill(f32::INFINITY);
}

/// How long a request waits until one of those running makes place for it.
#[inline]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate")]
fn wait_for_a_place(state: &WorkerState, running_max: u32, requests: u32) -> f32 {
    if requests < running_max {
        return 0.0;
    }
    let gap = state.rates.gap_seconds().map_or(DEFAULT_GAP_SECONDS, |gap| gap as f32);
    let ahead = (requests + 1 - running_max) as f32;
    ahead * gap * ANSWER_TOKENS / running_max as f32
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};
    use smg_fleet::{EngineLoad, LoadGuard, Looks, Outcome, PeerLoad};

    use super::*;
    use crate::{
        candidates::Offers,
        testing::{Workers, ask, at},
        works::CERTAINTY,
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
        let (input, count) = (ask.input_tokens as f64, pool.members().len());
        let speeds: Vec<_> = pool.members().iter().map(|member| member.state.rates.speed()).collect();
        let weight: f64 = speeds.iter().map(|speed| f64::from(speed.weight)).sum();
        let weighed: f64 =
            speeds.iter().map(|speed| f64::from(speed.weight) * f64::from(speed.tokens_per_second)).sum();
        let mean = if weight > 0.0 { weighed / weight } else { config.default_prefill_tokens_per_second };
        let rate_of =
            |at: usize| mean + f64::from(speeds[at].weight) * (f64::from(speeds[at].tokens_per_second) - mean);
        let taken_in = |at: usize| f64::from(pool.members()[at].state.rates.taken_in(ask.now)) / rate_of(at);
        let taken_in_mean = (0..count).map(taken_in).sum::<f64>() / count as f64;
        let share_mean = pool.members().iter().map(|member| f64::from(member.share)).sum::<f64>() / count as f64;
        let cost_of = |at: usize| {
            let member = &pool.members()[at];
            let mut looks = Looks::NONE;
            looks.look_at_load(0, &member.state, ask.now - ENGINE_AGE_MAX, ask.now);
            let load = &member.state.load;
            let engine = load.engine().filter(|engine| engine.at >= ask.now - ENGINE_AGE_MAX);
            let foreign = engine.map_or(0, |_| load.foreign_requests());
            let foreign_waiting = engine.map_or(0, |engine| engine.waiting.min(foreign));
            let requests = f64::from(member.state.requests() + foreign);
            let done = f64::from(looks.prefilling_seconds()[0]) * rate_of(at) * f64::from(CERTAINTY);
            let pending = member.state.pending_tokens() as f64 - done.min(f64::from(looks.prefilling_tokens_max()[0]))
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
        (0..count).map(cost_of).collect()
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
