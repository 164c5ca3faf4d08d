//! The whole of a run: places, network, time. One happening after the other; everything follows from the plan.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use smg_base::{Timestamp, hash};
use smg_mesh_proto::{Class, Config, Direction, Gone, Input, Output};

use crate::{
    agenda::{Agenda, Dial, Frame, Happening},
    dice::Dice,
    disk::Disk,
    judge::{Judge, Promise},
    links::Links,
    network::{HANDSHAKE, Network, Side, Standing},
    plan::{DiskFate, Harm, Plan},
    process::{self, LocalClock, Place},
    reached::{Mark, Reached},
    subject::{Defect, is_swallowed},
};

/// A cluster in virtual time.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) now: Timestamp,
    pub(crate) places: Vec<Place>,
    pub(crate) network: Network,
    pub(crate) agenda: Agenda,
    pub(crate) judge: Judge,
    pub(crate) reached: Reached,
    /// Whether promises are checked; measurements only look.
    pub(crate) is_judged: bool,
    /// What processes said, for measurements.
    pub(crate) said: Option<Vec<Said>>,
    pub(crate) active: Vec<bool>,
    pub(crate) dice: Dice,
    /// Since when links lose, delay and burst no more than the calm allows.
    pub(crate) links_calm_since: Option<Timestamp>,
    pub(crate) steps: u64,
    trace: u64,
    defect: Option<Defect>,
    work: VecDeque<(usize, Input)>,
    out: Vec<Output>,
    /// Frames sent lately by nodes in hostile hands, to be spoilt and sent again.
    pub(crate) samples: VecDeque<Bytes>,
}

/// An event of a process.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) at: Timestamp,
    pub(crate) place: usize,
    pub(crate) event: smg_mesh_proto::Event,
}

/// Time between two looks at the whole cluster.
const LOOK: Duration = Duration::from_secs(1);
/// Frames that a process which stands still finds at once when it wakes; those of short streams beyond come a little later.
const BACKLOG_MAX: usize = 200;
/// Frames that are kept to be spoilt.
const SAMPLES_MAX: usize = 32;

impl World {
    pub(crate) fn new(plan: Plan, defect: Option<Defect>) -> Self {
        let twins = plan.faults.iter().filter_map(|fault| match fault.what {
            Harm::Twin { node } => Some(node),
            _ => None,
        });
        let nodes: Vec<usize> = (0..plan.nodes).chain(twins).collect();
        let links = Links::new(
            nodes.len(),
            Duration::from_micros(plan.link_us),
            Duration::from_micros(plan.link_spread_us),
            Dice::new(plan.seed, 1),
        );
        let mut world = Self {
            now: Timestamp::ORIGIN,
            places: nodes.iter().enumerate().map(|(number, node)| Place::new(number, *node)).collect(),
            network: Network::new(nodes.len(), links),
            agenda: Agenda::default(),
            judge: Judge { workers: vec![Default::default(); plan.workers], ..Judge::default() },
            reached: Reached::default(),
            is_judged: true,
            said: None,
            active: vec![false; plan.faults.len()],
            dice: Dice::new(plan.seed, 2),
            links_calm_since: Some(Timestamp::ORIGIN),
            steps: 0,
            trace: plan.seed,
            defect,
            work: VecDeque::new(),
            out: Vec::new(),
            samples: VecDeque::new(),
            plan,
        };
        for place in &mut world.places {
            place.truths = vec![(smg_mesh_proto::Vote::Up, Timestamp::ORIGIN); world.plan.workers];
        }
        world.schedule();
        world
    }

    fn schedule(&mut self) {
        let at = |millis: u64| Timestamp::ORIGIN + Duration::from_millis(millis);
        for (place, start) in self.plan.starts_ms.iter().enumerate() {
            self.agenda.at(at(*start), Happening::Start { place });
        }
        for (fault, what) in self.plan.faults.iter().enumerate() {
            self.agenda.at(at(what.at_ms), Happening::FaultBegins { fault });
            self.agenda.at(at(what.end_ms()), Happening::FaultEnds { fault });
        }
        for (operation, what) in self.plan.operations.iter().enumerate() {
            self.agenda.at(at(what.at_ms), Happening::Asked { operation });
        }
        self.agenda.at(at(0) + LOOK, Happening::Look);
    }

