//! What engines say of themselves, passed on to nodes that cannot ask them: without it they would not know which models a
//! worker serves that they reach only through a peer.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use smg_base::{Timestamp, WorkerId};
use smg_fleet::{EngineProfile, EngineSource, Fleet, HealthVote, Snapshot};
use smg_mesh_proto::Vote;

use super::known::{Facts, Known};

/// How long a worker's home waits before it tells: at first every node tries for itself.
const PATIENCE: Duration = Duration::from_secs(2);

/// What has been heard, and what is to be told.
#[derive(Default)]
pub(crate) struct Profiles {
    heard: BTreeMap<WorkerId, Bytes>,
    /// Workers this node is the home of, and when it looks whether somebody needs to be told.
    due: BTreeMap<WorkerId, Timestamp>,
}

impl Profiles {
    /// Takes down what a worker's home tells; the next [`Self::imported`] or [`Self::due`] uses it.
    pub(crate) fn heard(&mut self, worker: WorkerId, value: Option<&Bytes>) {
        match value {
            Some(value) => self.heard.insert(worker, value.clone()),
            None => self.heard.remove(&worker),
        };
    }

    /// Describes a worker by what was heard, unless this node has asked the engine itself.
    pub(crate) fn imported(&self, worker: WorkerId, fleet: &Fleet) {
        let Some(value) = self.heard.get(&worker) else { return };
        let snapshot = fleet.snapshot();
        let Some(there) = snapshot.worker(worker).filter(|there| there.vote() != Some(HealthVote::Up)) else { return };
        match serde_json::from_slice::<EngineProfile>(value) {
            Ok(profile) => {
                fleet.describe(worker, there.revision, profile);
            }
            Err(error) => tracing::warn!(%worker, %error, "what a peer says of an engine cannot be read"),
        }
    }

    /// A worker was placed anew; who asks its engine also speaks for it.
    pub(crate) fn placed(&mut self, worker: WorkerId, source: EngineSource, now: Timestamp) {
        if source == EngineSource::Asked {
            self.due.insert(worker, now + PATIENCE);
        } else {
            self.due.remove(&worker);
        }
    }

    /// What this node, as their home, has to tell of workers that some other node cannot ask.
    pub(crate) fn due(&mut self, known: &Known, snapshot: &Snapshot, now: Timestamp) -> Vec<(WorkerId, Bytes)> {
        let ready: Vec<WorkerId> = self.due.iter().filter(|(_, at)| **at <= now).map(|(worker, _)| *worker).collect();
        let mut told = Vec::new();
        for worker in ready {
            self.due.remove(&worker);
            let profile = snapshot.worker(worker).and_then(|there| there.profile.as_ref());
            let Some(profile) = profile.filter(|_| is_needed(&known.facts(), worker)) else { continue };
            let value: Bytes = serde_json::to_vec(profile).expect("all keys of a profile are text").into();
            if self.heard.get(&worker) != Some(&value) {
                told.push((worker, value));
            }
        }
        told
    }
}

/// Whether some node that lives does not reach a worker itself.
fn is_needed(facts: &Facts, worker: WorkerId) -> bool {
    let Some(reach) = facts.reach.get(&worker) else { return false };
    let votes_up = |node| reach.votes.iter().any(|(voter, vote)| *voter == node && *vote == Vote::Up);
    facts.members.values().any(|member| member.state.is_alive() && !votes_up(member.node))
}
