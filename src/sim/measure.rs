//! Figures of a cluster in virtual time: how soon a crash is known, a change seen, a split healed, and what idling costs.

use std::time::Duration;

use bytes::Bytes;
use smg_base::Timestamp;
use smg_mesh_proto::{Event, Input, MemberState, Op, Status};

use crate::{
    network::Traffic,
    plan::{Fault, Harm, Links, Pace, Plan},
    process::worker,
    world::World,
};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// From the first start until every node sees every other.
    ColdStart,
    /// From a crash until the first and until the last node takes the dead for down.
    Detection,
    /// From a registration until every other node says so.
    Update,
    /// From the end of a split of 60 s, with writes on both sides, until all digests are equal.
    Heal,
    /// Live nodes taken for down in five minutes of loss, by all observers together.
    FalseVerdicts,
    /// Bytes a node sends while nothing happens.
    Idle,
}

impl Question {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::ColdStart, Self::Detection, Self::Update, Self::Heal, Self::FalseVerdicts, Self::Idle];

    /// The name on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ColdStart => "cold-start",
            Self::Detection => "detection",
            Self::Update => "update",
            Self::Heal => "heal",
            Self::FalseVerdicts => "false-verdicts",
            Self::Idle => "idle",
        }
    }

    /// The names of what one seed gives.
    pub const fn columns(self) -> &'static [&'static str] {
        match self {
            Self::ColdStart => &["full view s"],
            Self::Detection => &["first s", "all s"],
            Self::Update => &["everywhere ms"],
            Self::Heal => &["views s", "digests s"],
            Self::FalseVerdicts => &["false downs"],
            Self::Idle => &["payload B/s", "frames/s", "wire B/s (estimate)"],
        }
    }
}

/// One row of a table: a question asked of clusters of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// What.
    pub question: Question,
    /// Timers.
    pub pace: Pace,
    /// Nodes.
    pub nodes: usize,
    /// Loss each way, of a hundred.
    pub loss_percent: u8,
    /// How many seeds.
    pub seeds: u64,
}

/// What one seed gives for each column; a value that never came is missing.
pub type Sample = Vec<Vec<f64>>;

impl Case {
    /// The rows of all tables. A quick run has fewer seeds and no large clusters.
    pub fn all(effort: Effort) -> Vec<Self> {
        let mut cases = Vec::new();
        for question in Question::ALL {
            for pace in [Pace::Lan, Pace::Fast, Pace::Wan] {
                for nodes in [3, 5, 16, 64, 256] {
                    cases.extend(Self::of(question, pace, nodes, effort));
                }
            }
        }
        cases
    }

    fn of(question: Question, pace: Pace, nodes: usize, effort: Effort) -> Vec<Self> {
        let case = |loss_percent: u8, seeds: u64| Self { question, pace, nodes, loss_percent, seeds };
        let few = effort == Effort::Quick;
        if few && (nodes > 64 || pace == Pace::Wan) {
            return Vec::new();
        }
        let seeds = match nodes {
            256 => 2,
            64 => {
                if few {
                    2
                } else {
                    8
                }
            }
            _ => {
                if few {
                    10
                } else {
                    40
                }
            }
        };
        match question {
            Question::Detection if nodes <= 64 && pace == Pace::Lan => vec![case(0, seeds), case(30, seeds)],
            Question::Detection | Question::ColdStart => vec![case(0, seeds)],
            Question::Update if nodes <= 64 => vec![case(0, seeds.min(10))],
            Question::Heal if nodes <= 64 && nodes != 3 => vec![case(0, seeds.min(20))],
            Question::FalseVerdicts if nodes == 16 => {
                let seeds = if few { 4 } else { 20 };
                [0, 5, 10, 20, 30].map(|loss| case(loss, seeds)).to_vec()
            }
            Question::Idle if nodes != 5 => vec![case(0, 1)],
            Question::Update | Question::Heal | Question::FalseVerdicts | Question::Idle => Vec::new(),
        }
    }

    /// What a seed gives.
    pub fn sample(&self, seed: u64) -> Sample {
        let mut world = self.world(seed);
        match self.question {
            Question::ColdStart => vec![self.cold_start(&mut world)],
            Question::Detection => self.detection(&mut world),
            Question::Update => vec![self.update(&mut world)],
            Question::Heal => self.heal(&mut world),
            Question::FalseVerdicts => vec![false_verdicts(&mut world)],
            Question::Idle => self.idle(&mut world),
        }
    }

