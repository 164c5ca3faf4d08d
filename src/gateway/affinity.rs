//! Which worker answered a response id, so that a follow-up finds the state kept there.

use parking_lot::Mutex;
use prometheus::IntGauge;
use smg_base::{Timestamp, TtlMap, WorkerId};

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

    /// Remembers that `worker` answered `id`.
    pub(crate) fn learn(&self, id: &str, worker: WorkerId, now: Timestamp) {
        if id.len() > ID_BYTES_MAX {
            return;
        }
        let mut workers = self.workers.lock();
        workers.insert(id.to_owned(), worker, now);
        self.entries.set(i64::try_from(workers.len()).unwrap_or(i64::MAX));
    }

    /// The worker that answered `id`.
    pub(crate) fn worker_of(&self, id: &str, now: Timestamp) -> Option<WorkerId> {
        self.workers.lock().touch(id, now).map(|worker| *worker)
    }

    /// Drops what is old.
    pub(crate) fn sweep(&self, now: Timestamp) {
        let mut workers = self.workers.lock();
        workers.sweep(now);
        self.entries.set(i64::try_from(workers.len()).unwrap_or(i64::MAX));
    }
}
