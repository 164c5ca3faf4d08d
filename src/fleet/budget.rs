//! How many retries a model may have.

use std::sync::atomic::{AtomicU64, Ordering};

use smg_base::Timestamp;

/// How a retry budget fills.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BudgetConfig {
    /// Retries earned per request.
    pub ratio: f64,
    /// Retries earned per second, so that a model with little traffic has some.
    pub floor_per_second: f64,
}

impl Default for BudgetConfig {
    fn default() -> Self {
        Self { ratio: 0.2, floor_per_second: 10.0 }
    }
}

/// A bucket of retries: requests and time put in, retries take out, and what does not fit is lost, so a quiet hour
/// does not save up for a storm. It holds ten seconds of the floor, at least ten retries.
#[derive(Debug)]
pub struct RetryBudget {
    balance_micro: AtomicU64,
    refilled_nanos: AtomicU64,
    per_request_micro: u64,
    per_second_micro: u64,
    balance_max_micro: u64,
}

const MICRO: f64 = 1e6;
const ONE_RETRY_MICRO: u64 = 1_000_000;
const SECOND_NANOS: u128 = 1_000_000_000;

impl RetryBudget {
    /// A full bucket.
    pub fn new(config: BudgetConfig) -> Self {
        let per_request_micro = micro(config.ratio);
        let per_second_micro = micro(config.floor_per_second);
        let balance_max_micro = per_second_micro.saturating_mul(10).max(10 * ONE_RETRY_MICRO);
        // With nothing to earn there is nothing to start with either: no retries at all.
        let balance_micro = if per_request_micro + per_second_micro == 0 { 0 } else { balance_max_micro };
        Self {
            balance_micro: AtomicU64::new(balance_micro),
            refilled_nanos: AtomicU64::new(0),
            per_request_micro,
            per_second_micro,
            balance_max_micro,
        }
    }

    /// Counts a request (not a retry).
    pub fn deposit(&self, now: Timestamp) {
        self.put(self.per_request_micro + self.earned_micro(now));
    }

