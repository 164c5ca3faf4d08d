//! The circuit breaker of a worker.

use std::{
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use serde::Serialize;

use smg_base::Timestamp;

/// When a breaker opens and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Whether there is one at all.
    pub enabled: bool,
    /// Failures in a row that open it; zero counts as one.
    pub failure_threshold: u32,
    /// Successes of probes in a row that close it; zero counts as one.
    pub success_threshold: u32,
    /// How long it stays open before a probe is let through.
    pub open_for: Duration,
    /// Failures in a row count together only within this time of the first of them.
    pub window: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_threshold: 10,
            success_threshold: 3,
            open_for: Duration::from_secs(60),
            window: Duration::from_secs(120),
        }
    }
}

/// What a breaker does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum BreakerState {
    /// It lets all pass.
    Closed = 0,
    /// It lets none pass.
    Open = 1,
    /// It lets one at a time pass, to see.
    HalfOpen = 2,
}

impl BreakerState {
    /// The word used as a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// A breaker went from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerTransition {
    /// Before.
    pub from: BreakerState,
    /// After.
    pub to: BreakerState,
}

/// What a request says about its worker. The caller judges: the client's own errors (4xx) and a busy worker that
/// says so are `Neutral`, never `Failure`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The worker did its work.
    Success,
    /// The worker failed.
    Failure,
    /// Nothing can be concluded.
    Neutral,
}

/// A breaker. Consecutive failures open it; after a while it lets one request at a time through as a probe; probes
/// that succeed close it and one that fails opens it again. An outcome counts only in the phase in which its request
/// was let through, so that the stragglers of an outage neither prolong it nor end it.
///
/// [`Breaker::would_admit`] is one atomic read. Every change of phase happens under a lock that is taken only by
/// failures, and by successes that follow a failure.
#[derive(Debug)]
#[repr(C)]
pub struct Breaker {
    /// From which reading of the clock on a request may pass: [`ALWAYS`], the end of the open phase, or [`NEVER`]
    /// while a probe is out.
    gate_nanos: AtomicU64,
    /// Kept elsewhere: see [`crate::WorkerState`].
    aside: Box<Aside>,
}

/// What decisions do not read.
#[derive(Debug)]
struct Aside {
    epoch: AtomicU64,
    failures: AtomicU32,
    successes: AtomicU32,
    state: AtomicU8,
    machine: Mutex<Machine>,
}

const ALWAYS: u64 = 0;
const NEVER: u64 = u64::MAX;

/// The permission that one request got. It must be given back with [`Breaker::record`].
#[derive(Debug)]
pub(crate) struct Pass {
    epoch: u64,
    is_probe: bool,
    /// The change that letting this request through made.
    pub(crate) transition: Option<BreakerTransition>,
}

impl Breaker {
    /// A closed breaker.
    pub(crate) fn new(config: BreakerConfig) -> Self {
        Self {
            gate_nanos: AtomicU64::new(ALWAYS),
            aside: Box::new(Aside {
                epoch: AtomicU64::new(0),
                state: AtomicU8::new(BreakerState::Closed as u8),
                failures: AtomicU32::new(0),
                successes: AtomicU32::new(0),
                machine: Mutex::new(Machine { config, epoch: 0, phase: Phase::CLOSED }),
            }),
        }
    }

    /// Whether a request that came now would be let through.
    #[inline]
    pub fn would_admit(&self, now: Timestamp) -> bool {
        self.gate_nanos.load(Ordering::Acquire) <= now.as_nanos().clamp(1, NEVER - 1)
    }

