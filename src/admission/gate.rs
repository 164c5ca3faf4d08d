//! The line with a lock, timers and metrics around it.

use std::{
    fmt,
    num::NonZeroUsize,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter};
use smg_base::{Clock, Timestamp, hash};
use smg_runtime::metrics::{DURATION_BUCKETS, Registrar};
use tokio::{sync::Notify, time};

use crate::{
    class::{Class, Classes},
    line::{Arrival, Bell, Bounds, Line, Look, Newcomer, Pass, Ticket},
    scheduler_metrics::SchedulerMetrics,
};

/// What a [`Gate`] lets through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Config {
    /// How many requests may be in flight at once; `None` for any number.
    pub concurrent_max: Option<NonZeroUsize>,
    /// How many may wait for a place; zero turns away at once.
    pub queue_max: usize,
    /// How long one may wait.
    pub queue_timeout: Duration,
    /// How many may start per second, with a second's worth at once after a quiet time; `None`, or what is not a
    /// positive number, for any.
    pub rate_per_second: Option<f64>,
    /// The terms of classes; without them all requests are of one class, and the two limits of the queue above hold.
    pub scheduler: Option<Scheduler>,
}

/// How requests of different urgency are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scheduler {
    /// What each class is entitled to.
    pub classes: Classes,
    /// The most urgent class of callers of whom nothing else is said.
    pub class_max: Class,
}

impl Default for Config {
    /// No limit; a queue of 100 and 60 s for when there is one.
    fn default() -> Self {
        Self {
            concurrent_max: None,
            queue_max: 100,
            queue_timeout: Duration::from_secs(60),
            rate_per_second: None,
            scheduler: None,
        }
    }
}

impl Config {
    fn bounds(&self, capacity: Option<NonZeroUsize>) -> Bounds {
        let Self { concurrent_max, queue_max, queue_timeout, rate_per_second, scheduler } = *self;
        match scheduler {
            None => Bounds { concurrent_max, rate_per_second, classes: Classes::one(queue_max, queue_timeout) },
            Some(Scheduler { classes, .. }) => {
                Bounds { concurrent_max: concurrent_max.or(capacity), rate_per_second, classes }
            }
        }
    }
}

/// What is known of a request before its body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask<'a> {
    /// Whose it is.
    pub tenant: &'a str,
    /// How urgent it is.
    pub class: Class,
    /// The tokens it is thought to cost; what it did cost can be told [later](Admission::correct).
    pub cost: u64,
}

/// Why a request was turned away, and when to come back: after the time in which, at the pace of late, those who wait
/// now will have been served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many wait as may, or more did and others of the same tenant were before it.
    #[error("too many requests wait")]
    QueueFull {
        /// When to come back.
        retry_after: Duration,
    },
    /// It waited as long as one may.
    #[error("waited too long for a place")]
    QueueTimeout {
        /// When to come back.
        retry_after: Duration,
    },
}

impl Refusal {
    /// When to come back.
    pub const fn retry_after(self) -> Duration {
        match self {
            Self::QueueFull { retry_after } | Self::QueueTimeout { retry_after } => retry_after,
        }
    }
}

/// Lets requests through by class, the turns of tenants, and the order of arrival; clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    /// Whether classes are told apart.
    schedules: AtomicBool,
    clock: Arc<dyn Clock>,
    counts: Counts,
    scheduler: SchedulerMetrics,
}

struct State {
    line: Line<Arc<Signal>>,
    config: Config,
    /// What the workers can take.
    capacity: Option<NonZeroUsize>,
}

/// What reaches one request from the others.
#[derive(Debug, Default)]
struct Signal {
    notify: Notify,
    is_preempted: AtomicBool,
    /// What the tenant is charged for it by now; changed only under the lock.
    cost: AtomicU64,
}

struct Counts {
    allowed: IntCounter,
    rejected: IntCounter,
    timed_out: IntCounter,
    abandoned: IntCounter,
    wait: Histogram,
}

impl Bell for Arc<Signal> {
    fn ring(&self) {
        self.notify.notify_one();
    }

