//! One plan, one run, one outcome.

use std::time::Duration;

use smg_base::Timestamp;

use crate::{
    judge::{Promise, Violation},
    plan::Plan,
    reached::Reached,
    subject::Defect,
    world::World,
};

/// What became of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Promises that were not kept; none is as it should be.
    pub violations: Vec<Violation>,
    /// Equal for two runs that went alike.
    pub trace: u64,
    /// States that were got into.
    pub reached: Reached,
    /// How long after the last fault the cluster was whole.
    pub healed_ms: Option<u64>,
    /// Happenings.
    pub steps: u64,
}

/// A run goes on for at most so long if its last moment is one in which a node has just written something.
const TIDYING_MAX_S: u32 = 3;

/// Runs a plan.
pub fn run(plan: &Plan) -> Outcome {
    run_with(plan, None)
}

/// Runs a plan with nodes that may have a defect.
pub fn run_with(plan: &Plan, defect: Option<Defect>) -> Outcome {
    let mut world = World::new(plan.clone(), defect);
    world.run_until(Timestamp::ORIGIN + plan.length());
    for _ in 0..TIDYING_MAX_S {
        let is_whole = world.is_whole(&world.views()).is_ok();
        if is_whole || !world.judge.violations.is_empty() {
            break;
        }
        let later = world.now + Duration::from_secs(1);
        world.run_until(later);
    }
    if world.judge.violations.is_empty() {
        world.check_final();
    }
    let healed = world.judge.whole_since.map(|at| at.since(Timestamp::ORIGIN + plan.chaos()));
    Outcome {
        trace: world.trace(),
        violations: world.judge.violations,
        reached: world.reached,
        healed_ms: healed.map(|took| took.as_millis() as u64),
        steps: world.steps,
    }
}

/// Runs a plan twice and says whether both runs went alike.
pub fn repeat(plan: &Plan, defect: Option<Defect>) -> Result<Outcome, Violation> {
    let (one, other) = (run_with(plan, defect), run_with(plan, defect));
    if one.trace == other.trace {
        return Ok(one);
    }
    let what = format!("{:016x} and {:016x}", one.trace, other.trace);
    Err(Violation { at_ms: 0, promise: Promise::Repeatable, what })
}
