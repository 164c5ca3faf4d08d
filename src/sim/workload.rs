//! What is asked of nodes, what they answer, and what they say of themselves.

use std::time::Duration;

use bytes::Bytes;
use smg_base::WorkerId;
use smg_mesh_proto::{
    Event, Input, Kind, Ledger, Member, MemberState, Op, Reach, Ticket, Verdict, Vote, WorkerRow, WriteError,
};

use crate::{
    agenda::Happening,
    faults::revoked_key,
    judge::{ConfigWrite, Expected, Promise, Waiting},
    plan::{Ask, Harm, Health},
    process::worker,
    reached::Mark,
    world::World,
};

/// Length of an entry that the mesh does not read.
const ENTRY_BYTES: usize = 100;
/// How long nothing was asked of a worker before all is known of it.
const QUIET: Duration = Duration::from_secs(5);
/// How long a place and its links must have been calm before a verdict about it is false.
const CALM: Duration = Duration::from_secs(15);

impl World {
    /// Asks what the plan says.
    pub(crate) fn asked(&mut self, operation: usize) {
        let (place, ask) = (self.plan.operations[operation].node, self.plan.operations[operation].what.clone());
        match ask {
            Ask::Truth { worker, health } => self.find(place, worker, health),
            Ask::Ledger { worker: number, requests } => {
                let ledger = Ledger { requests, decoding: 0, pending_tokens: u64::from(requests) * 100 };
                if let Some(process) = self.places[place].process.as_mut() {
                    process.ledgers.insert(number, ledger);
                    self.write(place, None, Op::Ledger { worker: worker(number), ledger });
                }
            }
            Ask::Draining { on } => {
                if let Some(process) = self.places[place].process.as_mut() {
                    process.draining = on;
                    self.reached.mark(Mark::Draining);
                    self.write(place, None, Op::Draining(on));
                }
            }
            Ask::Entries { first, count, live } => {
                for number in first..first + count {
                    let key = Bytes::from(format!("entry {number}"));
                    let value = live.then(|| Bytes::from(vec![number as u8; ENTRY_BYTES]));
                    self.write(place, None, Op::Entry { kind: Kind::Prefixes, key, value });
                }
            }
            Ask::ForwardFailed { peer } => {
                let peer = self.places[peer].id;
                self.give(place, Input::ForwardFailed { peer });
            }
            Ask::Add { .. } | Ask::Remove { .. } | Ask::Withdraw { .. } | Ask::Config { .. } | Ask::Revoke { .. } => {
                self.ask(place, ask);
            }
        }
    }

    /// Asks for a write that is acknowledged.
    fn ask(&mut self, place: usize, ask: Ask) {
        if self.places[place].process.is_none() {
            return;
        }
        // No two registrations have the same specification, so that one is told from the one before.
        let spec = Bytes::from(format!("api {}", self.judge.tickets));
        let Some(op) = op_of(&ask, &spec) else { return };
        let mut waiting = self.note_asked(place, ask);
        waiting.spec = spec;
        let ticket = self.judge.ticket(waiting);
        self.write(place, Some(ticket), op);
    }

    /// Asserts a worker that the node's flags declare.
    fn declare(&mut self, place: usize, number: usize) {
        let history = &mut self.judge.workers[number];
        history.touched = self.now;
        history.asked += 1;
        if matches!(history.expected, Expected::Absent { .. } | Expected::Gone) {
            if history.is_declaration_removed {
                self.reached.mark(Mark::DeclaredStaysRemoved);
            } else {
                history.expected = Expected::Open;
            }
        }
        let waiting = Waiting {
            place,
            generation: self.places[place].generation,
            ask: Ask::Add { worker: number },
            is_declared: true,
            spec: declared_spec(number),
            against: history.against,
            saw_declaration: false,
            saw_everything: false,
            asked: 0,
        };
        let ticket = self.judge.ticket(waiting);
        let op = Op::AddWorker { worker: worker(number), spec: declared_spec(number), declared: true };
        self.write(place, Some(ticket), op);
    }

