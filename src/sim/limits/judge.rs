//! What all nodes together have let in, by true time.

use std::{collections::VecDeque, time::Duration};

use smg_base::Timestamp;

/// Clocks of nodes run wrong by at most this part (one in so many), so that their windows are shorter than true ones.
const DRIFT: u32 = 2_000;

/// Adds up what was let in within the window that ends now.
#[derive(Debug)]
pub(super) struct Judge {
    window: Duration,
    admitted: VecDeque<Timestamp>,
    /// The greatest sum so far since it was last taken.
    peak: usize,
    total: u64,
}

impl Judge {
    pub(super) fn new(window: Duration) -> Self {
        Self { window: window - window / DRIFT, admitted: VecDeque::new(), peak: 0, total: 0 }
    }

    /// One request was let in; says how many were within the window that ends with it.
    pub(super) fn admit(&mut self, now: Timestamp) -> usize {
        self.admitted.push_back(now);
        while self.admitted.front().is_some_and(|first| now.since(*first) >= self.window) {
            self.admitted.pop_front();
        }
        self.total += 1;
        self.peak = self.peak.max(self.admitted.len());
        self.admitted.len()
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// The greatest sum since this was last asked.
    pub(super) fn take_peak(&mut self) -> usize {
        std::mem::take(&mut self.peak)
    }
}
