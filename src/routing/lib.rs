//! Which worker gets a request.
//!
//! A [`Policy`] chooses among the workers of a pool, and says why in an [`Explanation`]. There are ten, for different
//! needs; `cache_aware` is the one for language models: it estimates for every worker how many seconds the first token would
//! take, from the work queued there, the part of the prompt its cache lacks, and how fast it has been, and chooses among
//! those close to the best by a hash of the conversation. What it knows of caches is in `smg-prefix`.
//!
//! All policies first leave out who cannot take the request, then keep the highest priority that is left, and share
//! traffic by weight ÷ cost. A choice reads atomics, takes at most one short lock and allocates nothing (for up to 128
//! candidates). Time and chance are arguments.
//!
//! This crate does not know HTTP, retries or timeouts; and it never refuses a request while a worker can take it,
//! unless the request names its worker.

mod ask;
mod bucket;
mod cache_aware;
mod candidates;
mod claims;
mod config;
mod cost;
mod explain;
mod kind;
mod known;
mod learned;
mod overrides;
mod pick;
mod policy;
mod recent;
mod sticky;
mod target;
#[cfg(test)]
mod testing;
mod works;

pub use ask::{Ask, NoChoice, Seen};
pub use config::{AssignmentMode, PolicyConfig};
pub use cost::Terms;
pub use explain::{Considered, Explanation, PathTaken, Reason, Standing};
pub use kind::{PolicyKind, UnknownPolicy};
pub use overrides::Overrides;
pub use policy::{Policy, Usage};