    fn preempt(&self) {
        self.is_preempted.store(true, Ordering::Release);
        self.notify.notify_one();
    }
}

impl Gate {
    /// A gate nobody has passed.
    pub fn new(config: Config, clock: Arc<dyn Clock>, registrar: &Registrar) -> Self {
        let state = State { line: Line::new(config.bounds(None)), config, capacity: None };
        let inner = Arc::new(Inner {
            state: Mutex::new(state),
            schedules: AtomicBool::new(config.scheduler.is_some()),
            clock,
            counts: Counts::new(registrar),
            scheduler: SchedulerMetrics::new(registrar),
        });
        observe(Arc::downgrade(&inner), registrar);
        Self { inner }
    }

    /// Other limits from now on. Requests in flight are not touched; those that wait keep their place and their
    /// deadline, and go on at once if the new limits have room for them.
    pub fn reconfigure(&self, config: Config) {
        let mut state = self.inner.state.lock();
        state.config = config;
        self.inner.schedules.store(config.scheduler.is_some(), Ordering::Relaxed);
        self.rebound(&mut state);
    }

    /// What the workers can take from now on; none if that is not known. It is the limit of requests in flight where classes
    /// are told apart and no limit is set.
    pub fn follow(&self, capacity: Option<NonZeroUsize>) {
        let mut state = self.inner.state.lock();
        if state.capacity != capacity {
            state.capacity = capacity;
            self.rebound(&mut state);
        }
    }

    fn rebound(&self, state: &mut State) {
        let bounds = state.config.bounds(state.capacity);
        state.line.rebound(bounds, self.inner.clock.now());
    }

    /// Whether classes are told apart.
    pub fn schedules(&self) -> bool {
        self.inner.schedules.load(Ordering::Relaxed)
    }

    /// The class of a request that `wants` one, of a caller who `may` have one at most. Nobody gets a more urgent class by
    /// asking than the caller may have; a word that names no class asks for the default one.
    pub fn classify(&self, wants: Option<&str>, may: Option<&str>) -> Class {
        if !self.schedules() {
            return Class::default();
        }
        let usual = || self.inner.state.lock().config.scheduler.unwrap_or_default().class_max;
        let greatest = may.and_then(|class| class.parse().ok()).unwrap_or_else(usual);
        let wanted = wants.map_or(Ok(Class::default()), str::parse).unwrap_or_else(|_| {
            self.inner.scheduler.unknown.inc();
            Class::default()
        });
        let class = wanted.at_most(greatest);
        if class != wanted {
            self.inner.scheduler.clamped.with_label_values(&[wanted.as_str(), class.as_str()]).inc();
        }
        class
    }

    /// Waits for a place. Dropping the future gives up the place in the line at once.
    pub async fn admit(&self, ask: Ask<'_>) -> Result<Permit, Refusal> {
        let now = self.inner.clock.now();
        let tenant = hash::stable64(ask.tenant.as_bytes());
        let class = if self.schedules() { ask.class } else { Class::default() };
        match self.arrive(Newcomer { class, tenant, cost: ask.cost }, now) {
            Turn::Admitted(permit) => Ok(permit),
            Turn::Refused(refusal) => Err(refusal),
            Turn::Queued(place) => place.wait(now).await,
        }
    }

    /// How many requests are in flight.
    pub fn in_flight(&self) -> usize {
        self.inner.state.lock().line.in_flight()
    }

    /// How many requests wait.
    pub fn queue_depth(&self) -> usize {
        self.inner.state.lock().line.depth()
    }

