//! How many requests the workers can run at once, told to the gate as it changes.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use smg_admission::Gate;
use smg_base::{Clock, Timestamp};
use smg_fleet::{Fleet, Snapshot, Worker};
use smg_gateway::Cluster;
use smg_runtime::{Phase, Shutdown};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// What a worker runs at once that does not say.
const UNTOLD: usize = 64;

/// What is looked at, and who is told.
pub(crate) struct Parts {
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) cluster: Option<Arc<dyn Cluster>>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Keeps the gate's capacity that of the workers, until the node closes.
pub(crate) async fn follow(parts: Parts, shutdown: Shutdown) {
    let Parts { fleet, cluster, gate, clock } = parts;
    loop {
        if gate.schedules() {
            let nodes = 1 + cluster.as_ref().map_or(0, |cluster| cluster.peers().len());
            gate.follow(capacity(&fleet.snapshot(), nodes, clock.now()));
        }
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = shutdown.reached(Phase::Closing) => return,
        }
    }
}

/// The places this node may give: what other nodes leave of each worker, and at least its part. None if no worker can be used:
/// then there is nothing to wait for, and callers are told so at once.
fn capacity(fleet: &Snapshot, nodes: usize, now: Timestamp) -> Option<NonZeroUsize> {
    let usable = fleet.workers().iter().filter(|worker| worker.is_available(now));
    NonZeroUsize::new(usable.map(|worker| places(worker, nodes)).sum())
}

fn places(worker: &Worker, nodes: usize) -> usize {
    let all = worker.max_running_requests().and_then(|most| usize::try_from(most).ok()).unwrap_or(UNTOLD);
    let elsewhere = usize::try_from(worker.state.load.peers().requests).unwrap_or(usize::MAX);
    all.saturating_sub(elsewhere).max(all.div_ceil(nodes.max(1)))
}

#[cfg(test)]
mod tests {
    use smg_fleet::{FleetConfig, Origin, PeerLoad, WorkerSpec};

    use super::*;

    #[test]
    fn it_is_what_the_workers_say_and_others_leave() {
        let fleet = Fleet::new(FleetConfig::default());
        let mut ids = Vec::new();
        for (url, most) in [("http://a", Some(10)), ("http://b", None)] {
            let spec = WorkerSpec { max_running_requests: most, ..WorkerSpec::new(url.parse().expect("a URL")) };
            let worker = fleet.add(spec, Origin::Api, Timestamp::ORIGIN).expect("there is room").worker;
            ids.push((worker.id, worker.revision));
        }
        let check = |nodes, expected| {
            assert_eq!(
                capacity(&fleet.snapshot(), nodes, Timestamp::ORIGIN),
                NonZeroUsize::new(expected),
                "{nodes} nodes"
            );
        };
        check(1, 0);
        for (worker, revision) in &ids {
            for _ in 0..10 {
                fleet.record_probe(*worker, *revision, Ok(()), Timestamp::ORIGIN);
            }
        }
        check(1, 74);
        check(2, 74);
        fleet.set_peer_load(ids[0].0, PeerLoad { requests: 4, ..PeerLoad::default() }, Timestamp::ORIGIN);
        check(2, 70);
        fleet.set_peer_load(ids[0].0, PeerLoad { requests: 9, ..PeerLoad::default() }, Timestamp::ORIGIN);
        check(2, 69);
        fleet.drain(ids[1].0);
        check(2, 5);
    }
}
