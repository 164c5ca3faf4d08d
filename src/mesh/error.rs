//! What can go wrong.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::identity::BadIdentity;

/// Why the mesh cannot start. Nothing is left running then.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operator gave no identity, and the address can be reached from elsewhere.
    #[error(
        "the mesh at {bind} can be reached from other machines and needs a secret:\n  \
         export SMG_MESH_TOKEN=$(smg mesh token)   # the same on every node\n  \
         or give --mesh-ca, --mesh-cert and --mesh-key"
    )]
    NeedsIdentity {
        /// Where it was to be bound.
        bind: SocketAddr,
    },
    /// The operator gave a secret that can be guessed, or none.
    #[error("a mesh token needs at least {} characters; `smg mesh token` makes one", crate::TOKEN_CHARS_MIN)]
    WeakToken,
    /// The operator gave a name that certificates cannot carry.
    #[error("'{name}' cannot name a {what}: 1 to 128 visible ASCII characters")]
    Name {
        /// What was to be named.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// A file of certificates or keys cannot be used.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: FileProblem,
    },
    /// TLS does not take what it was given.
    #[error("the mesh's identity cannot be used: {0}")]
    Tls(
        /// Why.
        #[from]
        rustls::Error,
    ),
    /// The socket cannot be had.
    #[error("the mesh cannot use {bind}/udp: {source}")]
    Bind {
        /// Where it was to be bound.
        bind: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The journal cannot be read.
    #[error("the mesh's journal cannot be read: {0}")]
    Journal(
        /// Why.
        #[source]
        JournalError,
    ),
}

/// What is wrong with a file of certificates or keys.
#[derive(Debug, thiserror::Error)]
pub enum FileProblem {
    /// It cannot be read, or is no PEM.
    #[error("cannot be read: {0}")]
    Pem(
        /// Why.
        rustls::pki_types::pem::Error,
    ),
    /// It holds no certificate.
    #[error("holds no certificate")]
    Empty,
    /// A certificate of an authority cannot be used as such.
    #[error("is no authority's certificate: {0}")]
    Authority(
        /// Why.
        rustls::Error,
    ),
    /// The certificate names nobody, or not as it should.
    #[error("{0}")]
    Identity(
        /// Why.
        BadIdentity,
    ),
    /// The certificate is another node's.
    #[error("is the certificate of smg://{found}, but this node is smg://{own}")]
    OtherNode {
        /// Whom it names.
        found: String,
        /// Who this is.
        own: String,
    },
    /// The certificate is signed by none of the authorities, is out of date, or is for another use.
    #[error("would not be accepted by this node itself: {0}")]
    NotAccepted(
        /// Why.
        rustls::Error,
    ),
}

/// Why the journal did not do what it was asked. What it held before, it still holds.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct JournalError(
    /// What the store says.
    #[from]
    pub Box<dyn std::error::Error + Send + Sync>,
);

/// Why no connection to a peer was made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nobody answered in time.
    #[error("no answer")]
    Timeout,
    /// The other side's certificate is signed by an authority that is not accepted here.
    #[error("the peer's certificate is from another authority: are the mesh tokens, or --mesh-ca, the same on both?")]
    OtherAuthority,
    /// The other side does not accept this node's certificate, or does not say why it closed.
    #[error(
        "the peer refuses this node's certificate: are the mesh token, or --mesh-ca, and the cluster the same on both?"
    )]
    Refused,
    /// The other side's certificate is not one of this cluster.
    #[error("{0}")]
    Foreign(
        /// What it is.
        String,
    ),
    /// Another node than the one expected is there.
    #[error("node '{found}' is there instead")]
    OtherNode {
        /// Who is there.
        found: String,
    },
    /// The identity is a throw-away one, and the address is of another machine.
    #[error("without a mesh token only nodes on the same machine can be reached")]
    NotLoopback,
    /// There are already as many connections as are allowed.
    #[error("too many connections")]
    TooMany,
    /// Where the node is, is not known.
    #[error("no address of the node is known")]
    NoAddress,
    /// Anything else.
    #[error("{0}")]
    Broken(
        /// What QUIC says.
        String,
    ),
}
