//! Whether a worker is well, as far as probes tell.

use std::{
    sync::atomic::{AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use smg_base::Timestamp;

use crate::{HealthVote, ProbeDuty};

/// How a worker is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthConfig {
    /// Whether it is probed at all; if not, it is believed healthy.
    pub enabled: bool,
    /// The path that is asked, below the worker's base path.
    pub endpoint: String,
    /// Time between probes.
    pub interval: Duration,
    /// Time between probes of a worker that has never answered; `interval` where that is shorter.
    pub startup_interval: Duration,
    /// How long a probe may take.
    pub timeout: Duration,
    /// Successes in a row that make a worker ready; zero counts as one.
    pub success_threshold: u32,
    /// Failures in a row that make it unready; zero counts as one.
    pub failure_threshold: u32,
    /// The shortest time between draining a worker and removing it.
    pub drain_settle: Duration,
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            endpoint: "/health".to_owned(),
            interval: Duration::from_secs(60),
            startup_interval: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
            success_threshold: 2,
            failure_threshold: 3,
            drain_settle: Duration::from_secs(5),
        }
    }
}

impl HealthConfig {
    /// How long a worker may stay pending before it counts as failed: the time that ten times the failures which
    /// take out a ready worker would need, because loading a model takes long.
    fn startup(&self) -> Duration {
        self.interval.saturating_mul(self.failure_threshold.max(1).saturating_mul(10))
    }
}

/// Where a worker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Status {
    /// New; it has not answered yet.
    Pending = 0,
    /// It may be used.
    Ready = 1,
    /// It was ready, and its probes fail.
    NotReady = 2,
    /// It has been away for long. It is still probed and comes back by itself, but may be removed by rule.
    Failed = 3,
    /// It finishes what it has and gets nothing new.
    Draining = 4,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Ready, Self::NotReady, Self::Failed, Self::Draining];

    /// The word on the wire and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Failed => "failed",
            Self::Draining => "draining",
        }
    }
}

/// A worker went from one status to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusChange {
    /// Before.
    pub from: Status,
    /// After.
    pub to: Status,
}

/// Why a probe failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeFailure {
    /// No connection.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The connection broke, or what came is not HTTP.
    Broken,
    /// It answered with this status.
    Status(u16),
}

impl ProbeFailure {
    /// The word used as a label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Broken => "broken",
            Self::Status(_) => "status",
        }
    }
}

/// The health of a worker: the verdict of its probes, and whether it is being drained. The status is one atomic
/// read; the machine behind it moves under a lock that only probes and administration take.
#[derive(Debug)]
#[repr(C)]
pub struct Health {
    status: AtomicU8,
    /// Kept elsewhere: see [`crate::WorkerState`].
    aside: Box<Aside>,
}

/// What decisions do not read.
#[derive(Debug)]
struct Aside {
    traffic_nanos: AtomicU64,
    machine: Mutex<Machine>,
}

impl Health {
    pub(crate) fn new(config: &HealthConfig, now: Timestamp) -> Self {
        let phase = match config.enabled {
            true => Phase::Pending { since: now, successes: 0, has_failed: false },
            false => Phase::Ready { failures: 0 },
        };
        let machine = Machine { phase, is_draining: false, last_probe: None, last_failure: None };
        Self {
            status: AtomicU8::new(machine.status() as u8),
            aside: Box::new(Aside { traffic_nanos: AtomicU64::new(0), machine: Mutex::new(machine) }),
        }
    }

    /// Where the worker stands.
    #[inline]
    pub fn status(&self) -> Status {
        match self.status.load(Ordering::Acquire) & !HAS_OUTLOOK {
            0 => Status::Pending,
            1 => Status::Ready,
            2 => Status::NotReady,
            3 => Status::Failed,
            _ => Status::Draining,
        }
    }

    /// Whether the worker is ready and nothing is known that could say otherwise: one read for what holds of nearly all
    /// workers.
    #[inline]
    pub(crate) fn is_plainly_ready(&self) -> bool {
        self.status.load(Ordering::Acquire) == Status::Ready as u8
    }

    /// Whether there is more to look at than the status.
    #[inline]
    pub(crate) fn has_outlook(&self) -> bool {
        self.status.load(Ordering::Acquire) & HAS_OUTLOOK != 0
    }

