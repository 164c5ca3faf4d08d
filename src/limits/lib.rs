//! Limits: how much a tenant, a key or a model may use, counted in windows of time, on one node and over many.
//!
//! An operator's [`Rule`]s say what is allowed; a request's [`Subject`] tells which of them it meets and which counters it takes from. A
//! counter is a ring of slots that slides with this node's own monotonic clock, so no interval as long as the window ever holds more than
//! the amount. A request is charged before it is sent ([`Limiter::reserve`]) and settled when it has ended ([`Limiter::settle`]).
//!
//! Over many nodes each counts only what it admitted itself and tells how that stands ([`Slot`]). A node may spend its own rights and,
//! beyond these, what the others' last words leave of the shared part ([`Allowance`]). How words travel, and who holds which rights, is not
//! known here; nor is HTTP, what a token costs, or what time it is.

mod compact;
mod counter;
mod limiter;
#[cfg(test)]
mod limiter_tests;
pub mod mesh;
mod rule;
mod rules;
#[cfg(test)]
mod rules_tests;
mod shard;
mod snapshot;
mod stance;
mod told;
#[cfg(test)]
mod told_tests;

pub use limiter::{Demand, Figures, Limiter, LimiterConfig, Refused, Reservation, Standing};
pub use rule::{Dimension, Mode, OnSplit, Rule, RuleId, Scope, Unnamed, Window};
pub use rules::{Applied, CounterId, RULES_MAX, Rules, RulesError, Subject};
pub use stance::{Allowance, Own, Share, Slot, SnapshotError, Split, Stance};