    fn world(&self, seed: u64) -> World {
        let mut faults = Vec::new();
        if self.loss_percent > 0 {
            let what = Harm::Loss { links: Links::All, percent: self.loss_percent };
            faults.push(Fault { at_ms: ms(WARM), for_ms: 3_600_000, what });
        }
        if self.question == Question::Heal {
            let side = (0..self.nodes / 2).collect();
            faults.push(Fault { at_ms: ms(WARM), for_ms: ms(SPLIT), what: Harm::Split { side } });
        }
        let plan = Plan {
            seed,
            nodes: self.nodes,
            seconds: 3_600,
            heal_seconds: 0,
            pace: self.pace,
            adopt_after_ms: 600_000,
            link_us: if self.pace == Pace::Wan { 20_000 } else { 250 },
            link_spread_us: 500,
            drift_ppm: vec![0; self.nodes],
            starts_ms: (0..self.nodes as u64).map(|node| node * 200 / self.nodes as u64).collect(),
            seeds: vec![vec![0, 1, 2]; self.nodes],
            disk_ms: 3,
            workers: 8,
            declared: vec![(0..8).collect(); self.nodes],
            faults,
            operations: Vec::new(),
        };
        let mut world = World::new(plan, None);
        world.is_judged = false;
        world
    }

    fn cold_start(&self, world: &mut World) -> Vec<f64> {
        let step = Duration::from_millis(20);
        let is_done = |world: &World| {
            (0..self.nodes).all(|place| {
                let mesh = world.places[place].process.as_ref().map(|process| process.subject.mesh());
                mesh.is_some_and(|mesh| (0..self.nodes).all(|other| mesh.is_alive(world.places[other].id)))
            })
        };
        wait(world, step, Duration::from_secs(120), is_done).map(|took| took.as_secs_f64()).into_iter().collect()
    }

    fn detection(&self, world: &mut World) -> Sample {
        let mut first = Vec::new();
        let mut all = Vec::new();
        let lossy = if self.loss_percent > 0 { Duration::from_secs(5) } else { Duration::ZERO };
        world.run_until(Timestamp::ORIGIN + WARM + lossy);
        for round in 0..if self.nodes > 64 { 2 } else { 3 } {
            let victim = world.dice.index(self.nodes);
            let moment = world.now + world.dice.up_to(Duration::from_secs(2));
            world.run_until(moment);
            let crashed = world.now;
            let id = world.places[victim].id;
            world.kill(victim);
            let took = |world: &World, place: &usize| {
                let said = world.said.iter().flatten().filter(|said| said.place == *place && said.at >= crashed);
                let mut down = said.filter(|said| {
                    matches!(&said.event, Event::Member(member)
                    if member.node == id && member.state == MemberState::Down)
                });
                down.next().map(|said| said.at.since(crashed).as_secs_f64())
            };
            world.said = Some(Vec::new());
            let others: Vec<usize> = (0..self.nodes).filter(|place| *place != victim).collect();
            let everybody = |world: &World| others.iter().all(|place| took(world, place).is_some());
            wait(world, Duration::from_millis(250), Duration::from_secs(90), everybody);
            let times: Vec<f64> = others.iter().filter_map(|place| took(world, place)).collect();
            first.extend(times.iter().copied().reduce(f64::min));
            // One who never learned is worse than any time.
            let is_all = times.len() == others.len();
            all.push(if is_all { times.into_iter().fold(0.0, f64::max) } else { f64::INFINITY });
            world.start(victim, crate::plan::DiskFate::Kept);
            let pause = world.now + Duration::from_secs(10 + round);
            world.run_until(pause);
        }
        vec![first, all]
    }

    fn update(&self, world: &mut World) -> Vec<f64> {
        let mut times = Vec::new();
        world.run_until(Timestamp::ORIGIN + WARM);
        for number in 100..120 {
            let writer = world.dice.index(self.nodes);
            let id = worker(number);
            world.said = Some(Vec::new());
            let begun = world.now;
            let op = Op::AddWorker { worker: id, spec: Bytes::from_static(b"spec"), declared: false };
            world.give(writer, Input::Write { ticket: None, op });
            let pause = world.now + Duration::from_millis(900) + world.dice.up_to(Duration::from_millis(200));
            world.run_until(pause);
            let said = world.said.take().unwrap_or_default();
            let seen: Vec<f64> = (0..self.nodes)
                .filter(|place| *place != writer)
                .filter_map(|place| {
                    let mut here = said.iter().filter(|said| said.place == place);
                    let at = here
                        .find(|said| matches!(&said.event, Event::Worker { worker, row: Some(_) } if *worker == id))?;
                    Some(at.at.since(begun).as_secs_f64() * 1_000.0)
                })
                .collect();
            let is_all = seen.len() + 1 == self.nodes;
            times.push(if is_all { seen.into_iter().fold(0.0, f64::max) } else { f64::INFINITY });
        }
        times
    }

