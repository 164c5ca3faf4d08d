//! The line with a lock, timers and metrics around it.

use std::{
    fmt,
    num::NonZeroUsize,
    pin::pin,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use prometheus::{Histogram, IntCounter};
use smg_base::{Clock, Timestamp};
use smg_runtime::metrics::{DURATION_BUCKETS, Registrar};
use tokio::{sync::Notify, time};

use crate::line::{Arrival, Bell, Bounds, Line, Look, Ticket};

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
}

impl Default for Config {
    /// No limit; a queue of 100 and 60 s for when there is one.
    fn default() -> Self {
        Self { concurrent_max: None, queue_max: 100, queue_timeout: Duration::from_secs(60), rate_per_second: None }
    }
}

impl Config {
    fn bounds(&self) -> Bounds {
        let Self { concurrent_max, queue_max, rate_per_second, .. } = *self;
        Bounds { concurrent_max, queue_max, rate_per_second }
    }
}

/// Why a request was turned away, and when to come back: after the time in which, at the pace of late, those who wait
/// now will have been served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As many wait as may.
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

/// Lets requests through in the order of arrival; clones are the same gate.
#[derive(Clone)]
pub struct Gate {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
    clock: Arc<dyn Clock>,
    counts: Counts,
}

struct State {
    line: Line<Arc<Notify>>,
    queue_timeout: Duration,
}

struct Counts {
    allowed: IntCounter,
    rejected: IntCounter,
    timed_out: IntCounter,
    abandoned: IntCounter,
    wait: Histogram,
}

impl Bell for Arc<Notify> {
    fn ring(&self) {
        self.notify_one();
    }
}

impl Gate {
    /// A gate nobody has passed.
    pub fn new(config: Config, clock: Arc<dyn Clock>, registrar: &Registrar) -> Self {
        let state = State { line: Line::new(config.bounds()), queue_timeout: config.queue_timeout };
        let inner = Arc::new(Inner { state: Mutex::new(state), clock, counts: Counts::new(registrar) });
        observe(Arc::downgrade(&inner), registrar);
        Self { inner }
    }

    /// Other limits from now on. Requests in flight are not touched; those that wait keep their place and their
    /// deadline, and go on at once if the new limits have room for them.
    pub fn reconfigure(&self, config: Config) {
        let now = self.inner.clock.now();
        let mut state = self.inner.state.lock();
        state.queue_timeout = config.queue_timeout;
        state.line.rebound(config.bounds(), now);
    }

    /// Waits for a place. Dropping the future gives up the place in the line at once.
    pub async fn admit(&self) -> Result<Permit, Refusal> {
        let now = self.inner.clock.now();
        match self.arrive(now) {
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

    fn arrive(&self, now: Timestamp) -> Turn {
        let mut bell = None;
        let mut state = self.inner.state.lock();
        match state.line.arrive(now, || Arc::clone(bell.insert(Arc::new(Notify::new())))) {
            Arrival::Admitted => {
                drop(state);
                self.inner.counts.allowed.inc();
                Turn::Admitted(Permit { inner: Arc::clone(&self.inner) })
            }
            Arrival::Full => {
                let retry_after = state.line.retry_after(now);
                drop(state);
                self.inner.counts.rejected.inc();
                Turn::Refused(Refusal::QueueFull { retry_after })
            }
            Arrival::Queued(ticket) => {
                let deadline = now + state.queue_timeout;
                let bell = bell.expect("a bell is made for whoever is queued");
                Turn::Queued(Place { inner: Arc::clone(&self.inner), ticket, bell, deadline, is_held: true })
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
    bell: Arc<Notify>,
    deadline: Timestamp,
    /// Whether the line still knows the ticket.
    is_held: bool,
}

impl Place {
    async fn wait(mut self, arrived: Timestamp) -> Result<Permit, Refusal> {
        let mut alarm = pin!(time::sleep(Duration::ZERO));
        loop {
            let now = self.inner.clock.now();
            let look = self.inner.state.lock().line.look(self.ticket, now);
            let until = match look {
                Look::Admitted => return Ok(self.admitted(now.since(arrived))),
                Look::Wait(_) if now >= self.deadline => return Err(self.timed_out(now, now.since(arrived))),
                Look::Wait(alarm) => alarm.map_or(self.deadline, |alarm| alarm.min(self.deadline)),
            };
            alarm.as_mut().reset(time::Instant::now() + until.since(now));
            tokio::select! {
                () = self.bell.notified() => {}
                () = alarm.as_mut() => {}
            }
        }
    }

    fn admitted(&mut self, waited: Duration) -> Permit {
        self.is_held = false;
        self.inner.counts.allowed.inc();
        self.inner.counts.wait.observe(waited.as_secs_f64());
        Permit { inner: Arc::clone(&self.inner) }
    }

    fn timed_out(&mut self, now: Timestamp, waited: Duration) -> Refusal {
        self.is_held = false;
        self.inner.counts.timed_out.inc();
        self.inner.counts.wait.observe(waited.as_secs_f64());
        let mut state = self.inner.state.lock();
        state.line.leave(self.ticket, now);
        Refusal::QueueTimeout { retry_after: state.line.retry_after(now) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.is_held {
            self.inner.counts.abandoned.inc();
            let now = self.inner.clock.now();
            self.inner.state.lock().line.leave(self.ticket, now);
        }
    }
}

/// The right to be in flight, given back when dropped.
#[must_use = "a permit that is dropped admits somebody else"]
pub struct Permit {
    inner: Arc<Inner>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let now = self.inner.clock.now();
        self.inner.state.lock().line.depart(now);
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
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
        depth_max.set(signed(bounds.queue_max));
        in_flight_max.set(signed(bounds.concurrent_max.map_or(0, NonZeroUsize::get)));
    });
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
