//! The order in which a process stops.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::sync::watch;

/// How far the process has come on its way to the end. Phases only ever advance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Phase {
    /// Serving.
    Running,
    /// Not ready any more, so that balancers look elsewhere; new requests are still accepted.
    Draining,
    /// Listeners are closed, idle connections too; requests in flight go on.
    Closing,
    /// Everything ends now.
    Stopped,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Running, Self::Draining, Self::Closing, Self::Stopped];

    /// The phase as it is written in logs and status lines.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Draining => "draining",
            Self::Closing => "closing",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// The phase of the process, shared by everything that must know it.
#[derive(Clone, Debug)]
pub struct Shutdown {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// A copy of the watched value, for readers on the request path.
    phase: AtomicU8,
    changed: watch::Sender<Phase>,
}

impl Shutdown {
    /// A process that is running.
    pub fn new() -> Self {
        let phase = AtomicU8::new(Phase::Running as u8);
        Self { inner: Arc::new(Inner { phase, changed: watch::Sender::new(Phase::Running) }) }
    }

    /// The present phase: one atomic load.
    pub fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.inner.phase.load(Ordering::Acquire))]
    }

    /// Whether the process is on its way out.
    pub fn is_draining(&self) -> bool {
        self.phase() >= Phase::Draining
    }

    /// Goes on to `phase`, and says whether that was a step forward; a step back does nothing.
    pub fn advance(&self, phase: Phase) -> bool {
        self.inner.changed.send_if_modified(|present| {
            let forward = *present < phase;
            if forward {
                *present = phase;
                self.inner.phase.store(phase as u8, Ordering::Release);
            }
            forward
        })
    }

    /// Waits until `phase`, or a later one, is reached.
    pub async fn reached(&self, phase: Phase) {
        let mut changes = self.inner.changed.subscribe();
        // An error would mean that the sender is gone, but `self` holds it.
        let _ = changes.wait_for(|present| *present >= phase).await;
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_only_advance() {
        let shutdown = Shutdown::new();
        assert_eq!(shutdown.phase(), Phase::Running);
        assert!(!shutdown.is_draining());
        assert!(shutdown.advance(Phase::Closing));
        assert!(!shutdown.advance(Phase::Draining));
        assert!(!shutdown.advance(Phase::Closing));
        assert_eq!(shutdown.phase(), Phase::Closing);
        assert!(shutdown.is_draining());
    }

    #[tokio::test]
    async fn a_phase_that_was_jumped_over_counts_as_reached() {
        let shutdown = Shutdown::new();
        let waiter = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { shutdown.reached(Phase::Draining).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        shutdown.advance(Phase::Stopped);
        waiter.await.expect("the waiter ends");
        shutdown.reached(Phase::Running).await;
    }
}