    /// The state as of the last request; an open breaker becomes half-open with the first request it lets through.
    pub fn state(&self) -> BreakerState {
        match self.aside.state.load(Ordering::Relaxed) {
            0 => BreakerState::Closed,
            1 => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Failures in a row while closed.
    pub fn consecutive_failures(&self) -> u32 {
        self.aside.failures.load(Ordering::Relaxed)
    }

    /// Successes in a row while half-open.
    pub fn consecutive_successes(&self) -> u32 {
        self.aside.successes.load(Ordering::Relaxed)
    }

    /// Lets a request through, or not.
    pub(crate) fn admit(&self, now: Timestamp) -> Option<Pass> {
        if self.gate_nanos.load(Ordering::Acquire) == ALWAYS {
            // Should the breaker open between the two reads, the pass belongs to a phase in which it counts nothing.
            return Some(Pass { epoch: self.aside.epoch.load(Ordering::Acquire), is_probe: false, transition: None });
        }
        if !self.would_admit(now) {
            return None;
        }
        let mut machine = self.aside.machine.lock();
        let pass = machine.admit(now);
        self.publish(&machine);
        pass
    }

    /// Takes a pass back, with what became of its request.
    pub(crate) fn record(&self, pass: &Pass, outcome: Outcome, now: Timestamp) -> Option<BreakerTransition> {
        let is_settled = match outcome {
            Outcome::Neutral => true,
            Outcome::Success => self.aside.failures.load(Ordering::Relaxed) == 0,
            Outcome::Failure => false,
        };
        if is_settled && !pass.is_probe {
            return None;
        }
        let mut machine = self.aside.machine.lock();
        let transition = machine.record(pass, outcome, now);
        self.publish(&machine);
        transition
    }

    /// Takes on new settings; the phase stays, unless there is no breaker any more.
    pub(crate) fn reconfigure(&self, config: BreakerConfig) {
        let mut machine = self.aside.machine.lock();
        machine.config = config;
        if !config.enabled {
            machine.enter(Phase::CLOSED);
        }
        self.publish(&machine);
    }

    /// Closes it and forgets what it has seen; passes that are out count nothing any more.
    pub(crate) fn reset(&self) {
        let mut machine = self.aside.machine.lock();
        machine.enter(Phase::CLOSED);
        self.publish(&machine);
    }

    /// Called under the lock, so that the mirrors never go back.
    fn publish(&self, machine: &Machine) {
        let (failures, successes) = match machine.phase {
            Phase::Closed { failures, .. } => (failures, 0),
            Phase::Open { .. } => (0, 0),
            Phase::HalfOpen { successes, .. } => (0, successes),
        };
        self.aside.failures.store(failures, Ordering::Relaxed);
        self.aside.successes.store(successes, Ordering::Relaxed);
        self.aside.state.store(machine.phase.state() as u8, Ordering::Relaxed);
        self.aside.epoch.store(machine.epoch, Ordering::Release);
        self.gate_nanos.store(machine.phase.gate_nanos(), Ordering::Release);
    }
}

/// The breaker without its mirrors.
#[derive(Debug)]
struct Machine {
    config: BreakerConfig,
    /// Counts the phases.
    epoch: u64,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Closed { failures: u32, first_failure: Timestamp },
    Open { until: Timestamp },
    HalfOpen { successes: u32, probe_is_out: bool },
}

impl Phase {
    const CLOSED: Self = Self::Closed { failures: 0, first_failure: Timestamp::ORIGIN };

    fn state(self) -> BreakerState {
        match self {
            Self::Closed { .. } => BreakerState::Closed,
            Self::Open { .. } => BreakerState::Open,
            Self::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    fn gate_nanos(self) -> u64 {
        match self {
            Self::Closed { .. } => ALWAYS,
            Self::Open { until } => until.as_nanos().clamp(1, NEVER - 1),
            Self::HalfOpen { probe_is_out: false, .. } => 1,
            Self::HalfOpen { probe_is_out: true, .. } => NEVER,
        }
    }
}

impl Machine {
    fn enter(&mut self, phase: Phase) -> BreakerTransition {
        let from = self.phase.state();
        self.phase = phase;
        self.epoch += 1;
        BreakerTransition { from, to: phase.state() }
    }

    fn admit(&mut self, now: Timestamp) -> Option<Pass> {
        let transition = match &mut self.phase {
            Phase::Closed { .. } => return Some(Pass { epoch: self.epoch, is_probe: false, transition: None }),
            Phase::Open { until } if now < *until => return None,
            Phase::Open { .. } => Some(self.enter(Phase::HalfOpen { successes: 0, probe_is_out: true })),
            Phase::HalfOpen { probe_is_out: true, .. } => return None,
            Phase::HalfOpen { probe_is_out, .. } => {
                *probe_is_out = true;
                None
            }
        };
        Some(Pass { epoch: self.epoch, is_probe: true, transition })
    }

    fn record(&mut self, pass: &Pass, outcome: Outcome, now: Timestamp) -> Option<BreakerTransition> {
        if pass.epoch != self.epoch || !self.config.enabled {
            return None;
        }
        let BreakerConfig { failure_threshold, success_threshold, open_for, window, .. } = self.config;
        match (&mut self.phase, outcome) {
            (Phase::Closed { .. }, Outcome::Neutral) | (Phase::Open { .. }, _) => None,
            (Phase::Closed { failures, .. }, Outcome::Success) => {
                *failures = 0;
                None
            }
            (Phase::Closed { failures, first_failure }, Outcome::Failure) => {
                if *failures == 0 || now.since(*first_failure) > window {
                    *failures = 0;
                    *first_failure = now;
                }
                *failures += 1;
                let opens = *failures >= failure_threshold;
                opens.then(|| self.enter(Phase::Open { until: now + open_for }))
            }
            (Phase::HalfOpen { .. }, Outcome::Failure) => Some(self.enter(Phase::Open { until: now + open_for })),
            (Phase::HalfOpen { successes, probe_is_out }, outcome) => {
                *probe_is_out = false;
                *successes += u32::from(outcome == Outcome::Success);
                let closes = *successes >= success_threshold.max(1);
                closes.then(|| self.enter(Phase::CLOSED))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Barrier,
            atomic::{AtomicUsize, Ordering::SeqCst},
        },
        thread,
    };

    use proptest::prelude::*;
    use smg_base::{Random, SplitMix};

    use super::*;
    use crate::{
        Ticket, Worker,
        testing::{at, properties, trusted_worker},
    };

    const CONFIG: BreakerConfig = BreakerConfig {
        enabled: true,
        failure_threshold: 3,
        success_threshold: 2,
        open_for: Duration::from_secs(10),
        window: Duration::from_secs(100),
    };

    /// Runs one request from start to end at one moment.
    fn request(worker: &Worker, outcome: Outcome, now: Timestamp) -> Option<BreakerTransition> {
        worker.admit(now).expect("the breaker lets it through").record(outcome, now)
    }

    fn opened(now: Timestamp) -> std::sync::Arc<Worker> {
        let worker = trusted_worker(CONFIG);
        for _ in 0..CONFIG.failure_threshold {
            request(&worker, Outcome::Failure, now);
        }
        assert_eq!(worker.state.breaker.state(), BreakerState::Open);
        worker
    }

    #[test]
    fn only_failures_in_a_row_within_the_window_open_it() {
        use Outcome::{Failure, Neutral, Success};
        let check = |outcomes: &[(u64, Outcome)], expected| {
            let worker = trusted_worker(CONFIG);
            for &(seconds, outcome) in outcomes {
                request(&worker, outcome, at(seconds));
            }
            assert_eq!(worker.state.breaker.state(), expected, "{outcomes:?}");
        };
        check(&[(0, Failure), (1, Failure), (2, Failure)], BreakerState::Open);
        check(&[(0, Failure), (1, Failure), (2, Success), (3, Failure)], BreakerState::Closed);
        check(&[(0, Failure), (1, Neutral), (2, Failure), (3, Neutral), (4, Failure)], BreakerState::Open);
        check(&[(0, Failure), (50, Failure), (100, Failure)], BreakerState::Open);
        check(&[(0, Failure), (50, Failure), (101, Failure)], BreakerState::Closed);
        check(&[(0, Failure), (50, Failure), (101, Failure), (102, Failure), (103, Failure)], BreakerState::Open);
        check(&[(0, Neutral); 50], BreakerState::Closed);
    }

    #[test]
    fn it_opens_probes_and_closes() {
        let worker = opened(at(0));
        let breaker = &worker.state.breaker;
        assert!(!breaker.would_admit(at(9)) && worker.admit(at(9)).is_none());
        assert!(breaker.would_admit(at(10)) && worker.is_available(at(10)));

        let probe = worker.admit(at(10)).unwrap();
        let half_opened = BreakerTransition { from: BreakerState::Open, to: BreakerState::HalfOpen };
        assert_eq!(probe.transition(), Some(half_opened));
        assert!(!breaker.would_admit(at(10)) && worker.admit(at(99)).is_none(), "one probe at a time");
        assert_eq!(probe.record(Outcome::Success, at(11)), None);
        assert_eq!(breaker.consecutive_successes(), 1);
        let closed = BreakerTransition { from: BreakerState::HalfOpen, to: BreakerState::Closed };
        assert_eq!(request(&worker, Outcome::Success, at(12)), Some(closed));
        assert_eq!((breaker.consecutive_failures(), breaker.consecutive_successes()), (0, 0));
    }

    #[test]
    fn a_failed_probe_opens_it_again_for_the_whole_time() {
        let worker = opened(at(0));
        request(&worker, Outcome::Success, at(10));
        let reopened = BreakerTransition { from: BreakerState::HalfOpen, to: BreakerState::Open };
        assert_eq!(request(&worker, Outcome::Failure, at(15)), Some(reopened));
        assert!(worker.admit(at(24)).is_none());
        request(&worker, Outcome::Success, at(25));
        assert_eq!(worker.state.breaker.consecutive_successes(), 1, "the successes before do not count");
    }

    #[test]
    fn a_dropped_probe_is_neutral_and_frees_the_slot() {
        let worker = opened(at(0));
        for _ in 0..100 {
            drop(worker.admit(at(10)).unwrap());
            assert_eq!(request(&worker, Outcome::Neutral, at(10)), None);
        }
        assert_eq!(worker.state.breaker.state(), BreakerState::HalfOpen);
        request(&worker, Outcome::Success, at(10));
        request(&worker, Outcome::Success, at(10));
        assert_eq!(worker.state.breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn stragglers_of_an_earlier_phase_change_nothing() {
        let worker = trusted_worker(CONFIG);
        let mut stragglers: Vec<_> = (0..5).map(|_| worker.admit(at(0)).unwrap()).collect();
        for _ in 0..3 {
            request(&worker, Outcome::Failure, at(0));
        }
        assert_eq!(stragglers.pop().unwrap().record(Outcome::Failure, at(9)), None);
        assert_eq!(stragglers.pop().unwrap().record(Outcome::Success, at(9)), None);
        let probe = worker.admit(at(10)).expect("the late failure did not prolong the open phase");
        assert_eq!(stragglers.pop().unwrap().record(Outcome::Failure, at(10)), None);
        assert!(worker.admit(at(10)).is_none(), "a straggler does not free the probe's slot");
        probe.record(Outcome::Success, at(10));
        request(&worker, Outcome::Success, at(10));
        for straggler in stragglers {
            straggler.record(Outcome::Failure, at(11));
        }
        assert_eq!(worker.state.breaker.consecutive_failures(), 0);
    }

    #[test]
    fn no_breaker_lets_everything_through() {
        let worker = trusted_worker(BreakerConfig { enabled: false, ..CONFIG });
        for _ in 0..100 {
            assert_eq!(request(&worker, Outcome::Failure, at(0)), None);
        }
        let worker = opened(at(0));
        worker.state.breaker.reconfigure(BreakerConfig { enabled: false, ..CONFIG });
        assert!(worker.is_available(at(0)), "switched off while open");
        worker.state.breaker.reconfigure(CONFIG);
        assert!(worker.is_available(at(0)));
    }

    #[test]
    fn settings_and_clocks_at_their_ends_do_no_harm() {
        let zeros = BreakerConfig {
            failure_threshold: 0,
            success_threshold: 0,
            open_for: Duration::ZERO,
            window: Duration::ZERO,
            ..CONFIG
        };
        let worker = trusted_worker(zeros);
        request(&worker, Outcome::Failure, at(0));
        assert_eq!(worker.state.breaker.state(), BreakerState::Open);
        request(&worker, Outcome::Success, at(0));
        assert_eq!(worker.state.breaker.state(), BreakerState::Closed);
        let worker = trusted_worker(BreakerConfig { failure_threshold: 1, open_for: Duration::MAX, ..CONFIG });
        request(&worker, Outcome::Failure, at(1));
        assert!(!worker.state.breaker.would_admit(at(1_000_000_000)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Admit,
        Record(usize, Outcome),
        Drop(usize),
        Wait(u64),
        Reconfigure(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let outcome =
            prop_oneof![1 => Just(Outcome::Success), 3 => Just(Outcome::Failure), 1 => Just(Outcome::Neutral)];
        let step = prop_oneof![
            6 => Just(Step::Admit),
            6 => (any::<usize>(), outcome).prop_map(|(index, outcome)| Step::Record(index, outcome)),
            1 => any::<usize>().prop_map(Step::Drop),
            2 => (0..12_u64).prop_map(Step::Wait),
            1 => prop::bool::weighted(0.9).prop_map(Step::Reconfigure),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        #![proptest_config(properties(512))]

        /// Whatever happens in whatever order: the cheap answer is the true one, transitions are those of the
        /// machine and are all reported, at most one probe is out, and afterwards the breaker can always be closed.
        #[test]
        fn any_interleaving_keeps_the_promises(steps in steps()) {
            let worker = trusted_worker(CONFIG);
            let breaker = &worker.state.breaker;
            let mut tickets: Vec<(Ticket, bool)> = Vec::new();
            let mut now = at(1);
            let mut state = BreakerState::Closed;
            for step in steps {
                let mut seen = None;
                match step {
                    Step::Wait(seconds) => now = now + Duration::from_secs(seconds),
                    Step::Admit => {
                        let would = breaker.would_admit(now);
                        let ticket = worker.admit(now);
                        prop_assert_eq!(would, ticket.is_some());
                        if let Some(ticket) = ticket {
                            seen = ticket.transition();
                            tickets.push((ticket, breaker.state() == BreakerState::HalfOpen));
                        }
                    }
                    Step::Record(index, outcome) if !tickets.is_empty() => {
                        seen = tickets.swap_remove(index % tickets.len()).0.record(outcome, now);
                    }
                    Step::Drop(index) if !tickets.is_empty() => drop(tickets.swap_remove(index % tickets.len())),
                    Step::Record(..) | Step::Drop(_) => {}
                    Step::Reconfigure(true) => breaker.reconfigure(CONFIG),
                    Step::Reconfigure(false) => {
                        breaker.reconfigure(BreakerConfig { enabled: false, ..CONFIG });
                        breaker.reconfigure(CONFIG);
                        state = BreakerState::Closed;
                        tickets.iter_mut().for_each(|(_, is_probe)| *is_probe = false);
                    }
                }
                if let Some(BreakerTransition { from, to }) = seen {
                    prop_assert_eq!(from, state);
                    let legal = [
                        (BreakerState::Closed, BreakerState::Open),
                        (BreakerState::Open, BreakerState::HalfOpen),
                        (BreakerState::HalfOpen, BreakerState::Open),
                        (BreakerState::HalfOpen, BreakerState::Closed),
                    ];
                    prop_assert!(legal.contains(&(from, to)));
                    state = to;
                }
                prop_assert_eq!(breaker.state(), state);
                let probes = tickets.iter().filter(|(_, is_probe)| *is_probe).count();
                prop_assert!(probes <= 1, "{} probes", probes);
                prop_assert!(breaker.consecutive_failures() < CONFIG.failure_threshold);
                prop_assert!(breaker.consecutive_successes() < CONFIG.success_threshold);
            }
            drop(tickets);
            now = now + CONFIG.open_for;
            for _ in 0..CONFIG.success_threshold {
                prop_assert!(breaker.would_admit(now));
                request(&worker, Outcome::Success, now);
            }
            prop_assert_eq!(breaker.state(), BreakerState::Closed);
        }
    }

    #[test]
    fn of_many_threads_exactly_one_becomes_the_probe() {
        const THREADS: usize = 8;
        const ROUNDS: usize = 300;
        let worker = opened(at(0));
        let barrier = Barrier::new(THREADS);
        let admitted = AtomicUsize::new(0);
        // Checked at the end: a thread that panicked here would leave the others at the barrier for ever.
        let counts: Vec<AtomicUsize> = (0..ROUNDS).map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for (round, count) in (1_u64..).zip(&counts) {
                        barrier.wait();
                        let ticket = worker.admit(at(10 * round));
                        admitted.fetch_add(usize::from(ticket.is_some()), SeqCst);
                        if barrier.wait().is_leader() {
                            count.store(admitted.swap(0, SeqCst), SeqCst);
                        }
                        // Whoever has it ends it, each time in another way; the next round begins when all are here.
                        match (ticket, round % 3) {
                            (Some(ticket), 0) => drop(ticket.record(Outcome::Failure, at(10 * round))),
                            (Some(ticket), 1) => drop(ticket.record(Outcome::Neutral, at(10 * round))),
                            (ticket, _) => drop(ticket),
                        }
                    }
                });
            }
        });
        let counts: Vec<_> = counts.iter().map(|count| count.load(SeqCst)).collect();
        assert_eq!(counts, [1; ROUNDS]);
        assert_eq!(worker.state.breaker.state(), BreakerState::Open, "the last round's probe failed");
    }

    #[test]
    fn threads_at_random_never_wedge_it() {
        let worker = trusted_worker(BreakerConfig { open_for: Duration::from_nanos(50), ..CONFIG });
        let clock = AtomicU64::new(1);
        let probes_out = AtomicUsize::new(0);
        thread::scope(|scope| {
            for seed in 0..4 {
                let (worker, clock, probes_out) = (&worker, &clock, &probes_out);
                scope.spawn(move || {
                    let random = SplitMix::new(seed);
                    for _ in 0..5_000 {
                        let now = Timestamp::from_nanos(clock.fetch_add(random.below(20), SeqCst));
                        let Some(ticket) = worker.admit(now) else { continue };
                        let is_probe = ticket.transition().is_some();
                        if is_probe {
                            assert_eq!(probes_out.fetch_add(1, SeqCst), 0);
                        }
                        if random.below(8) == 0 {
                            thread::yield_now();
                        }
                        probes_out.fetch_sub(usize::from(is_probe), SeqCst);
                        match random.below(8) {
                            0 => drop(ticket),
                            1..4 => drop(ticket.record(Outcome::Success, now)),
                            _ => drop(ticket.record(Outcome::Failure, now)),
                        }
                    }
                });
            }
        });
        let later = Timestamp::from_nanos(u64::MAX / 2);
        for _ in 0..CONFIG.success_threshold {
            request(&worker, Outcome::Success, later);
        }
        assert_eq!(worker.state.breaker.state(), BreakerState::Closed);
    }
}
