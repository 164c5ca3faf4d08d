//! Whether the tokio runtime keeps up: its gauges, and how late its timers are.

use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge};
use tokio::{runtime::Handle, time::Instant};

use crate::{
    metrics::{Registrar, SHORT_BUCKETS, catch_up},
    shutdown::{Phase, Shutdown},
};

/// How often the lateness of a timer is measured while the runtime has something to do.
const BEAT: Duration = Duration::from_millis(100);

/// The same while it has next to nothing to do, so that an idle process sleeps.
const CALM_BEAT: Duration = Duration::from_millis(500);

/// Up to this share of a beat the workers may be busy in a runtime that is calm.
const CALM_SHARE: u32 = 20;

/// Lateness from which a beat counts as a stall.
const STALL: Duration = Duration::from_millis(100);

/// The shortest time over which a share of it says something.
const SHARE_TIME_MIN: Duration = Duration::from_millis(100);

/// Does what [`observe`] does, then measures how late timers fire until the process stops.
pub async fn beat(registrar: &Registrar, shutdown: Shutdown) {
    observe(registrar);
    let lateness = Lateness::new(registrar);
    let runtime = Handle::current();
    let measure = async {
        let (mut due, mut last) = (Instant::now() + BEAT, Reading::take(&runtime));
        loop {
            tokio::time::sleep_until(due).await;
            lateness.measured(Instant::now().saturating_duration_since(due));
            let now = Reading::take(&runtime);
            let elapsed = now.at.saturating_duration_since(last.at);
            let is_calm = now.busy_since(&last) * CALM_SHARE <= elapsed;
            due = now.at + if is_calm { CALM_BEAT } else { BEAT };
            last = now;
        }
    };
    tokio::select! {
        () = measure => {}
        () = shutdown.reached(Phase::Stopped) => {}
    }
}

struct Lateness {
    delay: Histogram,
    stalls: IntCounter,
}

impl Lateness {
    fn new(registrar: &Registrar) -> Self {
        let help = "How late a timer fires: the time a task that is ready waits for a thread.";
        let delay = registrar.histogram("smg_tokio_event_loop_delay_seconds", help, SHORT_BUCKETS);
        let help = "Timers that fired 100 ms late or more.";
        Self { delay, stalls: registrar.counter("smg_tokio_event_loop_stalls_total", help) }
    }

    fn measured(&self, late: Duration) {
        self.delay.observe(late.as_secs_f64());
        if late >= STALL {
            self.stalls.inc();
        }
    }
}

/// Shows the gauges of the runtime this is called on: workers, tasks, queue, parks, and the busy share of each worker
/// since the last reading. Outside a runtime the metrics are registered and stay empty.
pub fn observe(registrar: &Registrar) {
    Lateness::new(registrar);
    let gauges = Gauges::new(registrar);
    let Ok(runtime) = Handle::try_current() else { return };
    let last = Mutex::new(Reading::take(&runtime));
    registrar.on_gather(move || gauges.update(&runtime, &mut last.lock()));
}

struct Gauges {
    workers: IntGauge,
    tasks: IntGauge,
    depth: IntGauge,
    parks: IntCounterVec,
    busy: GaugeVec,
}

impl Gauges {
    fn new(registrar: &Registrar) -> Self {
        let busy = "Share of the time since the last reading that a worker was busy.";
        let depth = "Tasks that wait in the runtime's global queue.";
        Self {
            workers: registrar.gauge("smg_tokio_workers", "Worker threads of the runtime."),
            tasks: registrar.gauge("smg_tokio_alive_tasks", "Tasks of the runtime that have not ended."),
            depth: registrar.gauge("smg_tokio_global_queue_depth", depth),
            parks: registrar.counter_vec("smg_tokio_worker_parks_total", "Times a worker went to sleep.", &["worker"]),
            busy: registrar.float_gauge_vec("smg_tokio_worker_busy_ratio", busy, &["worker"]),
        }
    }

    fn update(&self, runtime: &Handle, last: &mut Reading) {
        let metrics = runtime.metrics();
        self.workers.set(signed(metrics.num_workers()));
        self.tasks.set(signed(metrics.num_alive_tasks()));
        self.depth.set(signed(metrics.global_queue_depth()));
        for worker in 0..metrics.num_workers() {
            catch_up(&self.parks.with_label_values(&[&worker.to_string()]), metrics.worker_park_count(worker));
        }
        let now = Reading::take(runtime);
        let elapsed = now.at.saturating_duration_since(last.at);
        if elapsed < SHARE_TIME_MIN {
            return;
        }
        for (worker, (busy, before)) in now.busy.iter().zip(&last.busy).enumerate() {
            let share = busy.saturating_sub(*before).as_secs_f64() / elapsed.as_secs_f64();
            self.busy.with_label_values(&[&worker.to_string()]).set(share.min(1.0));
        }
        *last = now;
    }
}

struct Reading {
    at: Instant,
    busy: Vec<Duration>,
}

impl Reading {
    fn take(runtime: &Handle) -> Self {
        let metrics = runtime.metrics();
        let busy = (0..metrics.num_workers()).map(|worker| metrics.worker_total_busy_duration(worker)).collect();
        Self { at: Instant::now(), busy }
    }

    /// How long the workers together were busy since then.
    fn busy_since(&self, before: &Self) -> Duration {
        let workers = self.busy.iter().zip(&before.busy);
        workers.map(|(now, before)| now.saturating_sub(*before)).sum()
    }
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_runtime_is_shown() {
        let registrar = Registrar::new();
        observe(&registrar);
        tokio::time::advance(SHARE_TIME_MIN).await;
        let text = registrar.encode();
        assert!(text.contains("smg_tokio_workers 1"), "{text}");
        for name in ["alive_tasks", "global_queue_depth", "worker_parks_total", "worker_busy_ratio"] {
            assert!(text.contains(&format!("smg_tokio_{name}")), "{name} is missing in {text}");
        }
    }

    #[test]
    fn metrics_can_be_listed_without_a_runtime() {
        let registrar = Registrar::new();
        observe(&registrar);
        assert_eq!(registrar.descriptions().len(), 7);
    }

    #[tokio::test]
    async fn a_blocked_thread_is_a_stall() {
        let registrar = Registrar::new();
        let shutdown = Shutdown::new();
        let stalls = Lateness::new(&registrar).stalls;
        let beating = tokio::spawn({
            let (registrar, shutdown) = (registrar.clone(), shutdown.clone());
            async move { beat(&registrar, shutdown).await }
        });
        // Past the first, immediate tick; then the only thread is held for more than a beat and a stall together.
        tokio::task::yield_now().await;
        let held = Instant::now();
        while held.elapsed() < BEAT + STALL + Duration::from_millis(20) {
            thread::yield_now();
        }
        while stalls.get() == 0 {
            tokio::task::yield_now().await;
        }
        shutdown.advance(Phase::Stopped);
        beating.await.expect("the beat ends with the process");
    }
}