    fn note_asked(&mut self, place: usize, ask: Ask) -> Waiting {
        let generation = self.places[place].generation;
        let mut waiting = Waiting {
            place,
            generation,
            ask: ask.clone(),
            is_declared: false,
            spec: Bytes::new(),
            against: 0,
            saw_declaration: false,
            saw_everything: false,
            asked: 0,
        };
        match ask {
            Ask::Add { worker } => {
                let history = &mut self.judge.workers[worker];
                history.touched = self.now;
                history.asked += 1;
                if matches!(history.expected, Expected::Absent { .. } | Expected::Gone) {
                    history.expected = Expected::Open;
                }
                waiting.against = history.against;
            }
            Ask::Remove { worker: number } | Ask::Withdraw { worker: number } => {
                let row = self.row(place, number);
                if let Some(row) = &row
                    && row.writer != self.places[place].id
                    && matches!(ask, Ask::Remove { .. })
                {
                    self.reached.mark(Mark::RemovalOfAnothersAdd);
                }
                waiting.saw_declaration = row.is_some_and(|row| row.declared) && matches!(ask, Ask::Remove { .. });
                waiting.saw_everything = matches!(ask, Ask::Remove { .. }) && self.is_known_to_all(number);
                let history = &mut self.judge.workers[number];
                history.touched = self.now;
                history.asked += 1;
                waiting.asked = history.asked;
                history.against += 1;
                waiting.against = history.against;
                history.is_removal_asked |= matches!(ask, Ask::Remove { .. });
                if matches!(history.expected, Expected::Present | Expected::Gone) {
                    history.expected = Expected::Open;
                    history.shown.clear();
                }
            }
            Ask::Config { key, value } => {
                let writes = self.judge.config.entry(key).or_default();
                waiting.against = writes.len() as u64;
                writes.push(ConfigWrite { place, value, is_acknowledged: false });
            }
            _ => {}
        }
        waiting
    }

    /// Whether all nodes see the same of a worker and nothing is under way.
    fn is_known_to_all(&self, number: usize) -> bool {
        let is_quiet = self.now.since(self.judge.workers[number].touched) >= QUIET;
        let is_waited_for = self.judge.waiting.values().any(|waiting| waiting.is_about(number));
        let rows: Vec<Option<WorkerRow>> = (0..self.plan.nodes).map(|place| self.row(place, number)).collect();
        let is_same = rows.iter().all(|row| row.is_some() && *row == rows[0]);
        is_quiet && !is_waited_for && is_same
    }

    /// What a process that has joined and goes on sees of a worker.
    fn row(&self, place: usize, number: usize) -> Option<WorkerRow> {
        let process = self.places[place].process.as_ref().filter(|process| process.joined.is_some())?;
        if self.network.standings[place].is_paused {
            return None;
        }
        process.subject.mesh().workers().remove(&worker(number))
    }

    fn write(&mut self, place: usize, ticket: Option<Ticket>, op: Op) {
        self.give(place, Input::Write { ticket, op });
    }

    /// From now on a node finds a worker so, and votes if it sees it.
    fn find(&mut self, place: usize, number: usize, health: Health) {
        let vote = vote_of(health);
        if health == Health::Sick {
            self.judge.workers[number].sick = Some(self.now);
        }
        let truths = &mut self.places[place].truths;
        let before = truths[number].0;
        if before == Vote::Sick {
            self.judge.workers[number].sick = Some(self.now);
        }
        truths[number] = if before == vote { truths[number] } else { (vote, self.now) };
        if before != vote {
            self.vote(place, number);
        }
    }

    fn vote(&mut self, place: usize, number: usize) {
        let vote = self.places[place].truths[number].0;
        let Some(process) = self.places[place].process.as_mut() else { return };
        let Some(voted) = process.votes.get_mut(&number) else { return };
        if *voted != Some(vote) {
            *voted = Some(vote);
            self.give_soon(
                place,
                Input::Write { ticket: None, op: Op::Vote { worker: worker(number), vote: Some(vote) } },
            );
        }
    }

    /// A process said something.
    pub(crate) fn event(&mut self, place: usize, event: Event) {
        match event {
            Event::Member(member) => self.member(place, &member),
            Event::Joined { alone } => self.joined(place, if alone { Company::None } else { Company::Peers }),
            Event::Worker { worker, row } => self.worker_changed(place, worker, row.as_ref()),
            Event::Reach { worker, reach } => self.reach_changed(place, worker, &reach),
            // Where nothing is judged, whoever looks has tickets of its own.
            Event::Written { .. } if !self.is_judged => {}
            Event::Written { ticket, outcome } => self.answered(ticket, outcome),
            Event::Left => {
                self.reached.mark(Mark::Left);
                let generation = self.places[place].generation;
                // The transport needs a moment to send what is queued.
                self.agenda.at(self.now + Duration::from_millis(300), Happening::Quit { place, generation });
            }
            Event::Refused(_) => self.refused(place),
            Event::Forgotten(_)
            | Event::PeerLoad { .. }
            | Event::Engine { .. }
            | Event::Config { .. }
            | Event::Entry { .. } => {}
        }
    }

