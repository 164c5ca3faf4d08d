//! Which workers are probed when, and what follows.

use std::{sync::Arc, time::Duration};

use smg_base::{Timestamp, WorkerId, hash};

use crate::{ClusterVerdict, DirectPath, Fleet, ProbeFailure, Status, StatusChange, Worker, fleet::Entry};

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
        let before = worker.vote();
        let change = worker.state.health.record(&worker.health, result, now);
        if worker.vote() != before {
            self.to_tell().ring();
        }
        entry.probes += 1;
        entry.next_probe = now + entry.pause();
        change
    }

    /// The workers that a rule may remove: they have failed, their latest probe from here has failed not long ago, and the
    /// nodes together do not say that they are up.
    pub fn unhealthy_for_removal(&self, now: Timestamp) -> Vec<WorkerId> {
        let table = self.table();
        let workers = table.entries.values().map(|entry| &entry.worker);
        let is_lost = |worker: &&Arc<Worker>| {
            worker.verdict() != ClusterVerdict::Up && worker.state.health.is_lost(&worker.health, now)
        };
        workers.filter(is_lost).map(|worker| worker.id).collect()
    }
}

impl Entry {
    fn is_probed(&self) -> bool {
        let worker = &self.worker;
        worker.health.enabled && worker.status() != Status::Draining && worker.direct() == DirectPath::Allowed
    }

    /// Time to the next probe, within a tenth of the nominal one: workers added together drift apart. The spread
    /// comes from the id, so two runs have the same.
    fn pause(&self) -> Duration {
        let state = &self.worker.state;
        let pause = state.health.pause(&self.worker.health, state.paths.outlook().duty());
        let id = self.worker.id.as_u128();
        #[expect(clippy::cast_possible_truncation, reason = "both halves are mixed in")]
        let drawn = hash::mix(hash::mix((id >> 64) as u64, id as u64), self.probes);
        let spread = pause / 10;
        let extra = u64::try_from(2 * spread.as_nanos()).unwrap_or(u64::MAX);
        let extra = (u128::from(drawn) * u128::from(extra)) >> 64;
        pause - spread + Duration::from_nanos(u64::try_from(extra).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        FleetConfig, HealthConfig, Origin, WorkerPatch,
        testing::{at, spec},
    };

    const DOWN: Result<(), ProbeFailure> = Err(ProbeFailure::Unreachable);

    fn fleet() -> (Fleet, Arc<Worker>) {
        let fleet = Fleet::new(FleetConfig::default());
        let worker = fleet.add(spec("a", &["m"]), Origin::Flag, at(100)).unwrap().worker;
        (fleet, worker)
    }

    fn due(fleet: &Fleet, now: Timestamp) -> usize {
        fleet.due_probes(now).len()
    }

    #[test]
    fn a_new_worker_is_probed_at_once_and_handed_out_once() {
        let (fleet, worker) = fleet();
        assert_eq!(fleet.next_probe_at(at(100)), Some(at(100)));
        assert_eq!((due(&fleet, at(100)), due(&fleet, at(100)), due(&fleet, at(105))), (1, 0, 0));
        assert_eq!(due(&fleet, at(107)), 1, "its result never came");
        let change = fleet.record_probe(worker.id, worker.revision, Ok(()), at(107));
        assert_eq!(change, Some(StatusChange { from: Status::Pending, to: Status::Ready }));
        let next = fleet.next_probe_at(at(107)).unwrap();
        assert!((at(107 + 54)..=at(107 + 66)).contains(&next), "{next:?}");
        assert_eq!((due(&fleet, next - Duration::from_nanos(1)), due(&fleet, next)), (0, 1));
    }

    #[test]
    fn a_worker_that_has_not_answered_yet_is_asked_every_second() {
        let (fleet, worker) = fleet();
        let mut now = at(100);
        for _ in 0..10 {
            assert_eq!(due(&fleet, now), 1);
            fleet.record_probe(worker.id, worker.revision, DOWN, now);
            let next = fleet.next_probe_at(now).unwrap();
            assert!((900..=1_100).contains(&next.since(now).as_millis()));
            now = next;
        }
    }

    #[test]
    fn workers_added_together_drift_apart() {
        let fleet = Fleet::new(FleetConfig::default());
        let mut times = std::collections::BTreeSet::new();
        for host in 0..50 {
            let worker = fleet.add(spec(&format!("w{host}"), &["m"]), Origin::Flag, at(0)).unwrap().worker;
            fleet.record_probe(worker.id, worker.revision, Ok(()), at(0));
        }
        for entry in fleet.table().entries.values() {
            times.insert(entry.next_probe);
        }
        assert_eq!(times.len(), 50);
        let spread = times.last().unwrap().since(*times.first().unwrap());
        assert!(spread > Duration::from_secs(6), "{spread:?}");
    }

    #[test]
    fn the_result_of_a_probe_of_an_older_revision_is_dropped() {
        let (fleet, old) = fleet();
        assert_eq!(due(&fleet, at(100)), 1);
        let patch = WorkerPatch { priority: Some(1), ..WorkerPatch::default() };
        let new = fleet.patch(old.id, patch).unwrap();
        assert_eq!(fleet.record_probe(old.id, old.revision, Ok(()), at(101)), None);
        assert_eq!(new.status(), Status::Pending);
        assert_eq!(due(&fleet, at(101)), 1, "the new one is probed at once");
        assert!(fleet.record_probe(new.id, new.revision, Ok(()), at(101)).is_some());
        assert_eq!(old.status(), Status::Ready, "revisions share their state");
        fleet.remove(new.id);
        assert_eq!(fleet.record_probe(new.id, new.revision, DOWN, at(102)), None);
    }

    #[test]
    fn who_is_draining_or_trusted_is_not_probed() {
        let (fleet, worker) = fleet();
        fleet.drain(worker.id);
        assert_eq!((due(&fleet, at(200)), fleet.next_probe_at(at(200))), (0, None));
        let mut trusted = spec("b", &["m"]);
        trusted.health.disable_health_check = Some(true);
        let trusted = fleet.add(trusted, Origin::Flag, at(200)).unwrap().worker;
        assert_eq!((trusted.status(), due(&fleet, at(999))), (Status::Ready, 0));
    }

    #[test]
    fn a_failed_worker_is_probed_on_and_comes_back() {
        let (fleet, worker) = fleet();
        let mut now = at(100);
        let mut seen = Vec::new();
        for turn in 0..40 {
            now = fleet.next_probe_at(now).unwrap();
            assert_eq!(due(&fleet, now), 1);
            let result = if (1..30).contains(&turn) { DOWN } else { Ok(()) };
            seen.extend(fleet.record_probe(worker.id, worker.revision, result, now).map(|change| change.to));
            if turn == 29 {
                assert_eq!(fleet.unhealthy_for_removal(now), [worker.id]);
            }
        }
        assert_eq!(seen, [Status::Ready, Status::NotReady, Status::Failed, Status::Ready]);
        assert!(fleet.unhealthy_for_removal(now).is_empty());
    }

    #[test]
    fn new_settings_hold_for_workers_that_are_there() {
        let (fleet, worker) = fleet();
        fleet.record_probe(worker.id, worker.revision, DOWN, at(100));
        fleet.reconfigure(HealthConfig { enabled: false, ..HealthConfig::default() }, Default::default());
        assert_eq!(worker.status(), Status::Ready);
        assert_eq!(due(&fleet, at(1_000)), 0);
        fleet.reconfigure(HealthConfig::default(), Default::default());
        assert_eq!(due(&fleet, at(1_000)), 1);
    }
}
