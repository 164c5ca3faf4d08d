//! The gateway's parts, and the hot settings they share.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use smg_admission::Gate;
use smg_base::{Clock, SplitMix, Timestamp, TtlMap, WorkerId};
use smg_fleet::{Fleet, Status};
use smg_limits::Limiter;
use smg_routing::Policy;
use smg_runtime::{Shutdown, metrics::Registrar};
use smg_upstream::Upstream;

use crate::{
    access::{Access, Identity},
    affinity::Affinity,
    budget::BodyBudget,
    cluster::Cluster,
    config::{Config, Settings},
    explain::Explanations,
    metrics::Metrics,
    plan::{Plans, Versioned},
    prefixes::PrefixPage,
    tokens::{PromptTokens, Tokens},
    usage::{Usage, UsageImage},
};

/// What a gateway is built from. The node owns these and shares them with its other services.
pub struct Parts {
    /// The workers.
    pub fleet: Arc<Fleet>,
    /// The client to them.
    pub upstream: Upstream,
    /// Admission.
    pub gate: Arc<Gate>,
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Chance.
    pub random: Arc<SplitMix>,
    /// The order of stopping.
    pub shutdown: Shutdown,
    /// Where metrics are registered.
    pub registrar: Registrar,
    /// The cluster this node is part of, if it is.
    pub cluster: Option<Arc<dyn Cluster>>,
    /// What the hashes of prompts begin with: equal on all nodes of a cluster, and not to be known outside it.
    pub hash_seed: u64,
    /// Who computes the tokens of prompts, if anybody does.
    pub prompt_tokens: Option<Arc<dyn PromptTokens>>,
    /// Shows what caches hold, if somebody knows.
    pub prefix_page: Option<PrefixPage>,
    /// Who knows callers and operators.
    pub identity: Identity,
    /// Who knows what callers may use.
    pub limiter: Arc<Limiter>,
}

/// The client side of a node. Shared by all its connections; everything a request reads is a snapshot.
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) upstream: Upstream,
    pub(crate) gate: Arc<Gate>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<SplitMix>,
    pub(crate) shutdown: Shutdown,
    pub(crate) cluster: Option<Arc<dyn Cluster>>,
    pub(crate) metrics: Metrics,
    pub(crate) plans: Plans,
    pub(crate) explanations: Explanations,
    pub(crate) affinity: Affinity,
    pub(crate) body_budget: Arc<BodyBudget>,
    pub(crate) hash_seed: u64,
    pub(crate) prefix_page: Option<PrefixPage>,
    pub(crate) access: Access,
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) usage: Usage,
    pub(crate) tokens: Tokens,
    settings: ArcSwap<Versioned>,
    retiring: Mutex<BTreeMap<WorkerId, Timestamp>>,
    swept: Mutex<Timestamp>,
}

impl Gateway {
    /// Builds a gateway. It serves when its [`router`](crate::router) is given to a listener.
    pub fn new(config: Config, settings: Settings, parts: Parts) -> Arc<Self> {
        let metrics = Metrics::new(&parts.registrar);
        parts.limiter.reconfigure(settings.rules.clone());
        let ids = TtlMap::new(config.affinity_entries_max, config.affinity_idle);
        Arc::new(Self {
            affinity: Affinity::new(ids, metrics.affinity_entries.clone()),
            body_budget: BodyBudget::new(config.body_budget.0, metrics.body_budget_used.clone()),
            explanations: Explanations::new(config.explanations_max),
            plans: Plans::default(),
            settings: ArcSwap::from_pointee(Versioned { version: 1, settings }),
            retiring: Mutex::default(),
            swept: Mutex::new(parts.clock.now()),
            metrics,
            config,
            fleet: parts.fleet,
            upstream: parts.upstream,
            gate: parts.gate,
            clock: parts.clock,
            random: parts.random,
            shutdown: parts.shutdown,
            cluster: parts.cluster,
            hash_seed: parts.hash_seed,
            prefix_page: parts.prefix_page,
            access: Access::new(parts.identity),
            limiter: parts.limiter,
            usage: Usage::default(),
            tokens: Tokens::new(parts.prompt_tokens),
        })
    }

    /// Puts new settings in force for requests that begin from now on.
    pub fn reconfigure(&self, settings: Settings) {
        if !Arc::ptr_eq(&settings.rules, &self.limiter.rules()) {
            self.limiter.reconfigure(settings.rules.clone());
        }
        self.settings.rcu(|current| Arc::new(Versioned { version: current.version + 1, settings: settings.clone() }));
    }

    /// Drains a worker, to remove it when it has become idle.
    pub fn retire_worker(&self, worker: WorkerId) {
        self.fleet.drain(worker);
        self.retiring.lock().entry(worker).or_insert_with(|| self.clock.now());
    }

    /// Takes back that a worker is to be removed.
    pub fn keep_worker(&self, worker: WorkerId) {
        self.retiring.lock().remove(&worker);
    }

    /// Removes the retired workers whose requests have ended, and those that had `patience` to end them; none before
    /// its drain has had time to settle. To be called every second or so.
    pub fn remove_retired(&self, patience: Duration) {
        let now = self.clock.now();
        let mut retiring = self.retiring.lock();
        retiring.retain(|&id, &mut since| {
            let worker = self.fleet.snapshot().worker(id).cloned();
            // One that is no longer draining was declared or added again.
            let Some(worker) = worker.filter(|worker| worker.status() == Status::Draining) else {
                return false;
            };
            let waited = now.since(since);
            let removed = if waited < worker.health.drain_settle {
                None
            } else if waited >= patience {
                self.fleet.abandon_drain(id)
            } else {
                self.fleet.finish_drain(id)
            };
            if let Some(worker) = &removed {
                tracing::info!(worker = %id, url = %worker.spec.url, "worker removed");
                self.forget_worker(id);
            }
            removed.is_none()
        });
    }

    /// Drops what routing remembers of a worker that is gone.
    pub fn forget_worker(&self, worker: WorkerId) {
        self.upstream.forget(worker);
        self.plans.forget(worker);
    }

    /// Expires what is old in the policies and in the memory of response ids, if the time between two sweeps has
    /// passed. To be called every second or so.
    pub fn sweep(&self) {
        let now = self.clock.now();
        let mut swept = self.swept.lock();
        if now.since(*swept) < self.settings().settings.sweep_interval {
            return;
        }
        *swept = now;
        self.plans.sweep(now);
        self.affinity.sweep(now);
    }

    /// The policy in use for each model that has been asked for.
    pub fn policies(&self) -> Vec<(smg_base::ModelId, Arc<Policy>)> {
        let plans = self.plans.all();
        let mut policies: Vec<_> = plans.values().map(|plan| (plan.model.clone(), plan.policy.clone())).collect();
        policies.sort_by(|a, b| a.0.cmp(&b.0));
        policies
    }

    /// What was used here, to be kept, if something was since the image of this version.
    pub fn usage_since(&self, version: u64) -> Option<UsageImage> {
        self.usage.image(version)
    }

    /// Takes back what was kept of usage. Nothing of it is taken if it cannot be read.
    pub fn take_usage(&self, json: &[u8]) -> Result<(), serde_json::Error> {
        self.usage.take(json)
    }

    pub(crate) fn settings(&self) -> Guard<Arc<Versioned>> {
        self.settings.load()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }
}
