//! Single-writer lanes: what each node says of each kind, and the store of everybody's.
//!
//! A lane is an ordered map that only its writer changes; versions count its changes. Two copies never conflict: the one with the
//! greater (epoch, version) is the newer state of the same thing. That makes everything else simple: a peer is sent what is newer
//! than what it acknowledged, and a digest is a sum that changes with each entry.

mod journal;
mod key;
mod lane;
mod store;

pub(crate) use journal::Pending;
pub(crate) use key::{Claim, Claimed, WorkersKey, adopted, claim, owned, retired, retired_keys};
pub(crate) use lane::{Change, Lane, Part, Patch, Position};
pub(crate) use store::{Lanes, Retired};
