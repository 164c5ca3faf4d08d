//! What the gateways know of the engines' caches, some time later.

use std::{collections::VecDeque, time::Duration};

use smg_base::Timestamp;
use smg_prefix::{Change, Claim, Predictor};

use super::{gateway::Gateway, known::Known};

/// Where knowledge of caches comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Engines report, and the reports reach all gateways.
    Events,
    /// Engines report nothing: gateways tell a home what they sent, and it tells all of them what follows.
    Predicted,
    /// Engines report nothing, and each gateway goes by what it sent itself.
    Alone,
}

/// Changes of caches on their way to the gateways.
#[derive(Debug)]
pub(super) struct News {
    ownership: Ownership,
    delay: Duration,
    claims: VecDeque<(Timestamp, usize, Claim)>,
    changes: VecDeque<(Timestamp, usize, Vec<Change>)>,
    /// The home's, by engine.
    homes: Vec<Predictor>,
    /// What all gateways know that follow a rule which takes events.
    pub(super) known: Option<Known>,
    /// Claims that went on from nothing that the home knows, and chunks that followed none that a gateway knows.
    pub(super) unplaced: u64,
}

impl News {
    pub(super) fn new(ownership: Ownership, delay: Duration, homes: Vec<Predictor>, known: Option<Known>) -> Self {
        let (claims, changes) = (VecDeque::new(), VecDeque::new());
        Self { ownership, delay, claims, changes, homes, known, unplaced: 0 }
    }

    /// An engine's cache has changed.
    pub(super) fn changed(&mut self, engine: usize, changes: Vec<Change>, now: Timestamp) {
        let is_told = self.ownership == Ownership::Events || self.known.is_some();
        if is_told && !changes.is_empty() {
            self.changes.push_back((now + self.delay, engine, changes));
        }
    }

    /// A gateway has sent something.
    pub(super) fn claimed(&mut self, gateway: &Gateway, now: Timestamp) {
        if self.ownership == Ownership::Predicted {
            let due = now + self.delay;
            gateway.take_claims(&mut |engine, claim| self.claims.push_back((due, engine, claim)));
        }
    }

    /// Lets arrive what was told by now.
    pub(super) fn advance(&mut self, now: Timestamp, gateways: &[Gateway]) {
        while let Some((due, engine, claim)) = self.claims.pop_front_if(|(due, ..)| *due <= now) {
            let mut changes = Vec::new();
            if !self.homes[engine].claim(&claim, &mut changes) {
                self.unplaced += 1;
            }
            if !changes.is_empty() {
                self.changes.push_back((due + self.delay, engine, changes));
            }
        }
        while let Some((_, engine, changes)) = self.changes.pop_front_if(|(due, ..)| *due <= now) {
            for change in &changes {
                for gateway in gateways {
                    self.unplaced += gateway.hear_change(engine, change, now);
                }
                if let Some(known) = &mut self.known {
                    known.apply(engine, change);
                }
            }
        }
    }
}
