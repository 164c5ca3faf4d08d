//! `cache_aware` where it is told what caches hold.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use smg_base::{Random, SplitMix, WorkerId};
use smg_fleet::Pool;
use smg_prefix::{CHUNK_TOKENS, Change, Claim, PromptKey, Source, Space, TOKEN_BYTES};
use smg_routing::{Ask, Explanation, Policy, PolicyKind, Reason, Seen};

use crate::support::{ask, at, fleet, id, policy, pool};

/// A prompt of whole chunks: `chunks` of them, named by what is said in each.
fn prompt(said: &[u64]) -> PromptKey {
    let mut chunker = policy(PolicyKind::CacheAware).chunker(Space::Tokens, 7);
    for &said in said {
        let said = u32::try_from(said).unwrap();
        chunker.push_tokens(&[said; CHUNK_TOKENS]);
    }
    chunker.finish()
}

fn asked<'a>(prompt: &'a PromptKey, seconds: u64, random: &'a dyn Random) -> Ask<'a> {
    let input_tokens = (prompt.bytes / TOKEN_BYTES) as u64;
    Ask { prompt: Some(prompt), input_tokens, now: at(seconds), ..ask(random) }
}

fn told(pool: &Pool, source: Source) -> Policy {
    let policy = policy(PolicyKind::CacheAware);
    for worker in &pool.workers {
        policy.set_source(worker.id, Space::Tokens, source);
    }
    policy
}

fn held(prompt: &PromptKey) -> Change {
    Change::Held { after: None, chunks: prompt.chunks.clone() }
}

/// Chunks that each worker is credited with.
fn credited(policy: &Policy, pool: &Pool, prompt: &PromptKey, seconds: u64) -> BTreeMap<WorkerId, u64> {
    let (random, mut why) = (SplitMix::new(1), Explanation::default());
    policy.choose(pool, &asked(prompt, seconds, &random), &mut why).unwrap();
    why.workers().iter().map(|worker| (worker.worker, u64::from(worker.matched_tokens) / CHUNK_TOKENS as u64)).collect()
}

fn dispatch(policy: &Policy, pool: &Pool, place: usize, prompt: &PromptKey, seconds: u64) {
    let random = SplitMix::new(1);
    policy.dispatched(&pool.workers[place], &asked(prompt, seconds, &random));
}

fn claims(policy: &Policy) -> Vec<Claim> {
    let mut claims = Vec::new();
    policy.take_claims(&mut |_, space, claim| {
        assert_eq!(space, Space::Tokens);
        claims.push(claim);
    });
    claims
}

#[test]
fn a_worker_that_is_told_of_is_not_predicted_but_for_what_was_just_sent_there() {
    let fleet = fleet(3);
    let pool = pool(&fleet);
    for source in [Source::Fed, Source::FedAndClaimed] {
        let policy = told(&pool, source);
        let prompt = prompt(&[1, 2, 3, 4]);
        dispatch(&policy, &pool, 1, &prompt, 100);
        assert_eq!(policy.chunks_held(id(&pool, 1), Space::Tokens), 0);
        assert_eq!(credited(&policy, &pool, &prompt, 101)[&id(&pool, 1)], 4);
        assert_eq!(credited(&policy, &pool, &prompt, 120)[&id(&pool, 1)], 0);
        assert_eq!(policy.apply(id(&pool, 1), Space::Tokens, &held(&prompt)), 0);
        assert_eq!(credited(&policy, &pool, &prompt, 120)[&id(&pool, 1)], 4);
        assert_eq!(policy.apply(id(&pool, 1), Space::Tokens, &Change::Cleared), 0);
        assert_eq!(credited(&policy, &pool, &prompt, 120)[&id(&pool, 1)], 0);
        policy.sweep(at(200));
        assert_eq!(policy.usage().entries, 0);
    }
}