    /// Lets everything happen that is due by `until`, or until something is wrong.
    pub(crate) fn run_until(&mut self, until: Timestamp) {
        while self.judge.violations.is_empty() {
            let Some((at, what)) = self.agenda.next(until) else { break };
            self.now = at;
            self.happen(what);
            while let Some((place, input)) = self.work.pop_front() {
                self.give(place, input);
            }
        }
        self.now = self.now.max(until);
    }

    /// A number that is equal for two runs that went alike.
    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    fn happen(&mut self, what: Happening) {
        self.steps += 1;
        match what {
            Happening::Start { place } => self.start_again(place, DiskFate::Kept),
            Happening::Quit { place, generation } => {
                if self.is_current(place, generation) {
                    self.kill(place);
                    if place < self.plan.nodes {
                        self.agenda.at(self.now + Duration::from_secs(3), Happening::Start { place });
                    }
                }
            }
            Happening::Give { place, generation, input } => {
                if self.is_current(place, generation) {
                    self.give(place, input);
                }
            }
            Happening::Tick { place, generation } => self.tick(place, generation),
            Happening::Vitals { place, generation } => self.vitals(place, generation),
            Happening::Written { place, generation } => self.written(place, generation),
            Happening::Handshake(dial) => self.handshake(&dial),
            Happening::Accepted { connection } => self.accepted(connection),
            Happening::Arrive { connection, side, frame } => self.arrive(Side { connection, side }, frame),
            Happening::Ended { connection, side, gone } => self.ended(Side { connection, side }, gone),
            Happening::Idle { connection, side, since } => {
                if self.network.is_idle(Side { connection, side }, since) {
                    self.reached.mark(Mark::IdleTimeout);
                    self.ended(Side { connection, side }, Gone::Lost);
                }
            }
            Happening::Reset { connection, side } => {
                if self.network.is_reset(Side { connection, side }) {
                    self.reached.mark(Mark::StatelessReset);
                    self.ended(Side { connection, side }, Gone::Lost);
                }
            }
            Happening::FaultBegins { fault } => self.fault_begins(fault),
            Happening::FaultEnds { fault } => self.fault_ends(fault),
            Happening::Mischief { fault } => self.mischief(fault),
            Happening::Asked { operation } => self.asked(operation),
            Happening::Look => {
                self.look();
                self.agenda.at(self.now + LOOK, Happening::Look);
            }
        }
    }

    fn arrive(&mut self, at: Side, frame: Frame) {
        let place = self.network.place(at);
        if self.network.standings[place].is_paused {
            self.places[place].unread.push((at, frame));
            return;
        }
        for bytes in self.network.arrive(self.now, at, frame, &mut self.agenda) {
            let twice = self.network.links.duplicate;
            if self.network.links.chance(twice) {
                self.give(place, Input::Frame { connection: at.id(), bytes: bytes.clone() });
            }
            self.give(place, Input::Frame { connection: at.id(), bytes });
        }
    }

    pub(crate) fn is_current(&self, place: usize, generation: u32) -> bool {
        self.places[place].process.is_some() && self.places[place].generation == generation
    }

    /// Starts a process; what it finds on its disk may not be what was written.
    pub(crate) fn start(&mut self, place: usize, fate: DiskFate) {
        if self.places[place].process.is_some() {
            return;
        }
        match fate {
            DiskFate::Kept => {}
            DiskFate::Old => self.lose_disk(place, self.places[place].old_disk()),
            DiskFate::Wiped => self.lose_disk(place, Disk::default()),
        }
        let origin = Timestamp::from_nanos(self.dice.between(1, 1_000_000_000_000));
        let ppm = self.plan.drift_ppm.get(self.places[place].node).copied().unwrap_or(0);
        let clock = LocalClock::new(origin, self.now, ppm);
        let instance = self.dice.number();
        let spot = &mut self.places[place];
        spot.generation += 1;
        let config = process::config(&self.plan, spot, instance);
        self.launch(place, config, clock);
    }

