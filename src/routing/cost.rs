//! How many seconds a worker is expected to take to the first token of a request.
//!
//! The cost is a sum of parts that each have a reason, in one unit, so that none needs a threshold:
//!
//! - *path*: the time to the peer that hands the request on and back, if one does.
//! - *queue*: prompt tokens the gateways have pending there, and requests others have waiting there, at the worker's
//!   measured rate; and, once it runs all it can at a time, the wait for a place.
//! - *prefill*: the part of this prompt that its cache lacks, at the same rate.
//! - *decode*: what each request it works on takes of its compute.
//! - *kv*: λ·k ÷ (1 − k) for a cache filled to k: nothing when there is room, a wall when there is none.
//! - *error*: the share of its requests that fail.

use std::time::Duration;

use serde::Serialize;
use smallvec::SmallVec;
use smg_base::Timestamp;
use smg_fleet::{Pool, Worker};

use crate::{
    PolicyConfig,
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
    pub(crate) list: SmallVec<[Cost; 128]>,
    /// Up to this, a candidate is as good as the best.
    pub(crate) limit: f32,
}

/// The part of a prompt that a candidate has to prefill, and the part it is taken to have cached.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prompt {
    pub(crate) uncached_tokens: f32,
    pub(crate) matched_tokens: u32,
}

/// Estimates costs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimate {
    mean_prefill_tokens: f32,
    kv_pressure_seconds: f32,
    decode_seconds: f32,
    error_seconds: f32,
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
/// How full a KV cache is taken to be at most: the wall has a finite height.
const KV_USAGE_MAX: f32 = 0.999;
/// Bounds of a measured rate, tokens per second: one request that measured nonsense must not decide for ever.
const RATE_MIN: f32 = 50.0;
const RATE_MAX: f32 = 1e7;

impl Estimate {
    /// With the parameters of `least_load`.
    pub(crate) fn of_load(config: &PolicyConfig) -> Self {
        Self { band_seconds: 0.0, band_ratio: 0.0, ..Self::new(config, config.least_load_default_throughput) }
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
            band_seconds: config.band_seconds as f32,
            band_ratio: config.band_ratio as f32,
            default_rate: (default_rate as f32).clamp(RATE_MIN, RATE_MAX),
        }
    }

    /// The cost of each candidate, given, by its index, what it would have to prefill.
    pub(crate) fn costs(
        &self,
        pool: &Pool,
        candidates: &Candidates,
        now: Timestamp,
        prompt: impl Fn(usize) -> Prompt,
        costs: &mut Costs,
    ) {
        let work = |candidate: Candidate| self.work_at(&pool.workers[candidate.position as usize], now);
        let works: SmallVec<[Work; 128]> = candidates.iter().map(work).collect();
        let unmeasured = self.seconds_per_token_of_the_unmeasured(&works);
        let mean_share = candidates.mean_share();
        let mut best = f32::INFINITY;
        costs.list.clear();
        costs.list.extend(works.iter().zip(candidates.iter()).enumerate().map(|(index, (work, candidate))| {
            let prompt = prompt(index);
            let seconds_per_token = if work.rate > 0.0 { 1.0 / work.rate } else { unmeasured };
            let terms = Terms {
                path: work.path,
                queue: work.pending_tokens * seconds_per_token + work.wait,
                prefill: prompt.uncached_tokens * seconds_per_token,
                decode: work.decode,
                kv: work.kv,
                error: work.error,
            };
            let own = terms.queue + terms.prefill + terms.decode;
            let own = if candidates.are_equal() { own } else { own * mean_share / candidate.share };
            let total = own + terms.kv + terms.error + terms.path;
            best = best.min(total);
            Cost { terms, total, matched_tokens: prompt.matched_tokens }
        }));
        costs.limit = best + self.band_seconds.max(self.band_ratio * best);
    }

    /// Nobody knows yet how fast they are: as fast as the others, neither shunned nor swamped.
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    fn seconds_per_token_of_the_unmeasured(&self, works: &[Work]) -> f32 {
        let measured = works.iter().filter(|work| work.rate > 0.0).count();
        let sum: f32 = works.iter().map(|work| work.rate).sum();
        if measured > 0 { measured as f32 / sum } else { 1.0 / self.default_rate }
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than seven digits")]
    fn work_at(&self, worker: &Worker, now: Timestamp) -> Work {
        let load = &worker.state.load;
        let engine = load.engine().filter(|engine| now.since(engine.at) <= ENGINE_AGE_MAX);
        let foreign = engine.map_or(0, |_| load.foreign_requests());
        let foreign_waiting = engine.map_or(0, |engine| engine.waiting.min(foreign)) as f32;
        let beyond = worker.beyond(now);
        let active = load.in_flight().saturating_add(beyond.load.requests).saturating_add(foreign);
        let pending_tokens = load.pending_tokens().saturating_add(beyond.load.pending_tokens);
        let kv_usage = engine.map_or(0.0, |engine| engine.kv_usage.min(KV_USAGE_MAX));
        Work {
            path: beyond.path_seconds,
            rate: measured_rate(worker),
            pending_tokens: pending_tokens as f32 + foreign_waiting * self.mean_prefill_tokens,
            wait: wait_for_a_place(worker, active),
            decode: active as f32 * self.decode_seconds,
            kv: self.kv_pressure_seconds * kv_usage / (1.0 - kv_usage),
            error: error_rate(worker, now) * self.error_seconds,
        }
    }
}