#[test]
fn a_change_of_source_forgets_and_the_same_source_does_not() {
    let fleet = fleet(2);
    let (pool, prompt) = (pool(&fleet), prompt(&[1, 2, 3]));
    let policy = policy(PolicyKind::CacheAware);
    let worker = id(&pool, 0);
    let count = || policy.chunks_held(worker, Space::Tokens);
    assert_eq!(policy.apply(worker, Space::Tokens, &held(&prompt)), 3, "nobody is to tell of it");
    dispatch(&policy, &pool, 0, &prompt, 1);
    assert_eq!(count(), 3);
    policy.set_source(worker, Space::Tokens, Source::Own);
    assert_eq!(count(), 3);
    policy.set_source(worker, Space::Tokens, Source::Fed);
    assert_eq!((count(), policy.digest(worker, Space::Tokens)), (0, 0));
    policy.apply(worker, Space::Tokens, &held(&prompt));
    policy.set_source(worker, Space::Tokens, Source::Fed);
    assert_eq!(count(), 3);
    dispatch(&policy, &pool, 0, &prompt, 1);
    policy.set_source(worker, Space::Tokens, Source::Own);
    assert_eq!(credited(&policy, &pool, &prompt, 1)[&worker], 0);
    policy.set_source(worker, Space::Tokens, Source::Fed);
    policy.apply(worker, Space::Tokens, &held(&prompt));
    policy.forget(worker);
    dispatch(&policy, &pool, 0, &prompt, 1);
    assert_eq!((count(), claims(&policy)), (3, vec![]), "who comes back is predicted again");
}

#[test]
fn what_is_sent_is_claimed_once_and_repeated_now_and_then() {
    let fleet = fleet(2);
    let (pool, short, long) = (pool(&fleet), prompt(&[1, 2, 3]), prompt(&[1, 2, 3, 4, 5]));
    let policy = told(&pool, Source::FedAndClaimed);
    let claim = |after: Option<usize>, chunks: std::ops::Range<usize>| Claim {
        after: after.map(|after| long.chunks[after]),
        chunks: long.chunks[chunks].to_vec(),
    };
    dispatch(&policy, &pool, 0, &short, 100);
    dispatch(&policy, &pool, 0, &short, 101);
    dispatch(&policy, &pool, 0, &long, 102);
    dispatch(&policy, &pool, 0, &short, 103);
    assert_eq!(claims(&policy), [claim(None, 0..3), claim(Some(2), 3..5)]);
    dispatch(&policy, &pool, 1, &short, 103);
    assert_eq!(claims(&policy), [claim(None, 0..3)], "another worker");
    dispatch(&policy, &pool, 0, &short, 106);
    dispatch(&policy, &pool, 0, &short, 107);
    assert_eq!(claims(&policy), [claim(Some(2), 3..3)], "used anew");
    dispatch(&policy, &pool, 0, &short, 150);
    assert_eq!(claims(&policy), [claim(None, 0..3)], "whoever predicts has not taken it up");
    policy.apply(id(&pool, 0), Space::Tokens, &held(&short));
    dispatch(&policy, &pool, 0, &long, 200);
    assert_eq!(claims(&policy), [claim(Some(2), 3..5)]);
    assert_eq!(policy.claims_dropped(), 0);
    let fed = told(&pool, Source::Fed);
    dispatch(&fed, &pool, 0, &long, 1);
    assert_eq!(claims(&fed), [], "its engine tells");
}

#[test]
fn claims_that_nobody_takes_are_dropped_and_counted() {
    let fleet = fleet(1);
    let pool = pool(&fleet);
    let policy = told(&pool, Source::FedAndClaimed);
    for name in 0..9_000 {
        dispatch(&policy, &pool, 0, &prompt(&[name]), 1);
    }
    let kept = claims(&policy).len() as u64;
    assert!((1..9_000).contains(&kept) && kept + policy.claims_dropped() == 9_000);
}

