//! A request gets a worker whenever one can take it; and it is said why not.

use std::{sync::Arc, time::Duration};

use smg_base::{PeerId, SplitMix, WorkerId};
use smg_fleet::{DirectPath, Fleet, Reach, Relaying, Via};
use smg_routing::{Ask, Considered, Explanation, NoChoice, PathTaken, PolicyKind, Reason, Standing};

use crate::support::{ask, at, choose, fleet, fleet_with, id, key, offer, place, policy, pool, text, trip, with_text};

#[test]
fn the_last_worker_standing_serves_under_every_policy() {
    for kind in PolicyKind::ALL {
        let fleet = fleet(5);
        let (pool, policy, random) = (pool(&fleet), policy(kind), SplitMix::new(1));
        let text = key(&policy, &[text(1, 4_000)]);
        // The policy has reason to want each of them.
        for worker in &pool.workers {
            policy.dispatched(worker, &with_text(ask(&random), &text));
        }
        for last in 0..5 {
            let excluded: Vec<WorkerId> = (0..5).filter(|place| *place != last).map(|place| id(&pool, place)).collect();
            for ask in [ask(&random), with_text(ask(&random), &text), Ask { session: Some(4), ..ask(&random) }] {
                let ask = Ask { excluded: &excluded, routing_key: Some("k"), ..ask };
                assert_eq!(policy.choose(&pool, &ask, &mut Explanation::default()), Ok(last), "{kind}");
            }
        }
    }
}

fn refusal(fleet: &Fleet, kind: PolicyKind, ask: &Ask<'_>) -> NoChoice {
    let mut why = Explanation::default();
    let refusal = policy(kind).choose(&pool(fleet), ask, &mut why).unwrap_err();
    assert_eq!((why.chosen(), why.considered()), (None, 0), "{kind}");
    refusal
}

#[test]
fn why_nobody_can_is_told() {
    let random = SplitMix::new(1);
    for kind in PolicyKind::ALL {
        assert_eq!(refusal(&fleet(0), kind, &ask(&random)), NoChoice::Empty);
        let two = fleet(2);
        let ids = [id(&pool(&two), 0), id(&pool(&two), 1)];
        assert_eq!(refusal(&two, kind, &Ask { excluded: &ids, ..ask(&random) }), NoChoice::AllExcluded);
        offer(&two, 0, &["/v1/completions"]);
        offer(&two, 1, &["/v1/completions"]);
        let rerank = Ask { paths: &["/v1/rerank", "/rerank"], ..ask(&random) };
        assert_eq!(refusal(&two, kind, &rerank), NoChoice::NotOffered);
        pool(&two).workers.iter().for_each(|worker| trip(worker, at(1)));
        assert_eq!(refusal(&two, kind, &ask(&random)), NoChoice::NoneAvailable);
    }
}

#[test]
fn only_workers_that_offer_the_path_get_the_request() {
    let random = SplitMix::new(1);
    for kind in PolicyKind::ALL {
        let fleet = fleet_with(6, |number, spec| spec.priority = if number < 3 { 60 } else { 50 });
        let offering = place(&pool(&fleet), 4);
        for place in (0..6).filter(|place| *place != offering) {
            offer(&fleet, place, &["/v1/completions"]);
        }
        let (pool, policy) = (pool(&fleet), policy(kind));
        for request in 0..100 {
            let text = key(&policy, &[text(request, 2_000)]);
            let ask = Ask { paths: &["/v1/rerank", "/rerank"], ..with_text(ask(&random), &text) };
            let mut why = Explanation::default();
            assert_eq!(policy.choose(&pool, &ask, &mut why), Ok(offering), "{kind}");
            policy.dispatched(&pool.workers[offering], &ask);
        }
    }
}

#[test]
fn a_named_worker_is_used_or_nobody() {
    let random = SplitMix::new(1);
    for kind in PolicyKind::ALL {
        let fleet = fleet(4);
        let (pool, policy) = (pool(&fleet), policy(kind));
        let wanted = place(&pool, 2);
        let uuid = id(&pool, wanted).to_string();
        let index = wanted.to_string();
        let choose = |target: &str, excluded: &[WorkerId]| {
            let mut why = Explanation::default();
            let ask = Ask { target: Some(target), routing_key: Some("k"), excluded, ..ask(&random) };
            let chosen = policy.choose(&pool, &ask, &mut why);
            assert!(chosen.is_err() || why.reason() == Reason::Target, "{kind}");
            chosen
        };
        for target in
            [&uuid, &index, "http://worker-2:8000", "HTTP://WORKER-2:8000/", "worker-2:8000", " worker-2:8000 "]
        {
            assert_eq!(choose(target, &[]), Ok(wanted), "{kind} {target}");
        }
        for target in ["4", "-1", "", "worker-9:8000", "1b4e28ba-2fa1-81d2-883f-0016d3cca427"] {
            assert_eq!(choose(target, &[]), Err(NoChoice::TargetUnavailable), "{kind} {target}");
        }
        assert_eq!(choose(&uuid, &[id(&pool, wanted)]), Err(NoChoice::AllExcluded));
        trip(&pool.workers[wanted], at(1));
        assert_eq!(choose(&uuid, &[]), Err(NoChoice::TargetUnavailable));
    }
}

