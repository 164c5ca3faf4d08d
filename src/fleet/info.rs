//! A worker as the admin API shows it.

use serde::Serialize;

use smg_base::WorkerId;

use crate::{BreakerState, Engine, Origin, Status, Worker, WorkerSpec};

/// What the admin API tells of a worker: its specification (with the models as they are known now, and never with
/// its key), and how it does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorkerInfo {
    /// Its id.
    pub id: WorkerId,
    /// Its specification.
    #[serde(flatten)]
    pub spec: WorkerSpec,
    /// Whether it has a key.
    pub has_api_key: bool,
    /// Its first model, `unknown` if it lists none.
    pub model_id: String,
    /// Whether it may be used, as far as its probes tell.
    pub is_healthy: bool,
    /// Where it stands.
    pub status: Status,
    /// This gateway's requests there.
    pub load: u32,
    /// Prompt tokens of those whose first token has not come.
    pub pending_tokens: u64,
    /// Requests ever sent there.
    pub processed: u64,
    /// Who brought it in.
    pub origin: Origin,
    /// Counts the changes of its specification.
    pub revision: u64,
    /// Its engine.
    pub engine: Engine,
    /// The engine's version.
    pub version: Option<String>,
    /// The longest context of its models, in tokens.
    pub context_length: Option<u64>,
    /// How many tokens its KV cache holds, as specified or as the engine says.
    pub kv_capacity: Option<u64>,
    /// Its breaker.
    pub breaker: BreakerInfo,
}

/// A breaker as the admin API shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BreakerInfo {
    /// Its state.
    pub state: BreakerState,
    /// Failures in a row while closed.
    pub consecutive_failures: u32,
    /// Successes in a row while half-open.
    pub consecutive_successes: u32,
}

impl From<&Worker> for WorkerInfo {
    fn from(worker: &Worker) -> Self {
        let load = &worker.state.load;
        let breaker = &worker.state.breaker;
        Self {
            id: worker.id,
            spec: WorkerSpec { models: worker.models().to_vec(), api_key: None, ..worker.spec.clone() },
            has_api_key: worker.spec.api_key.is_some(),
            model_id: worker.models().first().map_or("unknown", |card| card.id.as_str()).to_owned(),
            is_healthy: worker.status() == Status::Ready,
            status: worker.status(),
            load: load.in_flight(),
            pending_tokens: load.pending_tokens(),
            processed: load.processed(),
            origin: worker.origin,
            revision: worker.revision,
            engine: worker.engine(),
            version: worker.profile.as_ref().and_then(|profile| profile.version.clone()),
            context_length: worker.context_length(),
            kv_capacity: worker.kv_capacity_tokens(),
            breaker: BreakerInfo {
                state: breaker.state(),
                consecutive_failures: breaker.consecutive_failures(),
                consecutive_successes: breaker.consecutive_successes(),
            },
        }
    }
}
