//! What can go wrong when a network is built.

use std::io;

/// Why there is no network, or no further host. What existed before is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The process may not make network namespaces.
    #[error("network namespaces need root: {0}")]
    Permission(#[source] io::Error),
    /// There are no TUN devices.
    #[error("no TUN device can be made: {0}")]
    NoDevice(#[source] io::Error),
    /// A program that ties processes to their host is not installed.
    #[error("{0} is not installed")]
    NoProgram(&'static str),
    /// There are as many hosts as the network takes.
    #[error("a network has at most {0} hosts")]
    TooManyHosts(usize),
    /// The system refused something else.
    #[error("cannot {step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Whether this machine cannot have such networks at all, so that a test is skipped rather than failed.
    pub fn is_lack(&self) -> bool {
        matches!(self, Self::Permission(_) | Self::NoDevice(_) | Self::NoProgram(_))
    }

    pub(crate) fn system(step: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { step, source }
    }
}
