//! What the tests of this crate share.

use std::{sync::Arc, time::Duration};

use proptest::test_runner::Config as PropertyConfig;

use smg_base::Timestamp;

use crate::{BreakerConfig, EngineProfile, Fleet, FleetConfig, HealthConfig, ModelCard, Origin, Worker, WorkerSpec};

/// `seconds` after the origin.
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::ORIGIN + Duration::from_secs(seconds)
}

/// A worker at `url` that lists `models`.
pub(crate) fn spec(url: &str, models: &[&str]) -> WorkerSpec {
    let models = models.iter().map(|id| ModelCard::new(*id)).collect();
    WorkerSpec { models, ..WorkerSpec::new(url.parse().unwrap()) }
}

/// What an engine with `models` says of itself.
pub(crate) fn profile(models: &[&str]) -> EngineProfile {
    EngineProfile { models: models.iter().map(|id| ModelCard::new(*id)).collect(), ..EngineProfile::default() }
}

/// A fleet whose workers are believed healthy.
pub(crate) fn trusting_fleet(breaker: BreakerConfig) -> Fleet {
    let health = HealthConfig { enabled: false, ..HealthConfig::default() };
    Fleet::new(FleetConfig { health, breaker, ..FleetConfig::default() })
}

/// The only worker of a trusting fleet.
pub(crate) fn trusted_worker(breaker: BreakerConfig) -> Arc<Worker> {
    trusting_fleet(breaker).add(spec("http://w:1", &["m"]), Origin::Api, at(0)).unwrap().worker
}

/// How properties are tested. A failing case is printed, not written down: the folder for it would lie beside the
/// crates, where the workspace takes every folder for one of them.
pub(crate) fn properties(cases: u32) -> PropertyConfig {
    PropertyConfig { cases, failure_persistence: None, ..PropertyConfig::default() }
}
