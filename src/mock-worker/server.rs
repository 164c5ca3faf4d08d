//! A worker's life: listen, accept, stop.

use std::{io, net::SocketAddr, sync::Arc};

use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinSet,
};

use crate::{
    config::{Config, Dialect},
    connection,
    error::Error,
    faults::Faults,
    kv_events::{self, Journal, KvPublisher, Outlet},
    ledger::Ledger,
    worker::Worker,
};

/// A running worker. Dropping it stops it.
#[derive(Debug)]
pub struct MockWorker {
    address: SocketAddr,
    url: String,
    ledger: Ledger,
    faults: Faults,
    kv_events: Option<KvPublisher>,
    /// The task that accepts, which owns the connections, and those that publish events.
    tasks: JoinSet<()>,
}

impl MockWorker {
    /// Starts a worker on the current runtime; it listens when this returns.
    pub async fn start(config: Config) -> Result<Self, Error> {
        if config.models.is_empty() {
            return Err(Error::NoModel);
        }
        let address = SocketAddr::new(config.host, config.port);
        let bind = |source| Error::Bind { address, source };
        let listener = listen(address).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        let mut tasks = JoinSet::new();
        let journal = journal(&config);
        let kv_events = match (&config.kv_events, &journal) {
            (Some(events), Some(journal)) => Some(kv_events::bound(events, Arc::clone(journal), &mut tasks).await?),
            _ => None,
        };
        let worker = Arc::new(Worker::new(config, journal, kv_events.clone()));
        let (ledger, faults) = (worker.ledger.clone(), worker.faults.clone());
        tasks.spawn(accept(listener, worker));
        Ok(Self { address, url: format!("http://{address}"), ledger, faults, kv_events, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it listens, as a URL without a trailing slash.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it was asked and what it did.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What goes wrong.
    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Who is told what happens to the prefix cache, if anybody can be.
    pub fn kv_events(&self) -> Option<&KvPublisher> {
        self.kv_events.as_ref()
    }

    /// Closes the listener and every connection, as a killed process would.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Where events of the prefix cache are noted, if somebody may want them.
fn journal(config: &Config) -> Option<Arc<Journal>> {
    let (outlet, kept_max) = match (&config.kv_events, config.dialect) {
        (Some(events), _) => (Outlet::Published(events.format), events.buffer_steps),
        (None, Dialect::Trtllm) => (Outlet::Drained, DRAINED_EVENTS_MAX),
        (None, _) => return None,
    };
    Some(Arc::new(Journal::new(outlet, &config.cache, kept_max)))
}

/// Listens with a backlog that takes a storm of connections without dropping a SYN, which costs its caller a second.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A worker that is started again takes the port of the one before.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Owns the connections: they end with this task.
async fn accept(listener: TcpListener, worker: Arc<Worker>) {
    let mut connections = JoinSet::new();
    let mut number = 0;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < worker.config.limits.connections_max => {
                    number += 1;
                    connections.spawn(connection::serve(Arc::clone(&worker), stream, number));
                }
                Ok(_) => tracing::warn!(open = connections.len(), "too many connections, closed one"),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a connection's task failed");
                }
            }
        }
    }
}

/// Events that wait to be fetched; the oldest give way.
const DRAINED_EVENTS_MAX: usize = 16_384;
/// Connections that may wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 8192;
/// A pause after a failed accept, which is mostly a lack of descriptors that passes.
const ACCEPT_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
