//! The signals that tell a node to stop or to read its configuration again.

use tokio::signal::unix::{SignalKind, signal};

/// Waits for SIGTERM or SIGINT; returns which.
pub(crate) async fn stop() -> &'static str {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals keep their default meaning: they end the process.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
