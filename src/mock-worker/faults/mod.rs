//! What goes wrong, and when.
//!
//! A [`Fault`] says what goes wrong with one request; it is written as text (`rst@event:3`, `status=503,retry-after=1`).
//! It comes with the request, in the header `x-mock-fault` or the body's field `mock_fault`, or from a [`Rule`].

mod fault;
mod rule;

pub use fault::{Action, BadFault, Fault, Point, Step};
pub use rule::{Faults, Rule};

pub(crate) use rule::Seen;