/// What a worker has to do already, read in one go.
#[derive(Clone, Copy, Debug)]
struct Work {
    path: f32,
    /// Prompt tokens per second; zero if not measured.
    rate: f32,
    pending_tokens: f32,
    wait: f32,
    decode: f32,
    kv: f32,
    error: f32,
}

/// Prompt tokens per second; zero if not measured.
#[expect(clippy::cast_possible_truncation, reason = "an estimate needs no more than seven digits")]
fn measured_rate(worker: &Worker) -> f32 {
    worker.state.rates.prefill_tokens_per_second().map_or(0.0, |rate| (rate as f32).clamp(RATE_MIN, RATE_MAX))
}

#[expect(clippy::cast_possible_truncation, reason = "an estimate needs no more than seven digits")]
fn error_rate(worker: &Worker, now: Timestamp) -> f32 {
    worker.state.rates.error_rate(now) as f32
}

/// How long a request waits until one of those running makes place for it.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "an estimate")]
fn wait_for_a_place(worker: &Worker, active: u32) -> f32 {
    if active == 0 {
        return 0.0;
    }
    let Some(running_max) = worker.max_running_requests().filter(|max| *max > 0 && *max <= active) else { return 0.0 };
    let gap = worker.state.rates.gap_seconds().map_or(DEFAULT_GAP_SECONDS, |gap| gap as f32);
    let ahead = (active + 1 - running_max) as f32;
    ahead * gap * ANSWER_TOKENS / running_max as f32
}

#[cfg(test)]
mod tests {
    use smg_fleet::EngineLoad;

    use super::*;
    use crate::{
        Ask,
        candidates::Offers,
        testing::{Workers, ask, at},
    };

    const NOTHING_CACHED: Prompt = Prompt { uncached_tokens: 8_000.0, matched_tokens: 0 };

    fn costs(workers: &Workers) -> Vec<Cost> {
        costs_at(workers, at(10))
    }

    fn costs_at(workers: &Workers, now: Timestamp) -> Vec<Cost> {
        let random = smg_base::SplitMix::new(1);
        let ask = Ask { now, ..ask(&random) };
        let pool = workers.pool();
        let candidates = Candidates::gather(&pool, &ask, Offers::Assumed).unwrap();
        let mut costs = Costs::default();
        let estimate = Estimate::of_caches(&PolicyConfig::default());
        estimate.costs(&pool, &candidates, ask.now, |_| NOTHING_CACHED, &mut costs);
        costs.list.into_vec()
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
        workers.fleet().set_peer_load(workers.pool().workers[2].id, peers);
        let found = costs(&workers);
        near(found[2].terms.queue, 0.5);
        near(found[2].terms.decode, 0.06);
    }

    #[test]
    fn the_rates_are_the_workers_own_and_the_unmeasured_get_the_mean() {
        let workers = Workers::of(3);
        workers.state(0).rates.observe_ttft(10_000, Duration::from_secs(1));
        workers.state(1).rates.observe_ttft(2_000, Duration::from_secs(1));
        let found = costs(&workers);
        near(found[0].total, 0.8);
        near(found[1].total, 4.0);
        near(found[2].total, 8_000.0 / 6_000.0);
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
