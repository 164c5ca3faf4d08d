//! The memory set aside for request bodies.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use prometheus::IntGauge;
use smg_infer::{Failure, FailureCode};

/// Counts the bytes of all bodies being read or kept for a retry against one limit.
#[derive(Debug)]
pub(crate) struct BodyBudget {
    used: AtomicU64,
    bytes_max: u64,
    gauge: IntGauge,
}

/// A share of the budget; given back when dropped.
#[derive(Debug)]
pub(crate) struct BodyShare {
    budget: Arc<BodyBudget>,
    bytes: u64,
}

impl BodyBudget {
    pub(crate) fn new(bytes_max: u64, gauge: IntGauge) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), bytes_max, gauge })
    }

    /// An empty share.
    pub(crate) fn share(self: &Arc<Self>) -> BodyShare {
        BodyShare { budget: self.clone(), bytes: 0 }
    }
}

impl BodyShare {
    /// Takes `bytes` more. On failure the share is unchanged.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Failure> {
        let max = self.budget.bytes_max;
        let taken = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|&total| total <= max)
        });
        if taken.is_err() {
            return Err(Failure::new(
                FailureCode::BodyBudgetExhausted,
                "the gateway has no memory left for request bodies, try again shortly",
            )
            .retry_after(std::time::Duration::from_secs(1)));
        }
        self.bytes += bytes;
        self.budget.gauge.add(i64::try_from(bytes).unwrap_or(i64::MAX));
        Ok(())
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.gauge.sub(i64::try_from(self.bytes).unwrap_or(i64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_never_overdrawn_and_comes_back() {
        let budget = BodyBudget::new(10, IntGauge::new("g", "g").unwrap());
        let mut first = budget.share();
        first.grow(7).unwrap();
        let mut second = budget.share();
        assert_eq!(second.grow(4).unwrap_err().code, FailureCode::BodyBudgetExhausted);
        second.grow(3).unwrap();
        drop(first);
        second.grow(7).unwrap();
        assert_eq!(budget.gauge.get(), 10);
        drop(second);
        assert_eq!(budget.gauge.get(), 0);
    }
}
