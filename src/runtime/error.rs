//! What can go wrong here.

use std::io;

/// A failure of the runtime's own services. State is unchanged after each.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The supervisor's notification socket could not be used.
    #[error("cannot notify the service supervisor")]
    Notify(#[source] io::Error),
    /// A descriptor passed by the supervisor is not a listening TCP socket.
    #[error("inherited descriptor {index} is not a listening TCP socket")]
    Inherited {
        /// Its position among those passed, from zero.
        index: usize,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}
