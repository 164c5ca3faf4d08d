//! The permission to send one request to a worker.

use std::sync::Arc;

use smg_base::Timestamp;

use crate::{BreakerTransition, Outcome, WorkerState, breaker::Pass};

/// One request that a worker's breaker let through. It ends with [`Ticket::record`]; dropped, it counts as
/// [`Outcome::Neutral`], so a half-open breaker always gets its probe back. Record it as soon as the outcome is known
/// (for a stream: when the first token came, or when it failed before), because a half-open breaker lets nothing
/// else through until then.
#[must_use = "a ticket that is not recorded tells the breaker nothing"]
#[derive(Debug)]
pub struct Ticket {
    state: Arc<WorkerState>,
    pass: Option<Pass>,
}

impl Ticket {
    pub(crate) fn new(state: Arc<WorkerState>, now: Timestamp) -> Option<Self> {
        let pass = state.breaker.admit(now)?;
        Some(Self { state, pass: Some(pass) })
    }

    /// The transition that letting this request through made: from open to half-open, or none.
    pub fn transition(&self) -> Option<BreakerTransition> {
        self.pass.as_ref().and_then(|pass| pass.transition)
    }

    /// Says what became of the request; returns the transition this made.
    pub fn record(mut self, outcome: Outcome, now: Timestamp) -> Option<BreakerTransition> {
        let pass = self.pass.take()?;
        if outcome == Outcome::Success {
            self.state.health.note_traffic(now);
        }
        self.state.breaker.record(&pass, outcome, now)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            // A neutral outcome moves nothing that depends on the time.
            self.state.breaker.record(&pass, Outcome::Neutral, Timestamp::ORIGIN);
        }
    }
}
