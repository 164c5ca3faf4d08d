//! Makes a failing plan smaller: fewer faults, fewer operations, fewer nodes, less time, as long as it still fails.

use crate::{
    plan::{Fault, Plan},
    run::run_with,
    subject::Defect,
};

/// Makes a plan that fails as small as `tries` runs allow.
pub fn shrink(plan: &Plan, defect: Option<Defect>, tries: usize) -> Plan {
    let mut left = tries;
    let mut fails = |candidate: &Plan| {
        if left == 0 || !candidate.is_sound() {
            return false;
        }
        left -= 1;
        !run_with(candidate, defect).violations.is_empty()
    };
    let mut smallest = plan.clone();
    loop {
        let before = size(&smallest);
        shorten(&mut smallest, &mut fails);
        drop_each(&mut smallest, &mut fails, |plan| &mut plan.faults);
        drop_each(&mut smallest, &mut fails, |plan| &mut plan.operations);
        drop_nodes(&mut smallest, &mut fails);
        halve_faults(&mut smallest, &mut fails);
        if size(&smallest) >= before {
            return smallest;
        }
    }
}

fn size(plan: &Plan) -> (usize, u64, usize, usize, u64) {
    let length = plan.faults.iter().map(|fault| fault.for_ms).sum();
    (plan.nodes, plan.seconds, plan.faults.len(), plan.operations.len(), length)
}

/// Tries to end sooner: halves the time before the heal.
fn shorten(plan: &mut Plan, fails: &mut impl FnMut(&Plan) -> bool) {
    loop {
        let chaos = plan.chaos().as_secs() / 2;
        if chaos < 2 {
            return;
        }
        let mut candidate = plan.clone();
        candidate.seconds = chaos + candidate.heal_seconds;
        let end_ms = chaos * 1_000;
        candidate.operations.retain(|operation| operation.at_ms < end_ms);
        candidate.faults.retain(|fault| fault.at_ms < end_ms);
        candidate.faults.iter_mut().for_each(|fault| fault.for_ms = fault.for_ms.min(end_ms - fault.at_ms));
        if !fails(&candidate) {
            return;
        }
        *plan = candidate;
    }
}

/// Drops halves, quarters and so on down to single items (Zeller and Hildebrandt's ddmin, 2002).
fn drop_each<T: Clone>(
    plan: &mut Plan,
    fails: &mut impl FnMut(&Plan) -> bool,
    items: impl Fn(&mut Plan) -> &mut Vec<T>,
) {
    let mut chunk = items(plan).len().div_ceil(2);
    while chunk > 0 {
        let mut first = 0;
        while first < items(plan).len() {
            let mut candidate = plan.clone();
            let list = items(&mut candidate);
            list.drain(first..(first + chunk).min(list.len()));
            if fails(&candidate) {
                *plan = candidate;
            } else {
                first += chunk;
            }
        }
        chunk = if chunk == 1 { 0 } else { chunk.div_ceil(2) };
    }
}

/// Drops the last node and all that speaks of it.
fn drop_nodes(plan: &mut Plan, fails: &mut impl FnMut(&Plan) -> bool) {
    while plan.nodes > 1 {
        let mut candidate = plan.clone();
        candidate.nodes -= 1;
        let last = candidate.nodes;
        candidate.starts_ms.truncate(last);
        candidate.seeds.truncate(last);
        candidate.declared.truncate(last);
        candidate.drift_ppm.truncate(last);
        candidate.seeds.iter_mut().for_each(|seeds| seeds.retain(|seed| *seed < last));
        candidate.operations.retain(|operation| operation.node < last);
        let sound = |fault: &Fault| {
            let alone = Plan { faults: vec![fault.clone()], operations: Vec::new(), ..candidate.clone() };
            alone.is_sound()
        };
        let faults: Vec<Fault> = candidate.faults.iter().filter(|fault| sound(fault)).cloned().collect();
        candidate.faults = faults;
        if !fails(&candidate) {
            return;
        }
        *plan = candidate;
    }
}

fn halve_faults(plan: &mut Plan, fails: &mut impl FnMut(&Plan) -> bool) {
    for position in 0..plan.faults.len() {
        let mut candidate = plan.clone();
        candidate.faults[position].for_ms /= 2;
        if candidate.faults[position].for_ms >= 50 && fails(&candidate) {
            *plan = candidate;
        }
    }
}
