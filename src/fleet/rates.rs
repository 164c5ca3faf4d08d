//! How fast a worker is, learned from its answers.

use std::{
    sync::atomic::{AtomicU64, Ordering},
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
    /// The share of requests that fail, as [`ERRORS`] fades.
    errors: AtomicU64,
    /// The bits of what follows from the prefills, and of its weight; as of an observation earlier, if two were made at once.
    speed: AtomicU64,
    /// Tokens, as [`TAKEN_IN`] fades: those that others tell of, where any do, and what was sent there since.
    taken_in: AtomicU64,
    /// Kept elsewhere: see [`crate::WorkerState`].
    aside: Box<Aside>,
}

/// What decisions do not read, or seldom.
#[derive(Debug, Default)]
struct Aside {
    prefill: AtomicU64,
    /// Tokens, as [`TAKEN_IN`] fades.
    told_taken_in: AtomicU64,
    gap: AtomicU64,
    ttft: AtomicU64,
}

/// How fast a worker computes prompts, going by what it took so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Speed {
    /// Prompt tokens per second; zero if not measured.
    pub tokens_per_second: f32,
    /// What that weighs against what is known of other workers, from zero to almost one: every measurement also measures what
    /// nobody told of, and only many of them tell a slow worker from a busy one.
    pub weight: f32,
}

impl Speed {
    /// No worker is taken to be slower, in tokens per second: what measured nonsense must not decide for ever.
    pub const MIN: f32 = 50.0;
    /// No worker is taken to be faster.
    pub const MAX: f32 = 1e7;
}

/// What the newest sample weighs in an average.
const NEWEST: f32 = 0.1;
/// What the newest outcome weighs in the error rate.
const NEWEST_OUTCOME: f32 = 0.05;
/// Prompts shorter than this tell about fixed costs, not about the speed of prefill.
const PREFILL_TOKENS_MIN: u64 = 128;
/// As many measurements of one worker weigh as much as what is known of all.
const PREFILLS_TO_BELIEVE: f32 = 16.0;
/// An error rate fades by itself, so that a worker that is avoided for its errors is tried again.
const ERRORS: Fading = Fading::halving_in(30);
/// What a cache has taken in fades, but longer than the pauses between the turns of a conversation, for which it is to be kept.
const TAKEN_IN: Fading = Fading::halving_in(300);

impl Rates {
    /// The first token of a request came `ttft` after dispatch. The engine had to prefill the request's own uncached `tokens`
    /// until then, and what was `ahead` of it ([`crate::LoadGuard::tokens_ahead`]). Where that is the greater part, little is
    /// learned of the worker's speed, because little of it is known for certain.
    #[expect(clippy::cast_precision_loss, reason = "an average needs no more than seven digits")]
    pub fn observe_ttft(&self, tokens: u64, ahead: u64, ttft: Duration) {
        let seconds = ttft.as_secs_f32();
        change(&self.aside.ttft, |word| average(word, seconds));
        if tokens >= PREFILL_TOKENS_MIN && tokens >= ahead && seconds > 0.0 {
            let tokens = tokens + ahead;
            // Two fading sums instead of an average of ratios: long prompts weigh by their length.
            change(&self.aside.prefill, |word| {
                let (sum_tokens, sum_seconds) = halves(word);
                join(sum_tokens * (1.0 - NEWEST) + tokens as f32, sum_seconds * (1.0 - NEWEST) + seconds)
            });
            let (sum_tokens, sum_seconds) = halves(self.aside.prefill.load(Ordering::Relaxed));
            change(&self.speed, |word| {
                // After n measurements the doubt is P ÷ (P + n).
                let doubt = 1.0 - halves(word).1;
                let doubt = doubt * PREFILLS_TO_BELIEVE / (PREFILLS_TO_BELIEVE + doubt);
                join((sum_tokens / sum_seconds).clamp(Speed::MIN, Speed::MAX), 1.0 - doubt)
            });
        }
    }