    fn launch(&mut self, place: usize, config: Config, clock: LocalClock) {
        let spot = &mut self.places[place];
        spot.process = Some(process::start(spot, config, clock, self.now, self.defect));
        let generation = spot.generation;
        let seeds = self.plan.seeds.get(spot.node).cloned().unwrap_or_default();
        let seeds = seeds.into_iter().map(|seed| self.places[seed].address).collect();
        self.network.standings[place] = Standing { is_running: true, is_paused: false };
        self.agenda.at(self.now + Duration::from_millis(1_000), Happening::Vitals { place, generation });
        self.topology_changed();
        self.work.push_back((place, Input::Seeds(seeds)));
        self.reschedule_tick(place);
    }

    /// Ends a process without a word.
    pub(crate) fn kill(&mut self, place: usize) {
        if self.places[place].process.take().is_none() {
            return;
        }
        self.network.forget(place);
        self.network.standings[place] = Standing::default();
        self.places[place].unread.clear();
        self.judge.forget(place);
        self.topology_changed();
    }

    /// Looks at everything again that depends on who runs and which links are open.
    pub(crate) fn topology_changed(&mut self) {
        self.note_calm();
        self.network.refresh(self.now, &mut self.agenda, &mut self.reached);
    }

    /// Gives a process something, or keeps it until the process goes on.
    pub(crate) fn give(&mut self, place: usize, input: Input) {
        if let Input::Frame { connection, .. } = &input
            && !self.network.is_open(Side::of(*connection))
        {
            return;
        }
        let is_paused = self.network.standings[place].is_paused;
        let Some(process) = self.places[place].process.as_mut() else { return };
        if is_paused {
            process.backlog.push(input);
            return;
        }
        self.trace_input(place, &input);
        let Some(process) = self.places[place].process.as_mut() else { return };
        let mut out = std::mem::take(&mut self.out);
        process.subject.handle(process.local(self.now), input, &mut out);
        for output in out.drain(..) {
            self.put(place, output);
        }
        self.out = out;
        self.reschedule_tick(place);
    }

    /// Queues an input for the moment after this one.
    pub(crate) fn give_soon(&mut self, place: usize, input: Input) {
        self.work.push_back((place, input));
    }

    fn put(&mut self, place: usize, output: Output) {
        let generation = self.places[place].generation;
        match output {
            Output::Dial { address, expect } => {
                let target =
                    self.places.iter().position(|other| other.address == address).filter(|other| *other != place);
                match target {
                    Some(target) => {
                        let dial = Dial { place, generation, target, expect, begun: self.now };
                        self.network.dial(self.now, dial, &mut self.agenda);
                    }
                    None => {
                        let input = Input::DialFailed { address };
                        self.agenda.at(self.now + HANDSHAKE, Happening::Give { place, generation, input });
                    }
                }
            }
            Output::Send { connection, class, bytes } => self.send(place, Side::of(connection), class, bytes),
            Output::Close { connection, code } => {
                let side = Side::of(connection);
                if self.network.is_open(side) {
                    self.closing(place, side, code);
                    self.network.close(self.now, side, code, &mut self.agenda);
                    self.network.refresh_one(self.now, side.connection, &mut self.agenda, &mut self.reached);
                    self.work.push_back((place, Input::Disconnected { connection, gone: Gone::Closed(code) }));
                }
            }
            Output::Persist(batch) => self.persist(place, batch),
            Output::Event(event) => {
                if let Some(said) = &mut self.said {
                    said.push(Said { at: self.now, place, event: event.clone() });
                }
                self.event(place, event);
            }
        }
    }

