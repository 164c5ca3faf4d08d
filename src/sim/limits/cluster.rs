//! One run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use smg_base::Timestamp;
use smg_limits::{
    Demand, Dimension, Limiter, LimiterConfig, Mode, Rule, Rules, Scope, Stance, Subject, Window,
    mesh::{Batch, Lane, Member, Outcome, Plane},
};
use smg_mesh_proto::{Event, Input, Kind, MemberState, NodeId, Op, Ticket};

use super::judge::Judge;
use crate::{
    dice::Dice,
    plan::{DiskFate, Fault, Harm, Links, Pace, Plan},
    world::World,
};

/// Time between two moments at which nodes are offered requests and look at what they heard.
const STEP: Duration = Duration::from_millis(4);
/// When faults begin.
const WARM: Duration = Duration::from_secs(8);
/// From the last fault until the load moves to one node: nodes that were dropped have been let in again by then.
const HEALS: Duration = Duration::from_secs(30);
/// How long one node has all the load, and how much of that is not counted.
const LONE: Duration = Duration::from_secs(8);
const LONE_WARM: Duration = Duration::from_secs(4);
/// How many times the limit that node is offered.
const LONE_OVERLOAD: f64 = 1.1;
/// From the begin of a split until it has been found out.
const DETECTION: Duration = Duration::from_secs(12);
/// Unix time at the begin, in milliseconds.
const EPOCH_MS: u64 = 1_700_000_000_000;
const SUBJECT: Subject<'static> = Subject { tenant: "acme", key: None, model: "m" };

/// What goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// The nodes are divided in halves.
    Split,
    /// Whatever the seed draws: loss, delay, cuts, splits, pauses, crashes, disks that are old or empty.
    Swarm,
    /// Processes end without a word, at any moment, and start again; some disks are slow.
    Kills,
}

/// A mistake that the checks have to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Every node fills the bucket by itself.
    RefilledPerNode,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Case {
    /// From which all chance is drawn.
    pub seed: u64,
    /// Nodes.
    pub nodes: usize,
    /// How they divide the limit.
    pub mode: Mode,
    /// The limit, in requests within a window.
    pub amount: u64,
    /// Of a second, or one that is longer than a run.
    pub window: Window,
    /// How many times the limit is offered; of a window that is longer than a run, while something is wrong.
    pub overload: f64,
    /// What goes wrong.
    pub trouble: Trouble,
    /// How long, in seconds.
    pub seconds: u64,
    /// A mistake to be found.
    pub flaw: Option<Flaw>,
}

/// What came of it. Peaks are the most that all nodes let in within one second, in parts of the limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Before anything goes wrong, and in that time on average.
    pub peak_whole: f64,
    /// On average.
    pub mean_whole: f64,
    /// While something is wrong; after what was wrong could be known.
    pub peak_troubled: f64,
    /// The same after it could be known.
    pub peak_known: f64,
    /// After healing.
    pub peak_healed: f64,
    /// On average.
    pub mean_healed: f64,
    /// What the one node let in that had all the load in the end, in parts of the limit.
    pub lone: f64,
    /// How old what others had counted was when it was heard, at most, while nothing was wrong.
    pub staleness: Duration,
    /// Bytes of rows that a node wrote in a second.
    pub bytes_per_second: f64,
    /// Whether a strict limit was ever exceeded: when and by how much.
    pub exceeded: Option<String>,
    /// What was let in in all, in parts of the limit.
    pub total: f64,
}

/// What a process has beside its mesh.
struct Gateway {
    generation: u32,
    limiter: Arc<Limiter>,
    plane: Plane,
    members: BTreeMap<NodeId, Member>,
    has_joined: bool,
    heard: bool,
    owed: f64,
    tickets: u64,
    /// The batch that is being kept, and which writes of it are not yet.
    keeping: Option<(u64, BTreeSet<Ticket>)>,
}

