//! What can go wrong while a worker starts or runs.

use std::{io, net::SocketAddr};

/// Why a worker did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is taken, forbidden or not ours. Nothing was started.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The publisher of KV events cannot listen there. Nothing was started.
    #[error("cannot publish events on {endpoint}: {source}")]
    BindEvents {
        /// The endpoint asked for.
        endpoint: String,
        /// Why not.
        source: Box<zeromq::ZmqError>,
    },
    /// The signals that end the process cannot be observed. Nothing was started.
    #[error("cannot wait for signals: {0}")]
    Signal(io::Error),
    /// The configuration names no model.
    #[error("a worker needs at least one model")]
    NoModel,
}