    /// Says that there is more to look at, from now on.
    pub(crate) fn note_outlook(&self) {
        self.status.fetch_or(HAS_OUTLOOK, Ordering::AcqRel);
    }

    /// The last probe that failed, and when it did.
    pub fn last_failure(&self) -> Option<(ProbeFailure, Timestamp)> {
        self.aside.machine.lock().last_failure
    }

    /// A request succeeded at `now`, which says more than a probe that timed out behind it.
    pub(crate) fn note_traffic(&self, now: Timestamp) {
        self.aside.traffic_nanos.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    /// Takes in the result of a probe.
    pub(crate) fn record(
        &self,
        config: &HealthConfig,
        result: Result<(), ProbeFailure>,
        now: Timestamp,
    ) -> Option<StatusChange> {
        let traffic = Timestamp::from_nanos(self.aside.traffic_nanos.load(Ordering::Relaxed));
        self.change(|machine| machine.probed(config, result, traffic, now))
    }

    /// Takes on new settings. A worker that is no longer probed is believed healthy.
    pub(crate) fn reconfigure(&self, config: &HealthConfig) -> Option<StatusChange> {
        self.change(|machine| {
            if !config.enabled {
                machine.phase = Phase::Ready { failures: 0 };
            }
        })
    }

    /// Begins to drain the worker, or takes that back; false if nothing changed.
    pub(crate) fn set_draining(&self, draining: Draining) -> bool {
        self.change(|machine| machine.is_draining = draining == Draining::Yes).is_some()
    }

    /// Time until the next probe.
    pub(crate) fn pause(&self, config: &HealthConfig, duty: ProbeDuty) -> Duration {
        self.aside.machine.lock().pause(config, duty)
    }

    /// What the probes say, for others to count: nothing of a worker that has not answered yet, and nothing of one that is
    /// being drained, because it is not probed.
    pub(crate) fn vote(&self) -> Option<HealthVote> {
        let machine = self.aside.machine.lock();
        match machine.status() {
            Status::Pending | Status::Draining => None,
            Status::Ready => Some(HealthVote::Up),
            Status::NotReady | Status::Failed => Some(match machine.last_failure {
                Some((ProbeFailure::Unreachable, _)) => HealthVote::Unreachable,
                Some(_) | None => HealthVote::Sick,
            }),
        }
    }

    /// Whether the worker may be removed by rule: it has failed, the last probe failed too, and not too long ago.
    pub(crate) fn is_lost(&self, config: &HealthConfig, now: Timestamp) -> bool {
        let machine = self.aside.machine.lock();
        let fresh = (config.interval + config.timeout).saturating_mul(3);
        let is_fresh = machine.last_failure.is_some_and(|(_, at)| now.since(at) <= fresh);
        is_fresh && !machine.is_draining && machine.phase == Phase::Failed { successes: 0 }
    }

    fn change(&self, step: impl FnOnce(&mut Machine)) -> Option<StatusChange> {
        let mut machine = self.aside.machine.lock();
        let from = machine.status();
        step(&mut machine);
        let to = machine.status();
        let published = |old: u8| Some(old & HAS_OUTLOOK | to as u8);
        // It always gives a new value, so it cannot fail.
        let _ = self.status.fetch_update(Ordering::AcqRel, Ordering::Acquire, published);
        (from != to).then_some(StatusChange { from, to })
    }
}

/// The bit beside the status that says that peers or other nodes have something to say about the worker. It stands here so that
/// a decision that has nothing to do with peers reads nothing for them.
const HAS_OUTLOOK: u8 = 1 << 7;

/// Whether a worker is being drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Draining {
    Yes,
    No,
}

/// How soon a worker that was away is asked again when it has just answered.
const HOPEFUL_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Machine {
    phase: Phase,
    is_draining: bool,
    last_probe: Option<Timestamp>,
    last_failure: Option<(ProbeFailure, Timestamp)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Pending { since: Timestamp, successes: u32, has_failed: bool },
    Ready { failures: u32 },
    NotReady { successes: u32, failures: u32 },
    Failed { successes: u32 },
}

