//! What is counted of the plane of limits.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus::Histogram;
use smg_limits::{Limiter, Stance, Window, mesh::Tally};
use smg_runtime::metrics::{Registrar, catch_up};

/// How late what other nodes count may be heard: from very near to another continent.
const BUCKETS: &[f64] = &[0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0];

/// Counters and gauges; most are read when metrics are.
#[derive(Clone)]
pub(crate) struct LimitMetrics {
    staleness: Histogram,
    tally: Arc<Mutex<Tally>>,
}

impl LimitMetrics {
    pub(crate) fn new(registrar: &Registrar, limiter: &Arc<Limiter>) -> Self {
        let staleness = registrar.histogram(
            "smg_limit_staleness_seconds",
            "Time from what another node counted first of what it then told, by its clock, until this node heard it, by its own",
            BUCKETS,
        );
        let told = registrar.counter("smg_limit_rows_told_total", "Rows about limits written for other nodes");
        let bytes =
            registrar.counter("smg_limit_bytes_told_total", "Bytes of rows about limits written for other nodes");
        let heard = registrar.counter("smg_limit_rows_heard_total", "Rows about limits taken in from other nodes");
        let skipped = registrar
            .counter("smg_limit_rows_skipped_total", "Rows about limits that could not be read, or were too many");
        let lends = registrar.counter("smg_limit_lends_total", "Times that this node lent rights to another");
        let full = registrar.counter("smg_limit_full_total", "Charges refused because all counters were in use");
        let view = registrar.gauge("smg_limit_view", "Number of the view that divides rights among nodes, 0 for none");
        let seats = registrar.gauge("smg_limit_seats", "Nodes that divide rights");
        let parts = registrar.gauge_vec(
            "smg_limit_parts",
            "One of how many parts of what is divided this node may spend now, by window of the limit; 0 for none",
            &["window"],
        );
        let counters = registrar.gauge("smg_limit_counters", "Counters of limits that are held");
        let held = registrar.gauge("smg_limit_counter_bytes", "Bytes that counters of limits take");
        let metrics = Self { staleness, tally: Arc::default() };
        let (read, limiter) = (Arc::clone(&metrics.tally), Arc::clone(limiter));
        registrar.on_gather(move || {
            let tally = *read.lock();
            let figures = limiter.figures();
            catch_up(&told, tally.rows_told);
            catch_up(&bytes, tally.bytes_told);
            catch_up(&heard, tally.rows_heard);
            catch_up(&skipped, tally.rows_skipped);
            catch_up(&lends, tally.lends);
            catch_up(&full, figures.full);
            view.set(i64::try_from(tally.view).unwrap_or(i64::MAX));
            seats.set(i64::try_from(tally.seats).unwrap_or(i64::MAX));
            for (class, one_of) in tally.parts.into_iter().enumerate() {
                let window = Window::ALL.into_iter().find(|window| Stance::class(Some(*window)) == class);
                parts.with_label_values(&[window.map_or("none", Window::as_str)]).set(i64::from(one_of));
            }
            counters.set(i64::try_from(figures.counters).unwrap_or(i64::MAX));
            held.set(i64::try_from(figures.bytes).unwrap_or(i64::MAX));
        });
        metrics
    }

    /// Another node's word was so old.
    pub(super) fn heard_after(&self, age: Duration) {
        self.staleness.observe(age.as_secs_f64());
    }

    pub(super) fn set(&self, tally: Tally) {
        *self.tally.lock() = tally;
    }
}
