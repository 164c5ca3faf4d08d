//! From a host name to addresses.

use std::{io, net::SocketAddr};

/// Where addresses come from.
#[derive(Clone, Debug)]
pub(crate) enum Resolver {
    /// The operating system.
    System,
    /// A fixed table.
    #[cfg(test)]
    Table(std::sync::Arc<std::collections::BTreeMap<String, Vec<std::net::IpAddr>>>),
}

/// A name with more addresses than this is cut short.
const ADDRESSES_MAX: usize = 16;

impl Resolver {
    /// The addresses of `host`, in the order in which to try them.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match self {
            Self::System => Ok(tokio::net::lookup_host((host, port)).await?.take(ADDRESSES_MAX).collect()),
            #[cfg(test)]
            Self::Table(table) => {
                let addresses = table.get(host).ok_or(io::ErrorKind::NotFound)?;
                Ok(addresses.iter().take(ADDRESSES_MAX).map(|address| SocketAddr::new(*address, port)).collect())
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn table<const N: usize>(entries: [(&str, Vec<&str>); N]) -> Self {
        let parse = |texts: Vec<&str>| texts.into_iter().map(|text| text.parse().unwrap()).collect();
        let table = entries.into_iter().map(|(name, texts)| (name.to_owned(), parse(texts))).collect();
        Self::Table(std::sync::Arc::new(table))
    }
}
