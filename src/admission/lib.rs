//! Admission: how many requests may be in flight, how fast they may start, and who waits.
//!
//! A [`Gate`] lets a request through, lets it wait in a bounded line, or refuses it and says when to come back. The
//! arithmetic is pure: the `line` module decides between classes, with reservations, ageing and preemption; the `queue`
//! module between the tenants of a class, by deficit round robin; beside them a bucket, and the pace at which requests
//! have been leaving. The gate around it holds the lock and the timers.
//!
//! What it does not know: who tenants are, what a refusal looks like on the wire, what a request's tokens are worth, and how
//! limits are shared between nodes.
#![cfg_attr(test, allow(clippy::print_stdout, reason = "what simulations measured"))]

mod bucket;
mod class;
#[cfg(test)]
mod fairness_tests;
mod gate;
mod line;
mod pace;
mod queue;
mod scheduler_metrics;

pub use class::{Class, Classes, Preemption, Terms, UnknownClass};
pub use gate::{Admission, Ask, Config, Gate, Permit, Refusal, Scheduler};
