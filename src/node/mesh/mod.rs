//! This node as one of a mesh: how it gets there, and what passes between the mesh and the rest of the node.
//!
//! `setup` binds the port; `bridge` turns what other nodes tell into workers, paths and load, and tells them what this node
//! finds out (`own`); `shared` reads the settings that all nodes share; `cluster` and `pages` are what the admin
//! API sees. Only here do the mesh and the fleet know of each other.

mod bridge;
mod cluster;
mod journal;
mod known;
mod link;
mod own;
mod pages;
mod setup;
mod shared;
mod spec;
#[cfg(test)]
mod testing;

use std::sync::Arc;

use smg_base::{Clock, PeerId};
use smg_fleet::Fleet;
use smg_gateway::{Cluster, Gateway, Standing, serve_relayed};
use smg_mesh::Relayed;
use smg_runtime::{Phase, Receiver, Shutdown, TaskKind, Tasks};
use smg_upstream::Peers;
use tokio::sync::watch;

pub(crate) use bridge::Declared;
pub(crate) use known::Known;
pub(crate) use link::Link;
pub(crate) use setup::{Surroundings, name, open, scope, state_folder};
pub(crate) use shared::Shared;

use self::{bridge::Bridge, cluster::MeshCluster, link::MeshPeers};
use crate::{config::Config, limits, live::Live, prefixes, prefixes::Others};

/// Where what other nodes tell is left for those who read it.
pub(crate) struct Inboxes {
    pub(crate) prefixes: Arc<prefixes::Inbox>,
    pub(crate) limits: Arc<limits::Inbox>,
}

/// A mesh whose port is bound and that nothing drives yet.
pub(crate) struct Mesh {
    parts: smg_mesh::Parts,
    known: Arc<Known>,
    cluster: Arc<MeshCluster>,
    scope: String,
    declare: watch::Sender<Declared>,
}

/// A running mesh.
pub(crate) struct Running {
    /// The mesh as the admin API sees it.
    pub(crate) cluster: Arc<dyn Cluster>,
    known: Arc<Known>,
    /// Takes what flags and files say now.
    pub(crate) declare: watch::Sender<Declared>,
}

impl Running {
    /// Why the cluster refuses this node, if it does.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.known.refusal()
    }
}

impl Mesh {
    pub(crate) fn new(parts: smg_mesh::Parts, fleet: Arc<Fleet>, clock: Arc<dyn Clock>, scope: String) -> Self {
        let known = Arc::new(Known::default());
        let cluster = MeshCluster {
            link: Arc::new(parts.mesh.clone()),
            known: known.clone(),
            fleet,
            clock,
            scope: scope.clone(),
        };
        Self { parts, known, cluster: Arc::new(cluster), scope, declare: watch::Sender::new(Declared::default()) }
    }

    /// The way to the peers.
    pub(crate) fn peers(&self) -> Arc<dyn Peers> {
        Arc::new(MeshPeers(self.parts.mesh.clone()))
    }

    /// The mesh as the admin API sees it.
    pub(crate) fn cluster(&self) -> Arc<dyn Cluster> {
        self.cluster.clone()
    }

    /// The way to the other nodes.
    pub(crate) fn others(&self) -> Others {
        Others { link: self.cluster.link.clone(), known: self.known.clone() }
    }

    /// Starts all that belongs to the mesh.
    pub(crate) fn start(
        self,
        gateway: &Arc<Gateway>,
        live: &Arc<Live>,
        config: &Config,
        inboxes: Inboxes,
        tasks: &Tasks,
    ) -> Running {
        let smg_mesh::Parts { mesh, events, relayed, driver } = self.parts;
        let shutdown = tasks.shutdown().clone();
        tracing::info!(node = %mesh.node(), address = %mesh.address(), scope = self.scope, "mesh");
        let drive = driver.run(shutdown.clone(), tasks.clone());
        tasks.spawn(TaskKind::Mesh, "mesh", stay(drive, self.known.clone(), shutdown.clone()));
        tasks.spawn(TaskKind::Background, "relay acceptor", accept(relayed, gateway.clone(), tasks.clone()));
        let known = self.known;
        let declared = self.declare.subscribe();
        self.declare.send_replace(declared_by(config));
        let bridge = Bridge::new(bridge::Parts {
            link: self.cluster.link.clone(),
            known: known.clone(),
            fleet: self.cluster.fleet.clone(),
            gateway: gateway.clone(),
            live: live.clone(),
            clock: self.cluster.clock.clone(),
            scope: self.scope,
            declared,
            inboxes,
        });
        let bridged = bridge.run(events, shutdown.clone());
        tasks.spawn(TaskKind::Mesh, "mesh bridge", stay(bridged, known.clone(), shutdown));
        Running { cluster: self.cluster, known, declare: self.declare }
    }
}

/// Runs `part`, whose end is foreseen once this node has left: it then goes on alone until the process stops.
async fn stay(part: impl Future<Output = ()>, known: Arc<Known>, shutdown: Shutdown) {
    part.await;
    if known.standing() == Standing::Left || known.refusal().is_some() {
        shutdown.reached(Phase::Stopped).await;
    }
}

/// What flags and files say, as far as all nodes are told of it.
pub(crate) fn declared_by(config: &Config) -> Declared {
    Declared { workers: config.workers.iter().map(|(spec, _)| spec.clone()).collect(), aliases: config.aliases.clone() }
}

/// Serves what peers pass on, each in a task of its own. How many there may be is bounded per peer by its connection.
async fn accept(mut relayed: Receiver<Relayed>, gateway: Arc<Gateway>, tasks: Tasks) {
    while let Some(Relayed { peer, stream }) = relayed.recv().await {
        let served = serve_relayed(gateway.clone(), PeerId(peer.as_u128()), stream);
        tasks.spawn(TaskKind::Relay, "relayed request", served);
    }
}
