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
    standing: AtomicU8,
    refusal: OnceLock<String>,
}

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
        match self.standing.load(Ordering::Acquire) {
            0 => Standing::Joining,
            1 => Standing::Joined,
            2 => Standing::Alone,
            3 => Standing::Draining,
            _ => Standing::Left,
        }
    }

    /// Says where it stands from now on. Who drains or has left does not come back.
    pub(crate) fn stand(&self, standing: Standing) {
        let number = match standing {
            Standing::Joining => 0,
            Standing::Joined => 1,
            Standing::Alone => 2,
            Standing::Draining => 3,
            Standing::Left => 4,
        };
        let replaced = |now: u8| (now < 3 || number > now).then_some(number);
        // Refused is only a step back, which is meant to do nothing.
        let _ = self.standing.fetch_update(Ordering::AcqRel, Ordering::Acquire, replaced);
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
    fn who_drains_or_left_does_not_come_back() {
        let known = Known::default();
        let check = |said: Standing, expected: Standing| {
            known.stand(said);
            assert_eq!(known.standing(), expected, "after {said:?}");
        };
        check(Standing::Alone, Standing::Alone);
        check(Standing::Joined, Standing::Joined);
        check(Standing::Draining, Standing::Draining);
        check(Standing::Joined, Standing::Draining);
        check(Standing::Left, Standing::Left);
        check(Standing::Draining, Standing::Left);
    }
}
