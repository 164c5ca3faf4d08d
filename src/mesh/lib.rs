//! The mesh on the wire: QUIC, certificates, the loop that drives `mesh-proto`, and streams that carry requests to peers.

mod config;
mod credentials;
mod endpoint;
mod error;
mod identity;
mod token;
mod verify;

pub use config::{Config, DEFAULT_PORT, Security};
pub use error::{DialError, Error, FileProblem, JournalError};
pub use identity::BadIdentity;
pub use token::{TOKEN_CHARS_MIN, new_token};
