//! The limits at work.

use std::{sync::Arc, time::Duration};

use smg_base::Clock;
use smg_limits::Limiter;
use smg_runtime::{Phase, Shutdown};
use tokio::time::{Instant, sleep_until};

use super::inbox::Inbox;
use crate::prefixes::Others;

/// How often counters in which nothing counts any more are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// The driver.
pub(super) struct Driver {
    limiter: Arc<Limiter>,
    inbox: Arc<Inbox>,
    #[expect(dead_code, reason = "the plane over the mesh comes next")]
    others: Option<Others>,
    clock: Arc<dyn Clock>,
}

impl Driver {
    pub(super) fn new(limiter: Arc<Limiter>, inbox: Arc<Inbox>, others: Option<Others>, clock: Arc<dyn Clock>) -> Self {
        Self { limiter, inbox, others, clock }
    }

    /// Works until the process stops.
    pub(super) async fn run(self, shutdown: Shutdown) {
        let mut due = Instant::now();
        loop {
            due += SWEEP_EVERY;
            tokio::select! {
                () = shutdown.reached(Phase::Stopped) => return,
                () = self.inbox.filled() => drop(self.inbox.take()),
                () = sleep_until(due) => self.limiter.sweep(self.clock.now()),
            }
        }
    }
}
