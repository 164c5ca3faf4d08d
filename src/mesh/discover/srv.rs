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

#[cfg(test)]
mod tests {
    use hickory_resolver::{
        config::{ConnectionConfig, NameServerConfig, ResolverConfig},
        net::runtime::TokioRuntimeProvider,
    };
    use smg_runtime::{Shutdown, TaskKind, Tasks};
    use tokio::net::UdpSocket;

    use super::*;

    const NAME: &str = "_mesh._udp.smg.test";
    const SRV: [u8; 2] = [0, 33];
    const IN: [u8; 2] = [0, 1];

    /// A name as it stands in a message.
    fn labels(name: &str) -> Vec<u8> {
        let label = |label: &str| [&[u8::try_from(label.len()).expect("labels are short")], label.as_bytes()].concat();
        name.split('.').flat_map(label).chain([0]).collect()
    }

    /// The answer to a question about [`NAME`]: these hosts and ports; about anything else: there is no such name.
    fn answer(question: &[u8], records: &[(&str, u16)]) -> Vec<u8> {
        let asked = [labels(NAME), SRV.to_vec(), IN.to_vec()].concat();
        let is_known = question[12..].starts_with(&asked);
        let end = 12 + question[12..].iter().position(|byte| *byte == 0).expect("a name has an end") + 5;
        let records = if is_known { records } else { &[] };
        let count = u16::try_from(records.len()).expect("records are few").to_be_bytes();
        let code = if is_known { 0 } else { 3 };
        let mut bytes = [&question[..2], &[0x84, code, 0, 1], &count[..], &[0; 4], &question[12..end]].concat();
        for (host, port) in records {
            let data = [&[0, 1, 0, 1][..], &port.to_be_bytes(), &labels(host)].concat();
            let length = u16::try_from(data.len()).expect("names are short").to_be_bytes();
            // The name of the question, the type, the class, and a second to live.
            bytes.extend([&[0xc0, 12][..], &SRV, &IN, &[0, 0, 0, 1], &length, &data].concat());
        }
        bytes
    }

    /// A source that asks a server of these records.
    async fn source(name: &str, records: &'static [(&'static str, u16)]) -> Srv {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port is free");
        let port = socket.local_addr().expect("it is bound").port();
        let tasks = Tasks::new(Shutdown::new());
        tasks.spawn(TaskKind::Background, "name server", async move {
            let mut question = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                // Whoever asked may have given up.
                let _ = socket.send_to(&answer(&question[..length], records), from).await;
            }
        });
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new([127, 0, 0, 1].into(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        Srv { name: name.to_owned(), resolver: Some(builder.build().expect("it needs nothing")) }
    }

    #[tokio::test]
    async fn hosts_and_ports_come_from_the_records() {
        let mut srv = source(NAME, &[("127.0.0.1", 7_001), ("localhost", 7_002)]).await;
        let mut found = srv.find().await.expect("it is answered");
        found.retain(SocketAddr::is_ipv4);
        found.sort_unstable();
        assert_eq!(found, [([127, 0, 0, 1], 7_001).into(), ([127, 0, 0, 1], 7_002).into()]);
        let mut unknown = source("_other._udp.smg.test", &[("localhost", 7_002)]).await;
        assert!(matches!(unknown.find().await, Err(DiscoverError::Dns(_))));
    }
}
