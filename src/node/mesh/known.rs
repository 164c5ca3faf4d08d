//! What this node has heard of the mesh. The bridge writes it down; pages are made from it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use smg_base::WorkerId;
use smg_gateway::Standing;
use smg_mesh_proto::{Member, NodeId, Reach};

use super::spec::Told;

/// What this node has heard, and where it stands.
#[derive(Default)]
pub(crate) struct Known {
    facts: Mutex<Facts>,
    /// Whether it has joined, and whether others are there.
    company: AtomicU8,
    /// How far it is on its way out.
    farewell: AtomicU8,
    refusal: OnceLock<String>,
}

const STAYS: u8 = 0;
const DRAINS: u8 = 1;
const LEFT: u8 = 2;

/// What this node has heard.
#[derive(Default)]
pub(crate) struct Facts {
    /// The nodes, this one included.
    pub(crate) members: BTreeMap<NodeId, Arc<Member>>,
    /// The workers that nodes assert.
    pub(crate) rows: BTreeMap<WorkerId, Row>,
    /// How they stand with the nodes.
    pub(crate) reach: BTreeMap<WorkerId, Reach>,
    /// Shared settings by key; none where one was deleted.
    pub(crate) config: BTreeMap<String, Option<Bytes>>,
}

/// What the nodes assert of a worker.
pub(crate) struct Row {
    /// Its specification.
    pub(crate) told: Told,
    /// Who wrote it.
    pub(crate) writer: NodeId,
    /// Whether flags or a file of some node declare the worker.
    pub(crate) declared: bool,
    /// How many assertions stand.
    pub(crate) assertions: usize,
}

impl Known {
    /// The facts, for a moment.
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock()
    }

    /// Says why the cluster refuses this node; the first word counts.
    pub(crate) fn refuse(&self, why: String) {
        self.refusal.get_or_init(|| why);
    }

    /// Why the cluster refuses this node, if it does.
    pub(crate) fn refusal(&self) -> Option<String> {
        self.refusal.get().cloned()
    }

    /// Where this node stands.
    pub(crate) fn standing(&self) -> Standing {
        match self.farewell.load(Ordering::Acquire) {
            STAYS => self.company(),
            DRAINS => Standing::Draining,
            _ => Standing::Left,
        }
    }

    /// Where it would stand if it were not about to leave.
    pub(crate) fn company(&self) -> Standing {
        match self.company.load(Ordering::Acquire) {
            0 => Standing::Joining,
            1 => Standing::Joined,
            _ => Standing::Alone,
        }
    }

    /// Says where it stands from now on. Who has left does not come back, and who drains only by [`Self::resume`].
    pub(crate) fn stand(&self, standing: Standing) {
        match standing {
            Standing::Joining => self.company.store(0, Ordering::Release),
            Standing::Joined => self.company.store(1, Ordering::Release),
            Standing::Alone => self.company.store(2, Ordering::Release),
            Standing::Draining => drop(self.farewell.fetch_max(DRAINS, Ordering::AcqRel)),
            Standing::Left => self.farewell.store(LEFT, Ordering::Release),
        }
    }

    /// Takes a drain back; false if there is none.
    pub(crate) fn resume(&self) -> bool {
        self.farewell.compare_exchange(DRAINS, STAYS, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Facts {
    /// What people call a node.
    pub(crate) fn name(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| node.to_string(), |member| member.name.clone())
    }

    /// Whether any other node lives.
    pub(crate) fn has_company(&self) -> bool {
        self.members.values().any(|member| !member.is_self && member.state.is_alive())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_left_does_not_come_back_and_who_drains_only_if_told() {
        let known = Known::default();
        let check = |said: Standing, expected: Standing| {
            known.stand(said);
            assert_eq!(known.standing(), expected, "after {said:?}");
        };
        check(Standing::Alone, Standing::Alone);
        check(Standing::Joined, Standing::Joined);
        check(Standing::Draining, Standing::Draining);
        check(Standing::Alone, Standing::Draining);
        assert!(known.resume() && !known.resume());
        assert_eq!(known.standing(), Standing::Alone, "as things have become meanwhile");
        check(Standing::Draining, Standing::Draining);
        check(Standing::Left, Standing::Left);
        check(Standing::Draining, Standing::Left);
        assert!(!known.resume());
    }
}
