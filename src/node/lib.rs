//! A whole node: its configuration, and how its parts are put together, run and drained.

pub mod config;
