//! What can be wrong with the settings of the client. Failures of requests are [`smg_infer::Failure`]s.

use std::path::PathBuf;

/// The client could not be built; nothing was opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A PEM file cannot be read, or holds something else.
    #[error("cannot read {kind} from {}: {source}", path.display())]
    Pem {
        /// What was looked for.
        kind: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        source: rustls::pki_types::pem::Error,
    },
    /// A PEM file holds nothing of what it should.
    #[error("there is no certificate in {}", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// A certificate authority cannot be used.
    #[error("the certificate authority in {} cannot be used: {source}", path.display())]
    Authority {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: rustls::Error,
    },
    /// Only one of the two is given.
    #[error("a client certificate and its key belong together; one is missing")]
    HalfAnIdentity,
    /// The certificate and the key do not fit, or the key is of a kind that is not supported.
    #[error("the client certificate cannot be used: {0}")]
    Identity(#[source] rustls::Error),
    /// No protocol version is left.
    #[error("tls cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
    /// The name to expect in certificates is none.
    #[error("{0:?} is not a server name")]
    ServerName(String),
    /// A setting is out of its range.
    #[error("{setting} must be at least {least}")]
    TooSmall {
        /// The setting.
        setting: &'static str,
        /// The least that makes sense.
        least: usize,
    },
}
