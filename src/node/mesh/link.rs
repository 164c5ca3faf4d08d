//! What the node asks of the mesh, as a trait so that tests can stand in for the other nodes; and the way upstream opens
//! streams to peers.

use std::io;

use futures_util::future::BoxFuture;
use smg_base::PeerId;
use smg_mesh::Mesh;
use smg_mesh_proto::{NodeId, Op, Status, WriteError};
use smg_upstream::{PeerStream, Peers};

/// The mesh as the node sees it.
pub(crate) trait Link: Send + Sync {
    /// Who this node is.
    fn node(&self) -> NodeId;

    /// Changes something, and waits until that is acknowledged.
    fn write(&self, op: Op) -> BoxFuture<'static, Result<(), WriteError>>;

    /// Says something that may be overtaken by the next word about the same.
    fn post(&self, op: Op);

    /// The mesh as operators see it.
    fn status(&self) -> BoxFuture<'static, Status>;

    /// The peers through which this node sends requests.
    fn relay_candidates(&self, peers: Vec<NodeId>);

    /// Encrypts what only members may read: to nothing where they share no secret.
    fn seal(&self, plain: &[u8]) -> Vec<u8>;

    /// Decrypts what a member has sealed.
    fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>>;

    /// Leaves the cluster.
    fn leave(&self) -> BoxFuture<'static, ()>;
}

impl Link for Mesh {
    fn node(&self) -> NodeId {
        Self::node(self)
    }

    fn write(&self, op: Op) -> BoxFuture<'static, Result<(), WriteError>> {
        let mesh = self.clone();
        Box::pin(async move { Self::write(&mesh, op).await })
    }

    fn post(&self, op: Op) {
        Self::post(self, op);
    }

    fn status(&self) -> BoxFuture<'static, Status> {
        let mesh = self.clone();
        Box::pin(async move { Self::status(&mesh).await })
    }

    fn relay_candidates(&self, peers: Vec<NodeId>) {
        Self::relay_candidates(self, peers);
    }

    fn seal(&self, plain: &[u8]) -> Vec<u8> {
        Self::seal(self, plain)
    }

    fn unseal(&self, sealed: &[u8]) -> Option<Vec<u8>> {
        Self::unseal(self, sealed)
    }

    fn leave(&self) -> BoxFuture<'static, ()> {
        let mesh = self.clone();
        Box::pin(async move { Self::leave(&mesh).await })
    }
}

/// Opens streams to peers for upstream.
pub(crate) struct MeshPeers(pub(crate) Mesh);

impl Peers for MeshPeers {
    fn open(&self, peer: PeerId) -> BoxFuture<'static, io::Result<Box<dyn PeerStream>>> {
        let mesh = self.0.clone();
        Box::pin(async move {
            let stream = mesh.open(NodeId::from_u128(peer.0)).await?;
            Ok(Box::new(stream) as Box<dyn PeerStream>)
        })
    }

    fn failed(&self, peer: PeerId) {
        self.0.forward_failed(NodeId::from_u128(peer.0));
    }
}
