//! Limits: how much a tenant, a key or a model may use, counted in windows of time, on one node and over many.

mod limiter;
mod rule;
mod rules;
mod stance;

pub use limiter::{Demand, Figures, Limiter, LimiterConfig, Refused, Reservation, Standing};
pub use rule::{Dimension, Mode, OnSplit, Rule, RuleId, Scope, Unnamed, Window};
pub use rules::{Applied, CounterId, RULES_MAX, Rules, RulesError, Subject};
pub use stance::{Allowance, Own, Share, Slot, SnapshotError, Split, Stance};
