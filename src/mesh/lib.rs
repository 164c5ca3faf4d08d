//! The mesh on the wire: QUIC, certificates, the loop that drives `mesh-proto`, and streams that carry requests to peers.

mod config;
mod credentials;
mod discover;
mod driver;
mod endpoint;
mod error;
mod identity;
mod journal;
mod link;
mod mesh;
mod metrics;
mod outbox;
mod relay;
mod token;
mod verify;

pub use config::{Config, DEFAULT_PORT, Security};
pub use discover::{Discover, DiscoverError};
pub use driver::Driver;
pub use error::{DialError, Error, FileProblem, JournalError};
pub use identity::BadIdentity;
pub use journal::Journal;
pub use mesh::{Mesh, Parts, describe};
pub use relay::{RelayStream, Relayed};
pub use token::{TOKEN_CHARS_MIN, new_token};

#[cfg(test)]
mod tests;
