//! A worker as the admin API shows it.

use serde::Serialize;

use smg_base::WorkerId;

use crate::{BreakerState, ClusterVerdict, DirectPath, Engine, Origin, Status, Worker, WorkerSpec};

/// What the admin API tells of a worker: its specification (with the models and the engine as they are known
/// now, and never with its key), and how it does.
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
    /// Whether it may be used, as far as probes tell: those of this gateway, and of its peers if it has any.
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
    /// What the nodes of the cluster together found out; absent where nobody says anything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdict: Option<&'static str>,
    /// The peer through which it is best reached, if any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// Requests that the other gateways have there, where there are any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_load: Option<u32>,
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
            spec: WorkerSpec {
                models: worker.models().to_vec(),
                runtime_type: Some(worker.engine()),
                api_key: None,
                kv_events: worker.kv_events().cloned(),
                ..worker.spec.clone()
            },
            has_api_key: worker.spec.api_key.is_some(),
            model_id: worker.models().first().map_or("unknown", |card| card.id.as_str()).to_owned(),
            is_healthy: is_healthy(worker),
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
            verdict: match worker.verdict() {
                ClusterVerdict::Unknown => None,
                ClusterVerdict::Up => Some("up"),
                ClusterVerdict::Down => Some("down"),
            },
            via: worker.via().map(|via| via.peer.to_string()),
            peer_load: Some(load.peers().requests).filter(|requests| *requests > 0),
        }
    }
}

fn is_healthy(worker: &Worker) -> bool {
    match worker.status() {
        Status::Draining => false,
        _ if worker.verdict() == ClusterVerdict::Down => false,
        Status::Ready if worker.direct() == DirectPath::Allowed => true,
        _ => worker.via().is_some(),
    }
}

#[cfg(test)]
mod tests {
    use smg_base::Secret;

    use super::*;
    use crate::{
        BreakerConfig,
        testing::{at, profile, spec, trusting_fleet},
    };

    #[test]
    fn everything_is_shown_but_the_key() {
        let fleet = trusting_fleet(BreakerConfig::default());
        let mut spec = spec("gpu:1", &[]);
        spec.api_key = Some(Secret::new("sk-secret"));
        spec.labels.insert("zone".to_owned(), "b".to_owned());
        let worker = fleet.add(spec, Origin::Api, at(0)).unwrap().worker;
        let mut found = profile(&["m"]);
        found.engine = Engine::Vllm;
        found.version = Some("0.11".to_owned());
        found.context_length = Some(4_096);
        assert!(fleet.describe(worker.id, worker.revision, found));
        let _busy = worker.state.begin(9, at(0));

        let snapshot = fleet.snapshot();
        let info = WorkerInfo::from(&**snapshot.worker(worker.id).unwrap());
        let shown = serde_json::to_value(&info).unwrap();
        let check = |field: &str, expected: serde_json::Value| assert_eq!(shown[field], expected, "{field}");
        check("id", worker.id.to_string().into());
        check("url", "http://gpu:1".into());
        check("model_id", "m".into());
        check("models", serde_json::json!([{ "id": "m", "context_length": 4096 }]));
        check("is_healthy", true.into());
        check("status", "ready".into());
        check("load", 1.into());
        check("pending_tokens", 9.into());
        check("worker_type", "regular".into());
        check("connection_mode", "http".into());
        check("priority", 50.into());
        check("labels", serde_json::json!({ "zone": "b" }));
        check("engine", "vllm".into());
        check("runtime_type", "vllm".into());
        check("version", "0.11".into());
        check("context_length", 4_096.into());
        check("origin", "api".into());
        check("has_api_key", true.into());
        check(
            "breaker",
            serde_json::json!({
                "state": "closed", "consecutive_failures": 0, "consecutive_successes": 0
            }),
        );
        assert_eq!(shown.get("api_key"), None);
        assert!(!format!("{shown} {info:?} {worker:?} {fleet:?}").contains("sk-secret"));
    }

    #[test]
    fn a_worker_of_which_nothing_is_known_is_shown_as_such() {
        let fleet = trusting_fleet(BreakerConfig::default());
        let worker = fleet.add(spec("gpu:1", &[]), Origin::Flag, at(0)).unwrap().worker;
        fleet.drain(worker.id);
        let info = WorkerInfo::from(&*worker);
        assert_eq!((info.model_id.as_str(), info.is_healthy), ("unknown", false));
        assert_eq!((info.status, info.engine), (Status::Draining, Engine::Unknown));
    }
}
