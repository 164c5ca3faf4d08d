//! What the gateway asks of the cluster it may be part of. Who joins it, and how, is not known here.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use smg_base::{PeerId, WorkerId};
use smg_fleet::Worker;

/// The cluster, as this node sees it. What it answers with has happened: other nodes know, or it is on disk.
pub trait Cluster: Send + Sync {
    /// Where this node stands in it.
    fn standing(&self) -> Standing;

    /// Tells the others of a worker that was added or described anew here.
    fn added(&self, worker: Arc<Worker>) -> BoxFuture<'static, Result<(), ClusterError>>;

    /// Tells the others that a worker was removed here; whoever declared it.
    fn removed(&self, worker: WorkerId) -> BoxFuture<'static, Result<(), ClusterError>>;

    /// What people call a peer.
    fn name(&self, peer: PeerId) -> Option<String>;

    /// The peers that live.
    fn peers(&self) -> Vec<PeerId>;

    /// What an operator may look at.
    fn page(&self, page: Page) -> BoxFuture<'static, Value>;

    /// Sets a value that all nodes share, or deletes it.
    fn set_shared(&self, key: SharedKey, value: Option<Value>) -> BoxFuture<'static, Result<(), ClusterError>>;

    /// Tells the others to send this node nothing more, and load balancers likewise.
    fn drain(&self) -> BoxFuture<'static, ()>;

    /// Takes that back; false if there is nothing to take back.
    fn resume(&self) -> BoxFuture<'static, bool>;

    /// Leaves the cluster; this node goes on alone.
    fn leave(&self) -> BoxFuture<'static, ()>;
}

/// Where a node stands in its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It does not know yet what the others know.
    Joining,
    /// It knows what the others know.
    Joined,
    /// It knows of no others that live.
    Alone,
    /// It is about to leave.
    Draining,
    /// It has left.
    Left,
}

impl Standing {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Joined => "joined",
            Self::Alone => "alone",
            Self::Draining => "draining",
            Self::Left => "left",
        }
    }
}

/// What an operator may look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// All in short.
    Status,
    /// The nodes.
    Members,
    /// The workers, as the nodes together see them.
    Workers,
    /// What each node has said so far, as digests and version vectors.
    Digest,
    /// The values that all nodes share.
    Config,
}

/// Names a value that all nodes share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedKey {
    /// What it is about: `alias`, `policy`, `sticky`, `key` or `revoked`.
    pub section: String,
    /// The alias, the model, the routing key, the id of the key, or the hash of the revoked key.
    pub name: String,
}

/// Why the cluster did not take something. Nothing has changed there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// It is larger than what nodes may say.
    #[error("this is more than the nodes of the mesh may tell each other")]
    TooLarge,
    /// Too much waits for its acknowledgement.
    #[error("the mesh is busy; nothing was changed")]
    Busy,
    /// The node is leaving or has left.
    #[error("this node is leaving the mesh; nothing was changed")]
    Leaving,
    /// There is no place for it, or the disk refused it.
    #[error(
        "there is no place to keep it; nothing was changed. --data-dir names a folder, --enable-mesh tells all nodes"
    )]
    NotKept,
    /// A revocation stands.
    #[error("what was revoked stays revoked")]
    Revoked,
    /// There is no such section.
    #[error("there is no such section; there are alias, policy, sticky, key and revoked")]
    UnknownSection,
    /// The value, or the name, is not one that the section takes.
    #[error("{0}")]
    Invalid(
        /// What it takes.
        &'static str,
    ),
}