    fn arrive(&self, newcomer: Newcomer, now: Timestamp) -> Turn {
        let Newcomer { class, tenant, .. } = newcomer;
        let mut signal = None;
        let mut state = self.inner.state.lock();
        match state.line.arrive(newcomer, now, || Arc::clone(signal.insert(Arc::default()))) {
            Arrival::Admitted(pass) => {
                drop(state);
                self.inner.count(class, Outcome::Allowed, None);
                Turn::Admitted(Permit { admission: Admission { inner: Arc::clone(&self.inner), pass, signal } })
            }
            Arrival::Full => {
                let retry_after = state.line.retry_after(class, tenant, now);
                drop(state);
                self.inner.count(class, Outcome::Rejected, None);
                Turn::Refused(Refusal::QueueFull { retry_after })
            }
            Arrival::Queued(ticket) => {
                let deadline = now + state.line.bounds().classes.of(class).queue_timeout;
                let signal = signal.expect("a bell is made for whoever is queued");
                let inner = Arc::clone(&self.inner);
                Turn::Queued(Place { inner, ticket, newcomer, signal, deadline, is_held: true })
            }
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.state.lock();
        f.debug_struct("Gate")
            .field("in_flight", &state.line.in_flight())
            .field("waiting", &state.line.depth())
            .finish_non_exhaustive()
    }
}

/// What an arrival leads to.
enum Turn {
    Admitted(Permit),
    Refused(Refusal),
    Queued(Place),
}

/// A place in the line, given up when dropped.
struct Place {
    inner: Arc<Inner>,
    ticket: Ticket,
    newcomer: Newcomer,
    signal: Arc<Signal>,
    deadline: Timestamp,
    /// Whether the line still knows the ticket.
    is_held: bool,
}

impl Place {
    async fn wait(mut self, arrived: Timestamp) -> Result<Permit, Refusal> {
        let mut alarm = pin!(time::sleep(Duration::ZERO));
        loop {
            let now = self.inner.clock.now();
            let waited = now.since(arrived);
            let look = self.inner.state.lock().line.look(self.ticket, now);
            let until = match look {
                Look::Admitted(pass) => return Ok(self.admitted(pass, waited)),
                Look::Displaced => return Err(self.displaced(now, waited)),
                Look::Wait(_) if now >= self.deadline => return Err(self.timed_out(now, waited)),
                Look::Wait(alarm) => alarm.map_or(self.deadline, |alarm| alarm.min(self.deadline)),
            };
            alarm.as_mut().reset(time::Instant::now() + until.since(now));
            tokio::select! {
                () = self.signal.notify.notified() => {}
                () = alarm.as_mut() => {}
            }
        }
    }

    fn admitted(&mut self, pass: Pass, waited: Duration) -> Permit {
        self.is_held = false;
        self.inner.count(self.newcomer.class, Outcome::Allowed, Some(waited));
        let signal = Some(Arc::clone(&self.signal));
        self.signal.cost.store(pass.cost().unwrap_or(0), Ordering::Relaxed);
        Permit { admission: Admission { inner: Arc::clone(&self.inner), pass, signal } }
    }

    fn displaced(&mut self, now: Timestamp, waited: Duration) -> Refusal {
        self.is_held = false;
        self.inner.count(self.newcomer.class, Outcome::Displaced, Some(waited));
        Refusal::QueueFull { retry_after: self.retry_after(now) }
    }

    fn timed_out(&mut self, now: Timestamp, waited: Duration) -> Refusal {
        self.is_held = false;
        self.inner.count(self.newcomer.class, Outcome::TimedOut, Some(waited));
        self.inner.state.lock().line.leave(self.ticket, now);
        Refusal::QueueTimeout { retry_after: self.retry_after(now) }
    }

    fn retry_after(&self, now: Timestamp) -> Duration {
        let Newcomer { class, tenant, .. } = self.newcomer;
        self.inner.state.lock().line.retry_after(class, tenant, now)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_held {
            self.inner.count(self.newcomer.class, Outcome::Abandoned, None);
            let now = self.inner.clock.now();
            self.inner.state.lock().line.leave(self.ticket, now);
        }
    }
}

/// The right to be in flight, given back when dropped.
#[must_use = "a permit that is dropped admits somebody else"]
pub struct Permit {
    admission: Admission,
}

impl Permit {
    /// For whoever follows the request without holding its permit.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Admission { inner, pass, .. } = &self.admission;
        let now = inner.clock.now();
        inner.state.lock().line.depart(*pass, now);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

/// A request that was admitted, as the line knows it. It takes no place; words about a request that has departed are allowed.
#[derive(Clone)]
pub struct Admission {
    inner: Arc<Inner>,
    pass: Pass,
    signal: Option<Arc<Signal>>,
}

impl Admission {
    /// Ends when the place is needed for somebody more urgent while the answer has not [begun](Self::begun): whoever holds the
    /// permit should drop it then.
    pub async fn preempted(&self) {
        let Some(signal) = &self.signal else { return std::future::pending().await };
        // The same bell rang while the request waited, so that it rings proves nothing.
        while !signal.is_preempted.load(Ordering::Acquire) {
            signal.notify.notified().await;
        }
    }

