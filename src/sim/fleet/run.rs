//! One replay of a workload.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    str::FromStr,
    time::Duration,
};

use smg_base::{SplitMix, Timestamp, hash};
use smg_prefix::{Predictor, Source};
use smg_routing::{PolicyConfig, PolicyKind};

use super::{
    engine::{Engine, EngineConfig, Gauges, Seen, Work},
    figures::Figures,
    gateway::{Gateway, Sent},
    heard::{Busy, Ledgers},
    known::Known,
    owned::{News, Ownership},
    queue::Queue,
    rules::{Follower, Rule, View},
    workload::{CHUNK, Prompt, Workload},
};
use crate::dice::Dice;

/// Who chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chooser {
    /// A policy of this project: the code that nodes run.
    Policy(PolicyKind),
    /// A model of another router's rule.
    Rule(Rule),
}

impl Chooser {
    /// The name on the command line and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Policy(kind) => kind.as_str(),
            Self::Rule(rule) => rule.as_str(),
        }
    }
}

impl FromStr for Chooser {
    type Err = UnknownChooser;

    fn from_str(name: &str) -> Result<Self, UnknownChooser> {
        let rule = Rule::ALL.into_iter().find(|rule| rule.as_str() == name).map(Self::Rule);
        rule.or_else(|| name.parse().ok().map(Self::Policy)).ok_or(UnknownChooser)
    }
}

/// Neither a policy nor a rule has that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither a policy nor a rule has that name")]
pub struct UnknownChooser;

/// How engines work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// One prompt after the other, and nothing else.
    Prefill,
    /// Steps of prompts and streams together, in a limited memory.
    Full,
}

/// What is simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// From which all chance is drawn.
    pub seed: u64,
    /// Who chooses.
    pub chooser: Chooser,
    /// How many gateways there are; each request comes to any of them.
    pub gateways: usize,
    /// How many engines there are.
    pub engines: usize,
    /// How they work.
    pub model: Model,
    /// What they can do.
    pub engine: EngineConfig,
    /// How much faster than in the trace requests come.
    pub rate: f64,
    /// How old what a gateway knows of the others' load is.
    pub load_delay: Duration,
    /// How old what a gateway knows of caches is.
    pub ownership_delay: Duration,
    /// Where it knows it from.
    pub ownership: Ownership,
    /// How often engines are asked for their figures.
    pub poll: Duration,
    /// The parameters of the policies.
    pub config: PolicyConfig,
}

impl Case {
    /// The most engines and gateways.
    pub const ENGINES_MAX: usize = super::known::ENGINES_MAX;
    /// The most gateways.
    pub const GATEWAYS_MAX: usize = 1_024;

    /// The same for a single gateway to which everything is known at once: nobody who has to be told can do better.
    #[must_use]
    pub fn perfect(&self) -> Self {
        Self {
            gateways: 1,
            load_delay: Duration::ZERO,
            ownership_delay: Duration::ZERO,
            ownership: Ownership::Events,
            chooser: Chooser::Policy(PolicyKind::CacheAware),
            ..self.clone()
        }
    }
}

/// Replays a workload; `progress` is told now and then how many of the requests have come.
pub fn run(workload: &Workload, case: &Case, progress: &mut dyn FnMut(usize)) -> Figures {
    let mut dice = Dice::new(case.seed, 0);
    let arrivals = workload.arrivals(case.rate, &mut dice);
    let reusable_tokens = workload.reusable_tokens(&arrivals);
    let mut world = World::new(workload, case);
    for (count, (at, request)) in arrivals.into_iter().enumerate() {
        world.run_until(at);
        world.arrive(request, at);
        if count % 256 == 0 {
            progress(count);
        }
    }
    world.all_came = true;
    world.run_until(Timestamp::from_nanos(u64::MAX));
    world.settle(reusable_tokens)
}

/// Everything that a replay consists of.
struct World<'a> {
    prompts: &'a [Prompt],
    poll: Duration,
    gateways: Vec<Gateway>,
    followers: Vec<Follower>,
    engines: Vec<Machine>,
    ledgers: Ledgers,
    news: News,
    gauges: VecDeque<(Timestamp, Vec<Gauges>)>,
    load_delay: Duration,
    dice: Dice,
    random: SplitMix,
    agenda: BinaryHeap<Reverse<(Timestamp, u64, Happening)>>,
    happenings: u64,
    flights: BTreeMap<usize, Flight>,
    all_came: bool,
    figures: Figures,
}

/// Something that will happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Step { engine: usize },
    Answered { request: usize },
    Poll,
}

/// An engine of either model.
enum Machine {
    Full(Box<Engine>),
    Prefill(Box<Queue>),
}

