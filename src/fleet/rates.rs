//! How fast a worker is, learned from its answers.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Duration,
};

use smg_base::Timestamp;

use crate::Outcome;

/// Averages over the last requests, older ones fading. Each is one atomic word, so observers never wait; of two that
/// observe at once, both count.
///
/// What decisions read comes first and stays in this order: see [`crate::WorkerState`].
#[derive(Debug, Default)]
#[repr(C)]
pub struct Rates {
    prefill: AtomicU64,
    errors: AtomicU64,
    gap: AtomicU64,
    ttft: AtomicU64,
    /// The bits of what follows from `prefill`; as of an observation earlier, if two were made at once.
    seconds_per_token: AtomicU32,
}

/// What the newest sample weighs in an average.
const NEWEST: f32 = 0.1;
/// What the newest outcome weighs in the error rate.
const NEWEST_OUTCOME: f32 = 0.05;
/// Prompts shorter than this tell about fixed costs, not about the speed of prefill.
const PREFILL_TOKENS_MIN: u64 = 32;
/// In this time an error rate halves by itself, so that a worker that is avoided for its errors is tried again.
const ERRORS_HALVE_IN: Duration = Duration::from_secs(30);

impl Rates {
    /// The first token of a request came `ttft` after dispatch. `tokens` is what the engine had to prefill until
    /// then: the request's own uncached tokens, and those of [`crate::LoadGuard::tokens_ahead`].
    #[expect(clippy::cast_precision_loss, reason = "an average needs no more than seven digits")]
    pub fn observe_ttft(&self, tokens: u64, ttft: Duration) {
        let seconds = ttft.as_secs_f32();
        change(&self.ttft, |word| average(word, seconds));
        if tokens >= PREFILL_TOKENS_MIN && seconds > 0.0 {
            // Two fading sums instead of an average of ratios: long prompts weigh by their length.
            change(&self.prefill, |word| {
                let (sum_tokens, sum_seconds) = halves(word);
                join(sum_tokens * (1.0 - NEWEST) + tokens as f32, sum_seconds * (1.0 - NEWEST) + seconds)
            });
            let (sum_tokens, sum_seconds) = halves(self.prefill.load(Ordering::Relaxed));
            self.seconds_per_token.store((sum_seconds / sum_tokens).to_bits(), Ordering::Relaxed);
        }
    }

    /// Time between two tokens of one request.
    pub fn observe_gap(&self, gap: Duration) {
        change(&self.gap, |word| average(word, gap.as_secs_f32()));
    }

    /// A request ended at `now`.
    pub fn observe_outcome(&self, outcome: Outcome, now: Timestamp) {
        let sample = match outcome {
            Outcome::Success => 0.0,
            Outcome::Failure => 1.0,
            Outcome::Neutral => return,
        };
        change(&self.errors, |word| {
            let rate = faded(word, now);
            pack(rate + NEWEST_OUTCOME * (sample - rate), coarse(now))
        });
    }

    /// Prompt tokens prefilled per second.
    #[inline]
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        let (tokens, seconds) = halves(self.prefill.load(Ordering::Relaxed));
        (seconds > 0.0).then(|| f64::from(tokens / seconds))
    }

    /// The same turned round, and zero if nothing has been measured: what decisions need, without a division.
    #[inline]
    pub fn prefill_seconds_per_token(&self) -> f32 {
        f32::from_bits(self.seconds_per_token.load(Ordering::Relaxed))
    }

    /// Seconds from dispatch to the first token.
    pub fn ttft_seconds(&self) -> Option<f64> {
        read_average(&self.ttft)
    }

    /// Seconds between two tokens of one request.
    pub fn gap_seconds(&self) -> Option<f64> {
        read_average(&self.gap)
    }

    /// The share of requests that fail, in `0.0..=1.0`; zero until one has failed, and fading with time.
    #[inline]
    pub fn error_rate(&self, now: Timestamp) -> f64 {
        f64::from(faded(self.errors.load(Ordering::Relaxed), now))
    }
}

fn change(word: &AtomicU64, step: impl Fn(u64) -> u64) {
    let _always_some = word.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(step(word)));
}

/// An average and the number of its samples: the first samples weigh by their number, so that the average starts
/// with the first of them and not with zero.
#[expect(clippy::cast_precision_loss, reason = "counts are small where their weight matters")]
fn average(word: u64, sample: f32) -> u64 {
    let (mean, count) = unpack(word);
    let count = count.saturating_add(1);
    let weight = NEWEST.max(1.0 / count as f32);
    pack(mean + weight * (sample - mean), count)
}

fn read_average(word: &AtomicU64) -> Option<f64> {
    let (mean, count) = unpack(word.load(Ordering::Relaxed));
    (count > 0).then(|| f64::from(mean))
}