impl Machine {
    fn status(&self) -> Status {
        match self.phase {
            _ if self.is_draining => Status::Draining,
            Phase::Pending { .. } => Status::Pending,
            Phase::Ready { .. } => Status::Ready,
            Phase::NotReady { .. } => Status::NotReady,
            Phase::Failed { .. } => Status::Failed,
        }
    }

    fn probed(&mut self, config: &HealthConfig, result: Result<(), ProbeFailure>, traffic: Timestamp, now: Timestamp) {
        if !config.enabled {
            return;
        }
        let before = self.last_probe.replace(now);
        match result {
            Ok(()) => self.succeeded(config),
            // Too many requests: busy, and so alive.
            Err(ProbeFailure::Status(429)) => {}
            // An engine in a long prefill answers no probe in time, yet its requests came through since the last one.
            Err(ProbeFailure::Timeout) if before.is_some_and(|before| traffic > before) => {}
            Err(failure) => {
                self.last_failure = Some((failure, now));
                self.failed(config, now);
            }
        }
    }

    fn succeeded(&mut self, config: &HealthConfig) {
        let enough = config.success_threshold.max(1);
        let (Phase::Pending { successes, .. } | Phase::NotReady { successes, .. } | Phase::Failed { successes }) =
            &mut self.phase
        else {
            self.phase = Phase::Ready { failures: 0 };
            return;
        };
        *successes += 1;
        let mut is_ready = *successes >= enough;
        match &mut self.phase {
            // A worker that was up before we came has nothing to prove.
            Phase::Pending { has_failed: false, .. } => is_ready = true,
            Phase::NotReady { failures, .. } => *failures = 0,
            _ => {}
        }
        if is_ready {
            self.phase = Phase::Ready { failures: 0 };
        }
    }

    fn failed(&mut self, config: &HealthConfig, now: Timestamp) {
        let enough = config.failure_threshold.max(1);
        self.phase = match self.phase {
            Phase::Pending { since, .. } if now.since(since) >= config.startup() => Phase::Failed { successes: 0 },
            Phase::Pending { since, .. } => Phase::Pending { since, successes: 0, has_failed: true },
            Phase::Ready { failures } if failures + 1 >= enough => Phase::NotReady { successes: 0, failures: 0 },
            Phase::Ready { failures } => Phase::Ready { failures: failures + 1 },
            Phase::NotReady { failures, .. } if failures + 1 >= enough.saturating_mul(3) => {
                Phase::Failed { successes: 0 }
            }
            Phase::NotReady { failures, .. } => Phase::NotReady { successes: 0, failures: failures + 1 },
            Phase::Failed { .. } => Phase::Failed { successes: 0 },
        };
    }