/// A request that is at an engine.
struct Flight {
    gateway: usize,
    engine: usize,
    uncached_tokens: u32,
    /// Where a policy chose.
    sent: Option<Sent>,
    at: Timestamp,
    first_token: Option<Timestamp>,
}

impl<'a> World<'a> {
    fn new(workload: &'a Workload, case: &Case) -> Self {
        let capacity_chunks = case.engine.capacity_tokens / u64::from(CHUNK);
        let (mut gateways, mut followers, mut known) = (Vec::new(), Vec::new(), None);
        match case.chooser {
            Chooser::Policy(kind) => {
                gateways
                    .extend((0..case.gateways).map(|_| Gateway::new(kind, &case.config, case.engines, &case.engine)));
                let source = match case.ownership {
                    Ownership::Events => Source::Fed,
                    Ownership::Predicted => Source::FedAndClaimed,
                    Ownership::Alone => Source::Own,
                };
                gateways.iter().for_each(|gateway| gateway.set_source(source));
            }
            Chooser::Rule(rule) => {
                let follower = |gateway| Follower::new(rule, gateway, case.engines, capacity_chunks);
                followers.extend((0..case.gateways).map(follower));
                known = Some(Known::new(case.engines));
            }
        }
        let room = |engine| gateways.first().map_or(0, |gateway: &Gateway| gateway.capacity_chunks(engine));
        let homes = (0..case.engines).map(|engine| Predictor::new(room(engine))).collect();
        let machine = |_| match case.model {
            Model::Full => Machine::Full(Box::new(Engine::new(case.engine))),
            Model::Prefill => Machine::Prefill(Box::new(Queue::new(case.engine))),
        };
        let mut world = Self {
            prompts: &workload.prompts,
            poll: case.poll,
            gateways,
            followers,
            engines: (0..case.engines).map(machine).collect(),
            ledgers: Ledgers::new(case.gateways, case.engines, case.load_delay),
            news: News::new(case.ownership, case.ownership_delay, homes, known),
            gauges: VecDeque::new(),
            load_delay: case.load_delay,
            dice: Dice::new(case.seed, 1),
            random: SplitMix::new(hash::mix(case.seed, 2)),
            agenda: BinaryHeap::new(),
            happenings: 0,
            flights: BTreeMap::new(),
            all_came: false,
            figures: Figures::default(),
        };
        world.plan(Timestamp::ORIGIN + case.poll, Happening::Poll);
        world
    }

    /// Lets happen what is due up to `until`.
    fn run_until(&mut self, until: Timestamp) {
        while let Some(Reverse((at, ..))) = self.agenda.peek()
            && *at <= until
            && let Some(Reverse((now, _, happening))) = self.agenda.pop()
        {
            match happening {
                Happening::Step { engine } => self.stepped(engine, now),
                Happening::Answered { request } => {
                    if let Some(flight) = self.flights.get(&request)
                        && let Machine::Prefill(queue) = &mut self.engines[flight.engine]
                    {
                        queue.finish_answer();
                    }
                    self.finished(request, now);
                }
                Happening::Poll => self.poll(now),
            }
        }
    }

    /// A request comes to any of the gateways.
    fn arrive(&mut self, request: usize, now: Timestamp) {
        let prompts = self.prompts;
        let prompt = &prompts[request];
        self.figures.came(prompt.input_tokens);
        let gateways = &self.gateways;
        self.ledgers.advance(now, |gateway, engine, peers, due| {
            if let Some(gateway) = gateways.get(gateway) {
                gateway.hear_peers(engine, peers, due);
            }
        });
        self.news.advance(now, &self.gateways);
        while let Some((at, gauges)) = self.gauges.pop_front_if(|(at, _)| *at + self.load_delay <= now) {
            for (engine, gauges) in gauges.into_iter().enumerate() {
                self.gateways.iter().for_each(|gateway| gateway.hear_engine(engine, gauges, at));
            }
        }
        let gateway = self.dice.index(self.gateways.len().max(self.followers.len()));
        let Some(flight) = self.choose(gateway, prompt, now) else {
            self.figures.rejected += 1;
            return;
        };
        let engine = flight.engine;
        let is_taken = match &mut self.engines[engine] {
            Machine::Full(engine) => engine.take(request, prompts),
            Machine::Prefill(queue) => {
                queue.take(request);
                true
            }
        };
        if !is_taken {
            self.figures.failed += 1;
            return;
        }
        let busy = Busy {
            requests: 1,
            decoding: 0,
            pending_tokens: i64::from(flight.uncached_tokens),
            context_tokens: i64::from(prompt.input_tokens),
        };
        self.ledgers.write(gateway, engine, busy, now);
        self.flights.insert(request, flight);
        self.step(engine, now);
    }

