//! The way to workers over HTTP: sending requests to them, and finding out what they are and how they are.
//!
//! [`Upstream`] is the client. It keeps idle connections per worker and drives a connection from within the request
//! that uses it (see `connection`), so a request costs what hyper costs and no task. A failure says whether the worker
//! may have got the request, because that decides whether it may be sent again. The rules on addresses
//! ([`rules::UrlRules`]) hold for every connection that is opened.
//!
//! The rest uses that client: [`detect`] asks a worker which engine it is and what it serves, [`probe`] whether it is
//! well, [`load`] how busy it is, [`admin`] does what an operator wants done at engines. All answers are bounded in
//! bytes and time. When a worker is due for a probe, and what follows from the result, is decided in `fleet`.
//!
//! [`kv`] follows what engines tell of their KV caches, over ZMQ, gRPC or HTTP.
//!
//! A worker that is out of reach may be reached by a peer; [`relay`] hands it the request over a stream that is opened for
//! it elsewhere.
//!
//! [`outside`] asks servers that are no workers for documents.
//!
//! What it deliberately does not know: how peers are found and spoken to, routing, retries on other workers, API dialects, and who sent a request.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests own their tasks"))]

pub mod admin;
mod body;
mod client;
pub mod config;
mod connect;
mod connection;
mod destination;
pub mod detect;
mod error;
mod exposition;
mod fetch;
pub mod kv;
pub mod load;
mod metrics;
mod outbound;
pub mod outside;
mod pool;
pub mod probe;
pub mod relay;
mod resolve;
pub mod rules;
#[cfg(test)]
mod testing;
mod tls;

pub use body::ResponseBody;
pub use client::Upstream;
pub use config::{Config, TlsConfig};
pub use error::Error;
pub use fetch::FetchError;
pub use outbound::{BodyError, Outbound, OutboundBody};
pub use relay::{PeerStream, Peers};
