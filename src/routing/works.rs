//! What workers have to do, side by side: see [`smg_fleet::Looks`].

use smg_fleet::{LANES, Lanes, Looks, each_lane};
use smg_prefix::Held;

/// What was read of workers, and the parts of their costs that come of it, in seconds, as far as it takes no other worker to know
/// them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Works {
    pub(crate) looks: Looks,
    pub(crate) path: Lanes<f32>,
    /// Until a place becomes free; a part of the queue.
    pub(crate) wait: Lanes<f32>,
    pub(crate) queue: Lanes<f32>,
    pub(crate) prefill: Lanes<f32>,
    /// How long it took to compute what the cache took in lately.
    pub(crate) taken_in: Lanes<f32>,
    pub(crate) decode: Lanes<f32>,
    pub(crate) kv: Lanes<f32>,
    pub(crate) error: Lanes<f32>,
    pub(crate) matched_tokens: Lanes<f32>,
}

/// How parts are priced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prices {
    pub(crate) mean_prefill_tokens: f32,
    pub(crate) kv_pressure_seconds: f32,
    pub(crate) decode_seconds: f32,
    pub(crate) error_seconds: f32,
}

/// The part of what an engine may have done that it is taken to have done: to wait a little for one that is taken for busy costs
/// less than to wait long for one that is taken for free.
pub(crate) const CERTAINTY: f32 = 0.95;

const ZERO: Lanes<f32> = [0.0; LANES];

impl Works {
    /// Nobody's.
    pub(crate) const NONE: Self = Self {
        looks: Looks::NONE,
        path: ZERO,
        wait: ZERO,
        queue: ZERO,
        prefill: ZERO,
        taken_in: ZERO,
        decode: ZERO,
        kv: ZERO,
        error: ZERO,
        matched_tokens: ZERO,
    };

    /// Adds the workers' measured speeds by their weights.
    #[inline]
    pub(crate) fn add_speeds(&self, weights: &mut Lanes<f32>, rates: &mut Lanes<f32>) {
        let (weight, speed) = (self.looks.weight(), self.looks.tokens_per_second());
        for lane in 0..LANES {
            weights[lane] += weight[lane];
            rates[lane] += weight[lane] * speed[lane];
        }
    }

    /// Works out the parts for a prompt of which the workers' caches hold something, or nothing. Caches hold never more than there
    /// is, and as far as predictions have been borne out.
    ///
    /// A worker is as fast as the others until many measurements say otherwise; those that nobody has measured are neither
    /// shunned nor swamped. What the engine has likely done of the prompt that it works on is pending no more.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than seven digits")]
    pub(crate) fn work_out(
        &mut self,
        prices: Prices,
        mean_rate: f32,
        input_tokens: f32,
        held: &[Held],
        tokens_per_chunk: f32,
    ) {
        let looks = &self.looks;
        let mut uncached_tokens = [input_tokens; LANES];
        for ((uncached, matched), held) in uncached_tokens.iter_mut().zip(&mut self.matched_tokens).zip(held) {
            *matched = lesser(held.chunks.cast_signed() as f32 * tokens_per_chunk, input_tokens);
            *uncached = input_tokens - *matched * held.trust;
        }
        let (weight, speed) = (looks.weight(), looks.tokens_per_second());
        let (tokens_max, waiting) = (looks.prefilling_tokens_max(), looks.foreign_waiting());
        let (requests, kv_pressure) = (looks.requests(), looks.kv_pressure());
        for lane in 0..LANES {
            let rate = mean_rate + weight[lane] * (speed[lane] - mean_rate);
            let seconds_per_token = 1.0 / rate;
            let done = lesser(looks.prefilling_seconds()[lane] * rate * CERTAINTY, tokens_max[lane]);
            let pending = looks.pending_tokens()[lane] - done + waiting[lane] * prices.mean_prefill_tokens;
            self.queue[lane] = pending * seconds_per_token + self.wait[lane];
            self.prefill[lane] = uncached_tokens[lane] * seconds_per_token;
            self.taken_in[lane] = looks.taken_in()[lane] * seconds_per_token;
            self.decode[lane] = requests[lane] * prices.decode_seconds;
            self.kv[lane] = kv_pressure[lane] * prices.kv_pressure_seconds;
            self.error[lane] = looks.error_rate()[lane] * prices.error_seconds;
        }
    }

    /// What depends on the workers' strength, if computing anew costs others so much for each second, and so much more for each
    /// second of [`Works::taken_in`].
    #[inline]
    pub(crate) fn own(&self, displaced: f32, by_taken_in: f32) -> Lanes<f32> {
        each_lane(|lane| {
            let displaced = displaced + by_taken_in * self.taken_in[lane];
            self.queue[lane] + self.prefill[lane] * (1.0 + displaced) + self.decode[lane]
        })
    }

    /// What does not.
    #[inline]
    pub(crate) fn rest(&self) -> Lanes<f32> {
        each_lane(|lane| self.kv[lane] + self.error[lane] + self.path[lane])
    }
}

/// The lesser of two, neither of which is NaN.
#[inline]
pub(crate) fn lesser(one: f32, other: f32) -> f32 {
    if other < one { other } else { one }
}

/// The sum of some lanes. By halves, so that no step waits for all before.
pub(crate) fn sum(mut lanes: Lanes<f32>) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}
