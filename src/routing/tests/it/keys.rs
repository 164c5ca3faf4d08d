//! Keys that tie requests to workers.

use std::{sync::Barrier, time::Duration};

use smg_base::{SplitMix, WorkerId};
use smg_routing::{Ask, AssignmentMode, Explanation, Overrides, Policy, PolicyConfig, PolicyKind, Reason};

use crate::support::{ask, at, choose, fleet, id, key, place, policy, pool, text, trip, with_text};

const KEYS: u64 = 8_000;

/// The worker of each of many sessions.
fn assignment(kind: PolicyKind, workers: usize, excluded: &[WorkerId]) -> Vec<WorkerId> {
    let fleet = fleet(workers);
    let (pool, policy, random) = (pool(&fleet), policy(kind), SplitMix::new(1));
    let worker_of = |session: u64| {
        let text = key(&policy, &[text(session, 1_500)]);
        let session = Some(smg_base::hash::mix(session, 0));
        let ask = Ask { session, excluded, ..with_text(ask(&random), &text) };
        id(&pool, choose(&policy, &pool, &ask))
    };
    (0..KEYS).map(worker_of).collect()
}

#[test]
fn only_the_keys_of_a_worker_that_comes_or_goes_move() {
    for kind in [PolicyKind::ConsistentHashing, PolicyKind::PrefixHash, PolicyKind::CacheAware] {
        let (ten, eleven) = (assignment(kind, 10, &[]), assignment(kind, 11, &[]));
        let newcomer = { id(&pool(&fleet(11)), place(&pool(&fleet(11)), 10)) };
        let moved: Vec<_> = ten.iter().zip(&eleven).filter(|(before, after)| before != after).collect();
        assert!(moved.iter().all(|(_, after)| **after == newcomer), "{kind}: keys moved between workers that stayed");
        let share = moved.len() as f64 / KEYS as f64;
        assert!((share - 1.0 / 11.0).abs() < 0.015, "{kind}: {share} of the keys moved");
        assert_eq!(assignment(kind, 11, &[newcomer]), ten, "{kind}: a failed worker's keys go where they were");
    }
}

#[test]
fn gateways_that_never_spoke_agree() {
    for kind in [PolicyKind::ConsistentHashing, PolicyKind::PrefixHash, PolicyKind::CacheAware] {
        assert_eq!(assignment(kind, 7, &[]), assignment(kind, 7, &[]), "{kind}");
    }
}

#[test]
fn a_routing_key_comes_before_a_session_and_without_either_chance_decides() {
    let fleet = fleet(8);
    let (pool, policy, random) = (pool(&fleet), policy(PolicyKind::ConsistentHashing), SplitMix::new(1));
    let mut why = Explanation::default();
    let mut choose = |ask: Ask<'_>| {
        let chosen = policy.choose(&pool, &ask, &mut why).unwrap();
        (chosen, why.reason())
    };
    let keyed = choose(Ask { routing_key: Some("a"), session: Some(1), ..ask(&random) });
    assert_eq!(keyed.1, Reason::RoutingKey);
    for session in 0..50 {
        assert_eq!(choose(Ask { routing_key: Some("a"), session: Some(session), ..ask(&random) }), keyed);
        assert_eq!(choose(Ask { session: Some(session), ..ask(&random) }).1, Reason::Session);
    }
    let mut seen: Vec<_> = (0..200).map(|_| choose(ask(&random))).collect();
    assert!(seen.iter().all(|(_, reason)| *reason == Reason::Chance));
    seen.sort_by_key(|(chosen, _)| *chosen);
    seen.dedup();
    assert_eq!(seen.len(), 8);
}

#[test]
fn an_overloaded_worker_hands_its_prefixes_on() {
    let fleet = fleet(4);
    let (pool, policy, random) = (pool(&fleet), policy(PolicyKind::PrefixHash), SplitMix::new(1));
    let text = key(&policy, &[text(1, 5_000)]);
    let ask = with_text(ask(&random), &text);
    let mut why = Explanation::default();
    let first = policy.choose(&pool, &ask, &mut why).unwrap();
    assert_eq!(why.reason(), Reason::PrefixHash);
    let mut running = Vec::new();
    let mut counts = [0_u32; 4];
    for _ in 0..100 {
        let chosen = policy.choose(&pool, &ask, &mut why).unwrap();
        assert_eq!(why.reason() == Reason::PrefixHash, chosen == first);
        counts[chosen] += 1;
        running.push(pool.workers[chosen].state.begin(0, at(1)));
    }
    assert!(counts.iter().all(|count| *count <= 33), "no more than 1.25 of the mean: {counts:?}");
    assert!(counts[first] >= 30, "{counts:?}");
}