impl Case {
    /// What of the amount may be let in at most while nothing is wrong and what others count is so late, in parts of the limit: for shared
    /// ones min(λW, N·RW, RW + λτ(N−1)/N), for hybrid ones three tenths of what that is above the limit.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    pub fn bound(&self, staleness: Duration) -> f64 {
        let nodes = self.nodes as f64;
        let shared =
            (1.0 + self.overload * staleness.as_secs_f64() * (nodes - 1.0) / nodes).min(self.overload).min(nodes);
        match self.mode {
            Mode::Strict => 1.0,
            Mode::Shared => shared,
            Mode::Hybrid => 1.0 + 0.3 * (shared - 1.0),
        }
    }

    /// Runs it.
    pub fn run(&self) -> Figures {
        Run::new(self).run()
    }

    fn plan(&self) -> Plan {
        let mut dice = Dice::new(self.seed, 77);
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (from, length) = (millis(WARM), self.seconds * 1_000);
        let faults = match self.trouble {
            Trouble::None => Vec::new(),
            Trouble::Split => {
                let side = (0..self.nodes / 2).collect();
                vec![Fault { at_ms: from, for_ms: length, what: Harm::Split { side } }]
            }
            Trouble::Swarm => (0..dice.between(2, 7))
                .map(|_| {
                    let at_ms = from + dice.below(length * 3 / 4);
                    let for_ms = dice.between(100, (from + length - at_ms).max(101));
                    Fault { at_ms, for_ms, what: self.harm(&mut dice) }
                })
                .collect(),
            Trouble::Kills => (0..dice.between(3, 12))
                .map(|_| {
                    let node = dice.index(self.nodes);
                    let at_ms = from + dice.below(length * 3 / 4);
                    let what = match dice.chance(0.3) {
                        true => Harm::SlowDisk { node, millis: dice.between(10, 1_000) },
                        false => Harm::Crash { node, disk: DiskFate::Kept },
                    };
                    Fault { at_ms, for_ms: dice.between(100, 8_000), what }
                })
                .collect(),
        };
        Plan {
            seed: self.seed,
            nodes: self.nodes,
            seconds: 3_600,
            heal_seconds: 0,
            pace: Pace::Lan,
            adopt_after_ms: 600_000,
            link_us: 250,
            link_spread_us: 500,
            drift_ppm: (0..self.nodes).map(|_| dice.between(0, 400).cast_signed() - 200).collect(),
            starts_ms: (0..self.nodes).map(|_| dice.below(500)).collect(),
            seeds: vec![(0..self.nodes.min(3)).collect(); self.nodes],
            disk_ms: 5,
            workers: 0,
            declared: vec![Vec::new(); self.nodes],
            faults,
            operations: Vec::new(),
        }
    }

    fn harm(&self, dice: &mut Dice) -> Harm {
        let node = dice.index(self.nodes);
        let other = (node + 1 + dice.index(self.nodes - 1)) % self.nodes;
        let links = match dice.below(4) {
            0 => Links::All,
            1 => Links::Of(node),
            2 => Links::From(node),
            _ => Links::Between(node, other),
        };
        match dice.below(12) {
            0 => Harm::Loss { links, percent: 5 + u8::try_from(dice.below(35)).unwrap_or(0) },
            1 => Harm::Delay { links, millis: dice.between(5, 400), jitter_ms: dice.below(200) },
            2 => Harm::Cut { links: if links == Links::All { Links::Of(node) } else { links } },
            3..=5 => Harm::Split { side: (0..self.nodes).filter(|_| dice.chance(0.5)).collect() },
            6 | 7 => Harm::Pause { node },
            8 => Harm::SlowDisk { node, millis: dice.between(10, 2_000) },
            9 => Harm::Crash { node, disk: DiskFate::Wiped },
            _ => Harm::Crash { node, disk: DiskFate::Kept },
        }
    }
}

struct Run<'a> {
    case: &'a Case,
    world: World,
    gateways: Vec<Option<Gateway>>,
    dice: Dice,
    judge: Judge,
    now: Timestamp,
    /// The only node that is offered anything, if there is one.
    lone: Option<usize>,
    /// Whether ages of words are noted.
    notes: bool,
    figures: Figures,
}

impl<'a> Run<'a> {
    fn new(case: &'a Case) -> Self {
        let mut world = World::new(case.plan(), None);
        world.is_judged = false;
        world.said = Some(Vec::new());
        Self {
            case,
            world,
            gateways: (0..case.nodes).map(|_| None).collect(),
            dice: Dice::new(case.seed, 78),
            judge: Judge::new(case.window.length()),
            now: Timestamp::ORIGIN,
            lone: None,
            notes: false,
            figures: Figures::default(),
        }
    }

