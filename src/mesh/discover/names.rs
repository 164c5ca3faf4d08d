//! Peers by address or by the name of a host, all of whose addresses are taken.

use std::net::{IpAddr, SocketAddr};

use futures_util::{FutureExt, future::BoxFuture};

use super::{Discover, DiscoverError};
use crate::DEFAULT_PORT;

/// `host:port`, `host`, or an address with or without a port.
pub(super) struct Seed(pub(super) String);

impl Discover for Seed {
    fn name(&self) -> String {
        self.0.clone()
    }

    fn find(&mut self) -> BoxFuture<'_, Result<Vec<SocketAddr>, DiscoverError>> {
        resolved(&self.0).boxed()
    }
}

/// The addresses of `seed`.
pub(super) async fn resolved(seed: &str) -> Result<Vec<SocketAddr>, DiscoverError> {
    if let Ok(address) = seed.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Ok(address) = seed.parse::<IpAddr>() {
        return Ok(vec![(address, DEFAULT_PORT).into()]);
    }
    let malformed = || DiscoverError::Malformed(seed.to_owned());
    let (host, port) = match seed.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().map_err(|_| malformed())?),
        None => (seed, DEFAULT_PORT),
    };
    let visible = |byte: u8| byte.is_ascii_graphic() && byte != b':';
    if host.is_empty() || !host.bytes().all(visible) {
        return Err(malformed());
    }
    Ok(tokio::net::lookup_host((host, port)).await?.collect())
}