#[test]
fn what_engines_report_needs_no_trust_and_what_is_predicted_does() {
    let fleet = fleet(1);
    let (pool, prompt) = (pool(&fleet), prompt(&[1, 2, 3, 4]));
    for (source, expected) in [(Source::Fed, 1.0), (Source::FedAndClaimed, 0.05)] {
        let policy = told(&pool, source);
        policy.apply(id(&pool, 0), Space::Tokens, &held(&prompt));
        let seen = Seen {
            predicted_tokens: 512,
            input_tokens: Some(512),
            cached_tokens: Some(0),
            space: Space::Tokens,
            ..Seen::default()
        };
        (0..60).for_each(|_| policy.observed(&pool.workers[0], &seen));
        assert!((policy.trust(id(&pool, 0), Space::Tokens) - expected).abs() < 0.01, "{source:?}");
        assert_eq!(policy.trust(id(&pool, 0), Space::Text), 1.0);
    }
}

#[test]
fn gateways_that_were_told_the_same_choose_alike() {
    let fleet = fleet(16);
    let pool = pool(&fleet);
    let gateways = [told(&pool, Source::Fed), told(&pool, Source::Fed)];
    let random = SplitMix::new(3);
    for conversation in 0..60 {
        let prompt = prompt(&[0, 1, 100 + conversation, 200, 300]);
        let place = usize::try_from(random.below(16)).unwrap();
        // The two hear of different workers in a different order.
        gateways[0].apply(id(&pool, place), Space::Tokens, &held(&prompt));
        gateways[1].apply(id(&pool, (place + 3) % 16), Space::Tokens, &held(&prompt));
        gateways[0].apply(id(&pool, (place + 3) % 16), Space::Tokens, &held(&prompt));
        gateways[1].apply(id(&pool, place), Space::Tokens, &held(&prompt));
    }
    for worker in &pool.workers {
        let [one, other] = gateways.each_ref().map(|gateway| gateway.digest(worker.id, Space::Tokens));
        assert_eq!(one, other);
    }
    let mut hits = 0;
    for conversation in 0..120 {
        let next = prompt(&[0, 1, 100 + conversation, 200, 300, 400]);
        let choices = gateways.each_ref().map(|gateway| {
            let mut why = Explanation::default();
            let ask = asked(&next, 1, &random);
            (gateway.choose(&pool, &ask, &mut why), why.reason())
        });
        assert_eq!(choices[0], choices[1], "conversation {conversation}");
        hits += usize::from(choices[0].1 == Reason::CacheHit);
    }
    assert!(hits >= 60, "{hits}");
}