    fn run(mut self) -> Figures {
        let begin = |seconds| Timestamp::ORIGIN + Duration::from_secs(seconds);
        // Until all have found each other, and their rights are divided.
        self.go_to(begin(4));
        self.judge.take_peak();
        self.notes = true;
        let told = self.told();
        (self.figures.peak_whole, self.figures.mean_whole) = self.measure(Timestamp::ORIGIN + WARM);
        let seconds =
            (WARM - Duration::from_secs(4)).as_secs_f64() * f64::from(u32::try_from(self.case.nodes).unwrap_or(1));
        #[expect(clippy::cast_precision_loss, reason = "a figure")]
        {
            self.figures.bytes_per_second = (self.told() - told) as f64 / seconds;
        }
        self.notes = false;
        let end = Timestamp::ORIGIN + WARM + Duration::from_secs(self.case.seconds);
        if self.case.trouble != Trouble::None {
            (self.figures.peak_troubled, _) = self.measure((Timestamp::ORIGIN + WARM + DETECTION).min(end));
            (self.figures.peak_known, _) = self.measure(end);
            self.go_to(end + HEALS - Duration::from_secs(10));
            self.judge.take_peak();
        }
        let end = end + HEALS;
        (self.figures.peak_healed, self.figures.mean_healed) = self.measure(end);
        self.lone = Some(self.dice.index(self.case.nodes));
        self.go_to(end + LONE_WARM);
        (_, self.figures.lone) = self.measure(end + LONE);
        #[expect(clippy::cast_precision_loss, reason = "a figure")]
        {
            self.figures.total = self.judge.total() as f64 / self.case.amount as f64;
        }
        self.figures
    }

    fn told(&self) -> u64 {
        self.gateways.iter().flatten().map(|gateway| gateway.plane.tally().bytes_told).sum()
    }

    /// Goes on until then; the greatest sum within a window, and how much came in a second, in parts of the limit.
    #[expect(clippy::cast_precision_loss, reason = "figures")]
    fn measure(&mut self, until: Timestamp) -> (f64, f64) {
        let (before, from) = (self.judge.total(), self.now);
        self.go_to(until);
        let amount = self.case.amount as f64;
        let admitted = (self.judge.total() - before) as f64;
        let peak = self.judge.take_peak() as f64 / amount;
        (peak, admitted / until.since(from).as_secs_f64().max(0.001) / amount)
    }

    fn go_to(&mut self, until: Timestamp) {
        while self.now < until {
            self.now = self.now + STEP;
            self.world.run_until(self.now);
            self.begin_and_end();
            self.take_events();
            for place in 0..self.case.nodes {
                if !self.world.network.standings[place].is_paused {
                    self.offer(place);
                    self.look(place);
                }
            }
        }
    }

    /// Gives processes that have started what they need, and takes it from those that have ended.
    fn begin_and_end(&mut self) {
        for place in 0..self.case.nodes {
            let spot = &self.world.places[place];
            let Some(process) = &spot.process else {
                self.gateways[place] = None;
                continue;
            };
            if self.gateways[place].as_ref().is_some_and(|gateway| gateway.generation == spot.generation) {
                continue;
            }
            let local = process.local(self.now);
            let unix_ms = EPOCH_MS + self.now.as_nanos() / 1_000_000;
            let config = LimiterConfig {
                unix_ms_at_origin: unix_ms - local.as_nanos() / 1_000_000,
                is_meshed: true,
                ..LimiterConfig::default()
            };
            let founders = 2.min(self.case.nodes);
            let limiter = Arc::new(Limiter::new(config));
            let rule = Rule::new("limit", Scope::Tenant, Dimension::Requests, self.case.amount);
            let rules = Rules::new(vec![rule.per(self.case.window).mode(self.case.mode)]).expect("the rule is right");
            limiter.reconfigure(Arc::new(rules));
            self.gateways[place] = Some(Gateway {
                generation: spot.generation,
                plane: Plane::new(short(spot.id), self.dice.number(), founders, Arc::clone(&limiter), local),
                limiter,
                members: BTreeMap::new(),
                has_joined: false,
                heard: false,
                owed: 0.0,
                tickets: 0,
                keeping: None,
            });
        }
    }