    fn heal(&self, world: &mut World) -> Sample {
        let healed = Timestamp::ORIGIN + WARM + SPLIT;
        for number in 100..200 {
            let until = Timestamp::ORIGIN + WARM + SPLIT * (number - 100) / 100;
            world.run_until(until);
            let writer = world.dice.index(self.nodes);
            let number = number as usize;
            let op = Op::AddWorker { worker: worker(number), spec: Bytes::from_static(b"spec"), declared: false };
            world.give(writer, Input::Write { ticket: None, op });
        }
        world.run_until(healed);
        let views = wait(world, Duration::from_millis(50), Duration::from_secs(120), |world| {
            let sees = |place: usize, other: usize| {
                let process = world.places[place].process.as_ref();
                process.is_some_and(|process| process.subject.mesh().is_alive(world.places[other].id))
            };
            (0..self.nodes).all(|place| (0..self.nodes).all(|other| sees(place, other)))
        });
        let digests = wait(world, Duration::from_millis(50), Duration::from_secs(120), are_equal);
        let views = views.map(|took| took.as_secs_f64());
        let whole = digests.map(|took| took.as_secs_f64() + views.unwrap_or(f64::INFINITY));
        vec![views.into_iter().collect(), whole.into_iter().collect()]
    }

    fn idle(&self, world: &mut World) -> Sample {
        let window = Duration::from_secs(60);
        world.run_until(Timestamp::ORIGIN + WARM + Duration::from_secs(10));
        let now = world.now;
        world.network.settle_keep_alives(now);
        let before = world.network.traffic.clone();
        world.run_until(now + window);
        let now = world.now;
        world.network.settle_keep_alives(now);
        let after = &world.network.traffic;
        let mut columns: Sample = vec![Vec::new(); 3];
        for (before, after) in before.iter().zip(after) {
            let per_second = |count: u64| count as f64 / window.as_secs_f64();
            columns[0].push(per_second(after.bytes - before.bytes));
            columns[1].push(per_second(after.frames - before.frames));
            columns[2].push(wire_bytes(before, after) / window.as_secs_f64());
        }
        columns
    }
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A minute or so.
    Quick,
    /// Minutes.
    Full,
}

/// Time for a cluster to form and settle.
const WARM: Duration = Duration::from_secs(20);
/// Length of the split.
const SPLIT: Duration = Duration::from_secs(60);

/// IP and UDP headers, QUIC's short header with an 8-byte id, the tag of its cipher, and the head of a stream.
const PACKET_OVERHEAD_BYTES: u64 = 28 + 11 + 16 + 6;
/// A packet that only acknowledges: at idle every packet gets one.
const ACKNOWLEDGEMENT_BYTES: u64 = 28 + 11 + 16 + 8;

/// What the frames between two counts took on the wire, if nothing was lost: an estimate.
fn wire_bytes(before: &Traffic, after: &Traffic) -> f64 {
    let packets = after.packets - before.packets;
    let acknowledgements = after.received - before.received;
    let keep_alives = after.keep_alives - before.keep_alives;
    let bytes = (after.bytes - before.bytes)
        + packets * PACKET_OVERHEAD_BYTES
        + acknowledgements * ACKNOWLEDGEMENT_BYTES
        + keep_alives * (PACKET_OVERHEAD_BYTES + ACKNOWLEDGEMENT_BYTES);
    bytes as f64
}

fn false_verdicts(world: &mut World) -> Vec<f64> {
    world.run_until(Timestamp::ORIGIN + WARM);
    world.said = Some(Vec::new());
    world.run_until(Timestamp::ORIGIN + WARM + Duration::from_secs(300));
    let said = world.said.take().unwrap_or_default();
    let is_down = |event: &Event| matches!(event, Event::Member(member) if member.state == MemberState::Down);
    vec![said.iter().filter(|said| is_down(&said.event)).count() as f64]
}

fn are_equal(world: &World) -> bool {
    let status = |place: usize| -> Option<Status> {
        let process = world.places[place].process.as_ref()?;
        Some(process.subject.mesh().status())
    };
    let first = status(0).map(|status| status.digest);
    first.is_some() && (1..world.plan.nodes).all(|place| status(place).map(|status| status.digest) == first)
}

/// Lets time pass until something is so; how long that took.
fn wait(world: &mut World, step: Duration, longest: Duration, is_so: impl Fn(&World) -> bool) -> Option<Duration> {
    let begun = world.now;
    while world.now.since(begun) <= longest {
        if is_so(world) {
            return Some(world.now.since(begun));
        }
        let next = world.now + step;
        world.run_until(next);
    }
    None
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

/// The value that a share of all values does not exceed; nothing of nothing.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
    sorted.get(position - 1).copied()
}
