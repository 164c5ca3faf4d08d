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
pub mod listener;
mod metrics;
mod pipeline;
mod plan;
mod prefixes;
mod prepare;
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

pub use app::{Gateway, Parts};
pub use cluster::{Cluster, ClusterError, Page, SharedKey, Standing};
pub use config::{
    AccessLog, AdminAccess, Config, ModelDefaults, ModelSettings, PolicySettings, Replays, RetrySettings, Settings,
    Timeouts, TraceHooks,
};
pub use prefixes::PrefixPage;
pub use relayed::serve_relayed;
pub use routes::{openapi, router, serve_probes};
pub use shared::{KeyHash, NotAKeyHash, SharedSettings};
pub use tokens::PromptTokens;
