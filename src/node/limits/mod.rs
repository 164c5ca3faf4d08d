//! The limits of this node: the limiter that requests ask, kept in step with those of other nodes.
//!
//! What nodes tell each other, and what follows from it, is decided by `smg_limits::mesh`, without clock or sockets; `driver` carries
//! it out, `inbox` is where the mesh leaves news.

mod driver;
mod inbox;

use std::sync::Arc;

use smg_base::Clock;
use smg_limits::{Limiter, LimiterConfig};
use smg_runtime::{TaskKind, Tasks};

pub(crate) use self::inbox::Inbox;

use self::driver::Driver;
use crate::prefixes::Others;

/// The limits of this node; shared by requests and the task that keeps them in step.
#[derive(Clone)]
pub(crate) struct Limits {
    limiter: Arc<Limiter>,
    inbox: Arc<Inbox>,
    others: Option<Others>,
    clock: Arc<dyn Clock>,
}

impl Limits {
    /// A limiter without rules.
    pub(crate) fn new(clock: Arc<dyn Clock>, others: Option<Others>) -> Self {
        let since_origin = clock.now().as_nanos() / 1_000_000;
        let config = LimiterConfig {
            unix_ms_at_origin: clock.unix_ms().saturating_sub(since_origin),
            is_meshed: others.is_some(),
            ..LimiterConfig::default()
        };
        Self { limiter: Arc::new(Limiter::new(config)), inbox: Arc::default(), others, clock }
    }

    /// What requests ask, and what takes the rules.
    pub(crate) fn limiter(&self) -> Arc<Limiter> {
        Arc::clone(&self.limiter)
    }

    /// Where the mesh leaves news.
    pub(crate) fn inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.inbox)
    }

    /// Starts to keep them in step.
    pub(crate) fn start(self, tasks: &Tasks) {
        let driver = Driver::new(self.limiter, self.inbox, self.others, self.clock);
        tasks.spawn(TaskKind::Background, "limits", driver.run(tasks.shutdown().clone()));
    }
}