#[test]
fn an_explanation_lists_who_took_part_and_who_did_not() {
    let random = SplitMix::new(1);
    let fleet = fleet_with(40, |number, spec| spec.priority = if number < 36 { 50 } else { 40 });
    let pool = pool(&fleet);
    trip(&pool.workers[place(&pool, 0)], at(1));
    let excluded = [id(&pool, place(&pool, 1))];
    for kind in [PolicyKind::CacheAware, PolicyKind::LeastLoad, PolicyKind::RoundRobin] {
        let policy = policy(kind);
        let text = key(&policy, &[text(1, 32_768)]);
        let ask = Ask { excluded: &excluded, ..with_text(ask(&random), &text) };
        let mut why = Explanation::default();
        let chosen = policy.choose(&pool, &ask, &mut why).unwrap();
        assert_eq!(why.chosen(), Some(id(&pool, chosen)));
        assert_eq!((why.policy(), why.considered(), why.workers().len()), (Some(kind), 34, 16));
        assert_eq!(why.workers()[0].worker, id(&pool, chosen));
        let json = serde_json::to_value(&why).unwrap();
        assert_eq!(json["counts"]["unavailable"], 1);
        assert_eq!(json["counts"]["excluded"], 1);
        assert_eq!(json["counts"]["lower_priority"], 4);
        assert_eq!(json["reason"], why.reason().as_str());
        assert_eq!(json["text"], why.reason().text());
        assert_eq!(json["workers"].as_array().unwrap().len(), 16);
        assert_eq!(json["workers"][0]["seconds"].is_object(), kind != PolicyKind::RoundRobin);
    }
    let few = fleet_of_three_standings();
    let mut why = Explanation::default();
    policy(PolicyKind::CacheAware).choose(&crate::support::pool(&few), &ask(&random), &mut why).unwrap();
    let standings: Vec<Standing> = why.workers().iter().map(|worker: &Considered| worker.standing).collect();
    assert_eq!(standings[0], Standing::Considered);
    assert_eq!(standings.len(), 3);
    assert!(standings.contains(&Standing::LowerPriority) && standings.contains(&Standing::Unavailable));
}

fn fleet_of_three_standings() -> Fleet {
    let fleet = fleet_with(3, |number, spec| spec.priority = if number == 2 { 1 } else { 50 });
    let pool = pool(&fleet);
    trip(&pool.workers[place(&pool, 0)], at(1));
    fleet
}

#[test]
fn one_explanation_serves_many_decisions() {
    let random = SplitMix::new(1);
    let three = fleet(3);
    let policy = policy(PolicyKind::CacheAware);
    let mut why = Explanation::default();
    let text = key(&policy, &[text(1, 32_768)]);
    let ask = with_text(ask(&random), &text);
    let chosen = policy.choose(&pool(&three), &ask, &mut why).unwrap();
    policy.dispatched(&pool(&three).workers[chosen], &ask);
    policy.choose(&pool(&three), &ask, &mut why).unwrap();
    assert_eq!(why.predicted_tokens(), 8_192);
    assert!(policy.choose(&pool(&fleet(0)), &ask, &mut why).is_err());
    assert_eq!((why.chosen(), why.predicted_tokens(), why.workers().len()), (None, 0, 0));
}

#[test]
fn who_is_reached_only_through_a_peer_is_no_choice_for_what_a_peer_sends() {
    let fleet = fleet(3);
    let random = SplitMix::new(1);
    let far = Arc::clone(&pool(&fleet).workers[1]);
    fleet.import(far.id, far.spec.clone(), DirectPath::Forbidden, at(0)).unwrap();
    let via = Some(Via { peer: PeerId(0xab), rtt: Duration::from_millis(3) });
    fleet.set_reach(far.id, Reach { via, ..Reach::default() });
    let pool = pool(&fleet);
    for kind in PolicyKind::ALL {
        let policy = policy(kind);
        let mut why = Explanation::default();
        let by_name = Ask { target: Some("1"), ..ask(&random) };
        assert_eq!(policy.choose(&pool, &by_name, &mut why), Ok(1), "{kind}");
        assert_eq!(why.workers()[0].path, Some(PathTaken::Via(PeerId(0xab))));
        let handed_on = Ask { relaying: Relaying::Forbidden, ..by_name };
        assert_eq!(policy.choose(&pool, &handed_on, &mut why), Err(NoChoice::TargetUnavailable), "{kind}");
        let excluded = [pool.workers[0].id, pool.workers[2].id];
        let only_far = Ask { excluded: &excluded, ..ask(&random) };
        assert_eq!(policy.choose(&pool, &only_far, &mut why), Ok(1), "{kind}");
        let handed_on = Ask { relaying: Relaying::Forbidden, ..only_far };
        assert_eq!(policy.choose(&pool, &handed_on, &mut why), Err(NoChoice::AllExcluded), "{kind}");
        let free = Ask { relaying: Relaying::Forbidden, ..ask(&random) };
        assert!((0..50).all(|_| choose(&policy, &pool, &free) != 1), "{kind}");
    }
    let shown = serde_json::to_string(&PathTaken::Via(PeerId(0xab))).unwrap();
    assert_eq!(shown, "\"000000000000000000000000000000ab\"");
    assert_eq!(serde_json::to_string(&PathTaken::Direct).unwrap(), "\"direct\"");
}
