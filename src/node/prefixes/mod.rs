//! What workers' caches hold, found out by one node each and told to all.
//!
//! `smg_prefix::plane` decides, without clock or sockets: who follows which worker, what is written into this node's lane, and what
//! policies are fed from the lanes of others. `driver` carries it out; `inbox` is where the mesh leaves news; `page` is what operators
//! see.

mod driver;
mod inbox;
mod metrics;
mod page;
pub(crate) mod prompts;
pub(crate) mod seed;

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use smg_base::{Clock, ModelId, PeerId, Random};
use smg_fleet::Fleet;
use smg_gateway::Gateway;
use smg_mesh_proto::NodeId;
use smg_prefix::plane::{Plane, Sharing};
use smg_routing::Policy;
use smg_runtime::{TaskKind, Tasks, channel, entropy, metrics::Registrar};
use smg_upstream::Upstream;

pub(crate) use self::{driver::Others, inbox::Inbox};

use self::{driver::Driver, metrics::PrefixMetrics, page::Look};

/// News of engines that may wait.
const NEWS_MAX: usize = 1_024;

/// What this node knows of caches; shared by the task that finds it out and those who look.
#[derive(Clone)]
pub(crate) struct Prefixes {
    plane: Arc<Mutex<Plane>>,
    inbox: Arc<Inbox>,
    metrics: Arc<PrefixMetrics>,
    fleet: Arc<Fleet>,
    others: Option<Others>,
}

impl Prefixes {
    /// Nothing known yet. `seed` is the one that prompts are hashed with.
    pub(crate) fn new(seed: u64, fleet: Arc<Fleet>, others: Option<Others>, registrar: &Registrar) -> Self {
        let (me, sharing) = match &others {
            Some(others) => (peer_of(others.link.node()), Sharing::Mesh),
            None => (peer_of(NodeId::of("this node")), Sharing::Alone),
        };
        let run = u32::try_from(entropy().below(1 << 32)).unwrap_or_default();
        let plane = Arc::new(Mutex::new(Plane::new(me, sharing, seed, run)));
        let metrics = PrefixMetrics::new(registrar, &plane);
        Self { plane, inbox: Arc::default(), metrics, fleet, others }
    }

    /// Where the mesh leaves news.
    pub(crate) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// What operators may look at.
    pub(crate) fn page(&self, policies: &[(ModelId, Arc<Policy>)]) -> Value {
        let reports = self.plane.lock().report();
        let name = |node: PeerId| match &self.others {
            Some(others) => others.known.facts().name(NodeId::from_u128(node.0)),
            None => "this node".to_owned(),
        };
        page::page(&reports, &Look { fleet: &self.fleet, metrics: &self.metrics, policies, name: &name })
    }

    /// Starts to find out.
    pub(crate) fn start(
        self,
        gateway: Arc<Gateway>,
        upstream: Upstream,
        clock: Arc<dyn Clock>,
        registrar: &Registrar,
        tasks: &Tasks,
    ) {
        let driver = Driver::new(driver::Parts {
            plane: self.plane,
            inbox: self.inbox,
            others: self.others,
            gateway,
            fleet: self.fleet,
            upstream,
            clock,
            tasks: tasks.clone(),
            metrics: self.metrics,
            news: channel("kv events", NEWS_MAX, registrar),
        });
        tasks.spawn(TaskKind::Background, "prefixes", driver.run());
    }
}

/// A node, to those who know nothing of the mesh.
fn peer_of(node: NodeId) -> PeerId {
    PeerId(node.as_u128())
}
