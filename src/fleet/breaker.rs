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
pub struct Breaker {
    /// From which reading of the clock on a request may pass: [`ALWAYS`], the end of the open phase, or [`NEVER`]
    /// while a probe is out.
    gate_nanos: AtomicU64,
    epoch: AtomicU64,
    state: AtomicU8,
    failures: AtomicU32,
    successes: AtomicU32,
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
            epoch: AtomicU64::new(0),
            state: AtomicU8::new(BreakerState::Closed as u8),
            failures: AtomicU32::new(0),
            successes: AtomicU32::new(0),
            machine: Mutex::new(Machine { config, epoch: 0, phase: Phase::CLOSED }),
        }
    }

    /// Whether a request that came now would be let through.
    #[inline]
    pub fn would_admit(&self, now: Timestamp) -> bool {
        self.gate_nanos.load(Ordering::Acquire) <= now.as_nanos().clamp(1, NEVER - 1)
    }

    /// The state as of the last request; an open breaker becomes half-open with the first request it lets through.
    pub fn state(&self) -> BreakerState {
        match self.state.load(Ordering::Relaxed) {
            0 => BreakerState::Closed,
            1 => BreakerState::Open,
            _ => BreakerState::HalfOpen,
        }
    }

    /// Failures in a row while closed.
    pub fn consecutive_failures(&self) -> u32 {
        self.failures.load(Ordering::Relaxed)
    }

    /// Successes in a row while half-open.
    pub fn consecutive_successes(&self) -> u32 {
        self.successes.load(Ordering::Relaxed)
    }

    /// Lets a request through, or not.
    pub(crate) fn admit(&self, now: Timestamp) -> Option<Pass> {
        if self.gate_nanos.load(Ordering::Acquire) == ALWAYS {
            // Should the breaker open between the two reads, the pass belongs to a phase in which it counts nothing.
            return Some(Pass { epoch: self.epoch.load(Ordering::Acquire), is_probe: false, transition: None });
        }
        if !self.would_admit(now) {
            return None;
        }
        let mut machine = self.machine.lock();
        let pass = machine.admit(now);
        self.publish(&machine);
        pass
    }

    /// Takes a pass back, with what became of its request.
    pub(crate) fn record(&self, pass: &Pass, outcome: Outcome, now: Timestamp) -> Option<BreakerTransition> {
        let is_settled = match outcome {
            Outcome::Neutral => true,
            Outcome::Success => self.failures.load(Ordering::Relaxed) == 0,
            Outcome::Failure => false,
        };
        if is_settled && !pass.is_probe {
            return None;
        }
        let mut machine = self.machine.lock();
        let transition = machine.record(pass, outcome, now);
        self.publish(&machine);
        transition
    }

    /// Takes on new settings; the phase stays, unless there is no breaker any more.
    pub(crate) fn reconfigure(&self, config: BreakerConfig) {
        let mut machine = self.machine.lock();
        machine.config = config;
        if !config.enabled {
            machine.enter(Phase::CLOSED);
        }
        self.publish(&machine);
    }

    /// Called under the lock, so that the mirrors never go back.
    fn publish(&self, machine: &Machine) {
        let (failures, successes) = match machine.phase {
            Phase::Closed { failures, .. } => (failures, 0),
            Phase::Open { .. } => (0, 0),
            Phase::HalfOpen { successes, .. } => (0, successes),
        };
        self.failures.store(failures, Ordering::Relaxed);
        self.successes.store(successes, Ordering::Relaxed);
        self.state.store(machine.phase.state() as u8, Ordering::Relaxed);
        self.epoch.store(machine.epoch, Ordering::Release);
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
