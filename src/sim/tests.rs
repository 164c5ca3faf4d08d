//! The promises, over seeds; and proof that the checks can see.

use crate::{
    Defect, Fault, Harm, Mark, Outcome, Plan, Promise, Reached, Shape, kept_plans, repeat, run, run_with, shrink,
};

const SHAPE: Shape = Shape { nodes: 5, seconds: 120 };

fn assert_kept(seed: u64, outcome: &Outcome) {
    assert!(outcome.violations.is_empty(), "seed {seed}: {:#?}", outcome.violations);
}

#[test]
fn promises_are_kept() {
    let mut reached = Reached::default();
    for seed in 1..=60 {
        let outcome = run(&SHAPE.plan(seed));
        assert_kept(seed, &outcome);
        reached.add(&outcome.reached);
    }
    let rare = [Mark::WriteFailed, Mark::PowerCut, Mark::LostWithItsDisk, Mark::Snapshot];
    let missed: Vec<Mark> = reached.missed().into_iter().filter(|mark| !rare.contains(mark)).collect();
    assert!(missed.is_empty(), "never reached: {missed:?}");
}

#[test]
fn clusters_of_other_sizes_keep_them_too() {
    for (nodes, seeds) in [(1, 3), (2, 12), (3, 12), (9, 3)] {
        for seed in 1_000..1_000 + seeds {
            assert_kept(seed, &run(&Shape { nodes, seconds: 90 }.plan(seed)));
        }
    }
}

#[test]
fn plans_that_found_something_stay_quiet() {
    for plan in kept_plans() {
        assert_kept(plan.seed, &run(&plan));
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in [3, 17] {
        let outcome = repeat(&SHAPE.plan(seed), None).unwrap();
        assert_ne!(outcome.trace, run(&SHAPE.plan(seed + 1)).trace);
    }
}

#[test]
fn a_plan_survives_its_file() {
    for seed in 0..50 {
        let plan = SHAPE.plan(seed);
        assert!(plan.is_sound(), "seed {seed}");
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan, "seed {seed}");
    }
}

/// The first of some seeds under which a defect is seen, and by which promise.
fn caught(defect: Defect, seeds: u64) -> Option<(u64, Promise)> {
    (1..=seeds).find_map(|seed| {
        let violation = match repeat_if_free(&plan_for(defect, seed), defect) {
            Ok(outcome) => outcome.violations.into_iter().next()?,
            Err(violation) => violation,
        };
        Some((seed, violation.promise))
    })
}

/// A plan under which a defect can be seen.
fn plan_for(defect: Defect, seed: u64) -> Plan {
    match defect {
        // What reaches a peer before the crash is not lost: early acknowledgement shows where there is none.
        Defect::AcknowledgesEarly => Shape { nodes: 2, ..SHAPE }.plan(seed),
        Defect::AdmitsTwins => {
            let mut plan = SHAPE.plan(seed);
            plan.starts_ms.fill(0);
            plan.faults = vec![Fault { at_ms: 30_000, for_ms: 20_000, what: Harm::Twin { node: 1 } }];
            plan
        }
        _ => SHAPE.plan(seed),
    }
}

#[test]
fn a_second_node_of_a_name_is_refused() {
    for seed in 1..=5 {
        let outcome = run(&plan_for(Defect::AdmitsTwins, seed));
        assert_kept(seed, &outcome);
        assert!(outcome.reached.count(Mark::NameRefused) > 0, "seed {seed}");
    }
}

fn repeat_if_free(plan: &Plan, defect: Defect) -> Result<Outcome, crate::Violation> {
    if defect == Defect::DrawsFreely { repeat(plan, Some(defect)) } else { Ok(run_with(plan, Some(defect))) }
}

#[test]
fn every_planted_defect_is_seen() {
    let unseen: Vec<Defect> = Defect::ALL.into_iter().filter(|defect| caught(*defect, 100).is_none()).collect();
    assert!(unseen.is_empty(), "unseen: {unseen:?}");
}

#[test]
fn a_failing_plan_is_made_small() {
    let defect = Defect::CallsUnreachableSick;
    let (seed, _) = caught(defect, 50).unwrap();
    let plan = SHAPE.plan(seed);
    let small = shrink(&plan, Some(defect), 200);
    assert!(!run_with(&small, Some(defect)).violations.is_empty());
    assert!(small.faults.len() <= 3, "{:?}", small.faults);
    assert!(small.operations.len() <= 12, "{:?}", small.operations);
}
