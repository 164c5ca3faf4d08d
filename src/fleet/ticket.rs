//! The permission to send one request to a worker.

use std::sync::Arc;

use smg_base::Timestamp;

use crate::{Breaker, BreakerTransition, Outcome, Path, WorkerState, breaker::Pass};

/// One request that the breaker of a path to a worker let through. It ends with [`Ticket::record`]; dropped, it counts as
/// [`Outcome::Neutral`], so a half-open breaker always gets its probe back. Record it as soon as the outcome is known
/// (for a stream: when the first token came, or when it failed before), because a half-open breaker lets nothing
/// else through until then.
#[must_use = "a ticket that is not recorded tells the breaker nothing"]
#[derive(Debug)]
pub struct Ticket {
    state: Arc<WorkerState>,
    path: Path,
    pass: Option<Pass>,
}

impl Ticket {
    pub(crate) fn new(state: Arc<WorkerState>, path: Path, now: Timestamp) -> Option<Self> {
        let pass = state.breaker_of(path).admit(now)?;
        Some(Self { state, path, pass: Some(pass) })
    }

    /// The path it is for.
    pub fn path(&self) -> Path {
        self.path
    }

    /// The breaker that let it through.
    pub fn breaker(&self) -> &Breaker {
        self.state.breaker_of(self.path)
    }

    /// The transition that letting this request through made: from open to half-open, or none.
    pub fn transition(&self) -> Option<BreakerTransition> {
        self.pass.as_ref().and_then(|pass| pass.transition)
    }

    /// Says what became of the request; returns the transition this made.
    pub fn record(mut self, outcome: Outcome, now: Timestamp) -> Option<BreakerTransition> {
        let pass = self.pass.take()?;
        if outcome == Outcome::Success && self.path == Path::Direct {
            self.state.health.note_traffic(now);
        }
        self.breaker().record(&pass, outcome, now)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            // A neutral outcome moves nothing that depends on the time.
            self.breaker().record(&pass, Outcome::Neutral, Timestamp::ORIGIN);
        }
    }
}
