//! The idle connections to one worker.

use std::{collections::VecDeque, time::Duration};

use hyper::client::conn::http2;
use parking_lot::Mutex;
use prometheus::IntGauge;
use tokio::time::Instant;

use crate::{
    connection::{Connection, OpenGuard},
    outbound::OutboundBody,
};

/// How long an unused HTTP/2 connection is kept. Closing one is announced (GOAWAY), so no request is lost to it, and
/// opening one is dearer.
const SHARED_IDLE: Duration = Duration::from_secs(60);

/// How many idle connections are kept, and for how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) connections_max: usize,
    pub(crate) idle: Duration,
}

/// Connections to one worker that may take a request: HTTP/1.1 ones that are idle, and one HTTP/2 connection that all
/// requests share. The locks are held for a push or a pop; connections are closed outside of them.
pub(crate) struct Pool {
    /// Oldest first. The newest is used first, so that what is left over grows old and is closed.
    idle: Mutex<VecDeque<Idle>>,
    shared: Mutex<Option<Shared>>,
    limits: Limits,
    idle_count: IntGauge,
}

struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

/// A connection many requests use at once. Its driver has a task of its own, which ends when the last handle and the
/// last stream are gone.
#[derive(Clone)]
struct Shared {
    sender: http2::SendRequest<OutboundBody>,
    used: Instant,
    _open: std::sync::Arc<OpenGuard>,
}

impl Pool {
    pub(crate) fn new(limits: Limits, idle_count: IntGauge) -> Self {
        Self { idle: Mutex::default(), shared: Mutex::default(), limits, idle_count }
    }

    /// The connection that was used last, if it is young enough to be trusted.
    pub(crate) fn take(&self) -> Option<Box<Connection>> {
        let newest = self.idle.lock().pop_back()?;
        self.idle_count.dec();
        if newest.since.elapsed() < self.limits.idle {
            return Some(newest.connection);
        }
        // All others are older still.
        self.clear();
        None
    }

    /// Takes back a connection that is ready for another request.
    pub(crate) fn put(&self, connection: Box<Connection>) {
        if self.limits.connections_max == 0 {
            return;
        }
        let surplus = {
            let mut idle = self.idle.lock();
            let surplus = if idle.len() >= self.limits.connections_max { idle.pop_front() } else { None };
            idle.push_back(Idle { connection, since: Instant::now() });
            surplus
        };
        if surplus.is_none() {
            self.idle_count.inc();
        }
    }

    /// A handle on the shared connection, if there is one that is open.
    pub(crate) fn share(&self) -> Option<http2::SendRequest<OutboundBody>> {
        let mut shared = self.shared.lock();
        let open = shared.as_mut().filter(|open| !open.sender.is_closed())?;
        open.used = Instant::now();
        Some(open.sender.clone())
    }

    /// Makes `sender` the handle that requests share.
    pub(crate) fn set_shared(&self, sender: http2::SendRequest<OutboundBody>, open: OpenGuard) {
        let shared = Shared { sender, used: Instant::now(), _open: std::sync::Arc::new(open) };
        drop(self.shared.lock().replace(shared));
    }

    /// Closes what has been idle for too long.
    pub(crate) fn sweep(&self) {
        let kept = self.limits.idle;
        let expired: Vec<Idle> = {
            let mut idle = self.idle.lock();
            let count = idle.iter().take_while(|entry| entry.since.elapsed() >= kept).count();
            idle.drain(..count).collect()
        };
        self.idle_count.sub(i64::try_from(expired.len()).unwrap_or(0));
        let unused = {
            let mut shared = self.shared.lock();
            let is_unused = |open: &mut Shared| open.sender.is_closed() || open.used.elapsed() >= SHARED_IDLE;
            shared.take_if(is_unused)
        };
        drop((expired, unused));
    }

    /// Whether no connection is kept.
    pub(crate) fn is_empty(&self) -> bool {
        self.idle.lock().is_empty() && self.shared.lock().is_none()
    }

    fn clear(&self) {
        let all = std::mem::take(&mut *self.idle.lock());
        self.idle_count.sub(i64::try_from(all.len()).unwrap_or(0));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
    }
}