    fn take_events(&mut self) {
        let said = self.world.said.as_mut().map(std::mem::take).unwrap_or_default();
        for said in said {
            let Some(gateway) = &mut self.gateways[said.place] else { continue };
            let Some(process) = &self.world.places[said.place].process else { continue };
            let local = process.local(self.now);
            match said.event {
                Event::Joined { .. } => gateway.has_joined = true,
                Event::Member(member) => {
                    let known = Member {
                        node: short(member.node),
                        boot: member.boot,
                        is_alive: member.state.is_alive(),
                        has_left: member.state == MemberState::Left,
                    };
                    gateway.members.insert(member.node, known);
                }
                Event::Forgotten(node) => drop(gateway.members.remove(&node)),
                Event::Entry { writer, kind: kind @ (Kind::Limits | Kind::Budgets), key, value } => {
                    let lane = if kind == Kind::Budgets { Lane::Durable } else { Lane::Passing };
                    gateway.heard = true;
                    gateway.plane.take(short(writer), lane, &key, value.as_deref(), local);
                    continue;
                }
                Event::Written { ticket, outcome } => {
                    let Some((number, waits)) = &mut gateway.keeping else { continue };
                    if outcome.is_err() && waits.contains(&ticket) {
                        waits.clear();
                    }
                    waits.remove(&ticket);
                    if waits.is_empty() {
                        let outcome = if outcome.is_ok() { Outcome::Kept } else { Outcome::Failed };
                        gateway.plane.kept(*number, outcome);
                        gateway.keeping = None;
                        gateway.heard = true;
                    }
                    continue;
                }
                _ => continue,
            }
            let members: Vec<Member> = gateway.members.values().copied().collect();
            gateway.plane.set_members(gateway.has_joined.then_some(&members), local);
            gateway.heard = true;
        }
    }

    /// Requests come.
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    fn offer(&mut self, place: usize) {
        let (Some(gateway), Some(process)) = (&mut self.gateways[place], &self.world.places[place].process) else {
            return;
        };
        let times = match self.lone {
            Some(lone) if lone == place => LONE_OVERLOAD,
            Some(_) => 0.0,
            None => self.case.overload / self.case.nodes as f64,
        };
        let of_one = if self.case.window == Window::Second { 1.0 } else { (WARM.as_secs() + self.case.seconds) as f64 };
        gateway.owed += self.case.amount as f64 * times * STEP.as_secs_f64() / of_one;
        let local = process.local(self.now);
        while gateway.owed >= 1.0 {
            gateway.owed -= 1.0;
            let demand = Demand { requests: 1, ..Demand::default() };
            let Ok(reservation) = gateway.limiter.reserve(&SUBJECT, &demand, local) else { continue };
            gateway.limiter.settle(reservation, &demand, local);
            let sum = self.judge.admit(self.now);
            let is_over = sum as u64 > self.case.amount;
            if is_over && self.case.mode == Mode::Strict && self.figures.exceeded.is_none() {
                let stands: Vec<_> = self.gateways.iter().flatten().map(|gateway| gateway.plane.tally().view).collect();
                let at = self.now.as_nanos() / 1_000_000;
                self.figures.exceeded = Some(format!("{sum} at {at} ms, by node {place}, views {stands:?}"));
                return;
            }
        }
    }

    /// Does what the driver of a node does.
    fn look(&mut self, place: usize) {
        let (Some(gateway), Some(process)) = (&mut self.gateways[place], &self.world.places[place].process) else {
            return;
        };
        let local = process.local(self.now);
        if !std::mem::take(&mut gateway.heard) && local < gateway.plane.due() {
            return;
        }
        let unix_us = EPOCH_MS * 1_000 + self.now.as_nanos() / 1_000;
        gateway.plane.tick(local, unix_us);
        if self.case.flaw == Some(Flaw::RefilledPerNode) {
            gateway.limiter.set_stance(Stance::default());
        }
        for stamp in gateway.plane.take_stamps() {
            if self.notes {
                let age = Duration::from_micros(unix_us.saturating_sub(stamp));
                self.figures.staleness = self.figures.staleness.max(age);
            }
        }
        for write in gateway.plane.take_writes() {
            let kind = if write.lane == Lane::Durable { Kind::Budgets } else { Kind::Limits };
            let op = Op::Entry { kind, key: Bytes::from(write.key), value: write.value.map(Bytes::from) };
            self.world.give(place, Input::Write { ticket: None, op });
        }
        let Some(Batch { number, writes }) = gateway.plane.take_batch() else { return };
        let first = gateway.tickets;
        gateway.tickets += writes.len() as u64;
        gateway.keeping = Some((number, (first..gateway.tickets).map(Ticket).collect()));
        for (ticket, write) in (first..).map(Ticket).zip(writes) {
            let op =
                Op::Entry { kind: Kind::Budgets, key: Bytes::from(write.key), value: write.value.map(Bytes::from) };
            self.world.give(place, Input::Write { ticket: Some(ticket), op });
        }
    }
}

fn short(node: NodeId) -> u64 {
    u64::try_from(node.as_u128() & u128::from(u64::MAX)).unwrap_or_default()
}
