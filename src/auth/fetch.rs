//! How documents of an identity provider are got.

use futures_util::future::BoxFuture;

/// Gets documents of an identity provider. Whoever gives one sees to it that it follows no redirect, opens no connection to an
/// address that it should not, and ends in bounded time.
pub trait Fetch: Send + Sync {
    /// The body of the answer to a GET, if its status is 200 and it has at most `bytes_max` bytes.
    fn get(&self, url: &str, bytes_max: usize) -> BoxFuture<'static, Result<Vec<u8>, FetchError>>;
}

/// A document could not be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FetchError(Box<str>);

impl FetchError {
    /// For this reason, in words for an operator.
    pub fn new(reason: impl Into<Box<str>>) -> Self {
        Self(reason.into())
    }
}
