//! Why a node could not start, or ended.

use std::{io, net::SocketAddr, path::PathBuf};

use smg_fleet::FleetError;
use smg_gateway::listener::TlsError;
use smg_runtime::Fault;

/// Why a node could not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is taken or not allowed. Nothing was started.
    #[error("cannot listen on {address} for {name}: {source}{}", hint(.source))]
    Bind {
        /// What the port is for.
        name: &'static str,
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The certificate or key of the traffic port cannot be used. Nothing was started.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The client to workers cannot be built. Nothing was started.
    #[error(transparent)]
    Upstream(#[from] smg_upstream::Error),
    /// Logs or traces cannot be set up. Nothing was started.
    #[error(transparent)]
    Telemetry(#[from] smg_telemetry::Error),
    /// The service supervisor handed over something that cannot be used.
    #[error(transparent)]
    Runtime(#[from] smg_runtime::Error),
    /// A declared worker cannot be taken. Nothing was started.
    #[error("worker {url}: {source}")]
    Worker {
        /// Its URL.
        url: String,
        /// Why.
        source: FleetError,
    },
    /// The aliases contradict each other. Nothing was started.
    #[error("model aliases: {0}")]
    Aliases(FleetError),
    /// The mesh cannot start. Nothing was started.
    #[error(transparent)]
    Mesh(#[from] smg_mesh::Error),
    /// What the mesh remembers cannot be read or kept. Nothing was started.
    #[error(transparent)]
    Journal(#[from] smg_store::Error),
    /// The name under which other nodes are to reach this one leads nowhere. Nothing was started.
    #[error("--mesh-advertise-host {host}: {reason}")]
    NoAddress {
        /// The name.
        host: String,
        /// Why.
        reason: String,
    },
    /// Nothing tells under which address other nodes reach this one. Nothing was started.
    #[error("no route tells which address of this machine other nodes reach; say --mesh-advertise-host")]
    NoRoute,
    /// The files of a tokenizer cannot be used. Nothing was started.
    #[error("the tokenizer of {}: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Keys cannot be read, so that nobody would know who may call. Nothing was started.
    #[error("keys: {0}")]
    Keys(
        /// Why.
        String,
    ),
    /// The identity provider's keys cannot be had, so that nobody could call. Nothing was started.
    #[error("the identity provider: {0}")]
    Provider(#[from] smg_auth::ProviderError),
    /// What operators do cannot be taken down. Nothing was started.
    #[error(transparent)]
    Audit(#[from] smg_auth::AuditError),
    /// The other nodes refuse this one.
    #[error("the mesh refuses this node: {0}")]
    Refused(
        /// Why.
        String,
    ),
    /// A part that cannot be done without ended.
    #[error("the node cannot go on: {0}")]
    Task(Fault),
    /// The system refused something.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; another process has the port (choose one with --port, --prometheus-port)",
        io::ErrorKind::PermissionDenied => "; ports below 1024 need a privilege",
        io::ErrorKind::AddrNotAvailable => "; the address is not one of this machine's",
        _ => "",
    }
}
