//! What holds for one model: its policy, retries, timeouts and meters, built once per version of the settings.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smg_base::{ModelId, Timestamp, WorkerId, map::StableMap};
use smg_fleet::{BudgetConfig, RetryBudget};
use smg_routing::{Policy, PolicyKind};

use crate::{
    config::{PolicySettings, RetrySettings, Settings, Timeouts},
    metrics::ModelMeters,
};

/// One model's plan.
pub(crate) struct ModelPlan {
    pub(crate) policy: Arc<Policy>,
    pub(crate) retry: RetrySettings,
    pub(crate) timeouts: Timeouts,
    pub(crate) budget: Arc<RetryBudget>,
    pub(crate) meters: ModelMeters,
    pub(crate) model: ModelId,
    pub(crate) policy_settings: PolicySettings,
    version: u64,
}

/// The settings in force, numbered.
pub(crate) struct Versioned {
    pub(crate) version: u64,
    pub(crate) settings: Settings,
}

/// Plans by model. Reading is a look-up in a snapshot; a new model or new settings build one under a lock.
#[derive(Default)]
pub(crate) struct Plans {
    by_model: ArcSwap<StableMap<ModelId, Arc<ModelPlan>>>,
    /// How many policies were built.
    built: AtomicU64,
    building: Mutex<()>,
}

/// Plans are kept for models workers serve; the bound only matters if names churn without end.
const PLANS_MAX: usize = 4_096;

impl Plans {
    /// The plan for `model` under the settings in force.
    pub(crate) fn of(&self, model: &ModelId, current: &Versioned) -> Arc<ModelPlan> {
        let plans = self.by_model.load();
        match plans.get(model) {
            Some(plan) if plan.version == current.version => plan.clone(),
            _ => self.build(model, current),
        }
    }

    /// Changes with every policy that is built.
    pub(crate) fn generation(&self) -> u64 {
        self.built.load(Ordering::Acquire)
    }

    /// Every plan there is.
    pub(crate) fn all(&self) -> Arc<StableMap<ModelId, Arc<ModelPlan>>> {
        self.by_model.load_full()
    }

    /// Drops what the policies remember of a worker that is gone.
    pub(crate) fn forget(&self, worker: WorkerId) {
        for plan in self.by_model.load().values() {
            plan.policy.forget(worker);
        }
    }

    /// Lets policies expire what is old.
    pub(crate) fn sweep(&self, now: Timestamp) {
        for plan in self.by_model.load().values() {
            plan.policy.sweep(now);
        }
    }

    #[cold]
    fn build(&self, model: &ModelId, current: &Versioned) -> Arc<ModelPlan> {
        let _one_at_a_time = self.building.lock();
        let plans = self.by_model.load_full();
        let old = plans.get(model);
        if let Some(plan) = old.filter(|plan| plan.version == current.version) {
            return plan.clone();
        }
        let plan = Arc::new(ModelPlan::new(model, current, old.map(Arc::as_ref)));
        let mut next = (*plans).clone();
        if next.len() >= PLANS_MAX {
            next.clear();
        }
        next.insert(model.clone(), plan.clone());
        self.by_model.store(Arc::new(next));
        // Counted once it can be found.
        if old.is_none_or(|old| !Arc::ptr_eq(&old.policy, &plan.policy)) {
            self.built.fetch_add(1, Ordering::Release);
        }
        plan
    }
}

impl ModelPlan {
    /// Builds the plan. What the old one learned stays where its settings did not change.
    fn new(model: &ModelId, current: &Versioned, old: Option<&Self>) -> Self {
        let settings = &current.settings;
        let overrides = settings.models.get(model);
        let mut policy_settings =
            overrides.and_then(|model| model.policy.clone()).unwrap_or_else(|| settings.defaults.policy.clone());
        policy_settings.kind = settings.shared.policies.get(model).copied().unwrap_or(policy_settings.kind);
        let retry = overrides.and_then(|model| model.retry).unwrap_or(settings.defaults.retry);
        let timeouts = overrides.and_then(|model| model.timeouts).unwrap_or(settings.defaults.timeouts);
        let PolicySettings { kind, config } = &policy_settings;
        let kept = old.filter(|old| old.policy_settings == policy_settings);
        let policy = kept.map_or_else(|| Arc::new(Policy::new(*kind, config)), |old| old.policy.clone());
        policy.set_overrides(settings.shared.sticky.clone());
        Self {
            policy,
            budget: old
                .filter(|old| old.retry == retry)
                .map_or_else(|| Arc::new(budget(&retry)), |old| old.budget.clone()),
            meters: ModelMeters::new(model.clone(), *kind),
            model: model.clone(),
            version: current.version,
            policy_settings,
            retry,
            timeouts,
        }
    }

    /// The policy's kind.
    pub(crate) fn policy_kind(&self) -> PolicyKind {
        self.policy.kind()
    }
}

fn budget(retry: &RetrySettings) -> RetryBudget {
    RetryBudget::new(BudgetConfig { ratio: retry.budget_ratio, floor_per_second: retry.budget_floor_per_second })
}
