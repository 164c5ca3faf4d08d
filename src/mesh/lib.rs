//! The mesh on the wire: QUIC, certificates, the loop that drives `mesh-proto`, and streams that carry requests to peers.
//!
//! - [`Mesh::bind`] takes one UDP port, on which a node dials and is dialled (`endpoint`). Every connection shows a certificate
//!   both ways, which names a cluster and a node (`identity`, `verify`) and is signed by an authority from files or one that
//!   follows from the cluster's token (`token`, `credentials`).
//! - [`Driver::run`] is one loop (`driver`): what came over connections (`link`) goes into the state machine, then what the
//!   node wants, then time; what comes out is sent, written to the journal on a thread of its own, or told to the node.
//! - [`Mesh::open`] gives a stream to a peer on a second connection (`relay`), so that bodies never delay probes.
//! - Peers are looked for in lists, names, SRV records and files, behind the trait [`Discover`].
//!
//! Every queue here has a capacity, and a full one never makes the loop wait: frames are dropped, for replication sends again
//! what matters; news and figures replace older ones of the same kind.
//!
//! What it deliberately does not know: what the frames say, what the entries mean, what a relayed stream carries.

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
