//! The nouns every other crate shares: ids, units, and the seams through which time and chance enter.
//!
//! Nothing here does I/O, reads a clock or draws a random number: pure crates receive a [`Timestamp`] or a
//! [`Random`] as an argument, so that a whole node can be simulated. Maps come from [`map`], whose hasher has a
//! fixed seed, because iteration in hash order must not differ between two runs.

pub mod backoff;
pub mod bounded;
pub mod calendar;
pub mod fuzz;
pub mod hash;
pub mod id;
pub mod map;
pub mod random;
pub mod secret;
pub mod size;
pub mod time;

pub use backoff::Backoff;
pub use bounded::TtlMap;
pub use id::{KeyId, ModelId, PeerId, RequestId, TenantId, WorkerId};
pub use random::{Random, SplitMix};
pub use secret::Secret;
pub use size::ByteSize;
pub use time::{Clock, ManualClock, Timestamp};