    fn joined(&mut self, place: usize, company: Company) {
        let alone = company == Company::None;
        let now = self.now;
        let is_node = place < self.plan.nodes;
        let Some(process) = self.places[place].process.as_mut() else { return };
        let is_first = process.joined.is_none();
        process.joined.get_or_insert(now);
        if alone {
            self.reached.mark(Mark::JoinedAlone);
        } else if process.is_alone {
            self.reached.mark(Mark::JoinedPeers);
        }
        process.is_alone = alone;
        if is_first && is_node {
            for number in self.plan.declared[place].clone() {
                self.declare(place, number);
            }
        }
    }

    fn worker_changed(&mut self, place: usize, changed: WorkerId, row: Option<&WorkerRow>) {
        let Some(number) = (0..self.plan.workers).find(|number| worker(*number) == changed) else { return };
        let Some(process) = self.places[place].process.as_mut() else { return };
        if row.is_some() {
            process.votes.entry(number).or_insert(None);
            self.vote(place, number);
        } else if process.votes.remove(&number).is_some() {
            self.give_soon(place, Input::Write { ticket: None, op: Op::Vote { worker: changed, vote: None } });
        }
    }

    fn reach_changed(&mut self, place: usize, changed: WorkerId, reach: &Reach) {
        let Some(number) = (0..self.plan.workers).find(|number| worker(*number) == changed) else { return };
        if reach.verdict == Verdict::Down {
            self.reached.mark(Mark::VerdictDown);
        }
        let Some(process) = self.places[place].process.as_ref() else { return };
        let own = process.votes.get(&number).copied().flatten();
        if reach.verdict == Verdict::Up && own == Some(Vote::Unreachable) {
            self.reached.mark(Mark::OnlyThroughPeer);
        }
        let key = (place, self.places[place].generation, number);
        if reach.verdict == Verdict::Down {
            self.judge.wrongly_down.entry(key).or_insert(self.now);
        } else {
            self.judge.wrongly_down.remove(&key);
        }
    }

    fn member(&mut self, place: usize, member: &Member) {
        match member.state {
            MemberState::Suspect => self.reached.mark(Mark::Suspected),
            MemberState::Down => self.reached.mark(Mark::DeclaredDown),
            MemberState::Alive | MemberState::Left => {}
        }
        if member.doubted {
            self.reached.mark(Mark::Doubted);
        }
        self.note_change(place, member);
        let Some(about) = (0..self.plan.nodes).find(|other| self.places[*other].id == member.node) else { return };
        if !self.is_judged || place >= self.plan.nodes || about == place {
            return;
        }
        let is_meddled_with = self.plan.has(|harm| matches!(harm, Harm::Hostile { node, .. } if *node == about));
        if member.state == MemberState::Left && !self.places[about].has_left && !is_meddled_with {
            self.judge.blame(self.now, Promise::StayedIn, format!("n{place} says that n{about} left"));
        }
        if member.state == MemberState::Down && self.is_long_calm(place) && self.is_long_calm(about) {
            self.judge.blame(self.now, Promise::AliveUp, format!("n{place} says that n{about} is down"));
        }
    }

    fn note_change(&mut self, place: usize, member: &Member) {
        let Some(process) = self.places[place].process.as_mut() else { return };
        match (process.members.insert(member.node, member.state), member.state) {
            (Some(MemberState::Suspect), MemberState::Alive) => self.reached.mark(Mark::Refuted),
            (Some(MemberState::Down), MemberState::Alive) => self.reached.mark(Mark::CameBack),
            _ => {}
        }
    }

    /// Whether nothing has been wrong with a node and its links for long enough that no verdict can stem from before.
    pub(crate) fn is_long_calm(&self, place: usize) -> bool {
        let long = |since: smg_base::Timestamp| self.now.since(since) >= CALM;
        let spot = &self.places[place];
        let is_settled = spot.process.as_ref().and_then(|process| process.joined).is_some_and(long);
        is_settled && spot.calm_since.is_some_and(long) && self.links_calm_since.is_some_and(long)
    }

