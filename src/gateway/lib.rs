//! The client side: listeners, dialects, the pipeline every request goes through, streaming, and the admin API.
//!
//! Read `pipeline` first: it is the way of a request from top to bottom, in named phases that consume each other.
//! `prepare` reads the body, `dispatch` tries workers, `relay` hands the answer on, `reply` words what the gateway
//! itself has to say. Everything a request reads (fleet, settings, policies) is an immutable snapshot.
//!
//! The gateway does not know how workers are found, where settings come from, or what else the node runs.

mod access;
pub mod admin;
mod admission;
mod affinity;
mod app;
mod body;
mod budget;
mod cluster;
pub mod config;
mod dispatch;
mod edge;
mod explain;
mod isolation;
mod keys;
mod limits;
pub mod listener;
mod metrics;
mod pipeline;
mod plan;
mod prefixes;
mod prepare;
mod prices;
mod questions;
mod relay;
mod relayed;
mod reply;
mod responses;
mod routes;
mod shared;
mod tokens;
mod trail;
mod transcription;
mod usage;

pub use access::Identity;
pub use app::{Gateway, Parts};
pub use cluster::{Cluster, ClusterError, Page, SharedKey, Standing};
pub use config::{
    AccessLog, AdminAccess, Config, Isolation, ModelDefaults, ModelSettings, PolicySettings, Replays, RetrySettings,
    Settings, TenantHeader, Timeouts, TraceHooks,
};
pub use keys::{Keeper, Kept, KeyShelf};
pub use prefixes::PrefixPage;
pub use prices::{Price, Prices};
pub use relayed::serve_relayed;
pub use routes::{openapi, router, serve_probes};
pub use shared::{KeyHash, NotAKeyHash, SharedSettings};
pub use tokens::PromptTokens;
pub use usage::UsageImage;