#[test]
fn a_session_never_outweighs_a_cache_that_saves_more_than_the_band() {
    let fleet = fleet(8);
    let pool = pool(&fleet);
    let policy = told(&pool, Source::Fed);
    // 2 560 tokens: 0.32 s at the rate taken for workers that were not measured.
    let prompt = prompt(&(0..20).collect::<Vec<_>>());
    policy.apply(id(&pool, 5), Space::Tokens, &held(&prompt));
    let random = SplitMix::new(1);
    for session in 0..200 {
        let key = session.to_string();
        let ask = asked(&prompt, 1, &random);
        for ask in [Ask { session: Some(session), ..ask }, Ask { routing_key: Some(&key), ..ask }] {
            assert_eq!(policy.choose(&pool, &ask, &mut Explanation::default()), Ok(5));
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Held(usize, Vec<u64>),
    Dropped(usize, Vec<u64>),
    Cleared(usize),
    Dispatched(usize, Vec<u64>),
    Later(u64),
    Asked(Vec<u64>),
}

const WORKERS: usize = 3;

fn step() -> impl Strategy<Value = Step> {
    let said = || prop::collection::vec(0..3_u64, 1..6);
    prop_oneof![
        (0..WORKERS, said()).prop_map(|(worker, said)| Step::Held(worker, said)),
        (0..WORKERS, said()).prop_map(|(worker, said)| Step::Dropped(worker, said)),
        (0..WORKERS).prop_map(Step::Cleared),
        (0..WORKERS, said()).prop_map(|(worker, said)| Step::Dispatched(worker, said)),
        (1..8_u64).prop_map(Step::Later),
        said().prop_map(Step::Asked),
        said().prop_map(Step::Asked),
    ]
}

/// What a worker holds, chunk by chunk, and when each was last sent there.
#[derive(Default)]
struct Oracle {
    held: BTreeSet<u64>,
    sent: BTreeMap<u64, u64>,
}

impl Oracle {
    /// The least and the most a worker may be credited with: what is told is always, and what was sent is for five seconds at
    /// least and ten at most.
    fn bounds(&self, chunks: &[u64], now: u64) -> (u64, u64) {
        let depth = |has: &dyn Fn(&u64) -> bool| chunks.iter().take_while(|chunk| has(chunk)).count() as u64;
        let told = depth(&|chunk| self.held.contains(chunk));
        let sent_within = |seconds: u64| depth(&|chunk| self.sent.get(chunk).is_some_and(|at| now - at < seconds));
        (told.max(sent_within(5)), told.max(sent_within(10)))
    }

    /// A chunk, and whatever follows it, goes.
    fn drop_from(&mut self, chunks: &[u64], all: &BTreeMap<u64, Option<u64>>) -> Vec<u64> {
        let Some(first) = chunks.iter().find(|chunk| self.held.contains(chunk)).copied() else { return Vec::new() };
        let follows = |mut chunk: u64| loop {
            match all[&chunk] {
                _ if chunk == first => return true,
                Some(before) => chunk = before,
                None => return false,
            }
        };
        let mut gone: Vec<u64> = self.held.iter().copied().filter(|chunk| follows(*chunk)).collect();
        let depth = |mut chunk: u64| {
            let mut depth = 0;
            while let Some(before) = all[&chunk] {
                (chunk, depth) = (before, depth + 1);
            }
            depth
        };
        gone.sort_by_key(|chunk| std::cmp::Reverse(depth(*chunk)));
        self.held.retain(|chunk| !gone.contains(chunk));
        gone
    }
}

fn check(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let fleet = fleet(WORKERS);
    let pool = pool(&fleet);
    let policy = told(&pool, Source::FedAndClaimed);
    let mut oracles: [Oracle; WORKERS] = Default::default();
    let mut all = BTreeMap::new();
    let mut now = 100;
    for step in steps {
        match step {
            Step::Held(worker, said) => {
                let prompt = prompt(&said);
                let (mut before, mut new) = (None, Vec::new());
                let mut after = None;
                for &chunk in &prompt.chunks {
                    all.insert(chunk, before);
                    before = Some(chunk);
                    if oracles[worker].held.insert(chunk) {
                        new.push(chunk);
                    } else {
                        after = Some(chunk);
                    }
                }
                if !new.is_empty() {
                    let change = Change::Held { after, chunks: new };
                    prop_assert_eq!(policy.apply(id(&pool, worker), Space::Tokens, &change), 0);
                }
            }
            Step::Dropped(worker, said) => {
                let chunks = oracles[worker].drop_from(&prompt(&said).chunks, &all);
                if !chunks.is_empty() {
                    policy.apply(id(&pool, worker), Space::Tokens, &Change::Dropped { chunks });
                }
            }
            Step::Cleared(worker) => {
                oracles[worker].held.clear();
                policy.apply(id(&pool, worker), Space::Tokens, &Change::Cleared);
            }
            Step::Dispatched(worker, said) => {
                let prompt = prompt(&said);
                dispatch(&policy, &pool, worker, &prompt, now);
                oracles[worker].sent.extend(prompt.chunks.iter().map(|chunk| (*chunk, now)));
            }
            Step::Later(seconds) => now += seconds,
            Step::Asked(said) => {
                let prompt = prompt(&said);
                let credited = credited(&policy, &pool, &prompt, now);
                for (place, oracle) in oracles.iter().enumerate() {
                    let (least, most) = oracle.bounds(&prompt.chunks, now);
                    let credited = credited[&id(&pool, place)];
                    prop_assert!((least..=most).contains(&credited), "{credited} of {least}..={most}");
                    prop_assert_eq!(policy.chunks_held(id(&pool, place), Space::Tokens), oracle.held.len() as u64);
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_credited_that_is_not_told_or_was_not_just_sent(steps in prop::collection::vec(step(), 1..60)) {
        check(steps)?;
    }
}
