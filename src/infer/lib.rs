//! The neutral form between client dialects and engines.
//!
//! So far it holds the typed outcome of a request: who is to blame for a failure, whether the engine may have run it,
//! and what follows for a retry. Requests and events join it with the first translation between two dialects.

pub mod failure;

pub use failure::{Blame, Dispatched, Failure, FailureCode, Replay};