    /// Takes one retry, if there is one.
    pub fn withdraw(&self, now: Timestamp) -> bool {
        self.put(self.earned_micro(now));
        self.balance_micro
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |balance| balance.checked_sub(ONE_RETRY_MICRO))
            .is_ok()
    }

    /// Whole retries left, as of the last deposit or withdrawal.
    pub fn balance(&self) -> u64 {
        self.balance_micro.load(Ordering::Relaxed) / ONE_RETRY_MICRO
    }

    fn put(&self, amount_micro: u64) {
        if amount_micro == 0 {
            return;
        }
        let put = |balance: u64| Some(balance.saturating_add(amount_micro).min(self.balance_max_micro));
        let _always_some = self.balance_micro.fetch_update(Ordering::AcqRel, Ordering::Acquire, put);
    }

    /// What the floor earned since the last time anyone asked; of several who ask at once, one gets it. Only the
    /// time that was paid for is used up, so that asking often earns no less.
    fn earned_micro(&self, now: Timestamp) -> u64 {
        let last = self.refilled_nanos.load(Ordering::Acquire);
        let elapsed_nanos = now.as_nanos().saturating_sub(last);
        let earned = u128::from(elapsed_nanos) * u128::from(self.per_second_micro) / SECOND_NANOS;
        if earned == 0 {
            return 0;
        }
        let used_nanos = (earned * SECOND_NANOS).div_ceil(u128::from(self.per_second_micro));
        let used_nanos = u64::try_from(used_nanos).unwrap_or(u64::MAX).min(elapsed_nanos);
        let paid = last + used_nanos;
        match self.refilled_nanos.compare_exchange(last, paid, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => u64::try_from(earned).unwrap_or(u64::MAX).min(self.balance_max_micro),
            Err(_) => 0,
        }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(BudgetConfig::default())
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1e15")]
fn micro(amount: f64) -> u64 {
    if amount.is_nan() { 0 } else { (amount * MICRO).clamp(0.0, 1e15) as u64 }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicU32, thread, time::Duration};

    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_millis(millis)
    }

    fn withdraw_all(budget: &RetryBudget, now: Timestamp) -> u32 {
        let mut taken = 0;
        while budget.withdraw(now) {
            taken += 1;
        }
        taken
    }

    #[test]
    fn requests_and_time_earn_retries() {
        let budget = RetryBudget::default();
        assert_eq!(withdraw_all(&budget, at(0)), 100, "it starts full");
        for _ in 0..100 {
            budget.deposit(at(0));
        }
        assert_eq!(withdraw_all(&budget, at(0)), 20, "a fifth of the requests");
        assert_eq!(withdraw_all(&budget, at(1_000)), 10, "the floor of a second");
        assert_eq!(withdraw_all(&budget, at(3_600_000)), 100, "no more than it holds");
    }

    #[test]
    fn time_asked_in_small_steps_earns_as_much() {
        let budget = RetryBudget::default();
        withdraw_all(&budget, at(0));
        let taken: u32 = (1..=1_000).map(|millis| withdraw_all(&budget, at(millis))).sum();
        assert_eq!(taken, 10);
        assert!(!budget.withdraw(at(500)), "a clock that is behind earns nothing");
    }

    #[test]
    fn asking_so_often_that_only_fractions_are_earned_loses_none() {
        let budget = RetryBudget::new(BudgetConfig { ratio: 0.0, floor_per_second: 1.0 });
        withdraw_all(&budget, at(0));
        // A micro-retry is earned every 1000 ns.
        let taken = (0..=1_001_000_000 / 1_300).filter(|turn| budget.withdraw(Timestamp::from_nanos(turn * 1_300)));
        assert_eq!(taken.count(), 1);
    }

    #[test]
    fn odd_settings_do_no_harm() {
        let none = RetryBudget::new(BudgetConfig { ratio: 0.0, floor_per_second: 0.0 });
        assert_eq!(withdraw_all(&none, at(1_000_000)), 0);
        let nonsense = RetryBudget::new(BudgetConfig { ratio: f64::NAN, floor_per_second: -1.0 });
        nonsense.deposit(at(1));
        assert_eq!(withdraw_all(&nonsense, at(1_000)), 0);
        let endless = RetryBudget::new(BudgetConfig { ratio: f64::INFINITY, floor_per_second: 1e30 });
        endless.deposit(Timestamp::from_nanos(u64::MAX));
        assert!(endless.withdraw(Timestamp::from_nanos(u64::MAX)));
    }

    #[test]
    fn a_second_is_paid_out_once_however_many_ask() {
        const STEPS: u64 = 20_000;
        let budget = RetryBudget::new(BudgetConfig { ratio: 0.0, floor_per_second: 1_000.0 });
        withdraw_all(&budget, at(0));
        let clock = AtomicU64::new(0);
        let taken = AtomicU32::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..STEPS {
                        let now = at(clock.fetch_add(1, Ordering::SeqCst) + 1);
                        taken.fetch_add(u32::from(budget.withdraw(now)), Ordering::SeqCst);
                    }
                });
            }
        });
        let taken = taken.load(Ordering::SeqCst) + withdraw_all(&budget, at(4 * STEPS));
        assert_eq!(u64::from(taken), 4 * STEPS, "a retry per millisecond");
    }

    #[test]
    fn threads_never_take_more_than_there_is() {
        let budget = RetryBudget::new(BudgetConfig { ratio: 1.0, floor_per_second: 0.0 });
        let taken = AtomicU32::new(withdraw_all(&budget, at(0)));
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1_000 {
                        budget.deposit(at(0));
                        taken.fetch_add(u32::from(budget.withdraw(at(0))), Ordering::SeqCst);
                    }
                });
            }
        });
        let taken = taken.load(Ordering::SeqCst) + withdraw_all(&budget, at(0));
        assert_eq!(taken, 10 + 4_000);
    }
}
