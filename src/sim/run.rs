//! One plan, one run, one outcome.

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

/// Runs a plan.
pub fn run(plan: &Plan) -> Outcome {
    run_with(plan, None)
}

/// Runs a plan with nodes that may have a defect.
pub fn run_with(plan: &Plan, defect: Option<Defect>) -> Outcome {
    let mut world = World::new(plan.clone(), defect);
    world.run_until(Timestamp::ORIGIN + plan.length());
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
