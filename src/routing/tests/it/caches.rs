//! `cache_aware`: requests follow caches, until queues make that a bad bargain.

use std::collections::VecDeque;

use smg_base::SplitMix;
use smg_fleet::{LoadGuard, Pool};
use smg_routing::{Ask, Explanation, Policy, PolicyConfig, PolicyKind, Reason, Seen};

use crate::support::{ask, at, choose, fleet, fleet_with, id, key, policy, pool, text, with_text};

fn cache_aware() -> Policy {
    policy(PolicyKind::CacheAware)
}

/// Chooses for a prompt made of `texts`, and sends it there.
fn send(policy: &Policy, pool: &Pool, texts: &[Vec<u8>], why: &mut Explanation) -> (usize, LoadGuard) {
    let random = SplitMix::new(1);
    let text = key(policy, texts);
    let ask = with_text(ask(&random), &text);
    let chosen = policy.choose(pool, &ask, why).unwrap();
    let guard = pool.workers[chosen].state.begin(why.uncached_tokens(), at(1));
    policy.dispatched(&pool.workers[chosen], &ask);
    (chosen, guard)
}

/// Sends it, and it is done at once.
fn serve(policy: &Policy, pool: &Pool, texts: &[Vec<u8>], why: &mut Explanation) -> usize {
    send(policy, pool, texts, why).0
}

#[test]
fn a_conversation_stays_where_its_prefix_is() {
    let fleet = fleet(8);
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut why = Explanation::default();
    for conversation in 0..40 {
        let mut texts = vec![text(999, 24_000), text(conversation, 4_000)];
        let first = serve(&policy, &pool, &texts, &mut why);
        for turn in 1..10 {
            texts.push(text(1_000 * turn + conversation, 3_000));
            assert_eq!(serve(&policy, &pool, &texts, &mut why), first, "conversation {conversation} turn {turn}");
            assert_eq!(why.reason(), Reason::CacheHit);
            let all: usize = texts.iter().map(Vec::len).sum();
            let known = (all - 3_000) as u64 / 4;
            assert!(why.predicted_tokens() <= known && why.predicted_tokens() + 128 > known, "{why:?}");
            assert_eq!(why.uncached_tokens(), all as u64 / 4 - why.predicted_tokens());
        }
    }
}

/// How many of many conversations behind one system prompt each worker gets, while `running` requests run.
fn spread(system_bytes: usize, running_max: usize) -> [usize; 8] {
    let fleet = fleet(8);
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut counts = [0_usize; 8];
    let mut running = VecDeque::new();
    for conversation in 0..1_600 {
        let texts = [text(999, system_bytes), text(conversation, 2_000)];
        let (chosen, mut guard) = send(&policy, &pool, &texts, &mut Explanation::default());
        guard.first_token(at(1));
        running.push_back(guard);
        if running.len() > running_max {
            running.pop_front();
        }
        counts[chosen] += 1;
    }
    counts
}

#[test]
fn conversations_behind_one_system_prompt_spread() {
    let idle = spread(2_048, 0);
    assert!(idle.iter().all(|count| (150..250).contains(count)), "a short one is soon prefilled anywhere: {idle:?}");
    let idle = spread(32_768, 0);
    assert!(idle.contains(&1_600), "a long one is worth to go where it is, as long as that is idle: {idle:?}");
    let busy = spread(32_768, 800);
    assert!(busy.iter().all(|count| (100..400).contains(count)), "but not when that is busy: {busy:?}");
}

#[test]
fn a_cache_is_worth_a_queue_up_to_what_it_saves() {
    let fleet = fleet(4);
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut why = Explanation::default();
    // 8 000 tokens: one second at the rate taken for workers that were not measured.
    let prompt = [text(1, 32_000)];
    let holder = serve(&policy, &pool, &prompt, &mut why);
    let with_queue = |tokens: u64, why: &mut Explanation| {
        let _queue = pool.workers[holder].state.begin(tokens, at(1));
        choose_again(&policy, &pool, &prompt, why)
    };
    assert_eq!(with_queue(0, &mut why), holder);
    assert_eq!(with_queue(7_000, &mut why), holder);
    // To start anew would cost others half as much again.
    assert_eq!(with_queue(11_000, &mut why), holder);
    assert_ne!(with_queue(14_000, &mut why), holder, "to wait would cost more than to start anew");
    assert_eq!(why.reason(), Reason::CachePlaced);
    assert!(why.workers().iter().any(|worker| worker.worker == id(&pool, holder) && worker.matched_tokens > 7_000));
}

fn choose_again(policy: &Policy, pool: &Pool, texts: &[Vec<u8>], why: &mut Explanation) -> usize {
    let random = SplitMix::new(1);
    let text = key(policy, texts);
    policy.choose(pool, &with_text(ask(&random), &text), why).unwrap()
}

/// Sixteen gateways, each with an index of its own, get the same prompt at the same time, and all see the loads.
#[test]
fn identical_prompts_at_once_do_not_pile_up() {
    let fleet = fleet(8);
    let pool = pool(&fleet);
    let gateways: Vec<Policy> = (0..16).map(|_| cache_aware()).collect();
    let mut running = Vec::new();
    let mut why = Explanation::default();
    let mut prefilled = 0;
    for request in 0..480 {
        let (_, guard) = send(&gateways[request % 16], &pool, &[text(7, 32_000)], &mut why);
        prefilled += why.uncached_tokens();
        running.push(guard);
    }
    let loads: Vec<u32> = pool.workers.iter().map(|worker| worker.state.load.in_flight()).collect();
    assert!(loads.iter().all(|load| (30..=90).contains(load)), "60 each would be even: {loads:?}");
    assert!(prefilled <= 8_000 * 8 * 16, "no gateway needs a worker to learn the prompt twice: {prefilled}");
}

