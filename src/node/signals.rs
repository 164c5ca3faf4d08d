//! The signals that tell a node to stop, or to read its configuration again.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Takes SIGHUP from now on, instead of its ending the process.
pub(crate) fn reload() -> io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// SIGTERM and SIGINT. None that comes after [`Stop::listen`] is missed, also while nobody waits.
pub(crate) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    /// Takes the signals from now on, instead of their ending the process.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next; returns which.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