/// The error rate in `word`, as it is at `now`.
#[inline]
fn faded(word: u64, now: Timestamp) -> f32 {
    let (rate, at) = unpack(word);
    if rate == 0.0 {
        return 0.0;
    }
    // Wrapping: the coarse clock wraps after two years; and `now` may be a little earlier than the last outcome.
    let ticks = coarse(now).wrapping_sub(at).cast_signed().max(0);
    let halvings = f64::from(ticks) * TICK_NANOS_F64 / ERRORS_HALVE_IN.as_secs_f64() / 1e9;
    #[expect(clippy::cast_possible_truncation, reason = "a rate needs no more than seven digits")]
    let kept = (-halvings).exp2() as f32;
    rate * kept
}

/// Ticks of 2²⁴ ns, about 17 ms.
#[expect(clippy::cast_possible_truncation, reason = "wraps by intent")]
fn coarse(now: Timestamp) -> u32 {
    (now.as_nanos() >> TICK_BITS) as u32
}

const TICK_BITS: u32 = 24;
const TICK_NANOS_F64: f64 = (1_u64 << TICK_BITS) as f64;

fn pack(value: f32, number: u32) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(number)
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves of the word")]
fn unpack(word: u64) -> (f32, u32) {
    (f32::from_bits((word >> 32) as u32), word as u32)
}

fn join(high: f32, low: f32) -> u64 {
    pack(high, low.to_bits())
}

#[inline]
fn halves(word: u64) -> (f32, f32) {
    let (high, low) = unpack(word);
    (high, f32::from_bits(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn is_near(value: Option<f64>, expected: f64) -> bool {
        value.is_some_and(|value| (value / expected - 1.0).abs() < 0.02)
    }

    #[test]
    fn nothing_is_known_before_the_first_sample() {
        let rates = Rates::default();
        assert_eq!((rates.prefill_tokens_per_second(), rates.prefill_seconds_per_token()), (None, 0.0));
        assert_eq!(rates.ttft_seconds(), None);
        assert_eq!(rates.gap_seconds(), None);
        assert_eq!(rates.error_rate(at(0)), 0.0);
    }

    #[test]
    fn prefill_speed_is_learned_from_long_prompts_and_follows_a_change() {
        let rates = Rates::default();
        rates.observe_ttft(4_000, Duration::from_millis(500));
        assert!(is_near(rates.prefill_tokens_per_second(), 8_000.0), "the first sample counts in full");
        for _ in 0..100 {
            // Fixed costs of short prompts and full cache hits say nothing about prefill.
            rates.observe_ttft(8, Duration::from_millis(30));
            rates.observe_ttft(0, Duration::from_millis(20));
        }
        assert!(is_near(rates.prefill_tokens_per_second(), 8_000.0));
        assert!(is_near(Some(1.0 / f64::from(rates.prefill_seconds_per_token())), 8_000.0));
        for _ in 0..60 {
            rates.observe_ttft(4_000, Duration::from_secs(2));
        }
        assert!(is_near(rates.prefill_tokens_per_second(), 2_000.0));
        assert!(is_near(rates.ttft_seconds(), 2.0));
    }

    #[test]
    fn gaps_average_evenly_at_first_and_fade_later() {
        let rates = Rates::default();
        rates.observe_gap(Duration::from_millis(10));
        rates.observe_gap(Duration::from_millis(30));
        assert!(is_near(rates.gap_seconds(), 0.02));
        for _ in 0..100 {
            rates.observe_gap(Duration::from_millis(50));
        }
        assert!(is_near(rates.gap_seconds(), 0.05));
    }

    #[test]
    fn the_error_rate_rises_with_failures_and_fades_with_successes_and_time() {
        let rates = Rates::default();
        for _ in 0..200 {
            rates.observe_outcome(Outcome::Failure, at(10));
        }
        assert!(rates.error_rate(at(10)) > 0.99);
        assert!(rates.error_rate(at(9)) > 0.99, "an earlier reading is no older");
        assert!(is_near(Some(rates.error_rate(at(40))), 0.5), "{}", rates.error_rate(at(40)));
        assert!(rates.error_rate(at(10_000)) < 1e-6);
        let late = Rates::default();
        late.observe_outcome(Outcome::Failure, at(10));
        late.observe_outcome(Outcome::Failure, at(10_000));
        assert!(is_near(Some(late.error_rate(at(10_000))), 0.05), "the first has faded by then");
        rates.observe_outcome(Outcome::Neutral, at(10));
        assert!(rates.error_rate(at(10)) > 0.99);
        for _ in 0..200 {
            rates.observe_outcome(Outcome::Success, at(10));
        }
        assert!(rates.error_rate(at(10)) < 0.01);
    }
}
