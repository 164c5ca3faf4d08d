//! Plans from seeds. Each kind of fault is first switched on or off by a coin and only then given a rate (swarm testing; Groce
//! et al., 2012): a run with pauses alone finds what a run with everything drowns.

use crate::{
    dice::Dice,
    plan::{Ask, DiskFate, Fault, Harm, Health, Links, Operation, Pace, Plan},
};

/// The size of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Simulated seconds, the healed end included.
    pub seconds: u64,
}

impl Shape {
    /// Seconds without faults at the end: time to heal, and then to stay healed.
    pub const HEAL_SECONDS: u64 = 40;

    /// The plan of this size that belongs to a seed.
    pub fn plan(self, seed: u64) -> Plan {
        let mut dice = Dice::new(seed, 0x706c_616e);
        let mut plan = self.frame(seed, &mut dice);
        plan.faults = faults(&plan, &mut dice);
        plan.operations = operations(&plan, &mut dice);
        plan
    }

    fn frame(self, seed: u64, dice: &mut Dice) -> Plan {
        let nodes = self.nodes.max(1);
        let workers = dice.between(2, 13) as usize;
        let everyone: Vec<usize> = (0..nodes).collect();
        let seeds = match dice.below(3) {
            0 => vec![everyone; nodes],
            // The first is a lone seed that knows nobody.
            1 => (0..nodes).map(|node| if node == 0 { Vec::new() } else { vec![0] }).collect(),
            _ => (0..nodes).map(|node| vec![(node + 1) % nodes]).collect(),
        };
        let late = dice.chance(0.3);
        let starts_ms = (0..nodes).map(|_| dice.below(if late { 15_000 } else { 300 })).collect();
        let same = dice.chance(0.5);
        let all: Vec<usize> = (0..workers.min(4)).collect();
        let declared = (0..nodes).map(|node| if same { all.clone() } else { vec![node % workers] }).collect();
        let pace = match dice.below(10) {
            0 => Pace::Wan,
            1 | 2 => Pace::Fast,
            _ => Pace::Lan,
        };
        let link_us = if pace == Pace::Wan { dice.between(5_000, 40_000) } else { dice.between(50, 1_000) };
        Plan {
            seed,
            nodes,
            seconds: self.seconds,
            heal_seconds: Self::HEAL_SECONDS.min(self.seconds / 2),
            pace,
            adopt_after_ms: if dice.chance(0.25) { dice.between(8_000, 20_000) } else { 600_000 },
            link_us,
            link_spread_us: dice.between(50, 1_000),
            drift_ppm: (0..nodes).map(|_| dice.between(0, 400).cast_signed() - 200).collect(),
            starts_ms,
            seeds,
            disk_ms: dice.between(1, 20),
            workers,
            declared,
            faults: Vec::new(),
            operations: Vec::new(),
        }
    }
}

/// Faults of one kind in a run, at most.
const FAULTS_OF_KIND_MAX: u64 = 6;

/// How likely it is that a kind of fault takes part in a run.
const KIND_ODDS: f64 = 0.3;

fn faults(plan: &Plan, dice: &mut Dice) -> Vec<Fault> {
    let chaos_ms = plan.chaos().as_millis() as u64;
    let mut faults = Vec::new();
    for kind in 0..KINDS {
        if !dice.chance(KIND_ODDS) {
            continue;
        }
        for _ in 0..=dice.below(FAULTS_OF_KIND_MAX) {
            let at_ms = dice.below(chaos_ms);
            let longest = if dice.chance(0.2) { 30_000 } else { 10_000 };
            let for_ms = dice.between(100, longest).min(chaos_ms - at_ms);
            faults.extend(harm(kind, plan.nodes, dice).map(|what| Fault { at_ms, for_ms, what }));
        }
    }
    // The whole cluster goes down at once, as after a power cut.
    if dice.chance(0.08) && chaos_ms > 10_000 {
        let at_ms = dice.between(5_000, chaos_ms - 4_000);
        faults.extend((0..plan.nodes).map(|node| Fault {
            at_ms: at_ms + dice.below(50),
            for_ms: dice.between(200, 3_000),
            what: Harm::Crash { node, disk: DiskFate::Kept },
        }));
    }
    faults.sort_by_key(|fault| fault.at_ms);
    faults
}

const KINDS: u64 = 14;

