//! Whether the tokio runtime keeps up: its gauges, and how late its timers are.

use std::time::Duration;

use tokio::{
    runtime::Handle,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    metrics::{Registrar, SHORT_BUCKETS, catch_up},
    shutdown::{Phase, Shutdown},
};

/// How often the lateness of a timer is measured.
const BEAT: Duration = Duration::from_millis(100);

/// Lateness from which a beat counts as a stall.
const STALL: Duration = Duration::from_millis(100);

/// Measures how late timers fire, until the process stops. Register [`observe`] apart, from within the runtime.
pub async fn beat(registrar: &Registrar, shutdown: Shutdown) {
    let help = "How late a timer fires: the time a task that is ready waits for a thread.";
    let delay = registrar.histogram("smg_tokio_event_loop_delay_seconds", help, SHORT_BUCKETS);
    let stalls = registrar.counter("smg_tokio_event_loop_stalls_total", "Timers that fired 100 ms late or more.");
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let measure = async {
        loop {
            let due = ticks.tick().await;
            let late = Instant::now().saturating_duration_since(due);
            delay.observe(late.as_secs_f64());
            if late >= STALL {
                stalls.inc();
            }
        }
    };
    tokio::select! {
        () = measure => {}
        () = shutdown.reached(Phase::Stopped) => {}
    }
}

/// Shows the gauges of the runtime this is called on: workers, tasks, queue, parks, and the busy share of each worker
/// since the last reading.
pub fn observe(registrar: &Registrar) {
    let runtime = Handle::current();
    let workers = registrar.gauge("smg_tokio_workers", "Worker threads of the runtime.");
    let tasks = registrar.gauge("smg_tokio_alive_tasks", "Tasks of the runtime that have not ended.");
    let depth = registrar.gauge("smg_tokio_global_queue_depth", "Tasks that wait in the runtime's global queue.");
    let parks = registrar.counter_vec("smg_tokio_worker_parks_total", "Times a worker went to sleep.", &["worker"]);
    let busy_help = "Share of the time since the last reading that a worker was busy.";
    let busy = registrar.float_gauge_vec("smg_tokio_worker_busy_ratio", busy_help, &["worker"]);
    let last = parking_lot::Mutex::new(Reading::take(&runtime));
    registrar.on_gather(move || {
        let metrics = runtime.metrics();
        workers.set(signed(metrics.num_workers()));
        tasks.set(signed(metrics.num_alive_tasks()));
        depth.set(signed(metrics.global_queue_depth()));
        let now = Reading::take(&runtime);
        let before = std::mem::replace(&mut *last.lock(), now.clone());
        let elapsed = now.at.saturating_duration_since(before.at).as_secs_f64();
        for (worker, (now_busy, before_busy)) in now.busy.iter().zip(&before.busy).enumerate() {
            let label = worker.to_string();
            catch_up(&parks.with_label_values(&[&label]), metrics.worker_park_count(worker));
            if elapsed > 0.0 {
                let share = now_busy.saturating_sub(*before_busy).as_secs_f64() / elapsed;
                busy.with_label_values(&[&label]).set(share.min(1.0));
            }
        }
    });
}

#[derive(Clone)]
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
}

fn signed(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn the_runtime_is_shown() {
        let registrar = Registrar::new();
        observe(&registrar);
        let text = registrar.encode();
        assert!(text.contains("smg_tokio_workers 1"), "{text}");
        for name in ["alive_tasks", "global_queue_depth", "worker_parks_total", "worker_busy_ratio"] {
            assert!(text.contains(&format!("smg_tokio_{name}")), "{name} is missing in {text}");
        }
    }

    #[tokio::test]
    async fn a_blocked_thread_is_a_stall() {
        let registrar = Registrar::new();
        let shutdown = Shutdown::new();
        let stalls = registrar.counter("smg_tokio_event_loop_stalls_total", "Timers that fired 100 ms late or more.");
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
