//! Policies as the gateway uses them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test")]

mod allocation;
mod caches;
mod fallback;
mod keys;
mod shares;
mod simulation;
mod support;
mod told;
