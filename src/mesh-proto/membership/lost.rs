//! The fast path to down: a member whose connection broke, who cannot be dialled again, and whom another member lost too, is
//! taken for dead without waiting for probes. A lost connection alone proves nothing: one flapping link would evict a live node.

use std::{collections::BTreeMap, time::Duration};

use smg_base::Timestamp;

use super::identity::Identity;
use crate::{NodeId, wire::Heard};

/// How long a case is open at most.
const CASE_FOR: Duration = Duration::from_secs(3);
/// How long answers are waited for.
const ANSWER_WITHIN: Duration = Duration::from_millis(400);
/// How long a loss is remembered, to confirm it to others.
const REMEMBERED_FOR: Duration = Duration::from_secs(30);

/// Members that were lost lately.
#[derive(Default)]
pub(crate) struct Lost {
    /// When the connection to them broke; until there is another.
    since: BTreeMap<NodeId, Timestamp>,
    cases: BTreeMap<NodeId, Case>,
}

struct Case {
    identity: Identity,
    until: Timestamp,
    stage: Stage,
}

enum Stage {
    Redialling,
    Asking { asked: Vec<NodeId>, lost: usize },
}

impl Lost {
    /// A session with a live member broke.
    pub(crate) fn open(&mut self, now: Timestamp, identity: Identity) {
        self.since.insert(identity.node, now);
        self.cases.insert(identity.node, Case { identity, until: now + CASE_FOR, stage: Stage::Redialling });
    }

    /// There is a session again, or the member is dead or forgotten.
    pub(crate) fn close(&mut self, node: NodeId) {
        self.since.remove(&node);
        self.cases.remove(&node);
    }

    /// Whether the member was lost lately and is not back.
    pub(crate) fn is_lost(&self, now: Timestamp, node: NodeId) -> bool {
        self.since.get(&node).is_some_and(|at| now.since(*at) < REMEMBERED_FOR)
    }

    /// Whether others are to be asked about the member, now that redialling failed.
    pub(crate) fn is_redialling(&self, node: NodeId) -> bool {
        self.cases.get(&node).is_some_and(|case| matches!(case.stage, Stage::Redialling))
    }

    /// These have been asked.
    pub(crate) fn ask(&mut self, now: Timestamp, node: NodeId, asked: Vec<NodeId>) {
        if asked.is_empty() {
            self.cases.remove(&node);
        } else if let Some(case) = self.cases.get_mut(&node) {
            case.until = now + ANSWER_WITHIN;
            case.stage = Stage::Asking { asked, lost: 0 };
        }
    }

    /// One of them answered. Returns the identity that is dead, if that is settled.
    pub(crate) fn answer(&mut self, node: NodeId, from: NodeId, heard: Heard) -> Option<Identity> {
        let case = self.cases.get_mut(&node)?;
        let Stage::Asking { asked, lost } = &mut case.stage else { return None };
        let at = asked.iter().position(|one| *one == from)?;
        asked.swap_remove(at);
        match heard {
            Heard::Lately => {
                self.cases.remove(&node);
                return None;
            }
            Heard::Lost => *lost += 1,
            Heard::Unsure => {}
        }
        if asked.is_empty() { self.settle(node) } else { None }
    }

    /// Cases whose time is over: identities that are dead.
    pub(crate) fn tick(&mut self, now: Timestamp) -> Vec<Identity> {
        self.since.retain(|_, at| now.since(*at) < REMEMBERED_FOR);
        let over: Vec<NodeId> =
            self.cases.iter().filter(|(_, case)| case.until <= now).map(|(node, _)| *node).collect();
        over.into_iter().filter_map(|node| self.settle(node)).collect()
    }

    /// When the first case ends.
    pub(crate) fn next_tick(&self) -> Option<Timestamp> {
        self.cases.values().map(|case| case.until).min()
    }

    fn settle(&mut self, node: NodeId) -> Option<Identity> {
        let case = self.cases.remove(&node)?;
        matches!(case.stage, Stage::Asking { lost, .. } if lost > 0).then_some(case.identity)
    }
}
