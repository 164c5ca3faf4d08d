//! Gateways as their callers and peers see them.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test")]

mod mesh;
mod relayed;
mod scopes;
mod shared;
mod support;
mod tokens;
