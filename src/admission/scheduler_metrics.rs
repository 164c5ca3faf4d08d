//! What is counted by class, under the names that the reference gateway gives it.

use std::{num::NonZeroUsize, time::Duration};

use prometheus::{Gauge, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec};
use smg_runtime::metrics::{DURATION_BUCKETS, Registrar, catch_up};

use crate::{
    class::Class,
    gate::signed,
    line::{Bell, Line},
};

pub(crate) struct SchedulerMetrics {
    admit: IntCounterVec,
    wait: HistogramVec,
    preemption: IntCounterVec,
    promotion: IntCounterVec,
    pub(crate) clamped: IntCounterVec,
    pub(crate) unknown: IntCounter,
    in_flight: IntGaugeVec,
    depth: IntGaugeVec,
    depth_max: IntGaugeVec,
    reserved: IntGaugeVec,
    utilization: Gauge,
}

impl SchedulerMetrics {
    pub(crate) fn new(registrar: &Registrar) -> Self {
        let counter = |name, help, labels: &[&str]| registrar.counter_vec(name, help, labels);
        let gauge = |name, help| registrar.gauge_vec(name, help, &["class"]);
        Self {
            admit: counter(
                "smg_scheduler_admit_total",
                "Requests by class and by what became of them: admitted, queue_full, displaced (the tenant with most \
                 waiting gave way), queue_timeout, client_cancelled.",
                &["class", "outcome"],
            ),
            wait: registrar.histogram_vec(
                "smg_scheduler_queue_wait_seconds",
                "How long requests that had to wait for their turn waited.",
                &["class"],
                DURATION_BUCKETS,
            ),
            preemption: counter(
                "smg_scheduler_preemption_total",
                "Requests told to give way before their first byte, by their class and that of whom they gave way to.",
                &["victim_class", "by_class"],
            ),
            promotion: counter(
                "smg_scheduler_starvation_promotion_total",
                "Turns that a class got because more urgent ones had passed it over for long.",
                &["class"],
            ),
            clamped: counter(
                "smg_scheduler_clamp_total",
                "Requests whose caller may not have the class that was asked for.",
                &["requested_class", "effective_class"],
            ),
            unknown: registrar
                .counter("smg_scheduler_unknown_priority_value_total", "Requests whose X-SMG-Priority names no class."),
            in_flight: gauge("smg_scheduler_inflight", "Requests admitted and not finished."),
            depth: gauge("smg_scheduler_queue_depth", "Requests that wait for their turn."),
            depth_max: gauge("smg_scheduler_queue_size_limit", "Requests that may wait for their turn."),
            reserved: gauge("smg_scheduler_reserved", "Places that a class gets before others."),
            utilization: registrar
                .float_gauge("smg_scheduler_utilization", "Requests in flight as a part of those that may be."),
        }
    }

    pub(crate) fn count(&self, class: Class, outcome: &str, waited: Option<Duration>) {
        self.admit.with_label_values(&[class.as_str(), outcome]).inc();
        if let Some(waited) = waited {
            self.wait.with_label_values(&[class.as_str()]).observe(waited.as_secs_f64());
        }
    }

    pub(crate) fn observe<B: Bell>(&self, line: &Line<B>) {
        let tally = line.tally();
        for class in Class::ALL {
            let labels = [class.as_str()];
            self.in_flight.with_label_values(&labels).set(signed(line.in_flight_of(class)));
            self.depth.with_label_values(&labels).set(signed(line.depth_of(class)));
            self.depth_max.with_label_values(&labels).set(signed(line.bounds().classes.of(class).queue_max));
            self.reserved.with_label_values(&labels).set(signed(line.reserved_for(class)));
            catch_up(&self.promotion.with_label_values(&labels), tally.promoted[class.index()]);
            for by in Class::ALL.into_iter().take_while(|by| *by < class) {
                let counter = self.preemption.with_label_values(&[class.as_str(), by.as_str()]);
                catch_up(&counter, tally.preempted[class.index()][by.index()]);
            }
        }
        let most = line.bounds().concurrent_max.map_or(0, NonZeroUsize::get);
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts")]
        self.utilization.set(if most == 0 { 0.0 } else { line.in_flight() as f64 / most as f64 });
    }
}
