//! How long to wait before trying again.

use std::time::Duration;

use crate::Random;

/// Exponential backoff with jitter: attempt `n` (from zero) waits `min(initial · multiplierⁿ, max)`, spread by
/// ± `jitter` of itself, so that callers that failed together do not return together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// The first wait.
    pub initial: Duration,
    /// The longest wait before jitter.
    pub max: Duration,
    /// Growth per attempt; at least 1.
    pub multiplier: f64,
    /// Spread, as a share of the wait, in `0.0..=1.0`.
    pub jitter: f64,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Duration::from_millis(50), max: Duration::from_secs(30), multiplier: 1.5, jitter: 0.2 }
    }
}

impl Backoff {
    /// The wait before attempt `attempt + 1`.
    pub fn delay(&self, attempt: u32, random: &dyn Random) -> Duration {
        let exponent = i32::try_from(attempt.min(1_000)).unwrap_or(1_000);
        let grown = self.initial.as_secs_f64() * self.multiplier.max(1.0).powi(exponent);
        let capped = grown.min(self.max.as_secs_f64());
        let spread = 1.0 + self.jitter.clamp(0.0, 1.0) * (2.0 * random.unit() - 1.0);
        Duration::from_secs_f64((capped * spread).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SplitMix;

    #[test]
    fn waits_grow_to_the_cap_and_stay_within_the_jitter() {
        let random = SplitMix::new(3);
        let backoff = Backoff { jitter: 0.0, ..Backoff::default() };
        assert_eq!(backoff.delay(0, &random), Duration::from_millis(50));
        assert_eq!(backoff.delay(1, &random), Duration::from_millis(75));
        assert_eq!(backoff.delay(u32::MAX, &random), Duration::from_secs(30));
        let spread = Backoff::default();
        for _ in 0..1_000 {
            let wait = spread.delay(0, &random).as_secs_f64();
            assert!((0.04..=0.06).contains(&wait), "{wait}");
        }
    }
}
