//! Wire types of the APIs that clients and engines speak: OpenAI, Anthropic and the engines' native JSON, and SSE framing.
//!
//! Where both sides speak one dialect the gateway passes bytes on unchanged, so most of this crate only *reads*: [`peek`]
//! takes out of a request what routing and limits need, [`sse::Scanner`] follows a stream of events, [`usage_of`] reads a
//! finished answer, [`multipart::Finder`] finds one field. What must change is changed in place by [`edit`]. The few
//! things the gateway says itself are in [`error`] and [`models`].
//!
//! JSON is read by a cursor of our own (`json`) and not by a deserialiser: it knows at which byte it is (edits need that),
//! limits nesting also in what it skips, and validates and reads in one pass without allocating.
//!
//! This crate knows no engine's quirks beyond their JSON, holds no connection and decides nothing.

mod endpoint;
mod json;
mod usage;

pub mod edit;
pub mod error;
pub mod models;
pub mod multipart;
pub mod peek;
pub mod sse;

#[cfg(test)]
mod testing;

pub use endpoint::{Endpoint, Family};
pub use usage::{Usage, is_json, response_id_of, usage_of};