    /// The cluster refuses a process, which ends it.
    fn refused(&mut self, place: usize) {
        self.reached.mark(Mark::NameRefused);
        let node = self.places[place].node;
        let has_twin = self.plan.has(|harm| *harm == Harm::Twin { node });
        if self.is_judged && !has_twin {
            self.judge.blame(self.now, Promise::Welcome, format!("n{node} is refused, and no other has its name"));
        }
        let generation = self.places[place].generation;
        self.agenda.at(self.now, Happening::Quit { place, generation });
    }

    fn answered(&mut self, ticket: Ticket, outcome: Result<(), WriteError>) {
        let Some(waiting) = self.judge.waiting.remove(&ticket) else {
            self.judge.blame(self.now, Promise::Contract, format!("{ticket:?} is answered and was not waiting"));
            return;
        };
        let now = self.now;
        if let Err(error) = outcome {
            self.reached.mark(Mark::WriteFailed);
            if let Ask::Add { worker } | Ask::Remove { worker } | Ask::Withdraw { worker } = waiting.ask {
                self.judge.workers[worker].touched = now;
            }
            if error == WriteError::TooLarge {
                self.judge.blame(now, Promise::Bounded, format!("{:?} found a lane full", waiting.ask));
            }
            return;
        }
        if self.network.sides(waiting.place).is_empty() {
            self.reached.mark(Mark::AcknowledgedAlone);
        }
        let process = (waiting.place, waiting.generation);
        match waiting.ask {
            Ask::Add { worker } => {
                let is_threatened = self.judge.waiting.values().any(|other| other.is_against(worker));
                let history = &mut self.judge.workers[worker];
                history.touched = now;
                let is_doubtful = is_threatened || (waiting.is_declared && history.is_removal_asked);
                if history.against == waiting.against
                    && !is_doubtful
                    && !matches!(history.expected, Expected::Absent { .. })
                {
                    history.expected = Expected::Present;
                    if !waiting.is_declared {
                        history.shown.clear();
                        history.spec = waiting.spec;
                    }
                    history.shown.insert(process);
                }
            }
            Ask::Remove { worker } => {
                let is_waited_for = self.judge.waiting.values().any(|other| other.is_about(worker));
                let history = &mut self.judge.workers[worker];
                history.touched = now;
                history.is_declaration_removed |= waiting.saw_declaration;
                if waiting.saw_everything && history.asked == waiting.asked && !is_waited_for {
                    history.expected = Expected::Gone;
                }
            }
            Ask::Withdraw { worker } => self.judge.workers[worker].touched = now,
            Ask::Config { key, .. } => {
                let position = usize::try_from(waiting.against).unwrap_or(usize::MAX);
                if let Some(write) = self.judge.config.get_mut(&key).and_then(|writes| writes.get_mut(position)) {
                    write.is_acknowledged = true;
                }
            }
            Ask::Revoke { key } => {
                self.reached.mark(Mark::Revoked);
                self.judge.revoked.entry(key).or_default().insert(process);
            }
            Ask::Truth { .. }
            | Ask::Ledger { .. }
            | Ask::Entries { .. }
            | Ask::Draining { .. }
            | Ask::ForwardFailed { .. } => {}
        }
    }
}

/// With whom a node has joined.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Company {
    Peers,
    None,
}

fn op_of(ask: &Ask, spec: &Bytes) -> Option<Op> {
    Some(match ask {
        Ask::Add { worker: number } => Op::AddWorker { worker: worker(*number), spec: spec.clone(), declared: false },
        Ask::Remove { worker: number } => Op::RemoveWorker { worker: worker(*number) },
        Ask::Withdraw { worker: number } => Op::WithdrawWorker { worker: worker(*number) },
        Ask::Config { key, value } => {
            Op::Config { key: config_key(*key), value: value.map(|value| Bytes::from(value.to_string())) }
        }
        Ask::Revoke { key } => Op::Config { key: revoked_key(*key), value: Some(Bytes::from_static(b"1")) },
        Ask::Truth { .. }
        | Ask::Ledger { .. }
        | Ask::Entries { .. }
        | Ask::Draining { .. }
        | Ask::ForwardFailed { .. } => return None,
    })
}

/// The key of a value of shared configuration.
pub(crate) fn config_key(key: usize) -> String {
    format!("alias/{key}")
}

fn declared_spec(number: usize) -> Bytes {
    Bytes::from(format!("declared {number}"))
}

pub(crate) fn vote_of(health: Health) -> Vote {
    match health {
        Health::Up => Vote::Up,
        Health::Sick => Vote::Sick,
        Health::Unreachable => Vote::Unreachable,
    }
}
