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

    /// Tells the others something about a worker. Who has left has nobody to tell: the worker is this node's alone.
    fn tell(&self, op: Op) -> BoxFuture<'static, Result<(), ClusterError>> {
        if self.known.standing() == Standing::Left { Box::pin(async { Ok(()) }) } else { self.write(op) }
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
        self.tell(Op::AddWorker { worker: worker.id, spec, declared: false })
    }

    fn removed(&self, worker: WorkerId) -> BoxFuture<'static, Result<(), ClusterError>> {
        self.tell(Op::RemoveWorker { worker })
    }

    fn name(&self, peer: PeerId) -> Option<String> {
        self.known.facts().members.get(&NodeId::from_u128(peer.0)).map(|member| member.name.clone())
    }

    fn peers(&self) -> Vec<PeerId> {
        let facts = self.known.facts();
        let others = facts.members.values().filter(|member| !member.is_self && member.state.is_alive());
        others.map(|member| PeerId(member.node.as_u128())).collect()
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

    fn resume(&self) -> BoxFuture<'static, bool> {
        if !self.known.resume() {
            return Box::pin(async { false });
        }
        let written = self.link.write(Op::Draining(false));
        Box::pin(async move {
            if let Err(error) = written.await {
                tracing::warn!(%error, "the other nodes cannot be told that this one no longer drains");
            }
            true
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

#[cfg(test)]
mod tests {
    use serde_json::json;
    use smg_base::ManualClock;
    use smg_fleet::{FleetConfig, Origin};

    use super::*;
    use crate::mesh::testing::FakeLink;

    fn cluster() -> (MeshCluster, Arc<FakeLink>, Arc<Worker>) {
        let (link, clock) = (FakeLink::new(), Arc::new(ManualClock::default()));
        let fleet = Arc::new(Fleet::new(FleetConfig::default()));
        let spec = serde_json::from_value(json!({"url": "http://10.0.0.1"})).expect("it is a specification");
        let worker = fleet.add(spec, Origin::Api, clock.now()).expect("there is room").worker;
        let known = Arc::default();
        (MeshCluster { link: link.clone(), known, fleet, clock, scope: "here".to_owned() }, link, worker)
    }

    #[tokio::test]
    async fn what_an_operator_changes_is_written_until_the_node_has_left() {
        let (cluster, link, worker) = cluster();
        assert_eq!(cluster.added(worker.clone()).await, Ok(()));
        assert_eq!(link.written(), [format!("add {}", worker.id)]);
        for (error, expected) in [
            (WriteError::Busy, Err(ClusterError::Busy)),
            (WriteError::TooLarge, Err(ClusterError::TooLarge)),
            (WriteError::Leaving, Err(ClusterError::Leaving)),
            (WriteError::UnknownWorker, Ok(())),
        ] {
            link.fail(error);
            assert_eq!(cluster.removed(worker.id).await, expected, "{error}");
            assert_eq!(link.written(), [format!("remove {}", worker.id)]);
        }
        cluster.drain().await;
        assert_eq!((cluster.standing(), link.written()), (Standing::Draining, vec!["draining true".to_owned()]));
        assert!(cluster.resume().await && !cluster.resume().await);
        assert_eq!((cluster.standing(), link.written()), (Standing::Joining, vec!["draining false".to_owned()]));
        cluster.leave().await;
        assert!(!cluster.resume().await, "there is no way back");
        assert_eq!((cluster.standing(), link.written()), (Standing::Left, vec!["leave".to_owned()]));
        assert_eq!((cluster.added(worker.clone()).await, cluster.removed(worker.id).await), (Ok(()), Ok(())));
        assert_eq!(link.written(), Vec::<String>::new(), "nobody is there to be told");
    }

    #[tokio::test]
    async fn a_sticky_key_may_name_its_worker_by_url() {
        let (cluster, link, worker) = cluster();
        let key = |section: &str| SharedKey { section: section.to_owned(), name: "k".to_owned() };
        assert_eq!(cluster.set_shared(key("sticky"), Some(json!("http://10.0.0.1"))).await, Ok(()));
        assert_eq!(link.written(), [format!("config sticky/k=\"{}\"", worker.id)]);
        let nobody = cluster.set_shared(key("sticky"), Some(json!("http://10.0.0.2"))).await;
        assert!(matches!(nobody, Err(ClusterError::Invalid(_))), "{nobody:?}");
        assert_eq!(cluster.set_shared(key("colour"), None).await, Err(ClusterError::UnknownSection));
        assert_eq!(link.written(), Vec::<String>::new());
    }
}