fn harm(kind: u64, nodes: usize, dice: &mut Dice) -> Option<Harm> {
    let node = dice.index(nodes);
    Some(match kind {
        0 => Harm::Loss { links: links(nodes, dice), percent: dice.between(1, 31) as u8 },
        1 => Harm::Bursts {
            links: links(nodes, dice),
            every_ms: dice.between(500, 8_000),
            length_ms: dice.between(20, 400),
        },
        2 => Harm::Delay { links: links(nodes, dice), millis: dice.between(1, 120), jitter_ms: dice.below(80) },
        3 => Harm::Cut { links: links(nodes, dice) },
        4 => Harm::Split { side: (0..nodes).filter(|_| dice.chance(0.5)).collect() },
        5 => Harm::Duplicate { percent: dice.between(1, 40) as u8 },
        6 => Harm::Pause { node },
        7 => Harm::Crash { node, disk: DiskFate::Kept },
        8 => Harm::Crash { node, disk: DiskFate::Old },
        9 => Harm::Crash { node, disk: DiskFate::Wiped },
        10 => Harm::Leave { node },
        11 => Harm::SlowDisk { node, millis: dice.between(50, 1_500) },
        12 => Harm::Skew { node },
        _ if dice.chance(0.5) => Harm::Twin { node },
        _ => {
            let victim = (node + 1 + dice.index(nodes.saturating_sub(1))) % nodes;
            (victim != node).then_some(Harm::Hostile { node, victim })?
        }
    })
}

fn links(nodes: usize, dice: &mut Dice) -> Links {
    let (one, other) = (dice.index(nodes), dice.index(nodes));
    match dice.below(6) {
        0 => Links::All,
        1 => Links::Of(one),
        2 => Links::From(one),
        3 => Links::To(one),
        4 => Links::Between(one, other),
        _ => Links::Directed(one, other),
    }
}

fn operations(plan: &Plan, dice: &mut Dice) -> Vec<Operation> {
    let chaos_ms = plan.chaos().as_millis() as u64;
    let mut operations = initial_truths(plan, dice);
    let mean_ms = dice.between(100, 3_000);
    // Which kinds of operations take part, and how often, is drawn for each run as well.
    let weights: Vec<u64> = (0..10).map(|_| if dice.chance(0.6) { dice.between(1, 10) } else { 0 }).collect();
    let total: u64 = weights.iter().sum();
    if total == 0 {
        return operations;
    }
    let mut at_ms = 0;
    loop {
        at_ms += dice.pause(std::time::Duration::from_millis(mean_ms)).as_millis() as u64 + 1;
        if at_ms >= chaos_ms {
            break;
        }
        let mut point = dice.below(total);
        let kind = weights.iter().position(|weight| {
            let hit = point < *weight;
            point = point.saturating_sub(*weight);
            hit
        });
        let node = dice.index(plan.nodes);
        let what = ask(kind.unwrap_or(0), plan, dice);
        operations.push(Operation { at_ms, node, what });
    }
    operations
}

/// Most workers are well and within everybody's reach, some only within one node's.
fn initial_truths(plan: &Plan, dice: &mut Dice) -> Vec<Operation> {
    let mut operations = Vec::new();
    for worker in 0..plan.workers {
        let only = dice.chance(0.2).then(|| dice.index(plan.nodes));
        for node in 0..plan.nodes {
            let health = if only.is_none_or(|only| only == node) { Health::Up } else { Health::Unreachable };
            operations.push(Operation { at_ms: 0, node, what: Ask::Truth { worker, health } });
        }
    }
    operations
}

fn ask(kind: usize, plan: &Plan, dice: &mut Dice) -> Ask {
    let worker = dice.index(plan.workers);
    match kind {
        0 => Ask::Add { worker },
        1 => Ask::Remove { worker },
        2 => Ask::Withdraw { worker },
        3 => {
            let health = [Health::Up, Health::Sick, Health::Unreachable][dice.index(3)];
            Ask::Truth { worker, health }
        }
        4 => Ask::Ledger { worker, requests: dice.below(20) as u32 },
        5 => Ask::Config { key: dice.index(6), value: dice.chance(0.8).then(|| dice.below(1 << 30) as u32) },
        6 => Ask::Revoke { key: dice.index(6) },
        7 => Ask::Entries {
            first: 500 * dice.below(4) as u32,
            count: dice.between(1, 700) as u32,
            live: dice.chance(0.4),
        },
        8 => Ask::Draining { on: dice.chance(0.5) },
        _ => Ask::ForwardFailed { peer: dice.index(plan.nodes) },
    }
}