fn manual(change: impl FnOnce(&mut PolicyConfig)) -> Policy {
    let mut config = PolicyConfig::default();
    change(&mut config);
    Policy::new(PolicyKind::Manual, &config)
}

#[test]
fn a_key_keeps_its_worker_and_returns_to_it() {
    let fleet = fleet(6);
    let (pool, policy, random) = (pool(&fleet), manual(|_| {}), SplitMix::new(1));
    let mut why = Explanation::default();
    let mut at_time = |seconds: u64| {
        let ask = Ask { routing_key: Some("k"), now: at(seconds), ..ask(&random) };
        let chosen = policy.choose(&pool, &ask, &mut why).unwrap();
        (chosen, why.reason())
    };
    let (first, reason) = at_time(1);
    assert_eq!(reason, Reason::Assigned);
    assert!((0..50).all(|_| at_time(2) == (first, Reason::Sticky)));
    trip(&pool.workers[first], at(2));
    let (second, reason) = at_time(3);
    assert!(second != first && reason == Reason::Assigned);
    assert!((0..50).all(|_| at_time(4) == (second, Reason::Sticky)));
    assert_eq!(at_time(70), (first, Reason::Sticky), "its first worker is back, and so is its cache");
    trip(&pool.workers[second], at(71));
    assert_eq!(at_time(72).0, first);
}

#[test]
fn keys_are_forgotten_when_idle_and_bounded_in_number() {
    let fleet = fleet(6);
    let random = SplitMix::new(1);
    let pool = pool(&fleet);
    let policy = manual(|config| {
        config.routing_keys_max = 160;
        config.key_idle_max = Duration::from_secs(100);
    });
    let reason_at = |key: &str, seconds: u64| {
        let mut why = Explanation::default();
        let ask = Ask { routing_key: Some(key), now: at(seconds), ..ask(&random) };
        policy.choose(&pool, &ask, &mut why).unwrap();
        why.reason()
    };
    assert_eq!(reason_at("k", 1), Reason::Assigned);
    assert_eq!(reason_at("k", 100), Reason::Sticky);
    assert_eq!(reason_at("k", 201), Reason::Assigned, "idle for too long, swept or not");
    for number in 0..5_000 {
        reason_at(&number.to_string(), 202);
    }
    assert!(policy.usage().entries <= 160, "{:?}", policy.usage());
    assert!(policy.usage().bytes <= 160 * 256);
    policy.sweep(at(400));
    assert_eq!(policy.usage().entries, 0);
}

#[test]
fn new_keys_go_where_the_mode_says() {
    for (mode, expected) in [(AssignmentMode::MinLoad, 1), (AssignmentMode::MinGroup, 2)] {
        let fleet = fleet(3);
        let (pool, random) = (pool(&fleet), SplitMix::new(1));
        let policy = manual(|config| config.assignment_mode = mode);
        let begin = |number: usize, key: u64| {
            let mut guard = pool.workers[number].state.begin(0, at(1));
            guard.hold_key(key);
            guard
        };
        // Requests 3, 2, 4; keys 3, 2, 1.
        let _running = [(0, 1), (0, 2), (0, 3), (1, 4), (1, 5), (2, 6), (2, 6), (2, 6), (2, 6)]
            .map(|(place, key)| begin(place, key));
        let ask = Ask { routing_key: Some("new"), ..ask(&random) };
        assert_eq!(choose(&policy, &pool, &ask), expected, "{mode:?}");
    }
}

#[test]
fn requests_with_one_new_key_at_once_get_one_worker() {
    let fleet = fleet(16);
    let (pool, policy, random) = (pool(&fleet), manual(|_| {}), SplitMix::new(1));
    let start = Barrier::new(8);
    let together = |round: u64| {
        let ask = || {
            start.wait();
            let key = round.to_string();
            choose(&policy, &pool, &Ask { routing_key: Some(&key), ..ask(&random) })
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        })
    };
    for round in 0..50 {
        let chosen = together(round);
        assert!(chosen.iter().all(|one| *one == chosen[0]), "{chosen:?}");
    }
}

