//! Tests of the client against real sockets.

mod failures;
mod reuse;
mod secure;
mod sending;
