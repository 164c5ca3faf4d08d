//! What is counted of the plane of prefixes.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, IntGauge};
use smg_base::WorkerId;
use smg_prefix::plane::Plane;
use smg_runtime::metrics::{Registrar, catch_up};

/// Counters and gauges; most are read from the plane when metrics are.
pub(crate) struct PrefixMetrics {
    failures: IntCounterVec,
    connected: Mutex<BTreeSet<WorkerId>>,
}

impl PrefixMetrics {
    pub(crate) fn new(registrar: &Registrar, plane: &Arc<Mutex<Plane>>) -> Arc<Self> {
        let counter = |name, help| registrar.counter(name, help);
        let batches: IntCounter = counter("smg_kv_event_batches_total", "Messages about engines' KV caches taken in");
        let gaps = counter("smg_kv_event_gaps_total", "Messages about a KV cache that came after one that was missed");
        let lost = counter("smg_kv_event_lost_total", "Times that messages about a KV cache were missed for good");
        let switches =
            counter("smg_prefix_switches_total", "Times that this node went over to another node's word about a cache");
        let bytes = counter("smg_prefix_bytes_total", "Bytes about caches written for other nodes");
        let refused = counter("smg_prefix_refused_total", "What other nodes told about caches beyond the bounds");
        let claims = registrar.counter_vec(
            "smg_prefix_claims_total",
            "Prompts told to those who predict caches: sent; dropped here; missed, overwritten before they were read; unknown, \
             going on from what is no longer held",
            &["result"],
        );
        let chunks: IntGauge = registrar.gauge("smg_prefix_chunks", "Chunks that workers' caches are told to hold");
        let connected = registrar.gauge("smg_kv_event_subscriptions", "Workers whose KV events are followed here");
        let metrics = Arc::new(Self {
            failures: registrar.counter_vec(
                "smg_kv_event_subscription_failures_total",
                "Failed attempts to follow the events of a worker's KV cache",
                &["worker", "reason"],
            ),
            connected: Mutex::default(),
        });
        let plane = Arc::clone(plane);
        let read = Arc::clone(&metrics);
        registrar.on_gather(move || {
            let (counts, held) = {
                let plane = plane.lock();
                (plane.counts(), plane.chunks())
            };
            catch_up(&batches, counts.batches);
            catch_up(&gaps, counts.gaps);
            catch_up(&lost, counts.lost);
            catch_up(&switches, counts.switches);
            catch_up(&bytes, counts.bytes_told);
            catch_up(&refused, counts.refused);
            for (result, count) in [
                ("sent", counts.claims_sent),
                ("dropped", counts.claims_dropped),
                ("missed", counts.claims_missed),
                ("unknown", counts.claims_unknown),
            ] {
                catch_up(&claims.with_label_values(&[result]), count);
            }
            chunks.set(i64::try_from(held).unwrap_or(i64::MAX));
            connected.set(i64::try_from(read.connected.lock().len()).unwrap_or(i64::MAX));
        });
        metrics
    }

    /// Whether a worker's events come in.
    pub(super) fn is_connected(&self, worker: WorkerId) -> bool {
        self.connected.lock().contains(&worker)
    }

    pub(super) fn connected(&self, worker: WorkerId) {
        self.connected.lock().insert(worker);
    }

    pub(super) fn ended(&self, worker: WorkerId) {
        self.connected.lock().remove(&worker);
    }

    pub(super) fn failed(&self, worker: WorkerId, url: &str, reason: &str) {
        self.ended(worker);
        // Few words, lest every error be a series.
        let is = |words: &[&str]| words.iter().any(|word| reason.contains(word));
        let reason = match () {
            () if is(&["refused", "connect", "unreachable", "resolve"]) => "connect",
            () if is(&["timed out", "timeout"]) => "timeout",
            () if is(&["read", "decode"]) => "decode",
            () => "other",
        };
        self.failures.with_label_values(&[url, reason]).inc();
    }
}