    fn send(&mut self, place: usize, side: Side, class: Class, bytes: Bytes) {
        self.trace = hash::mix(self.trace, (bytes.len() as u64) << 8 | class as u64);
        if class == Class::Bulk {
            self.reached.mark(Mark::Snapshot);
        }
        if self.is_judged && self.network.is_open(side) && self.network.place(side) != place {
            self.judge.blame(self.now, Promise::Contract, format!("place {place} sends over another's connection"));
        }
        if self.samples.len() == SAMPLES_MAX {
            self.samples.pop_front();
        }
        self.samples.push_back(bytes.clone());
        self.send_newer(place, side, &bytes);
        self.network.send(self.now, side, class, bytes, &mut self.agenda);
    }

    fn persist(&mut self, place: usize, batch: smg_mesh_proto::Batch) {
        let slow = self.active_harms().filter_map(|harm| match harm {
            Harm::SlowDisk { node, millis } if *node == self.places[place].node => Some(*millis),
            _ => None,
        });
        let longest = slow.max().unwrap_or(0).max(self.plan.disk_ms);
        let takes = Duration::from_micros(100) + self.dice.up_to(Duration::from_millis(longest));
        let spot = &mut self.places[place];
        let generation = spot.generation;
        let Some(process) = spot.process.as_mut() else { return };
        // The disk writes one batch after the other.
        process.disk_free = process.disk_free.max(self.now) + takes;
        process.batches.push_back(batch);
        self.agenda.at(process.disk_free, Happening::Written { place, generation });
    }

    fn written(&mut self, place: usize, generation: u32) {
        if !self.is_current(place, generation) {
            return;
        }
        let defect = self.defect;
        let spot = &mut self.places[place];
        let Some(mut batch) = spot.process.as_mut().and_then(|process| process.batches.pop_front()) else { return };
        batch.records.retain(|record| !is_swallowed(defect, record));
        let outcome = spot.disk.append(&batch.records);
        spot.keep_disk(self.now);
        if let Err(error) = outcome {
            self.judge.blame(self.now, Promise::Contract, format!("place {place}: {error}"));
        }
        self.give(place, Input::Persisted { sequence: batch.sequence });
    }

    fn handshake(&mut self, dial: &Dial) {
        if !self.is_current(dial.place, dial.generation) {
            return;
        }
        let target = &self.places[dial.target];
        let (address, peer) = (target.address, target.id);
        let is_expected = dial.expect.is_none_or(|expected| expected == peer);
        if !self.network.answers(self.now, dial) || !is_expected {
            let at = (dial.begun + HANDSHAKE).max(self.now);
            let (place, generation) = (dial.place, dial.generation);
            self.agenda.at(at, Happening::Give { place, generation, input: Input::DialFailed { address } });
            return;
        }
        let side = self.network.open(self.now, dial, &mut self.agenda);
        let input = Input::Connected { connection: side.id(), peer, address, direction: Direction::Dialled };
        self.give(dial.place, input);
    }

    fn accepted(&mut self, connection: usize) {
        let Some(place) = self.network.accept(connection) else { return };
        let side = Side { connection, side: 1 };
        let dialler = &self.places[self.network.peer(side)];
        let (peer, address) = (dialler.id, dialler.address);
        self.network.refresh_one(self.now, connection, &mut self.agenda, &mut self.reached);
        self.give(place, Input::Connected { connection: side.id(), peer, address, direction: Direction::Accepted });
    }

    fn ended(&mut self, side: Side, gone: Gone) {
        if !self.network.end(side, &gone) {
            return;
        }
        self.network.refresh_one(self.now, side.connection, &mut self.agenda, &mut self.reached);
        self.give(self.network.place(side), Input::Disconnected { connection: side.id(), gone });
    }

