//! Which workers are probed when, and what follows.

use std::{sync::Arc, time::Duration};

use smg_base::{Timestamp, WorkerId, hash};

use crate::{Fleet, ProbeFailure, Status, StatusChange, Worker, fleet::Entry};

impl Fleet {
    /// The workers to probe now. Each is handed out once; if its result never comes, again after the time that a
    /// probe may take and a pause.
    pub fn due_probes(&self, now: Timestamp) -> Vec<Arc<Worker>> {
        let mut due = Vec::new();
        for entry in self.table().entries.values_mut() {
            if entry.is_probed() && entry.next_probe <= now {
                entry.next_probe = now + entry.worker.health.timeout + entry.pause();
                due.push(Arc::clone(&entry.worker));
            }
        }
        due
    }

    /// When the next worker is due; none if there is none to probe. A worker that is added or changed is due at once.
    pub fn next_probe_at(&self, now: Timestamp) -> Option<Timestamp> {
        let table = self.table();
        let times = table.entries.values().filter(|entry| entry.is_probed()).map(|entry| entry.next_probe);
        times.min().map(|at| at.max(now))
    }

    /// Takes in the result of a probe. It counts only for the revision that was probed.
    pub fn record_probe(
        &self,
        id: WorkerId,
        revision: u64,
        result: Result<(), ProbeFailure>,
        now: Timestamp,
    ) -> Option<StatusChange> {
        let mut table = self.table();
        let entry = table.entries.get_mut(&id).filter(|entry| entry.worker.revision == revision)?;
        let worker = &entry.worker;
        let change = worker.state.health.record(&worker.health, result, now);
        entry.probes += 1;
        entry.next_probe = now + entry.pause();
        change
    }

    /// The workers that a rule may remove: they have failed, and their latest probe has failed not long ago.
    pub fn unhealthy_for_removal(&self, now: Timestamp) -> Vec<WorkerId> {
        let table = self.table();
        let workers = table.entries.values().map(|entry| &entry.worker);
        workers.filter(|worker| worker.state.health.is_lost(&worker.health, now)).map(|worker| worker.id).collect()
    }
}

impl Entry {
    fn is_probed(&self) -> bool {
        self.worker.health.enabled && self.worker.status() != Status::Draining
    }

    /// Time to the next probe, within a tenth of the nominal one: workers added together drift apart. The spread
    /// comes from the id, so two runs have the same.
    fn pause(&self) -> Duration {
        let pause = self.worker.state.health.pause(&self.worker.health);
        let id = self.worker.id.as_u128();
        #[expect(clippy::cast_possible_truncation, reason = "both halves are mixed in")]
        let drawn = hash::mix(hash::mix((id >> 64) as u64, id as u64), self.probes);
        let spread = pause / 10;
        let extra = u64::try_from(2 * spread.as_nanos()).unwrap_or(u64::MAX);
        let extra = (u128::from(drawn) * u128::from(extra)) >> 64;
        pause - spread + Duration::from_nanos(u64::try_from(extra).unwrap_or(0))
    }
}
