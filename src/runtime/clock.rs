//! The real clock and the seed of the process's randomness.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use smg_base::{Clock, SplitMix, Timestamp};
use tokio::time::Instant;

/// Readings of the operating system's clocks.
///
/// Monotonic time is read through tokio, which costs nothing more and makes this clock stand still with the timers
/// when a test pauses them.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose origin is one second ago, so that a reading taken now is already past [`Timestamp::ORIGIN`].
    pub fn new() -> Self {
        let now = Instant::now();
        Self { origin: now.checked_sub(Duration::from_secs(1)).unwrap_or(now) }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::ORIGIN + Instant::now().saturating_duration_since(self.origin)
    }

    fn unix_ms(&self) -> u64 {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A random sequence that starts at a place chosen by the operating system. Not for secrets.
pub fn entropy() -> SplitMix {
    // The standard library keys its hasher from the system's entropy source: the only one it offers in safe code.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    SplitMix::new(hasher.finish())
}

#[cfg(test)]
mod tests {
    use smg_base::Random;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_follows_paused_time() {
        let clock = SystemClock::new();
        let before = clock.now();
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(clock.now().since(before), Duration::from_secs(90));
        assert!(before > Timestamp::ORIGIN);
        assert!(clock.unix_ms() > 1_700_000_000_000);
    }

    #[test]
    fn two_sequences_differ() {
        assert_ne!(entropy().next_u64(), entropy().next_u64());
    }
}
