//! The handle by which the node uses its mesh.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use smg_base::Clock;
use smg_mesh_proto::{Event, NodeId, Op, Status, WriteError};
use smg_runtime::{Receiver, Sender, channel, metrics::Registrar};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    Config, Error, Journal, RelayStream, Relayed,
    credentials::Sealing,
    discover,
    driver::{Command, Driver, Ends, Making},
    endpoint::Endpoint,
    identity::{self, Identity},
    journal::{self, Opened, Writer},
    metrics::Metrics,
    outbox::{Mailbox, Posted},
    relay::Pool,
};

/// Commands that wait for the driver.
const COMMANDS_WAITING_MAX: usize = 256;

/// Events that wait for the node; more of them replace each other.
const EVENTS_WAITING_MAX: usize = 1_024;

/// Relayed streams that wait for the node; more wait at the peers that opened them.
const RELAYED_WAITING_MAX: usize = 64;

/// How long [`Mesh::leave`] waits.
const LEAVE_MAX: Duration = Duration::from_secs(2);

/// The node's mesh; clones share it.
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    address: SocketAddr,
    commands: Sender<Command>,
    mailbox: Arc<Mailbox>,
    sealing: Sealing,
    relay: Arc<Pool>,
    /// As last asked for, for when the driver is gone.
    last: ArcSwap<Status>,
    metrics: Metrics,
}

/// A mesh that is bound and does nothing yet.
pub struct Parts {
    /// The handle.
    pub mesh: Mesh,
    /// News, in order; those about one thing replace each other while they wait.
    pub events: Receiver<Event>,
    /// Streams that peers opened to have requests served.
    pub relayed: Receiver<Relayed>,
    /// What does the work: its [`Driver::run`] is to be spawned.
    pub driver: Driver,
}

/// Registers every metric of the mesh, for the reference of metrics.
pub fn describe(registrar: &Registrar) {
    Metrics::new(registrar);
    journal::failures(registrar);
}

impl Mesh {
    /// Reads the journal and binds the port. Fails with everything as it was before.
    pub async fn bind(
        config: Config,
        clock: Arc<dyn Clock>,
        journal: Option<Box<dyn Journal>>,
        registrar: &Registrar,
    ) -> Result<Parts, Error> {
        let own = own_identity(&config)?;
        let bound = Endpoint::bind(config.bind, config.security.clone(), own)?;
        Self::over(bound, config, clock, journal, registrar).await
    }

    /// The same over an endpoint that is there already.
    pub(crate) async fn over(
        (endpoint, sealing): (Endpoint, Sealing),
        mut config: Config,
        clock: Arc<dyn Clock>,
        journal: Option<Box<dyn Journal>>,
        registrar: &Registrar,
    ) -> Result<Parts, Error> {
        if config.proto.advertise.port() == 0 {
            config.proto.advertise.set_port(endpoint.address().port());
        }
        let Opened { writer, records } = match journal {
            Some(journal) => Writer::start(journal, registrar).await?,
            None => Opened { writer: Writer::none(), records: Vec::new() },
        };
        let metrics = Metrics::new(registrar);
        let endpoint = Arc::new(endpoint);
        let now = clock.now();
        let proto = smg_mesh_proto::Mesh::new(config.proto.clone(), records, now);
        let (commands, commanded) = channel("mesh_commands", COMMANDS_WAITING_MAX, registrar);
        let (events_in, events) = channel("mesh_events", EVENTS_WAITING_MAX, registrar);
        let (relayed_in, relayed) = channel("mesh_relayed", RELAYED_WAITING_MAX, registrar);
        let relay = Arc::new(Pool::new(Arc::clone(&endpoint), metrics.relay_opened.clone()));
        let mailbox = Arc::new(Mailbox::default());
        let inner = Inner {
            node: proto.node(),
            address: endpoint.address(),
            commands,
            mailbox: Arc::clone(&mailbox),
            sealing,
            relay: Arc::clone(&relay),
            last: ArcSwap::from_pointee(proto.status()),
            metrics: metrics.clone(),
        };
        let sources = discover::sources(&config);
        let ends = Ends { commanded, mailbox, events: events_in, relayed: relayed_in };
        let making = Making { config, proto, clock, endpoint, sources, journal: writer, relay, metrics, ends };
        let driver = Driver::new(making, registrar);
        Ok(Parts { mesh: Self { inner: Arc::new(inner) }, events, relayed, driver })
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// Where its UDP port is bound.
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Changes something, and waits until the change is kept: on this node's disk and, if there are peers, by one of them.
    pub async fn write(&self, op: Op) -> Result<(), WriteError> {
        let (done, outcome) = oneshot::channel();
        let asked = self.inner.commands.send(Command::Write { op, done }).await;
        asked.map_err(|_| WriteError::Leaving)?;
        outcome.await.unwrap_or(Err(WriteError::Leaving))
    }

    /// Changes something nobody waits for, such as a vote or a figure. A newer value about the same replaces one that
    /// still waits.
    pub fn post(&self, op: Op) {
        if self.inner.mailbox.post(op) == Posted::NoRoom {
            self.inner.metrics.posts_dropped.inc();
        }
    }

    /// The mesh as this node sees it.
    pub async fn status(&self) -> Status {
        let (sender, status) = oneshot::channel();
        if self.inner.commands.send(Command::Status(sender)).await.is_ok()
            && let Ok(status) = status.await
        {
            self.inner.last.store(Arc::new(status));
        }
        Status::clone(&self.inner.last.load())
    }

    /// Says through which peers workers are reached: they are watched closely.
    pub fn relay_candidates(&self, peers: Vec<NodeId>) {
        // Said again with the next change; the driver is never far behind.
        let _ = self.inner.commands.try_send(Command::RelayCandidates(peers));
    }

    /// Says that a request could not be forwarded to a peer.
    pub fn forward_failed(&self, peer: NodeId) {
        // With so many of them waiting, one more says nothing new.
        let _ = self.inner.commands.try_send(Command::ForwardFailed(peer));
    }

    /// Opens a stream to a peer, which sees it once something is written. An error means that nothing was sent.
    pub async fn open(&self, peer: NodeId) -> io::Result<RelayStream> {
        self.inner.relay.open(peer).await.map_err(|error| {
            self.inner.metrics.relay_failures.inc();
            io::Error::new(io::ErrorKind::NotConnected, error)
        })
    }

    /// Encrypts what every node of the cluster, and nobody else, may read. The same text gives the same bytes on every node.
    /// Nothing at all comes out without a token.
    pub fn seal(&self, plain: &[u8]) -> Vec<u8> {
        self.inner.sealing.seal(plain)
    }

    /// What was sealed by a node with one of the accepted tokens.
    pub fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        self.inner.sealing.unseal(sealed)
    }

    /// Leaves the cluster, and waits a little until the others know.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.inner.commands.send(Command::Leave(done)).await.is_ok() {
            // Who is not told by then finds out by itself.
            let _ = timeout(LEAVE_MAX, left).await;
        }
    }
}

/// Who this node is, if it may be called so.
fn own_identity(config: &Config) -> Result<Identity, Error> {
    for (what, name) in [("node", &config.proto.name), ("cluster", &config.proto.cluster)] {
        if !identity::is_name(name) {
            return Err(Error::Name { what, name: name.clone() });
        }
    }
    Ok(Identity { cluster: config.proto.cluster.clone(), name: config.proto.name.clone() })
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh")
            .field("node", &self.inner.node)
            .field("address", &self.inner.address)
            .finish_non_exhaustive()
    }
}
