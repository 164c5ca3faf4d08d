//! Peers from a file, one a line.

use std::{net::SocketAddr, path::PathBuf};

use futures_util::{FutureExt, future::BoxFuture};

use super::{Discover, DiscoverError, names};

/// Longest file that is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file whose lines are what a seed can be; `#` begins a comment.
pub(super) struct PeersFile(pub(super) PathBuf);

impl Discover for PeersFile {
    fn name(&self) -> String {
        self.0.display().to_string()
    }

    fn find(&mut self) -> BoxFuture<'_, Result<Vec<SocketAddr>, DiscoverError>> {
        async {
            if tokio::fs::metadata(&self.0).await?.len() > FILE_BYTES_MAX {
                return Err(DiscoverError::Malformed("a file of more than a mebibyte".to_owned()));
            }
            let text = tokio::fs::read_to_string(&self.0).await?;
            let mut found = Vec::new();
            for line in text.lines() {
                let line = line.split('#').next().unwrap_or_default().trim();
                if !line.is_empty() {
                    found.extend(names::resolved(line).await?);
                }
            }
            Ok(found)
        }
        .boxed()
    }
}
