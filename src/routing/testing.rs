//! What the tests of this crate share.

use std::{sync::Arc, time::Duration};

use smg_base::{Random, Timestamp};
use smg_fleet::{Fleet, FleetConfig, HealthConfig, LoadGuard, Origin, Pool, Relaying, WorkerSpec, WorkerState};

use crate::Ask;

/// `seconds` after the origin.
pub(crate) fn at(seconds: u64) -> Timestamp {
    Timestamp::ORIGIN + Duration::from_secs(seconds)
}

/// A fleet of workers believed healthy. They are numbered by their place in the pool.
pub(crate) struct Workers(Fleet);

impl Workers {
    pub(crate) fn of(count: usize) -> Self {
        Self::with(count, |_, _| {})
    }

    /// `change` is told the place each worker will have.
    pub(crate) fn with(count: usize, change: impl Fn(usize, &mut WorkerSpec)) -> Self {
        let health = HealthConfig { enabled: false, ..HealthConfig::default() };
        let fleet = Fleet::new(FleetConfig { health, ..FleetConfig::default() });
        let mut specs: Vec<_> =
            (0..count).map(|number| WorkerSpec::new(format!("http://worker-{number}:8000").parse().unwrap())).collect();
        specs.sort_by_key(|spec| fleet.id_of(&spec.url));
        for (place, mut spec) in specs.into_iter().enumerate() {
            change(place, &mut spec);
            fleet.add(spec, Origin::Flag, at(0)).unwrap();
        }
        Self(fleet)
    }

    pub(crate) fn fleet(&self) -> &Fleet {
        &self.0
    }

    pub(crate) fn pool(&self) -> Arc<Pool> {
        Arc::clone(self.0.snapshot().any())
    }

    pub(crate) fn state(&self, place: usize) -> Arc<WorkerState> {
        Arc::clone(&self.pool().workers[place].state)
    }

    pub(crate) fn begin(&self, place: usize, tokens: u64) -> LoadGuard {
        self.state(place).begin(tokens, at(10))
    }
}

/// A request that says nothing of itself.
pub(crate) fn ask(random: &dyn Random) -> Ask<'_> {
    Ask {
        prompt: None,
        input_tokens: 0,
        routing_key: None,
        target: None,
        session: None,
        excluded: &[],
        paths: &[],
        relaying: Relaying::Allowed,
        now: at(1),
        random,
    }
}
