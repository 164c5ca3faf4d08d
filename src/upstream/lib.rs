//! The way to workers over HTTP.

mod body;
mod client;
pub mod config;
mod connect;
mod connection;
mod destination;
mod error;
mod metrics;
mod outbound;
mod pool;
mod resolve;
pub mod rules;
mod tls;

pub use body::ResponseBody;
pub use client::Upstream;
pub use config::{Config, TlsConfig};
pub use error::Error;
pub use outbound::{BodyError, Outbound, OutboundBody};
