//! Doubts: the fast and soft verdict on a peer, which only makes routing prefer another way.
//!
//! Peers through which requests go are asked for an echo twice a second. An answer that is late, a forward that failed and a
//! gossiped suspicion raise a doubt; an answered echo clears it.

use std::{collections::BTreeMap, time::Duration};

use smg_base::Timestamp;

use crate::NodeId;

const ECHO_EVERY: Duration = Duration::from_millis(500);
const LATE_AFTER: Duration = Duration::from_millis(300);
/// How long a failed forward is held against a peer at least.
const FAILED_FOR: Duration = Duration::from_secs(2);
/// Peers that are probed.
const CANDIDATES_MAX: usize = 8;

/// All doubts.
#[derive(Default)]
pub(crate) struct Doubts {
    peers: BTreeMap<NodeId, Doubt>,
    candidates: Vec<NodeId>,
}

#[derive(Default)]
struct Doubt {
    /// The echo that waits for its answer.
    asked: Option<Asked>,
    /// When the next is due.
    next: Timestamp,
    late: bool,
    /// A forward failed; until then no answer clears it.
    failed: Option<Timestamp>,
}

struct Asked {
    nonce: u64,
    at: Timestamp,
}

impl Doubts {
    pub(crate) fn is_doubted(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|doubt| doubt.late || doubt.failed.is_some())
    }

    /// The peers to probe from now on.
    pub(crate) fn set_candidates(&mut self, now: Timestamp, mut candidates: Vec<NodeId>) -> Vec<NodeId> {
        candidates.truncate(CANDIDATES_MAX);
        self.candidates = candidates;
        for node in &self.candidates {
            self.peers.entry(*node).or_insert_with(|| Doubt { next: now, ..Doubt::default() });
        }
        let mut dropped = Vec::new();
        let candidates = &self.candidates;
        self.peers.retain(|node, doubt| {
            let kept = candidates.contains(node) || doubt.failed.is_some();
            if !kept {
                dropped.push(*node);
            }
            kept
        });
        dropped
    }

    /// A forward failed.
    pub(crate) fn failed(&mut self, now: Timestamp, node: NodeId) {
        let doubt = self.peers.entry(node).or_default();
        doubt.failed = Some(now + FAILED_FOR);
        doubt.next = doubt.next.max(now);
    }

    /// An echo was answered. Tells whether that clears a doubt.
    pub(crate) fn answered(&mut self, now: Timestamp, node: NodeId, nonce: u64) -> bool {
        let Some(doubt) = self.peers.get_mut(&node) else { return false };
        if doubt.asked.as_ref().is_none_or(|asked| asked.nonce != nonce) {
            return false;
        }
        doubt.asked = None;
        let before = doubt.late || doubt.failed.is_some();
        doubt.late = false;
        doubt.failed = doubt.failed.filter(|until| *until > now);
        let cleared = before && doubt.failed.is_none();
        if doubt.failed.is_none() && !self.candidates.contains(&node) {
            self.peers.remove(&node);
        }
        cleared
    }

    /// The peer's session ended: what was asked is not going to be answered.
    pub(crate) fn lost(&mut self, node: NodeId) -> bool {
        let Some(doubt) = self.peers.get_mut(&node) else { return false };
        doubt.asked = None;
        !std::mem::replace(&mut doubt.late, true)
    }

    /// Peers that are forgotten.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.peers.remove(&node);
    }

    /// Whom to ask for an echo now.
    pub(crate) fn due(&self, now: Timestamp) -> Vec<NodeId> {
        let waits = |doubt: &Doubt| doubt.asked.as_ref().is_some_and(|asked| now.since(asked.at) < ECHO_EVERY * 4);
        self.peers.iter().filter(|(_, doubt)| doubt.next <= now && !waits(doubt)).map(|(node, _)| *node).collect()
    }

    /// An echo was sent, or could not be as there is no session. Tells whether that raises a doubt.
    pub(crate) fn asked(&mut self, now: Timestamp, node: NodeId, nonce: Option<u64>) -> bool {
        let Some(doubt) = self.peers.get_mut(&node) else { return false };
        doubt.next = now + ECHO_EVERY;
        doubt.asked = nonce.map(|nonce| Asked { nonce, at: now });
        nonce.is_none() && !std::mem::replace(&mut doubt.late, true)
    }

    /// Peers whose answer has just become late.
    pub(crate) fn late(&mut self, now: Timestamp, rtt: impl Fn(NodeId) -> Option<Duration>) -> Vec<NodeId> {
        let mut late = Vec::new();
        for (node, doubt) in &mut self.peers {
            let Some(asked) = &doubt.asked else { continue };
            if !doubt.late && now >= deadline(asked, rtt(*node)) {
                doubt.late = true;
                late.push(*node);
            }
        }
        late
    }

    /// When something is to be done.
    pub(crate) fn next_tick(&self, rtt: impl Fn(NodeId) -> Option<Duration>) -> Option<Timestamp> {
        let mut next: Option<Timestamp> = None;
        for (node, doubt) in &self.peers {
            let due = match &doubt.asked {
                Some(asked) if !doubt.late => deadline(asked, rtt(*node)),
                Some(asked) => asked.at + ECHO_EVERY * 4,
                None => doubt.next,
            };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        next
    }
}

fn deadline(asked: &Asked, rtt: Option<Duration>) -> Timestamp {
    asked.at + rtt.map_or(LATE_AFTER, |rtt| LATE_AFTER.max(rtt * 3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_millis(ms)
    }

    #[test]
    fn a_late_answer_raises_a_doubt_and_clears_it() {
        let (node, mut doubts) = (NodeId::of("a"), Doubts::default());
        let no_rtt = |_| None;
        doubts.set_candidates(at(0), vec![node]);
        assert_eq!(doubts.due(at(0)), [node]);
        doubts.asked(at(0), node, Some(1));
        assert_eq!(doubts.late(at(299), no_rtt), []);
        assert_eq!(doubts.next_tick(no_rtt), Some(at(300)));
        assert_eq!(doubts.late(at(300), |_| Some(Duration::from_millis(200))), [], "three round trips");
        assert_eq!(doubts.late(at(300), no_rtt), [node]);
        assert!(doubts.is_doubted(node));
        assert!(!doubts.answered(at(350), node, 2), "another's answer");
        assert!(doubts.answered(at(350), node, 1));
        assert!(!doubts.is_doubted(node));
        assert_eq!(doubts.due(at(499)), []);
        assert_eq!(doubts.due(at(500)), [node]);
    }

    #[test]
    fn a_failed_forward_is_held_for_two_seconds_and_until_an_answer() {
        let (node, mut doubts) = (NodeId::of("a"), Doubts::default());
        doubts.failed(at(0), node);
        assert!(doubts.is_doubted(node));
        doubts.asked(at(0), node, Some(1));
        assert!(!doubts.answered(at(10), node, 1));
        assert!(doubts.is_doubted(node));
        doubts.asked(at(5_000), node, Some(2));
        assert!(doubts.is_doubted(node), "time alone does not clear it");
        assert!(doubts.answered(at(5_001), node, 2));
        assert!(!doubts.is_doubted(node));
        assert_eq!(doubts.next_tick(|_| None), None, "a peer that is no candidate is not probed on");
    }

    #[test]
    fn at_most_eight_are_probed() {
        let mut doubts = Doubts::default();
        doubts.set_candidates(at(0), (0..20).map(NodeId::from_u128).collect());
        assert_eq!(doubts.due(at(0)).len(), 8);
        doubts.set_candidates(at(0), vec![]);
        assert_eq!(doubts.due(at(0)), []);
    }
}