    fn pause(&self, config: &HealthConfig, duty: ProbeDuty) -> Duration {
        match self.phase {
            Phase::Ready { .. } | Phase::NotReady { successes: 0, .. } | Phase::Failed { successes: 0 } => match duty {
                ProbeDuty::Full => config.interval,
                ProbeDuty::Light => config.interval.saturating_mul(ProbeDuty::LIGHT),
            },
            Phase::Pending { .. } => config.startup_interval.min(config.interval),
            Phase::NotReady { .. } | Phase::Failed { .. } => HOPEFUL_PAUSE.min(config.interval),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{at, properties};

    const OK: Result<(), ProbeFailure> = Ok(());
    const DOWN: Result<(), ProbeFailure> = Err(ProbeFailure::Unreachable);
    const SLOW: Result<(), ProbeFailure> = Err(ProbeFailure::Timeout);
    const BUSY: Result<(), ProbeFailure> = Err(ProbeFailure::Status(429));

    fn run(config: &HealthConfig, probes: &[(u64, Result<(), ProbeFailure>)]) -> Vec<Status> {
        let health = Health::new(config, at(0));
        let step = |&(seconds, result): &(u64, Result<(), ProbeFailure>)| {
            health.record(config, result, at(seconds));
            health.status()
        };
        probes.iter().map(step).collect()
    }

    #[test]
    fn the_status_follows_the_probes() {
        use Status::{Failed, NotReady, Pending, Ready};
        let check = |probes: &[Result<(), ProbeFailure>], expected: &[Status]| {
            let timed: Vec<_> = probes.iter().enumerate().map(|(turn, result)| (turn as u64, *result)).collect();
            assert_eq!(run(&HealthConfig::default(), &timed), expected, "{probes:?}");
        };
        check(&[OK], &[Ready]);
        check(&[DOWN, OK, OK], &[Pending, Pending, Ready]);
        check(&[DOWN, OK, DOWN, OK, OK], &[Pending, Pending, Pending, Pending, Ready]);
        check(&[OK, DOWN, DOWN, OK, DOWN, DOWN, DOWN], &[Ready, Ready, Ready, Ready, Ready, Ready, NotReady]);
        check(&[OK, DOWN, DOWN, DOWN, OK, OK], &[Ready, Ready, Ready, NotReady, NotReady, Ready]);
        check(&[OK, BUSY, BUSY, BUSY, BUSY], &[Ready; 5]);
        check(&[BUSY, OK], &[Pending, Ready]);
        let mut long = vec![OK];
        long.extend([DOWN; 12]);
        long.extend([OK, DOWN, OK, OK]);
        let mut expected = vec![Ready, Ready, Ready];
        expected.extend([NotReady; 9]);
        expected.extend([Failed, Failed, Failed, Failed, Ready]);
        check(&long, &expected);
    }

    #[test]
    fn a_model_may_take_long_to_load() {
        let config = HealthConfig::default();
        let probes: Vec<_> = (0..=1_800).map(|second| (second, DOWN)).collect();
        let seen = run(&config, &probes);
        assert!(seen[..1_800].iter().all(|status| *status == Status::Pending));
        assert_eq!(seen[1_800], Status::Failed, "ten times three failures a minute apart");
    }

    #[test]
    fn a_probe_that_times_out_behind_working_traffic_does_not_count() {
        let config = HealthConfig::default();
        let health = Health::new(&config, at(0));
        health.record(&config, OK, at(1));
        for minute in 1..10 {
            health.note_traffic(at(60 * minute - 1));
            health.record(&config, SLOW, at(60 * minute));
        }
        assert_eq!(health.status(), Status::Ready);
        for minute in 10..13 {
            health.record(&config, SLOW, at(60 * minute));
        }
        assert_eq!(health.status(), Status::NotReady, "once the traffic has stopped it does");
        assert_eq!(health.last_failure(), Some((ProbeFailure::Timeout, at(720))));
    }

    #[test]
    fn without_checks_a_worker_is_believed() {
        let off = HealthConfig { enabled: false, ..HealthConfig::default() };
        assert_eq!(run(&off, &[(0, DOWN), (1, DOWN), (2, DOWN), (3, DOWN)]), [Status::Ready; 4]);
        let on = HealthConfig::default();
        let health = Health::new(&on, at(0));
        assert_eq!(health.reconfigure(&off), Some(StatusChange { from: Status::Pending, to: Status::Ready }));
        assert_eq!(health.reconfigure(&on), None);
    }

    #[test]
    fn draining_hides_the_verdict_and_does_not_lose_it() {
        let config = HealthConfig::default();
        let health = Health::new(&config, at(0));
        health.record(&config, OK, at(1));
        assert!(health.set_draining(Draining::Yes));
        assert!(!health.set_draining(Draining::Yes));
        assert_eq!(health.record(&config, DOWN, at(2)), None);
        assert_eq!(health.status(), Status::Draining);
        assert!(health.set_draining(Draining::No));
        assert_eq!(health.status(), Status::Ready);
    }

    #[test]
    fn hope_shortens_the_pause() {
        let config = HealthConfig::default();
        let health = Health::new(&config, at(0));
        let pause = || health.pause(&config, ProbeDuty::Full).as_secs();
        assert_eq!(pause(), 1);
        health.record(&config, OK, at(0));
        assert_eq!(pause(), 60);
        for second in 0..3 {
            health.record(&config, DOWN, at(second));
        }
        assert_eq!((health.status(), pause()), (Status::NotReady, 60));
        health.record(&config, OK, at(4));
        assert_eq!((health.status(), pause()), (Status::NotReady, 1));
        let brisk = HealthConfig { interval: Duration::from_millis(100), ..config.clone() };
        assert_eq!(health.pause(&brisk, ProbeDuty::Full), Duration::from_millis(100));
    }

    #[test]
    fn only_what_failed_lately_is_lost() {
        let config = HealthConfig::default();
        let health = Health::new(&config, at(0));
        health.record(&config, DOWN, at(10));
        assert!(!health.is_lost(&config, at(10)), "still loading");
        health.record(&config, DOWN, at(1_800));
        assert!(health.is_lost(&config, at(1_800)));
        assert!(!health.is_lost(&config, at(1_996)), "the evidence is old");
        health.record(&config, OK, at(1_801));
        assert!(!health.is_lost(&config, at(1_801)), "it is coming back");
        health.record(&config, DOWN, at(1_802));
        assert!(health.is_lost(&config, at(1_802)));
        health.set_draining(Draining::Yes);
        assert!(!health.is_lost(&config, at(1_802)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Probe(Result<(), ProbeFailure>),
        Traffic,
        Drain(bool),
        Wait(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let result = prop_oneof![4 => Just(OK), 4 => Just(DOWN), 1 => Just(SLOW), 1 => Just(BUSY)];
        let step = prop_oneof![
            8 => result.prop_map(Step::Probe),
            1 => Just(Step::Traffic),
            1 => any::<bool>().prop_map(Step::Drain),
            2 => (0..600_u64).prop_map(Step::Wait),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #![proptest_config(properties(512))]

        /// Whatever happens in whatever order: a change follows from enough probes of its kind, is reported, and a
        /// worker that answers is always ready again after as many successes as are asked for.
        #[test]
        fn any_interleaving_keeps_the_promises(
            steps in steps(),
            success_threshold in 0..5_u32,
            failure_threshold in 0..5_u32,
        ) {
            let config = HealthConfig { success_threshold, failure_threshold, ..HealthConfig::default() };
            let health = Health::new(&config, at(1));
            let mut now = at(1);
            let mut status = Status::Pending;
            let (mut successes, mut failures) = (0, 0);
            let mut has_failed = false;
            for step in steps {
                let before = health.status();
                let change = match step {
                    Step::Wait(seconds) => {
                        now = now + Duration::from_secs(seconds);
                        None
                    }
                    Step::Traffic => {
                        health.note_traffic(now);
                        None
                    }
                    Step::Drain(draining) => {
                        let draining = if draining { Draining::Yes } else { Draining::No };
                        health.set_draining(draining);
                        None
                    }
                    Step::Probe(result) => {
                        match result {
                            Ok(()) => (successes, failures) = (successes + 1, 0),
                            // A busy answer, and a slow one, need not count.
                            Err(ProbeFailure::Status(_) | ProbeFailure::Timeout) => failures += 1,
                            Err(_) => (successes, failures) = (0, failures + 1),
                        }
                        health.record(&config, result, now)
                    }
                };
                if let Some(StatusChange { from, to }) = change {
                    prop_assert_eq!((from, to), (before, health.status()));
                    match (from, to) {
                        (Status::Pending | Status::NotReady | Status::Failed, Status::Ready) => {
                            let is_fast = from == Status::Pending && !has_failed;
                            let enough = if is_fast { 1 } else { success_threshold.max(1) };
                            prop_assert!(successes >= enough);
                        }
                        (Status::Ready, Status::NotReady) => prop_assert!(failures >= failure_threshold.max(1)),
                        (Status::NotReady, Status::Failed) => prop_assert!(failures >= 3 * failure_threshold.max(1)),
                        (Status::Pending, Status::Failed) => prop_assert!(now.since(at(1)) >= config.startup()),
                        _ => prop_assert!(false, "{from:?} to {to:?}"),
                    }
                    status = to;
                }
                has_failed |= matches!(step, Step::Probe(DOWN));
                if health.status() != Status::Draining && before != Status::Draining {
                    prop_assert_eq!(health.status(), status, "a change was not reported");
                }
                status = health.status();
            }
            health.set_draining(Draining::No);
            for _ in 0..success_threshold.max(1) {
                health.record(&config, OK, now);
            }
            prop_assert_eq!(health.status(), Status::Ready);
        }
    }
}