    /// A prompt was sent there of which the cache lacks `tokens`: it takes them in, and lets others go for them.
    #[expect(clippy::cast_precision_loss, reason = "a sum needs no more than seven digits")]
    pub(crate) fn observe_taken_in(&self, tokens: u64, now: Timestamp) {
        let now = Tick::from(now);
        change(&self.taken_in, |word| TAKEN_IN.word(TAKEN_IN.value(word, now) + tokens as f32, now));
    }

    /// Its cache took in `tokens`, as somebody tells who hears of everything that it takes in. From then on what others tell counts,
    /// and what was sent there only until they tell more: they know of all gateways' requests.
    #[expect(clippy::cast_precision_loss, reason = "a sum needs no more than seven digits")]
    pub fn hear_taken_in(&self, tokens: u64, now: Timestamp) {
        let now = Tick::from(now);
        let told = &self.aside.told_taken_in;
        change(told, |word| TAKEN_IN.word(TAKEN_IN.value(word, now) + tokens as f32, now));
        self.taken_in.store(told.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Time between two tokens of one request.
    pub fn observe_gap(&self, gap: Duration) {
        change(&self.aside.gap, |word| average(word, gap.as_secs_f32()));
    }

    /// A request ended at `now`.
    pub fn observe_outcome(&self, outcome: Outcome, now: Timestamp) {
        let sample = match outcome {
            Outcome::Success => 0.0,
            Outcome::Failure => 1.0,
            Outcome::Neutral => return,
        };
        let now = Tick::from(now);
        change(&self.errors, |word| {
            let rate = ERRORS.value(word, now);
            ERRORS.word(rate + NEWEST_OUTCOME * (sample - rate), now)
        });
    }

    /// Prompt tokens prefilled per second.
    #[inline]
    pub fn prefill_tokens_per_second(&self) -> Option<f64> {
        let (tokens, seconds) = halves(self.aside.prefill.load(Ordering::Relaxed));
        (seconds > 0.0).then(|| f64::from(tokens / seconds))
    }

    /// The same with its weight: what decisions need, without a division.
    #[inline]
    pub fn speed(&self) -> Speed {
        let (tokens_per_second, weight) = halves(self.speed.load(Ordering::Relaxed));
        Speed { tokens_per_second, weight }
    }

    /// The error rate and what was taken in.
    #[inline]
    pub(crate) fn faded(&self, now: Timestamp) -> (f32, f32) {
        let (errors, taken_in) = (self.errors.load(Ordering::Relaxed), self.taken_in.load(Ordering::Relaxed));
        (ERRORS.value(errors, now.into()), TAKEN_IN.value(taken_in, now.into()))
    }

    /// Tokens that its cache took in, older ones counting less: from this gateway, or from all where somebody tells.
    #[inline]
    pub fn taken_in(&self, now: Timestamp) -> f32 {
        TAKEN_IN.value(self.taken_in.load(Ordering::Relaxed), now.into())
    }

    /// Seconds from dispatch to the first token.
    pub fn ttft_seconds(&self) -> Option<f64> {
        read_average(&self.aside.ttft)
    }

    /// Seconds between two tokens of one request.
    pub fn gap_seconds(&self) -> Option<f64> {
        read_average(&self.aside.gap)
    }

    /// The share of requests that fail, in `0.0..=1.0`; zero until one has failed, and fading with time.
    #[inline]
    pub fn error_rate(&self, now: Timestamp) -> f64 {
        f64::from(ERRORS.value(self.errors.load(Ordering::Relaxed), now.into()))
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

/// A number that fades with time, in a word: the bits of the number, whose upper part is its binary logarithm, as they would have been
/// when time began. By as much as they become less with each tick they are taken to have been more before; between two halvings that is
/// right to six parts in a hundred (J. N. Mitchell, 1962), and so cheap that decisions can follow it for a hundred workers.
#[derive(Clone, Copy, Debug)]
struct Fading {
    step: i64,
}

/// A reading of the clock in ticks of 2²⁴ ns, about 17 ms.
#[derive(Clone, Copy, Debug)]
struct Tick(i64);

const TICK_BITS: u32 = 24;

impl From<Timestamp> for Tick {
    #[inline]
    fn from(now: Timestamp) -> Self {
        Self((now.as_nanos() >> TICK_BITS).cast_signed())
    }
}

impl Fading {
    const fn halving_in(seconds: u64) -> Self {
        let halving = 1_u64 << (f32::MANTISSA_DIGITS - 1);
        Self { step: (halving * (1 << TICK_BITS) / (seconds * 1_000_000_000)).cast_signed() }
    }

    /// What a number, which is not negative, is at a time, which is at most a little before it was as much.
    #[inline]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the bits of a number")]
    fn value(self, word: u64, now: Tick) -> f32 {
        f32::from_bits((word.cast_signed() - now.0 * self.step).max(0) as u32)
    }

    /// The word of a number that is `value` now.
    fn word(self, value: f32, now: Tick) -> u64 {
        (i64::from(value.to_bits()) + now.0 * self.step).cast_unsigned()
    }
}

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
        assert_eq!((rates.prefill_tokens_per_second(), rates.speed()), (None, Speed::default()));
        assert_eq!(rates.ttft_seconds(), None);
        assert_eq!(rates.gap_seconds(), None);
        assert_eq!(rates.error_rate(at(0)), 0.0);
    }

    #[test]
    fn prefill_speed_is_learned_from_long_prompts_and_follows_a_change() {
        let rates = Rates::default();
        rates.observe_ttft(4_000, 0, Duration::from_millis(500));
        assert!(is_near(rates.prefill_tokens_per_second(), 8_000.0), "the first sample counts in full");
        for _ in 0..100 {
            // Fixed costs of short prompts and full cache hits say nothing about prefill.
            rates.observe_ttft(8, 0, Duration::from_millis(30));
            rates.observe_ttft(0, 0, Duration::from_millis(20));
        }
        assert!(is_near(rates.prefill_tokens_per_second(), 8_000.0));
        assert!(is_near(Some(f64::from(rates.speed().tokens_per_second)), 8_000.0));
        let once = rates.speed().weight;
        for _ in 0..60 {
            rates.observe_ttft(3_000, 1_000, Duration::from_secs(2));
        }
        assert!(is_near(rates.prefill_tokens_per_second(), 2_000.0));
        assert!(once < 0.1 && (0.7..1.0).contains(&rates.speed().weight), "{once}, {}", rates.speed().weight);
        assert!(is_near(rates.ttft_seconds(), 2.0));
    }

    #[test]
    fn what_a_cache_took_in_fades() {
        let rates = Rates::default();
        assert_eq!(rates.taken_in(at(10)), 0.0);
        rates.observe_taken_in(1_000, at(10));
        rates.observe_taken_in(1_000, at(310));
        assert!(is_near(Some(f64::from(rates.taken_in(at(310)))), 1_500.0), "{}", rates.taken_in(at(310)));
        let later = rates.taken_in(at(460));
        assert!((later / 1_060.66 - 1.0).abs() < 0.06, "half way to the half: {later}");
        assert!(rates.taken_in(at(1_000_000)) < 1e-6);
    }

    #[test]
    fn what_is_told_of_a_cache_takes_the_place_of_what_was_sent_there() {
        let rates = Rates::default();
        let taken_in = || rates.taken_in(at(10)).round();
        rates.observe_taken_in(500, at(10));
        assert_eq!(taken_in(), 500.0);
        rates.hear_taken_in(2_000, at(10));
        assert_eq!(taken_in(), 2_000.0, "that was part of it");
        rates.observe_taken_in(300, at(10));
        assert_eq!(taken_in(), 2_300.0, "nobody has told of that yet");
        rates.hear_taken_in(400, at(10));
        assert_eq!(taken_in(), 2_400.0);
    }

    #[test]
    fn waiting_for_others_says_little_of_the_speed() {
        let rates = Rates::default();
        rates.observe_ttft(4_000, 0, Duration::from_millis(500));
        for _ in 0..60 {
            rates.observe_ttft(1_000, 9_000, Duration::from_secs(20));
        }
        assert!(is_near(rates.prefill_tokens_per_second(), 8_000.0));
        assert!(rates.ttft_seconds().is_some_and(|ttft| ttft > 10.0));
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
