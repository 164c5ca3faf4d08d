//! The limits of this node: the limiter that requests ask, kept in step with those of other nodes.
//!
//! What nodes tell each other, and what follows from it, is decided by `smg_limits::mesh`, without clock or sockets; `driver` carries
//! it out, `inbox` is where the mesh leaves news.

mod driver;
mod inbox;
mod kept;
mod metrics;

use std::{path::PathBuf, sync::Arc};

use smg_base::Clock;
use smg_limits::{Limiter, LimiterConfig};
use smg_runtime::{TaskKind, Tasks, metrics::Registrar};

pub(crate) use self::inbox::Inbox;

use self::{driver::Driver, kept::Kept, metrics::LimitMetrics};
use crate::{config::Config, prefixes::Others};

/// The limits of this node; shared by requests and the task that keeps them in step.
#[derive(Clone)]
pub(crate) struct Limits {
    limiter: Arc<Limiter>,
    inbox: Arc<Inbox>,
    others: Option<Others>,
    clock: Arc<dyn Clock>,
    founders: usize,
    metrics: LimitMetrics,
    /// Where durable counters are kept without others.
    folder: Option<PathBuf>,
    kept: kept::Shelf,
}

impl Limits {
    /// A limiter without rules.
    pub(crate) fn new(config: &Config, clock: Arc<dyn Clock>, others: Option<Others>, registrar: &Registrar) -> Self {
        let founders = founders(config);
        let name = config.sections.node.node_name.as_deref().unwrap_or("node");
        let folder = kept::folder(config.sections.mesh.data_dir.as_deref(), name);
        let since_origin = clock.now().as_nanos() / 1_000_000;
        let limits = LimiterConfig {
            unix_ms_at_origin: clock.unix_ms().saturating_sub(since_origin),
            is_meshed: others.is_some(),
            ..LimiterConfig::default()
        };
        let limiter = Arc::new(Limiter::new(limits));
        let metrics = LimitMetrics::new(registrar, &limiter);
        Self { limiter, inbox: Arc::default(), others, clock, founders, metrics, folder, kept: Arc::default() }
    }

    /// What requests ask, and what takes the rules.
    pub(crate) fn limiter(&self) -> Arc<Limiter> {
        Arc::clone(&self.limiter)
    }

    /// Where the mesh leaves news.
    pub(crate) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// Writes down what is kept without others, once more: when the last request has ended.
    pub(crate) async fn save(&self) {
        kept::keep(self.kept.clone()).await;
    }

    /// Starts to keep them in step.
    pub(crate) fn start(self, tasks: &Tasks) {
        let shutdown = tasks.shutdown().clone();
        match self.others {
            Some(others) => {
                let driver = Driver::new(self.limiter, self.inbox, others, self.clock, self.founders, self.metrics);
                tasks.spawn(TaskKind::Background, "limits", driver.run(shutdown));
            }
            None => {
                let is_durable = self.limiter.rules().all().iter().any(smg_limits::Rule::is_durable);
                if let Some(folder) = self.folder.filter(|_| is_durable) {
                    match Kept::open(&folder, self.limiter.clone(), self.clock.clone()) {
                        Ok(kept) => {
                            *self.kept.lock() = Some(kept);
                            tasks.spawn(TaskKind::Background, "kept limits", kept::run(self.kept));
                        }
                        Err(error) => tracing::error!(%error, "budgets are not kept over a restart"),
                    }
                }
                tasks.spawn(TaskKind::Sweeper, "limits", driver::sweep(self.limiter, self.clock, shutdown));
            }
        }
    }
}

/// Registers the metrics, for the reference page.
pub(crate) fn describe(registrar: &Registrar, limiter: &Arc<Limiter>) {
    let _metrics = LimitMetrics::new(registrar, limiter);
}

/// How many nodes have to be there before rights are divided for the first time: a majority of those that are listed, and never one by
/// itself that knows of others. A node that has lost its disk and does not reach the others would otherwise take all for its own.
fn founders(config: &Config) -> usize {
    let mesh = &config.sections.mesh;
    match mesh.mesh_peer_urls.len() {
        0 if mesh.mesh_srv.is_empty() && mesh.mesh_peers_file.is_none() => 1,
        listed => (listed / 2 + 1).max(2),
    }
}
