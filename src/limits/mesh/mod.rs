//! Limits across nodes: what each tells the others of its counters, and which part of the rights is whose.
//!
//! `plane` takes what the lanes of all nodes say and what this node's limiter counts, and says what to write into its own lane and what the
//! limiter may give out; `views` agrees on who divides the rights; `rows` is how all of it looks in lanes. No clock and no sockets: whoever
//! has them drives it.
//!
//! Two lanes are written. What may be forgotten with the process is in one: how this node stands with each counter, what it lent, signs of
//! life. The durable one holds what may not: the register of agreement, and counters of long windows and of money.

mod plane;
mod rows;
mod split;
mod views;

pub use plane::{Batch, Lane, Member, Outcome, Plane, Tally, Write};
