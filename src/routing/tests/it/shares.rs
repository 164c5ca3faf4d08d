//! Traffic is shared by weight and cost, and higher priorities come first.

use smg_base::SplitMix;
use smg_fleet::Pool;
use smg_routing::{Ask, Explanation, Policy, PolicyConfig, PolicyKind, Reason};

use crate::support::{ask, at, fleet, fleet_with, key, place, policy, pool, text, trip, with_text};

const CHOICES: usize = 12_000;
/// Shares 1 : 2 : 5 : 2, the last as a weight of 1 at half the cost.
const SHARES: [f64; 4] = [1.0, 2.0, 5.0, 2.0];

/// How many of many choices fell on each worker, by number. Each request differs in text and session.
fn counts(policy: &Policy, pool: &Pool, workers: usize) -> Vec<usize> {
    let random = SplitMix::new(21);
    let mut counts = vec![0; workers];
    for request in 0..CHOICES as u64 {
        let text = key(policy, &[text(request, 2_000)]);
        let ask = Ask { session: Some(smg_base::hash::mix(request, 1)), ..with_text(ask(&random), &text) };
        let chosen = policy.choose(pool, &ask, &mut Explanation::default()).unwrap();
        counts[(0..workers).find(|number| place(pool, *number) == chosen).unwrap()] += 1;
    }
    counts
}

fn check(kind: PolicyKind, expected: &[f64]) {
    let fleet = fleet_with(expected.len(), |number, spec| {
        (spec.weight, spec.cost) = if number == 3 { (1.0, 0.5) } else { (SHARES[number], 1.0) };
    });
    let counts = counts(&policy(kind), &pool(&fleet), expected.len());
    for (count, expected) in counts.iter().zip(expected) {
        let share = *count as f64 / CHOICES as f64;
        assert!((share - expected).abs() < 0.02, "{kind}: {counts:?} where {expected} is expected");
    }
}

#[test]
fn workers_get_their_shares() {
    let shares = SHARES.map(|share| share / 10.0);
    for kind in [
        PolicyKind::Random,
        PolicyKind::RoundRobin,
        PolicyKind::ConsistentHashing,
        PolicyKind::PrefixHash,
        PolicyKind::Manual,
    ] {
        check(kind, &shares);
    }
}

#[test]
fn equal_workers_get_equal_parts() {
    for kind in PolicyKind::ALL {
        if matches!(kind, PolicyKind::Passthrough | PolicyKind::Bucket) {
            continue;
        }
        let fleet = fleet(5);
        let counts = counts(&policy(kind), &pool(&fleet), 5);
        assert!(counts.iter().all(|count| count.abs_diff(CHOICES / 5) < CHOICES / 40), "{kind}: {counts:?}");
    }
}

/// Under load, counts follow the shares because loads are weighed by them.
#[test]
fn policies_that_look_at_loads_fill_workers_by_their_shares() {
    for kind in [PolicyKind::PowerOfTwo, PolicyKind::LeastLoad, PolicyKind::CacheAware] {
        let fleet = fleet_with(4, |number, spec| {
            (spec.weight, spec.cost) = if number == 3 { (1.0, 0.5) } else { (SHARES[number], 1.0) };
        });
        let (pool, policy, random) = (pool(&fleet), policy(kind), SplitMix::new(4));
        let mut running = Vec::new();
        for request in 0..2_000 {
            let text = key(&policy, &[text(request, 2_000)]);
            let mut why = Explanation::default();
            let chosen = policy.choose(&pool, &with_text(ask(&random), &text), &mut why).unwrap();
            running.push(pool.workers[chosen].state.begin(why.uncached_tokens(), at(1)));
        }
        for (number, share) in SHARES.iter().enumerate() {
            let found = f64::from(pool.workers[place(&pool, number)].state.load.in_flight()) / 2_000.0;
            assert!((found - share / 10.0).abs() < 0.05, "{kind}: worker {number} has {found} of the requests");
        }
    }
}

