//! Gauges of the fleet and of routing, read when the metrics are.

use std::sync::Arc;

use prometheus::{GaugeVec, IntGaugeVec};
use smg_base::Clock;
use smg_fleet::{BreakerState, Fleet, Status, Worker};
use smg_gateway::Gateway;
use smg_runtime::metrics::Registrar;

/// Whether what engines say of their load is shown as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineLoads {
    Shown,
    Hidden,
}

/// Registers the gauges; each reading is made from the snapshot of that moment, so that removed workers vanish.
pub(crate) fn register(
    registrar: &Registrar,
    fleet: &Arc<Fleet>,
    gateway: &Arc<Gateway>,
    clock: Arc<dyn Clock>,
    engine_loads: EngineLoads,
) {
    let gauges = Gauges::new(registrar);
    let fleet = fleet.clone();
    let gateway = gateway.clone();
    registrar.on_gather(move || {
        let snapshot = fleet.snapshot();
        gauges.reset();
        for pool in snapshot.models() {
            let size = gauges.pool_size.with_label_values(&["regular", "http", pool.model.as_str()]);
            size.set(count(pool.workers.len()));
            let available = gauges.pool_available.with_label_values(&["regular", "http", pool.model.as_str()]);
            available.set(count(pool.available(clock.now())));
        }
        for worker in snapshot.workers() {
            gauges.read(worker);
            if engine_loads == EngineLoads::Shown {
                gauges.read_engine(worker);
            }
        }
        for (model, policy) in gateway.policies() {
            let labels = [model.as_str(), policy.kind().as_str()];
            let usage = policy.usage();
            gauges.policy_entries.with_label_values(&labels).set(count(usage.entries));
            gauges.policy_bytes.with_label_values(&labels).set(count(usage.bytes));
        }
    });
}

struct Gauges {
    pool_size: IntGaugeVec,
    pool_available: IntGaugeVec,
    active: IntGaugeVec,
    pending_tokens: IntGaugeVec,
    keys: IntGaugeVec,
    health: IntGaugeVec,
    status: IntGaugeVec,
    breaker: IntGaugeVec,
    failures: IntGaugeVec,
    successes: IntGaugeVec,
    prefill: GaugeVec,
    engine_running: IntGaugeVec,
    engine_waiting: IntGaugeVec,
    engine_kv: GaugeVec,
    engine_throughput: GaugeVec,
    policy_entries: IntGaugeVec,
    policy_bytes: IntGaugeVec,
}

impl Gauges {
    fn new(registrar: &Registrar) -> Self {
        let worker = |name, help| registrar.gauge_vec(name, help, &["worker"]);
        let engine = |name, help| registrar.gauge_vec(name, help, &["worker", "model", "dp_rank"]);
        let engine_float = |name, help| registrar.float_gauge_vec(name, help, &["worker", "model", "dp_rank"]);
        let pool = |name, help| registrar.gauge_vec(name, help, &["worker_type", "connection_mode", "model"]);
        let policy = |name, help| registrar.gauge_vec(name, help, &["model", "policy"]);
        Self {
            pool_size: pool("smg_worker_pool_size", "Workers that serve a model"),
            pool_available: pool("smg_worker_pool_available", "Workers that serve a model and may be used now"),
            active: worker("smg_worker_requests_active", "Requests of this gateway at a worker"),
            pending_tokens: worker(
                "smg_worker_pending_tokens",
                "Prompt tokens sent to a worker whose first output has not come, as estimated",
            ),
            keys: worker("smg_worker_routing_keys_active", "Distinct routing keys in flight at a worker"),
            health: worker("smg_worker_health", "1 if a worker passes its probes, else 0"),
            status: registrar.gauge_vec("smg_worker_status", "1 for the status a worker is in", &["worker", "status"]),
            breaker: worker("smg_worker_cb_state", "Circuit breaker: 0 closed, 1 open, 2 half open"),
            failures: worker("smg_worker_cb_consecutive_failures", "Failures in a row"),
            successes: worker("smg_worker_cb_consecutive_successes", "Successes in a row while half open"),
            prefill: registrar.float_gauge_vec(
                "smg_worker_prefill_tokens_per_second",
                "Prefill rate learned from times to first token",
                &["worker"],
            ),
            engine_running: engine("smg_engine_running_requests", "Requests running in the engine, as it says"),
            engine_waiting: engine("smg_engine_waiting_requests", "Requests waiting in the engine, as it says"),
            engine_kv: engine_float("smg_engine_token_usage", "Share of the engine's KV cache in use, as it says"),
            engine_throughput: engine_float(
                "smg_engine_gen_throughput",
                "Tokens the engine generates per second, as it says",
            ),
            policy_entries: policy("smg_policy_entries", "What a policy remembers: sticky keys or prefix blocks"),
            policy_bytes: policy("smg_policy_memory_bytes", "Memory of what a policy remembers"),
        }
    }

    fn reset(&self) {
        for gauge in [
            &self.pool_size,
            &self.pool_available,
            &self.active,
            &self.pending_tokens,
            &self.keys,
            &self.health,
            &self.status,
            &self.breaker,
            &self.failures,
            &self.successes,
            &self.engine_running,
            &self.engine_waiting,
            &self.policy_entries,
            &self.policy_bytes,
        ] {
            gauge.reset();
        }
        for gauge in [&self.prefill, &self.engine_kv, &self.engine_throughput] {
            gauge.reset();
        }
    }

    fn read(&self, worker: &Worker) {
        let url = [worker.spec.url.as_str()];
        let state = &worker.state;
        self.active.with_label_values(&url).set(i64::from(state.load.in_flight()));
        self.pending_tokens.with_label_values(&url).set(i64::try_from(state.load.pending_tokens()).unwrap_or(i64::MAX));
        self.keys.with_label_values(&url).set(i64::from(state.load.active_keys()));
        self.health.with_label_values(&url).set(i64::from(worker.status() == Status::Ready));
        self.status.with_label_values(&[url[0], worker.status().as_str()]).set(1);
        self.breaker.with_label_values(&url).set(match state.breaker.state() {
            BreakerState::Closed => 0,
            BreakerState::Open => 1,
            BreakerState::HalfOpen => 2,
        });
        self.failures.with_label_values(&url).set(i64::from(state.breaker.consecutive_failures()));
        self.successes.with_label_values(&url).set(i64::from(state.breaker.consecutive_successes()));
        if let Some(rate) = state.rates.prefill_tokens_per_second() {
            self.prefill.with_label_values(&url).set(rate);
        }
    }

    fn read_engine(&self, worker: &Worker) {
        if let Some(engine) = worker.state.load.engine() {
            let model = worker.models().first().map_or("unknown", |card| card.id.as_str());
            let labels = [worker.spec.url.as_str(), model, "0"];
            self.engine_running.with_label_values(&labels).set(i64::from(engine.running));
            self.engine_waiting.with_label_values(&labels).set(i64::from(engine.waiting));
            self.engine_kv.with_label_values(&labels).set(f64::from(engine.kv_usage));
            self.engine_throughput.with_label_values(&labels).set(f64::from(engine.generation_tokens_per_second));
        }
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