    fn tick(&mut self, place: usize, generation: u32) {
        let is_paused = self.network.standings[place].is_paused;
        if !self.is_current(place, generation) || is_paused {
            return;
        }
        if let Some(process) = self.places[place].process.as_mut()
            && process.tick_at.is_some_and(|at| at <= self.now)
        {
            process.tick_at = None;
            self.give(place, Input::Tick);
        }
    }

    fn reschedule_tick(&mut self, place: usize) {
        let spot = &mut self.places[place];
        let generation = spot.generation;
        let Some(process) = spot.process.as_mut() else { return };
        let next = process.subject.mesh().next_tick();
        // What has left or was refused asks for no more time.
        if next == Timestamp::from_nanos(u64::MAX) {
            return;
        }
        let due = process.clock.when(next);
        let due = due.max(self.now + Duration::from_micros(1));
        if process.tick_at.is_none_or(|at| due < at || at < self.now) {
            process.tick_at = Some(due);
            self.agenda.at(due, Happening::Tick { place, generation });
        }
    }

    fn vitals(&mut self, place: usize, generation: u32) {
        if !self.is_current(place, generation) {
            return;
        }
        self.agenda.at(self.now + Duration::from_secs(1), Happening::Vitals { place, generation });
        if self.network.standings[place].is_paused {
            return;
        }
        for side in self.network.sides(place) {
            let peer = self.network.peer(side);
            let rtt = self.network.links.rtt(place, peer);
            #[expect(clippy::cast_possible_truncation, reason = "a share")]
            let loss = self.network.links.link(place, peer).loss as f32;
            self.give(place, Input::Vitals { connection: side.id(), rtt, loss });
        }
    }

    /// A process stands still.
    pub(crate) fn pause(&mut self, place: usize) {
        self.network.standings[place].is_paused = true;
        self.topology_changed();
    }

    /// And goes on: first with what came meanwhile, then with its timers.
    pub(crate) fn resume(&mut self, place: usize) {
        self.network.standings[place].is_paused = false;
        self.topology_changed();
        let generation = self.places[place].generation;
        let unread = std::mem::take(&mut self.places[place].unread);
        if !unread.is_empty() {
            self.reached.mark(Mark::WokenBacklog);
        }
        for (position, (at, frame)) in unread.into_iter().enumerate() {
            if position < BACKLOG_MAX {
                self.arrive(at, frame);
            } else {
                // What did not fit the socket's buffer is sent again by its sender.
                let later = self.now + Duration::from_millis(200 + position as u64);
                self.agenda.at(later, Happening::Arrive { connection: at.connection, side: at.side, frame });
            }
        }
        let Some(process) = self.places[place].process.as_mut() else { return };
        for input in std::mem::take(&mut process.backlog) {
            self.give(place, input);
        }
        if self.is_current(place, generation) {
            self.give(place, Input::Tick);
        }
    }

    fn trace_input(&mut self, place: usize, input: &Input) {
        let (kind, detail) = match input {
            Input::Connected { connection, .. } => (1, connection.0),
            Input::Disconnected { connection, .. } => (2, connection.0),
            Input::DialFailed { .. } => (3, 0),
            Input::Frame { bytes, .. } => (4, bytes.len() as u64),
            Input::Vitals { connection, .. } => (5, connection.0),
            Input::ForwardFailed { .. } => (6, 0),
            Input::RelayCandidates(peers) => (7, peers.len() as u64),
            Input::Seeds(seeds) => (8, seeds.len() as u64),
            Input::Write { .. } => (9, 0),
            Input::Persisted { sequence } => (10, *sequence),
            Input::Leave => (11, 0),
            Input::Tick => (12, 0),
        };
        let who = (place as u64) << 8 | kind;
        self.trace = hash::mix(hash::mix(self.trace, self.now.as_nanos()), hash::mix(who, detail));
    }

    /// What is wrong at this moment.
    pub(crate) fn active_harms(&self) -> impl Iterator<Item = &Harm> {
        let faults = self.plan.faults.iter().zip(&self.active);
        faults.filter(|(_, active)| **active).map(|(fault, _)| &fault.what)
    }
}
