//! Scenarios with a real `smg` process between real sockets: fake engines in this process, the gateway in its own.
//!
//! Every test starts what it needs on free loopback ports and leaves nothing behind, so tests run in any order and at
//! once. Effects are awaited, never slept for.

#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![allow(clippy::print_stderr, reason = "what a failed test has to say")]
#![allow(clippy::print_stdout, reason = "what scenarios measured")]

mod caches;
mod edges;
mod fairness;
mod faults;
mod harness;
mod limits;
mod mesh;
mod operation;
mod passthrough;
mod resilience;
mod routing;
