//! A limit on how fast requests may start.

use std::time::Duration;

use smg_base::Timestamp;

/// A token bucket in the form of the generic cell rate algorithm (ITU-T I.371): instead of a count it keeps the time
/// at which it would be full again, so it needs no refilling. Holds a second's worth of tokens, but at least one.
#[derive(Debug)]
pub(crate) struct Bucket {
    interval: Duration,
    /// How far ahead of now the time below may lie while a token is left.
    slack: Duration,
    full_at: Timestamp,
}

impl Bucket {
    /// A full bucket that gains `per_second` tokens; `None` if that is not a positive, finite number.
    pub(crate) fn new(per_second: f64) -> Option<Self> {
        if !per_second.is_finite() || per_second <= 0.0 {
            return None;
        }
        let interval = Duration::try_from_secs_f64(per_second.recip()).ok()?.max(Duration::from_nanos(1));
        let slack = Duration::from_secs(1).saturating_sub(interval);
        Some(Self { interval, slack, full_at: Timestamp::ORIGIN })
    }

    /// The time between two tokens.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// When the next token can be taken; a time in the past means now.
    pub(crate) fn ready_at(&self) -> Timestamp {
        self.full_at - self.slack
    }

    /// Takes a token, which the caller knows to be there.
    pub(crate) fn take(&mut self, now: Timestamp) {
        debug_assert!(self.ready_at() <= now, "a token is taken only when there is one");
        self.full_at = self.full_at.max(now) + self.interval;
    }

    /// Goes on where `earlier` was, so that a new rate is no new burst.
    pub(crate) fn continued_from(mut self, earlier: &Self) -> Self {
        self.full_at = earlier.full_at;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_secs(100) + Duration::from_millis(ms)
    }

    fn taken_at(bucket: &mut Bucket, now: Timestamp) -> usize {
        let mut taken = 0;
        while bucket.ready_at() <= now {
            bucket.take(now);
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_second_of_tokens_at_once_and_then_the_rate() {
        let check = |per_second: f64, burst: usize, wait_ms: u64| {
            let mut bucket = Bucket::new(per_second).expect("a rate");
            assert_eq!(taken_at(&mut bucket, at(0)), burst, "{per_second} per second");
            assert_eq!(bucket.ready_at().since(at(0)), Duration::from_millis(wait_ms));
            assert_eq!(taken_at(&mut bucket, at(wait_ms)), 1);
            assert_eq!(taken_at(&mut bucket, at(1_000_000)), burst, "it is full again");
        };
        check(10.0, 10, 100);
        check(1.0, 1, 1_000);
        check(0.5, 1, 2_000);
        check(200.0, 200, 5);
    }

    #[test]
    fn what_is_no_rate_is_no_limit() {
        for per_second in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-300] {
            assert!(Bucket::new(per_second).is_none(), "{per_second}");
        }
        assert_eq!(Bucket::new(1e12).expect("a rate").interval(), Duration::from_nanos(1));
    }
}