#[test]
fn turns_are_smooth() {
    let fleet = fleet_with(4, |number, spec| spec.weight = SHARES[number]);
    let (pool, policy, random) = (pool(&fleet), policy(PolicyKind::RoundRobin), SplitMix::new(1));
    let mut counts = [0_u32; 4];
    for turn in 1..=5_000 {
        let chosen = policy.choose(&pool, &ask(&random), &mut Explanation::default()).unwrap();
        counts[(0..4).find(|number| place(&pool, *number) == chosen).unwrap()] += 1;
        for (count, share) in counts.iter().zip(SHARES) {
            let due = f64::from(turn) * share / 10.0;
            assert!((f64::from(*count) - due).abs() < 3.0, "{counts:?} after {turn} turns");
        }
    }
}

#[test]
fn a_lower_priority_serves_only_when_no_higher_one_can() {
    for kind in PolicyKind::ALL {
        let fleet = fleet_with(6, |number, spec| spec.priority = [50, 50, 90, 90, 10, 10][number]);
        let (pool, policy) = (pool(&fleet), policy(kind));
        let tier = |numbers: [usize; 2]| {
            let random = SplitMix::new(3);
            for request in 0..200 {
                let text = key(&policy, &[text(request, 1_000)]);
                let mut why = Explanation::default();
                let chosen = policy.choose(&pool, &with_text(ask(&random), &text), &mut why).unwrap();
                assert!(numbers.map(|number| place(&pool, number)).contains(&chosen), "{kind} {numbers:?}");
                assert!(why.reason() == Reason::Sticky || why.considered() <= 2);
            }
        };
        for numbers in [[2, 3], [0, 1], [4, 5]] {
            tier(numbers);
            for number in numbers {
                trip(&pool.workers[place(&pool, number)], at(1));
            }
        }
    }
}

#[test]
fn buckets_keep_short_prompts_from_long_ones() {
    let fleet = fleet(2);
    let (pool, random) = (pool(&fleet), SplitMix::new(8));
    let policy = Policy::new(PolicyKind::Bucket, &PolicyConfig::default());
    let mut places = Vec::new();
    for request in 0..4_000_u64 {
        // Nine short prompts carry as much text as one long.
        let tokens = if request % 10 == 0 { 9_000 } else { 1_000 };
        let ask = Ask { input_tokens: tokens, now: at(request / 100), ..ask(&random) };
        let mut why = Explanation::default();
        let chosen = policy.choose(&pool, &ask, &mut why).unwrap();
        assert_eq!(why.reason(), Reason::Size);
        policy.dispatched(&pool.workers[chosen], &ask);
        if request >= 1_000 {
            places.push((tokens, chosen));
        }
    }
    let strayed = places.iter().filter(|(tokens, place)| *place != usize::from(*tokens == 9_000)).count();
    assert!(strayed < places.len() / 20, "{strayed} of {}: the sizes that meet at a boundary", places.len());
    let _queued = pool.workers[0].state.begin(5_000, at(1));
    let mut why = Explanation::default();
    let ask = Ask { input_tokens: 1_000, ..ask(&random) };
    assert_eq!(policy.choose(&pool, &ask, &mut why), Ok(1));
    assert_eq!(why.reason(), Reason::Rebalanced);
}

#[test]
fn prompts_of_one_size_fill_all_buckets() {
    let fleet = fleet(4);
    let (pool, random) = (pool(&fleet), SplitMix::new(8));
    let policy = Policy::new(PolicyKind::Bucket, &PolicyConfig::default());
    let mut counts = [0_u32; 4];
    for request in 0..4_000_u64 {
        let ask = Ask { input_tokens: 2_000, now: at(request / 50), ..ask(&random) };
        let chosen = policy.choose(&pool, &ask, &mut Explanation::default()).unwrap();
        policy.dispatched(&pool.workers[chosen], &ask);
        if request >= 1_000 {
            counts[chosen] += 1;
        }
    }
    assert!(counts.iter().all(|count| count.abs_diff(750) < 100), "{counts:?}");
}
