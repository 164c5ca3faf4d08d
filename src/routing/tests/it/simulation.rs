//! Policies against engines with caches and queues, in virtual time.
//!
//! An engine prefills one prompt after the other, at a fixed rate, what its cache lacks of it, and its cache keeps the blocks used
//! last. Decoding takes a fixed time and costs nothing else. It is a test of the policies' sense, not a benchmark.

use std::{collections::BTreeMap, time::Duration};

use smg_base::{Random, SplitMix, Timestamp};
use smg_fleet::{LoadGuard, Pool};
use smg_prefix::PromptKey;
use smg_routing::{Explanation, Policy, PolicyConfig, PolicyKind, Seen};

use crate::support::{ask, fleet_with, key, pool, text, with_text};

const ENGINES: usize = 8;
const TOKENS_PER_SECOND: u64 = 8_000;
const CACHE_BLOCKS: usize = 1_500;
/// The simulation's engines keep blocks as large as the policy's chunks.
const BLOCK_TOKENS: u64 = 128;
const DECODE: Duration = Duration::from_secs(6);

#[derive(Default)]
struct Engine {
    cache: Vec<u64>,
    free_at: Timestamp,
}

/// A request at an engine.
struct Running {
    guard: LoadGuard,
    place: usize,
    sent: Timestamp,
    tokens: u64,
}

#[derive(Debug)]
struct Outcome {
    ttft_mean: f64,
    ttft_p99: f64,
    hit_share: f64,
}

/// A prompt as the policy sees it, and as engines do.
struct Prompt {
    asked: PromptKey,
    blocks: PromptKey,
}

/// Conversations behind a few system prompts: each turn waits for a while and carries all before it.
fn requests(policy: &Policy, random: &SplitMix) -> Vec<(Timestamp, Prompt)> {
    let engines = Policy::new(PolicyKind::CacheAware, &PolicyConfig::default());
    let millis = |bound: u64| Duration::from_millis(random.below(bound));
    let mut requests = Vec::new();
    for conversation in 0..260_u64 {
        let mut texts = vec![text(conversation % 6 + 5_000, 12_000)];
        let mut when = Timestamp::ORIGIN + Duration::from_secs(1) + millis(240_000);
        for turn in 0..3 + random.below(6) {
            let length = usize::try_from(2_000 + random.below(14_000)).unwrap();
            texts.push(text(1_000_000 + conversation * 100 + turn, length));
            requests.push((when, Prompt { asked: key(policy, &texts), blocks: key(&engines, &texts) }));
            when = when + Duration::from_secs(12) + millis(30_000);
        }
    }
    requests.sort_by_key(|(when, _)| *when);
    requests
}

impl Engine {
    /// Serves a prompt; says when its first token comes and how many tokens were cached.
    fn prefill(&mut self, prompt: &PromptKey, tokens: u64, now: Timestamp) -> (Timestamp, u64) {
        let hit = prompt.chunks.iter().take_while(|block| self.cache.contains(block)).count();
        self.cache.retain(|block| !prompt.chunks.contains(block));
        self.cache.splice(0..0, prompt.chunks.iter().copied());
        self.cache.truncate(CACHE_BLOCKS);
        let cached = hit as u64 * BLOCK_TOKENS;
        let work = Duration::from_nanos((tokens - cached) * 1_000_000_000 / TOKENS_PER_SECOND);
        self.free_at = self.free_at.max(now) + work;
        (self.free_at, cached)
    }
}

fn simulate(kind: PolicyKind) -> Outcome {
    let tokens = CACHE_BLOCKS as u64 * BLOCK_TOKENS;
    let fleet = fleet_with(ENGINES, |_, spec| spec.kv_capacity_tokens = Some(tokens));
    let (pool, policy, random) = (pool(&fleet), Policy::new(kind, &PolicyConfig::default()), SplitMix::new(77));
    let mut engines: Vec<Engine> = (0..ENGINES).map(|_| Engine::default()).collect();
    let mut events: BTreeMap<(Timestamp, u64), Running> = BTreeMap::new();
    let (mut ttfts, mut cached_sum, mut tokens_sum) = (Vec::new(), 0, 0);
    for (number, (now, prompt)) in (0_u64..).zip(requests(&policy, &random)) {
        settle(&mut events, now, &pool);
        let ask = smg_routing::Ask { now, ..with_text(ask(&random), &prompt.asked) };
        let mut why = Explanation::default();
        let place = policy.choose(&pool, &ask, &mut why).unwrap();
        let worker = &pool.workers[place];
        let guard = worker.state.begin(why.uncached_tokens(), now);
        policy.dispatched(worker, &ask);
        let (first_token, cached) = engines[place].prefill(&prompt.blocks, ask.input_tokens, now);
        policy.observed(
            worker,
            &Seen {
                predicted_tokens: why.predicted_tokens(),
                input_tokens: Some(ask.input_tokens),
                cached_tokens: Some(cached),
                text_bytes: prompt.asked.bytes,
                ..Seen::default()
            },
        );
        ttfts.push(first_token.since(now).as_secs_f64());
        cached_sum += cached;
        tokens_sum += ask.input_tokens;
        events.insert((first_token, number), Running { guard, place, sent: now, tokens: why.uncached_tokens() });
    }
    ttfts.sort_by(f64::total_cmp);
    Outcome {
        ttft_mean: ttfts.iter().sum::<f64>() / ttfts.len() as f64,
        ttft_p99: ttfts[ttfts.len() * 99 / 100],
        hit_share: cached_sum as f64 / tokens_sum as f64,
    }
}

/// First tokens and ends up to `now`.
fn settle(events: &mut BTreeMap<(Timestamp, u64), Running>, now: Timestamp, pool: &Pool) {
    while let Some(entry) = events.first_entry().filter(|entry| entry.key().0 <= now) {
        let ((when, number), mut running) = entry.remove_entry();
        if number & DECODING == 0 {
            running.guard.first_token(when);
            let rates = &pool.workers[running.place].state.rates;
            rates.observe_ttft(running.tokens, running.guard.tokens_ahead(), when.since(running.sent));
            events.insert((when + DECODE, number | DECODING), running);
        }
    }
}

/// Marks the number of a request whose first token came.
const DECODING: u64 = 1 << 63;

#[test]
fn knowing_the_caches_pays() {
    let aware = simulate(PolicyKind::CacheAware);
    let turns = simulate(PolicyKind::RoundRobin);
    let load = simulate(PolicyKind::LeastLoad);
    let prefix = simulate(PolicyKind::PrefixHash);
    println!("cache_aware {aware:?}\nround_robin {turns:?}\nleast_load {load:?}\nprefix_hash {prefix:?}");
    assert!(aware.hit_share > 1.5 * turns.hit_share, "{aware:?} {turns:?}");
    for other in [&turns, &load, &prefix] {
        assert!(aware.ttft_mean < 0.8 * other.ttft_mean, "{aware:?} {other:?}");
        assert!(aware.ttft_p99 < other.ttft_p99, "{aware:?} {other:?}");
    }
}
