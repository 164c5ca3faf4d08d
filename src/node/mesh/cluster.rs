//! The mesh as the gateway's admin API sees it.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde_json::Value;
use smg_base::{Clock, PeerId, WorkerId};
use smg_fleet::{Fleet, Worker};
use smg_gateway::{Cluster, ClusterError, Page, SharedKey, Standing};
use smg_mesh_proto::{NodeId, Op, WriteError};

use super::{known::Known, link::Link, pages, shared, spec};

/// The mesh as the admin API sees it.
pub(crate) struct MeshCluster {
    pub(crate) link: Arc<dyn Link>,
    pub(crate) known: Arc<Known>,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The machine that this node's loopback addresses mean.
    pub(crate) scope: String,
}

impl MeshCluster {
    fn write(&self, op: Op) -> BoxFuture<'static, Result<(), ClusterError>> {
        let written = self.link.write(op);
        Box::pin(async move { written.await.or_else(outcome) })
    }

    /// A worker that is named by its URL, by its id.
    fn by_id(&self, value: Value) -> Value {
        let snapshot = self.fleet.snapshot();
        let named = value.as_str().and_then(|url| snapshot.workers().iter().find(|one| one.spec.url.as_str() == url));
        named.map_or(value, |worker| worker.id.to_string().into())
    }
}

impl Cluster for MeshCluster {
    fn standing(&self) -> Standing {
        self.known.standing()
    }

    fn added(&self, worker: Arc<Worker>) -> BoxFuture<'static, Result<(), ClusterError>> {
        // What another machine's address means does not change with what is said of the worker there.
        let scope = self.known.facts().rows.get(&worker.id).and_then(|row| row.told.scope.clone());
        let scope = scope.unwrap_or_else(|| self.scope.clone());
        let spec = spec::encode(&worker.spec, &scope, &*self.link);
        self.write(Op::AddWorker { worker: worker.id, spec, declared: false })
    }

    fn removed(&self, worker: WorkerId) -> BoxFuture<'static, Result<(), ClusterError>> {
        self.write(Op::RemoveWorker { worker })
    }

    fn name(&self, peer: PeerId) -> Option<String> {
        self.known.facts().members.get(&NodeId::from_u128(peer.0)).map(|member| member.name.clone())
    }

    fn page(&self, page: Page) -> BoxFuture<'static, Value> {
        let (known, fleet, now) = (self.known.clone(), self.fleet.clone(), self.clock.now());
        let link = self.link.clone();
        Box::pin(async move {
            match page {
                Page::Status => pages::status(&link.status().await, &known),
                Page::Members => pages::members(&link.status().await, now),
                Page::Digest => pages::digests(&link.status().await, &known),
                Page::Workers => pages::workers(&known, &fleet, now),
                Page::Config => shared::page(&known.facts().config),
            }
        })
    }

    fn set_shared(&self, key: SharedKey, value: Option<Value>) -> BoxFuture<'static, Result<(), ClusterError>> {
        let value = if key.section == "sticky" { value.map(|value| self.by_id(value)) } else { value };
        match shared::checked(&key, value.as_ref()) {
            Ok((key, value)) => self.write(Op::Config { key, value }),
            Err(error) => Box::pin(async move { Err(error) }),
        }
    }

    fn drain(&self) -> BoxFuture<'static, ()> {
        self.known.stand(Standing::Draining);
        let written = self.link.write(Op::Draining(true));
        Box::pin(async move {
            if let Err(error) = written.await {
                tracing::warn!(%error, "the other nodes cannot be told that this one drains");
            }
        })
    }

    fn leave(&self) -> BoxFuture<'static, ()> {
        // Said first: what then ends of the mesh has ended as was meant.
        self.known.stand(Standing::Left);
        self.link.leave()
    }
}

/// What the failure of a write means to an operator.
fn outcome(error: WriteError) -> Result<(), ClusterError> {
    match error {
        // It is gone already.
        WriteError::UnknownWorker => Ok(()),
        WriteError::TooLarge => Err(ClusterError::TooLarge),
        WriteError::Busy => Err(ClusterError::Busy),
        WriteError::Revoked => Err(ClusterError::Revoked),
        WriteError::Leaving => Err(ClusterError::Leaving),
    }
}
