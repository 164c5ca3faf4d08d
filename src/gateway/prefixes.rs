//! What others feed: the policies that go by what workers' caches hold.

use std::sync::Arc;

use serde_json::Value;
use smg_base::ModelId;
use smg_routing::{Policy, PolicyKind};

use crate::app::Gateway;

/// What an operator may look at of what caches hold, and how that is known, in the policies given.
pub type PrefixPage = Arc<dyn Fn(&[(ModelId, Arc<Policy>)]) -> Value + Send + Sync>;

impl Gateway {
    /// Changes when a policy was built anew, which knows nothing of any cache: what is known must be fed to it again.
    pub fn prefix_generation(&self) -> u64 {
        self.plans.generation()
    }

    /// The policies that go by caches, of all models that are served: also of those nobody has asked for yet, so that the
    /// first request finds what other nodes know.
    pub fn prefix_models(&self) -> Vec<(ModelId, Arc<Policy>)> {
        let current = self.settings();
        for pool in self.fleet.snapshot().models() {
            self.plans.of(&pool.model, &current);
        }
        let mut policies = self.policies();
        policies.retain(|(_, policy)| policy.kind() == PolicyKind::CacheAware);
        policies
    }
}