    fn choose(&mut self, gateway: usize, prompt: &Prompt, now: Timestamp) -> Option<Flight> {
        let mut flight = Flight { gateway, engine: 0, uncached_tokens: 0, sent: None, at: now, first_token: None };
        if let Some(chooser) = self.gateways.get(gateway) {
            let sent = chooser.send(prompt, now, &self.random).ok()?;
            self.news.claimed(chooser, now);
            (flight.engine, flight.uncached_tokens) = (sent.engine, sent.uncached_tokens);
            flight.sent = Some(sent);
        } else {
            let known = self.news.known.as_ref()?;
            let view = View { gateway, ledgers: &self.ledgers, known, random: &self.random };
            let chosen = self.followers.get_mut(gateway)?.choose(prompt, &view);
            flight.engine = chosen.engine;
            flight.uncached_tokens = prompt.input_tokens.saturating_sub(chosen.matched_tokens);
        }
        Some(flight)
    }

    /// The step of an engine has ended.
    fn stepped(&mut self, number: usize, now: Timestamp) {
        let prompts = self.prompts;
        let changes = match &mut self.engines[number] {
            Machine::Full(engine) => {
                let mut seen = Vec::new();
                engine.finish_step(prompts, &mut seen);
                let changes = engine.changes();
                for seen in seen {
                    match seen {
                        Seen::FirstToken { request, cached_tokens } => self.first_token(request, cached_tokens, now),
                        Seen::Finished { request } => self.finished(request, now),
                    }
                }
                changes
            }
            Machine::Prefill(queue) => {
                let done = queue.finish_step(prompts);
                let changes = queue.changes();
                if let Some((request, cached_tokens, answer)) = done {
                    self.first_token(request, cached_tokens, now);
                    self.plan(now + answer, Happening::Answered { request });
                }
                changes
            }
        };
        self.news.changed(number, changes, now);
        self.step(number, now);
    }

    fn step(&mut self, number: usize, now: Timestamp) {
        let ends = match &mut self.engines[number] {
            Machine::Full(engine) => engine.step(now, self.prompts),
            Machine::Prefill(queue) => queue.step(now, self.prompts),
        };
        if let Some(ends) = ends {
            self.plan(ends, Happening::Step { engine: number });
        }
    }

    fn first_token(&mut self, request: usize, cached_tokens: u32, now: Timestamp) {
        let Some(flight) = self.flights.get_mut(&request) else { return };
        flight.first_token = Some(now);
        self.figures.first_token(now.since(flight.at), cached_tokens);
        if let Some(sent) = flight.sent.as_mut() {
            Gateway::first_token(sent, cached_tokens, now);
        }
        let pending_tokens = -i64::from(flight.uncached_tokens);
        let busy = Busy { decoding: 1, pending_tokens, ..Busy::default() };
        self.ledgers.write(flight.gateway, flight.engine, busy, now);
    }

    fn finished(&mut self, request: usize, now: Timestamp) {
        let prompt = &self.prompts[request];
        let Some(flight) = self.flights.remove(&request) else { return };
        let gaps = prompt.output_tokens - 1;
        let first_token = flight.first_token.unwrap_or(now);
        let gap = (gaps > 0).then(|| now.since(first_token) / gaps);
        self.figures.finished(now.since(flight.at), gap);
        if let (Some(gateway), Some(sent)) = (self.gateways.get(flight.gateway), flight.sent) {
            gateway.finished(sent, prompt, gap);
        }
        let context_tokens = -i64::from(prompt.input_tokens);
        let busy = Busy { requests: -1, decoding: -1, pending_tokens: 0, context_tokens };
        self.ledgers.write(flight.gateway, flight.engine, busy, now);
    }

    fn poll(&mut self, now: Timestamp) {
        let gauges = self.engines.iter().map(|engine| match engine {
            Machine::Full(engine) => engine.gauges(),
            Machine::Prefill(queue) => queue.gauges(),
        });
        self.gauges.push_back((now, gauges.collect()));
        // The last ones go unheard, and nobody asks any more once everything is done.
        if !self.all_came || !self.flights.is_empty() {
            self.plan(now + self.poll, Happening::Poll);
        }
    }

    fn plan(&mut self, at: Timestamp, happening: Happening) {
        self.happenings += 1;
        self.agenda.push(Reverse((at, self.happenings, happening)));
    }

    fn settle(mut self, reusable_tokens: u64) -> Figures {
        assert!(self.flights.is_empty(), "every request that an engine took has ended");
        let works: Vec<Work> = self
            .engines
            .iter()
            .map(|engine| match engine {
                Machine::Full(engine) => engine.work(),
                Machine::Prefill(queue) => queue.work(),
            })
            .collect();
        self.figures.reusable_tokens = reusable_tokens;
        self.figures.unplaced = self.news.unplaced + self.gateways.iter().map(Gateway::claims_dropped).sum::<u64>();
        self.figures.worked(&works);
        self.figures
    }
}