    /// The answer has begun: from now on the place is kept to its end.
    pub fn begun(&self) {
        if self.signal.is_some() {
            let now = self.inner.clock.now();
            self.inner.state.lock().line.begun(self.pass, now);
        }
    }

    /// What the request costs, in tokens, as far as is known by now.
    pub fn correct(&self, cost: u64) {
        if let Some(signal) = self.signal.as_ref().filter(|_| self.pass.cost().is_some()) {
            let mut state = self.inner.state.lock();
            let before = signal.cost.swap(cost, Ordering::Relaxed);
            state.line.correct(self.pass.costing(before), cost);
        }
    }
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Admission")
    }
}

/// What became of a request at the gate.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    Allowed,
    Rejected,
    Displaced,
    TimedOut,
    Abandoned,
}

impl Inner {
    fn count(&self, class: Class, outcome: Outcome, waited: Option<Duration>) {
        let counts = &self.counts;
        let (counter, label) = match outcome {
            Outcome::Allowed => (&counts.allowed, "admitted"),
            Outcome::Rejected => (&counts.rejected, "queue_full"),
            Outcome::Displaced => (&counts.rejected, "displaced"),
            Outcome::TimedOut => (&counts.timed_out, "queue_timeout"),
            Outcome::Abandoned => (&counts.abandoned, "client_cancelled"),
        };
        counter.inc();
        if let Some(waited) = waited {
            counts.wait.observe(waited.as_secs_f64());
        }
        if self.schedules.load(Ordering::Relaxed) {
            self.scheduler.count(class, label, waited);
        }
    }
}

impl Counts {
    fn new(registrar: &Registrar) -> Self {
        let help =
            "Requests by what admission did: allowed, rejected (queue full), timed_out, abandoned (client left).";
        let results = registrar.counter_vec("smg_http_rate_limit_total", help, &["result"]);
        let help = "How long requests that had to wait for admission waited.";
        Self {
            allowed: results.with_label_values(&["allowed"]),
            rejected: results.with_label_values(&["rejected"]),
            timed_out: results.with_label_values(&["timed_out"]),
            abandoned: results.with_label_values(&["abandoned"]),
            wait: registrar.histogram("smg_admission_wait_seconds", help, DURATION_BUCKETS),
        }
    }
}

fn observe(inner: Weak<Inner>, registrar: &Registrar) {
    let depth = registrar.gauge("smg_admission_queue_depth", "Requests that wait for admission.");
    let depth_max = registrar.gauge("smg_admission_queue_max", "Requests that may wait for admission.");
    let in_flight = registrar.gauge("smg_admission_in_flight", "Requests admitted and not finished.");
    let help = "Requests that may be in flight at once; zero for any number.";
    let in_flight_max = registrar.gauge("smg_admission_in_flight_max", help);
    registrar.on_gather(move || {
        let Some(inner) = inner.upgrade() else { return };
        let state = inner.state.lock();
        depth.set(signed(state.line.depth()));
        in_flight.set(signed(state.line.in_flight()));
        let bounds = state.line.bounds();
        depth_max.set(signed(match state.config.scheduler {
            None => state.config.queue_max,
            Some(_) => Class::ALL.into_iter().map(|class| bounds.classes.of(class).queue_max).sum(),
        }));
        in_flight_max.set(signed(bounds.concurrent_max.map_or(0, NonZeroUsize::get)));
        if state.config.scheduler.is_some() {
            inner.scheduler.observe(&state.line);
        }
    });
}

pub(crate) fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
