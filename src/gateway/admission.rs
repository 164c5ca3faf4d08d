//! What admission asks about a request, and what its refusals are called.

use std::time::Duration;

use http::HeaderMap;
use smg_admission::{Gate, Refusal};
use smg_infer::{Dispatched, Failure, FailureCode};

use crate::body;

/// In which callers say how urgent a request is.
pub(crate) const PRIORITY: &str = "x-smg-priority";

/// Bytes of a body for each token of its prompt, before it is read.
const BYTES_PER_TOKEN: u64 = 4;

/// What a request is taken to cost that does not say how long it is.
const COST_UNANNOUNCED: u64 = 1_024;

/// The tokens that a request is thought to cost, by its head alone. What it did cost is told when it has ended.
pub(crate) fn cost_at_the_door(headers: &HeaderMap) -> u64 {
    body::announced(headers).map_or(COST_UNANNOUNCED, |bytes| bytes / BYTES_PER_TOKEN)
}

/// The failure that a refusal leads to. With classes it has the names and statuses of the reference gateway's scheduler.
pub(crate) fn refused(gate: &Gate, refusal: Refusal) -> Failure {
    let (code, message) = match (refusal, gate.schedules()) {
        (Refusal::QueueFull { .. }, false) => (FailureCode::QueueFull, "too many requests are waiting already"),
        (Refusal::QueueTimeout { .. }, false) => (FailureCode::QueueTimeout, "no slot came free in time"),
        (Refusal::QueueFull { .. }, true) => {
            (FailureCode::SchedulerQueueFull, "too many requests of this priority are waiting already")
        }
        (Refusal::QueueTimeout { .. }, true) => {
            (FailureCode::SchedulerQueueTimeout, "the request's turn did not come in time")
        }
    };
    Failure::new(code, message).retry_after(refusal.retry_after())
}

/// The failure of a request that gave way to a more urgent one.
pub(crate) fn preempted() -> Failure {
    Failure::new(FailureCode::SchedulerPreempted, "a more urgent request took this one's place before its answer began")
        .dispatched(Dispatched::Maybe)
        .retry_after(Duration::from_secs(1))
}
