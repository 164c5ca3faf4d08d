//! Admission: how many requests may be in flight, how fast they may start, and who waits.
//!
//! A [`Gate`] lets a request through, lets it wait in a bounded line, or refuses it and says when to come back. The
//! arithmetic is the pure `line` module: a count, a queue in order of arrival, a bucket, and the pace at which
//! requests have been leaving. The gate around it holds the lock and the timers.
//!
//! What it does not know: who asks, what a refusal looks like on the wire, and how limits are shared between nodes.

mod bucket;
mod gate;
mod line;
mod pace;

pub use gate::{Config, Gate, Permit, Refusal};
