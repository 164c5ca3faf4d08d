//! A bounded memory of how requests were routed, for `smg explain`.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use serde::Serialize;
use smg_base::{RequestId, WorkerId};
use smg_routing::{Explanation, PathTaken};

/// Why a request went where it went.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Record {
    pub(crate) request_id: RequestId,
    pub(crate) endpoint: &'static str,
    /// The peer that handed the request on, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_peer: Option<PathTaken>,
    pub(crate) model: String,
    pub(crate) streaming: bool,
    /// Milliseconds since the Unix epoch at which the request came in.
    pub(crate) received_unix_ms: u64,
    pub(crate) input_tokens_estimate: u64,
    pub(crate) attempts: Vec<AttemptRecord>,
    pub(crate) status: u16,
    pub(crate) outcome: &'static str,
    /// Milliseconds of each part of the request's life.
    pub(crate) timing_ms: Timing,
}

/// One try of one worker.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct AttemptRecord {
    pub(crate) worker: Option<WorkerId>,
    /// `direct`, or the peer that handed the request on.
    pub(crate) path: Option<PathTaken>,
    /// The worker chosen here, where the peer took another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instead_of: Option<WorkerId>,
    /// How it ended; none while it goes on.
    pub(crate) result: Option<&'static str>,
    pub(crate) dispatched: &'static str,
    pub(crate) decision: Box<Explanation>,
}

/// Where the time went.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Timing {
    pub(crate) queue: f64,
    pub(crate) overhead: f64,
    pub(crate) first_byte: Option<f64>,
    pub(crate) total: f64,
}

/// The last so-many records, the oldest overwritten. A writer takes the lock of its own slot only.
pub(crate) struct Explanations {
    slots: Box<[Mutex<Option<Box<Record>>>]>,
    next: AtomicUsize,
}

impl Explanations {
    pub(crate) fn new(records_max: usize) -> Self {
        Self { slots: (0..records_max).map(|_| Mutex::new(None)).collect(), next: AtomicUsize::new(0) }
    }

    /// Whether anything is remembered at all.
    pub(crate) fn is_on(&self) -> bool {
        !self.slots.is_empty()
    }

    pub(crate) fn remember(&self, record: Box<Record>) {
        if let Some(slot) = self.next.fetch_add(1, Ordering::Relaxed).checked_rem(self.slots.len()) {
            *self.slots[slot].lock() = Some(record);
        }
    }

    /// The newest record of a request.
    pub(crate) fn find(&self, request_id: &str) -> Option<Box<Record>> {
        let newest = self.next.load(Ordering::Relaxed);
        let length = self.slots.len();
        (1..=length).find_map(|age| {
            let slot = newest.wrapping_sub(age) % length;
            self.slots[slot].lock().as_ref().filter(|record| record.request_id.as_str() == request_id).cloned()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str) -> Box<Record> {
        Box::new(Record {
            request_id: RequestId::from(id),
            endpoint: "chat",
            from_peer: None,
            model: String::new(),
            streaming: false,
            received_unix_ms: 0,
            input_tokens_estimate: 0,
            attempts: Vec::new(),
            status: 200,
            outcome: "ok",
            timing_ms: Timing::default(),
        })
    }

    #[test]
    fn the_newest_are_kept() {
        let memory = Explanations::new(2);
        for id in ["a", "b", "c"] {
            memory.remember(record(id));
        }
        assert!(memory.find("a").is_none());
        assert!(memory.find("b").is_some());
        assert!(memory.find("c").is_some());
        let off = Explanations::new(0);
        off.remember(record("a"));
        assert!(off.find("a").is_none());
    }
}
