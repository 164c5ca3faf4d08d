//! Routing keys that an operator has given a worker.

use std::sync::Arc;

use smg_base::{WorkerId, hash, map::StableMap};

/// Which routing key goes to which worker, whatever the policy, as long as that can be used. The same on all gateways that
/// share it; clones share their memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Overrides(Arc<StableMap<u128, WorkerId>>);

impl Overrides {
    /// The worker of a key.
    pub(crate) fn of(&self, key: &str) -> Option<WorkerId> {
        if self.0.is_empty() { None } else { self.0.get(&hashed(key)).copied() }
    }
}

impl<'a> FromIterator<(&'a str, WorkerId)> for Overrides {
    fn from_iter<I: IntoIterator<Item = (&'a str, WorkerId)>>(pairs: I) -> Self {
        Self(Arc::new(pairs.into_iter().map(|(key, worker)| (hashed(key), worker)).collect()))
    }
}

fn hashed(key: &str) -> u128 {
    hash::stable128(key.as_bytes())
}
