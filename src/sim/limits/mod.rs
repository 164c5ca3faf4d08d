//! Limits across nodes in virtual time: real limiters, their real plane and the real mesh between them, offered far more than they
//! may let in, under faults. What is let in by all nodes together is checked after every admission.
//!
//! One seed makes one [`Case`], one case one run. A run begins with nodes that find each other, goes on with faults (or, to be measured,
//! without), heals, and ends with all the load on one node.

mod cluster;
mod judge;
#[cfg(test)]
mod tests;

pub use cluster::{Case, Figures, Flaw, Trouble};
pub use smg_limits::{Mode, Window};
