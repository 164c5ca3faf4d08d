//! A decision allocates nothing.

use std::time::Duration;

use smg_base::{PeerId, SplitMix};
use smg_fleet::{DirectPath, EngineLoad, Outcome, Reach, Via};
use smg_routing::{Ask, Explanation, Overrides, Policy, PolicyConfig, PolicyKind};

use crate::support::{ask, at, fleet, id, key, offer, policy, pool, text, with_text};

const WORKERS: usize = 128;

/// Chooses for many requests, the first of them before counting starts.
fn check(name: &str, policy: &Policy) {
    let fleet = fleet(WORKERS);
    for place in 0..WORKERS {
        // Two of them cannot serve the path, so that some decisions are made twice.
        offer(&fleet, place, if place % 64 == 5 { &["/v1/completions"] } else { &["/v1/chat/completions"] });
    }
    for (place, worker) in pool(&fleet).workers.iter().enumerate().filter(|(place, _)| place % 8 == 1) {
        // Some are reached through a peer, a few of them not otherwise.
        let via = Some(Via { peer: PeerId(place as u128), rtt: Duration::from_millis(1) });
        fleet.set_reach(worker.id, Reach { via, ..Reach::default() });
        if place % 16 == 1 {
            fleet.import(worker.id, worker.spec.clone(), DirectPath::Forbidden, at(0)).unwrap();
        }
    }
    let pool = pool(&fleet);
    let random = SplitMix::new(1);
    let prompts: Vec<_> = (0..8).map(|name| key(policy, &[text(99, 8 << 10), text(name, 24 << 10)])).collect();
    let running: Vec<_> = pool.workers.iter().map(|worker| worker.state.begin(100, at(1))).collect();
    for (place, worker) in pool.workers.iter().enumerate() {
        let state = &worker.state;
        state.rates.observe_ttft(1_000 + place as u64, 0, Duration::from_millis(200));
        state.rates.observe_outcome(Outcome::Failure, at(1));
        state.load.set_engine(EngineLoad {
            running: 3,
            waiting: 2,
            kv_usage: 0.3,
            generation_tokens_per_second: 100.0,
            at: at(1),
        });
        policy.dispatched(worker, &with_text(ask(&random), &prompts[place % 8]));
    }
    let excluded = [id(&pool, 3), id(&pool, 77)];
    let keys: Vec<String> = (0..32).map(|key| format!("user-{key}")).collect();
    let mut why = Explanation::default();
    let mut chosen = 0;
    let mut every_kind_of_request = || {
        for (number, prompt) in prompts.iter().cycle().take(64).enumerate() {
            let plain = Ask { paths: &["/v1/chat/completions"], excluded: &excluded, ..ask(&random) };
            let asks = [
                with_text(plain, prompt),
                Ask { input_tokens: 300, ..plain },
                Ask { routing_key: Some(&keys[number % 32]), ..with_text(plain, prompt) },
                Ask { session: Some(number as u64 % 8), ..plain },
                Ask { target: Some("http://worker-17:8000/"), ..plain },
                Ask { target: Some("6"), excluded: &[], ..plain },
                Ask { target: Some("nobody"), ..plain },
                Ask { paths: &["/v1/rerank"], ..plain },
            ];
            chosen += asks.iter().filter(|ask| policy.choose(&pool, ask, &mut why).is_ok()).count();
        }
    };
    // Routing keys get their workers and places in the order of use, and threads their slots, once.
    for _ in 0..20 {
        every_kind_of_request();
    }
    let counted = allocation_counter::measure(&mut every_kind_of_request);
    assert_eq!(counted.count_total, 0, "{name}");
    assert_eq!(chosen, 21 * 64 * 6, "{name}: only the last two cannot be served");
    drop(running);
}

#[test]
fn no_policy_allocates_in_a_decision_among_128_workers() {
    for kind in PolicyKind::ALL {
        check(kind.as_str(), &policy(kind));
    }
    let config = PolicyConfig { routing_key_override: true, ..PolicyConfig::default() };
    check("with routing keys", &Policy::new(PolicyKind::CacheAware, &config));
    let shared = PolicyConfig { shared_keys: true, ..PolicyConfig::default() };
    let policy = Policy::new(PolicyKind::Manual, &shared);
    let place = pool(&fleet(WORKERS)).workers[9].id;
    policy.set_overrides(Overrides::from_iter([("user-3", place)]));
    check("with shared keys", &policy);
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1)))).count_total, 1);
}