#[test]
fn gateways_that_share_keys_agree_whenever_they_first_saw_one() {
    let (old, new) = (fleet(6), fleet(7));
    let (old, new, random) = (pool(&old), pool(&new), SplitMix::new(1));
    for (kind, routing_key_override) in
        [(PolicyKind::Manual, false), (PolicyKind::RoundRobin, true), (PolicyKind::CacheAware, true)]
    {
        let config = PolicyConfig { shared_keys: true, routing_key_override, ..PolicyConfig::default() };
        let (early, late) = (Policy::new(kind, &config), Policy::new(kind, &config));
        let keys: Vec<String> = (0..2_000).map(|key| key.to_string()).collect();
        let worker_of = |policy: &Policy, pool: &smg_fleet::Pool, key: &str, excluded: &[WorkerId]| {
            let mut why = Explanation::default();
            let ask = Ask { routing_key: Some(key), excluded, ..ask(&random) };
            let chosen = policy.choose(pool, &ask, &mut why).unwrap();
            assert_eq!(why.reason(), Reason::RoutingKey, "{kind}");
            pool.workers[chosen].id
        };
        let before: Vec<_> = keys.iter().map(|key| worker_of(&early, &old, key, &[])).collect();
        let after: Vec<_> = keys.iter().map(|key| worker_of(&early, &new, key, &[])).collect();
        let fresh: Vec<_> = keys.iter().map(|key| worker_of(&late, &new, key, &[])).collect();
        assert_eq!(after, fresh, "{kind}: one that knew fewer workers agrees with one that never did");
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert!((200..=380).contains(&moved), "{kind}: {moved} of 2000 keys moved to the seventh worker");
        let gone = after[0];
        assert_ne!(worker_of(&early, &new, &keys[0], &[gone]), gone);
        assert_eq!(worker_of(&early, &new, &keys[0], &[]), gone, "it goes back");
        assert_eq!(early.usage().entries, 0, "{kind}: nothing is remembered");
    }
}

#[test]
fn an_operator_can_give_a_key_its_worker_under_every_policy() {
    let fleet = fleet(8);
    let (pool, random) = (pool(&fleet), SplitMix::new(1));
    for kind in PolicyKind::ALL {
        let policy = policy(kind);
        policy.set_overrides(Overrides::from_iter([("vip", id(&pool, 5)), ("lost", WorkerId::of("gone", None))]));
        let mut why = Explanation::default();
        let mut choose = |ask: Ask<'_>| (policy.choose(&pool, &ask, &mut why).unwrap(), why.reason());
        let vip = Ask { routing_key: Some("vip"), ..ask(&random) };
        assert!((0..40).all(|_| choose(vip) == (5, Reason::Override)), "{kind}");
        assert_ne!(choose(Ask { excluded: &[id(&pool, 5)], ..vip }).0, 5, "{kind}: it cannot be used");
        for other in [Ask { routing_key: Some("lost"), ..vip }, Ask { routing_key: None, ..vip }] {
            assert_ne!(choose(other).1, Reason::Override, "{kind}");
        }
        assert_eq!(choose(Ask { target: Some("2"), ..vip }), (2, Reason::Target), "{kind}: the caller named another");
        policy.set_overrides(Overrides::default());
        assert_ne!(choose(vip).1, Reason::Override, "{kind}");
    }
}

#[test]
fn routing_keys_can_stick_under_every_policy() {
    let fleet = fleet(8);
    let (pool, random) = (pool(&fleet), SplitMix::new(1));
    let config = PolicyConfig { routing_key_override: true, ..PolicyConfig::default() };
    for kind in PolicyKind::ALL {
        let policy = Policy::new(kind, &config);
        let mut why = Explanation::default();
        let keyed = Ask { routing_key: Some("k"), ..ask(&random) };
        let first = policy.choose(&pool, &keyed, &mut why).unwrap();
        let expected = if kind == PolicyKind::ConsistentHashing { Reason::RoutingKey } else { Reason::Sticky };
        for _ in 0..40 {
            assert_eq!(policy.choose(&pool, &keyed, &mut why), Ok(first), "{kind}");
            assert_eq!(why.reason(), expected, "{kind}");
        }
        if kind != PolicyKind::Manual {
            policy.choose(&pool, &Ask { session: Some(3), ..ask(&random) }, &mut why).unwrap();
            assert_ne!(why.reason(), Reason::Sticky, "{kind}: without a key, the policy decides");
        }
    }
}
