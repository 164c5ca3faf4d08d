//! The workers: which exist, what they serve, whether they may be used, and how busy they are.
//!
//! [`Fleet`] owns the table. Its writers (registration, probes, detection, reload) take one short lock, change the
//! table and publish an immutable [`Snapshot`]; requests load the snapshot and read atomics, and never wait for a
//! writer. What changes with every request (load, breaker, learned rates) and with every probe (health) lives in
//! [`WorkerState`], which all revisions of a worker share, so a change of its settings loses no count.
//!
//! Everything here is pure: time is an argument, and nothing is sent. Probing, detection and polling belong to the
//! `upstream` crate, choosing among the workers of a [`Pool`] to `routing`, draining at shutdown to `gateway`.
//!
//! A worker may also be reached through a peer: who that is, and what all nodes together think of the worker, is told from
//! outside ([`Reach`]); here it only decides which [`Path`] a request may take.
//!
//! What it deliberately does not know: HTTP, policies, how nodes of a cluster speak to each other.

mod bell;
mod breaker;
mod budget;
mod engine;
mod error;
mod fleet;
mod health;
mod info;
mod kv_events;
mod load;
mod looks;
mod model;
mod path;
mod probes;
mod profile;
mod rates;
mod snapshot;
mod spec;
#[cfg(test)]
mod testing;
mod ticket;
mod url;
mod worker;

pub use bell::Bell;
pub use breaker::{Breaker, BreakerConfig, BreakerState, BreakerTransition, Outcome};
pub use budget::{BudgetConfig, RetryBudget};
pub use engine::{Engine, UnknownEngine};
pub use error::FleetError;
pub use fleet::{Added, Change, Delta, Fleet, FleetConfig};
pub use health::{Health, HealthConfig, ProbeFailure, Status, StatusChange};
pub use info::{BreakerInfo, WorkerInfo};
pub use kv_events::{KvEndpoint, KvEventsSpec};
pub use load::{EngineLoad, Load, LoadGuard, PeerLoad};
pub use looks::{LANES, Lanes, Looks, each_lane};
pub use model::ModelCard;
pub use path::{ClusterVerdict, DirectPath, EngineSource, HealthVote, Path, ProbeDuty, Reach, Relaying, Via};
pub use profile::{EngineProfile, Offer};
pub use rates::{Rates, Speed};
pub use snapshot::{Member, Pool, Shares, Snapshot};
pub use spec::{
    ConnectionMode, HealthOverride, KeyPatch, Origin, ResilienceOverride, WorkerPatch, WorkerSpec, WorkerType,
};
pub use ticket::Ticket;
pub use url::{Scheme, UrlError, WorkerUrl};
pub use worker::{Beyond, Way, Worker, WorkerState};