/// One gateway: the same, with nothing finishing.
#[test]
fn a_hot_prefix_gets_more_workers_only_as_it_needs_them() {
    let fleet = fleet(8);
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut running = Vec::new();
    let mut used = Vec::new();
    for _ in 0..100 {
        let (chosen, guard) = send(&policy, &pool, &[text(7, 32_000)], &mut Explanation::default());
        running.push(guard);
        if !used.contains(&chosen) {
            used.push(chosen);
        }
    }
    assert!((4..=8).contains(&used.len()), "five requests more than the others have cost as much as the band");
}

#[test]
fn prompts_that_nothing_ties_together_go_to_the_less_loaded() {
    let fleet = fleet(4);
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut running = Vec::new();
    let mut why = Explanation::default();
    for request in 0..400 {
        let (_, guard) = send(&policy, &pool, &[text(request, 200)], &mut why);
        assert_eq!(why.reason(), Reason::CacheUnkeyed);
        running.push(guard);
    }
    let loads: Vec<u32> = pool.workers.iter().map(|worker| worker.state.load.in_flight()).collect();
    assert!(loads.iter().all(|load| load.abs_diff(100) <= 12), "{loads:?}");
}

#[test]
fn a_session_decides_among_equals_but_not_against_a_queue() {
    let fleet = fleet(8);
    let (pool, policy, random) = (pool(&fleet), cache_aware(), SplitMix::new(1));
    let chosen_for = |session: u64| choose(&policy, &pool, &Ask { session: Some(session), ..ask(&random) });
    let first = chosen_for(1);
    assert!((0..20).all(|_| chosen_for(1) == first));
    assert!((0..100).map(chosen_for).any(|other| other != first));
    let _queue = pool.workers[first].state.begin(4_000, at(1));
    assert_ne!(chosen_for(1), first);
}

#[test]
fn what_engines_report_teaches_how_far_to_trust_the_prediction() {
    let fleet = fleet(2);
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut why = Explanation::default();
    let prompt = [text(1, 32_000)];
    let holder = serve(&policy, &pool, &prompt, &mut why);
    let prefill = |why: &Explanation| {
        let worker = why.workers().iter().find(|worker| worker.worker == id(&pool, holder)).unwrap();
        worker.seconds.unwrap().prefill
    };
    choose_again(&policy, &pool, &prompt, &mut why);
    assert!(prefill(&why) < 0.02, "{}", prefill(&why));
    let seen = |cached_tokens| Seen {
        predicted_tokens: 7_936,
        input_tokens: Some(8_000),
        cached_tokens,
        text_bytes: 32_000,
        ..Seen::default()
    };
    for _ in 0..60 {
        policy.observed(&pool.workers[holder], &seen(None));
        policy.observed(&pool.workers[holder], &Seen { predicted_tokens: 10, ..seen(Some(0)) });
    }
    choose_again(&policy, &pool, &prompt, &mut why);
    assert!(prefill(&why) < 0.02, "engines that say nothing, and small predictions, teach nothing");
    for _ in 0..60 {
        policy.observed(&pool.workers[holder], &seen(Some(0)));
    }
    choose_again(&policy, &pool, &prompt, &mut why);
    assert!(prefill(&why) > 0.9, "its cache has not held what was predicted: {}", prefill(&why));
}

#[test]
fn a_forgotten_worker_is_taken_to_hold_nothing() {
    let fleet = fleet(4);
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut why = Explanation::default();
    let holder = serve(&policy, &pool, &[text(1, 32_000)], &mut why);
    assert!(policy.usage().entries >= 62 && policy.usage().bytes > 500);
    policy.forget(id(&pool, holder));
    choose_again(&policy, &pool, &[text(1, 32_000)], &mut why);
    assert!(why.workers().iter().all(|worker| worker.matched_tokens == 0));
    policy.sweep(at(5));
    assert_eq!(policy.usage().entries, 0);
}

#[test]
fn a_worker_is_taken_to_hold_no_more_than_its_cache() {
    let fleet = fleet_with(1, |_, spec| spec.kv_capacity_tokens = Some(20_000));
    let (pool, policy) = (pool(&fleet), cache_aware());
    let mut why = Explanation::default();
    let mut predicted = |name: u64| {
        choose_again(&policy, &pool, &[text(name, 32_000)], &mut why);
        why.predicted_tokens()
    };
    for name in 0..4 {
        serve(&policy, &pool, &[text(name, 32_000)], &mut Explanation::default());
    }
    assert!(policy.usage().entries <= 20_000 * 4 / 512);
    assert_eq!(predicted(0), 0, "the oldest is gone");
    assert!(predicted(3) > 7_800 && predicted(2) > 7_800);
    assert!((3_000..5_000).contains(&predicted(1)), "of the one between, the beginning is left");
}

#[test]
fn tokens_are_counted_by_the_models_own_measure() {
    let fleet = fleet(1);
    let (pool, policy) = (pool(&fleet), Policy::new(PolicyKind::Random, &PolicyConfig::default()));
    assert_eq!(policy.tokens_of(4_001), 1_001);
    for _ in 0..500 {
        let seen = Seen { input_tokens: Some(1_000), text_bytes: 2_000, ..Seen::default() };
        policy.observed(&pool.workers[0], &seen);
    }
    assert!((1_990..2_010).contains(&policy.tokens_of(4_000)), "{}", policy.tokens_of(4_000));
}
