//! Which worker answered a response id, so that a follow-up finds the state kept there. It is remembered for whom: to other
//! tenants an id is as unknown as one that never was.

use parking_lot::Mutex;
use prometheus::IntGauge;
use smg_base::{TenantId, Timestamp, TtlMap, WorkerId};

/// A bounded memory of response ids. Only the Responses endpoints use it.
pub(crate) struct Affinity {
    workers: Mutex<TtlMap<String, WorkerId>>,
    entries: IntGauge,
}

/// Longer ids are not remembered: no engine makes them.
const ID_BYTES_MAX: usize = 128;

impl Affinity {
    pub(crate) fn new(workers: TtlMap<String, WorkerId>, entries: IntGauge) -> Self {
        Self { workers: Mutex::new(workers), entries }
    }

    /// Remembers that `worker` answered `id` for `tenant`.
    pub(crate) fn learn(&self, tenant: &TenantId, id: &str, worker: WorkerId, now: Timestamp) {
        if id.len() > ID_BYTES_MAX {
            return;
        }
        let mut workers = self.workers.lock();
        workers.insert(of_tenant(tenant, id), worker, now);
        self.entries.set(i64::try_from(workers.len()).unwrap_or(i64::MAX));
    }

    /// The worker that answered `id` for `tenant`.
    pub(crate) fn worker_of(&self, tenant: &TenantId, id: &str, now: Timestamp) -> Option<WorkerId> {
        self.workers.lock().touch(&of_tenant(tenant, id), now).map(|worker| *worker)
    }

    /// Drops what is old.
    pub(crate) fn sweep(&self, now: Timestamp) {
        let mut workers = self.workers.lock();
        workers.sweep(now);
        self.entries.set(i64::try_from(workers.len()).unwrap_or(i64::MAX));
    }
}

/// The id comes first: it has no line break, so what follows the first one is the tenant whatever its name.
fn of_tenant(tenant: &TenantId, id: &str) -> String {
    format!("{id}\n{tenant}")
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroUsize, time::Duration};

    use super::*;

    #[test]
    fn another_tenants_id_is_unknown() {
        let entries = IntGauge::new("entries", "of the memory").expect("it is a name");
        let room = NonZeroUsize::new(10).expect("it is not zero").get();
        let memory = Affinity::new(TtlMap::new(room, Duration::from_secs(1)), entries);
        let (ours, theirs) = (TenantId::from("a"), TenantId::from("b"));
        let worker = WorkerId::from_u128(1);
        memory.learn(&ours, "resp_1", worker, Timestamp::ORIGIN);
        assert_eq!(memory.worker_of(&ours, "resp_1", Timestamp::ORIGIN), Some(worker));
        assert_eq!(memory.worker_of(&theirs, "resp_1", Timestamp::ORIGIN), None);
        assert_eq!(memory.worker_of(&ours, "resp_2", Timestamp::ORIGIN), None);
    }
}
