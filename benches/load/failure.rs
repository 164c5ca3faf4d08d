//! Why a benchmark could not be run to its end. Its children are ended all the same.

use std::io;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// A child did not say what it should.
    #[error("{child} said {said:?}")]
    Child {
        /// Which child.
        child: String,
        /// Its words.
        said: String,
    },
    /// A job or a report could not be read.
    #[error("a message between processes: {0}")]
    Message(#[from] serde_json::Error),
    /// Something did not happen in time.
    #[error("{0} did not happen in time")]
    Late(String),
    /// A contender answered wrongly; its figures mean nothing.
    #[error("{contender} answered wrongly: {what}")]
    Wrong {
        /// Who.
        contender: String,
        /// How.
        what: String,
    },
    /// The build of the gateway failed.
    #[error("cargo could not build smg")]
    Build,
}

/// Adds to an error of the system what was tried.
pub(crate) trait Tried<T> {
    /// Names what was tried.
    fn tried(self, what: &str) -> Result<T, Failure>;
}

impl<T> Tried<T> for io::Result<T> {
    fn tried(self, what: &str) -> Result<T, Failure> {
        self.map_err(|source| Failure::System { what: what.to_owned(), source })
    }
}
