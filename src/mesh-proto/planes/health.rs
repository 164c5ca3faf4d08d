//! Who reaches which worker, and what is thought of it: votes of alive nodes, each about what it saw itself.

use std::collections::{BTreeMap, BTreeSet};

use smg_base::WorkerId;

use super::worker_of;
use crate::{NodeId, Reach, Verdict, Vote, lanes::Change, wire::decode_value};

/// So many nodes probe a worker.
const PROBERS: usize = 5;

/// The fold.
#[derive(Debug, Default)]
pub(crate) struct HealthPlane {
    votes: BTreeMap<WorkerId, BTreeMap<NodeId, Vote>>,
}

impl HealthPlane {
    /// Takes a change in; says which worker it is about.
    pub(crate) fn change(&mut self, writer: NodeId, change: &Change) -> Option<WorkerId> {
        let worker = worker_of(&change.key)?;
        match change.new.as_deref().and_then(decode_value) {
            Some(vote) => {
                self.votes.entry(worker).or_default().insert(writer, vote);
            }
            None => {
                let votes = self.votes.get_mut(&worker)?;
                votes.remove(&writer);
                if votes.is_empty() {
                    self.votes.remove(&worker);
                }
            }
        }
        Some(worker)
    }

    /// Every worker somebody voted on.
    pub(crate) fn workers(&self) -> impl Iterator<Item = WorkerId> {
        self.votes.keys().copied()
    }

    /// How a worker stands.
    pub(crate) fn reach(&self, me: NodeId, worker: WorkerId, alive: &BTreeSet<NodeId>) -> Reach {
        let votes: Vec<(NodeId, Vote)> = self.fresh(worker, alive).collect();
        let mut ranked: Vec<NodeId> =
            votes.iter().filter(|(_, vote)| *vote == Vote::Up).map(|(node, _)| *node).collect();
        ranked.sort_by_key(|node| rank(*node, worker));
        Reach {
            verdict: verdict(votes.iter().map(|(_, vote)| *vote)),
            home: ranked.first().copied(),
            standby: ranked.get(1).copied(),
            via: ranked.into_iter().filter(|node| *node != me).collect(),
            probed_here: is_prober(me, worker, alive),
            votes,
        }
    }

    /// Who speaks for a worker's engine.
    pub(crate) fn home(&self, worker: WorkerId, alive: &BTreeSet<NodeId>) -> Option<NodeId> {
        let up = self.fresh(worker, alive).filter(|(_, vote)| *vote == Vote::Up);
        up.map(|(node, _)| node).min_by_key(|node| rank(*node, worker))
    }

    fn fresh<'a>(&'a self, worker: WorkerId, alive: &'a BTreeSet<NodeId>) -> impl Iterator<Item = (NodeId, Vote)> + 'a {
        let votes = self.votes.get(&worker).into_iter().flatten();
        votes.map(|(node, vote)| (*node, *vote)).filter(|(node, _)| alive.contains(node))
    }
}

/// Sorts the nodes of a rendezvous: the least is first.
fn rank(node: NodeId, worker: WorkerId) -> (std::cmp::Reverse<u64>, NodeId) {
    (std::cmp::Reverse(node.score(worker.as_u128())), node)
}

fn is_prober(me: NodeId, worker: WorkerId, alive: &BTreeSet<NodeId>) -> bool {
    let own = rank(me, worker);
    alive.len() <= PROBERS || alive.iter().filter(|node| rank(**node, worker) < own).take(PROBERS).count() < PROBERS
}

/// What votes come to. One sick vote of two never ejects a worker: the other still reaches it well.
pub(crate) fn verdict(votes: impl Iterator<Item = Vote>) -> Verdict {
    let mut any = false;
    let (mut up, mut sick) = (0_usize, 0_usize);
    for vote in votes {
        any = true;
        match vote {
            Vote::Up => up += 1,
            Vote::Sick => sick += 1,
            Vote::Unreachable => {}
        }
    }
    match (any, up) {
        (false, _) => Verdict::Unknown,
        (true, 0) => Verdict::Down,
        _ if sick > up => Verdict::Down,
        _ => Verdict::Up,
    }
}
