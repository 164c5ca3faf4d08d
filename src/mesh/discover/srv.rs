//! Peers from SRV records: a host and a port for each, such as a headless service of Kubernetes or Consul gives.

use std::net::SocketAddr;

use futures_util::{FutureExt, future::BoxFuture};
use hickory_resolver::{TokioResolver, proto::rr::RData};

use super::{Discover, DiscoverError, names};

/// A name such as `_smg-mesh._udp.example.org`.
pub(super) struct Srv {
    name: String,
    /// Made at the first use, and again after a failure, for the system's configuration may have been wrong.
    resolver: Option<TokioResolver>,
}

impl Srv {
    /// That of `name`.
    pub(super) fn new(name: String) -> Self {
        Self { name, resolver: None }
    }

    async fn look_up(&mut self) -> Result<Vec<SocketAddr>, DiscoverError> {
        let resolver = match self.resolver.take() {
            Some(resolver) => resolver,
            None => TokioResolver::builder_tokio().and_then(|builder| builder.build()).map_err(dns)?,
        };
        let records = resolver.srv_lookup(self.name.as_str()).await.map_err(dns)?;
        let mut found = Vec::new();
        for record in records.answers() {
            if let RData::SRV(srv) = &record.data {
                let host = srv.target.to_utf8();
                found.extend(names::resolved(&format!("{}:{}", host.trim_end_matches('.'), srv.port)).await?);
            }
        }
        self.resolver = Some(resolver);
        Ok(found)
    }
}

impl Discover for Srv {
    fn name(&self) -> String {
        format!("SRV {}", self.name)
    }

    fn find(&mut self) -> BoxFuture<'_, Result<Vec<SocketAddr>, DiscoverError>> {
        self.look_up().boxed()
    }
}

fn dns(error: hickory_resolver::net::NetError) -> DiscoverError {
    DiscoverError::Dns(error.to_string())
}
