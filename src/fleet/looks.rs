//! What decisions read of workers.
//!
//! A decision reads the same words of every candidate and then does the same with each. To read them is one thing, done worker by
//! worker and as plainly as can be; what they mean is worked out for [`LANES`] workers at a time, in loops over arrays of that
//! length, of which a compiler makes a few instructions on any processor.

use smg_base::Timestamp;

use crate::{
    WorkerState,
    load::{self, Seen},
};

/// How many workers are looked at together.
pub const LANES: usize = 16;

/// Something of each of them.
pub type Lanes<T> = [T; LANES];

/// What `of` gives for each lane. Unlike an array made from a function, it is made in a loop, which compilers make into steps of several
/// lanes.
#[inline]
pub fn each_lane<T: Copy + Default>(of: impl Fn(usize) -> T) -> Lanes<T> {
    let mut lanes = [T::default(); LANES];
    for (lane, value) in lanes.iter_mut().enumerate() {
        *value = of(lane);
    }
    lanes
}

/// What was read of up to [`LANES`] workers; as of idle ones that nobody has measured where none was looked at.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    /// Requests of all gateways, and those that decode.
    requests: Lanes<u64>,
    pending_tokens: Lanes<f32>,
    prefilling_seconds: Lanes<f32>,
    /// Nothing if the engine has not spoken lately.
    engine: Lanes<u64>,
    tokens_per_second: Lanes<f32>,
    weight: Lanes<f32>,
    error_rate: Lanes<f32>,
    taken_in: Lanes<f32>,
}

impl Looks {
    /// At nobody.
    pub const NONE: Self = Self {
        requests: [0; LANES],
        pending_tokens: [0.0; LANES],
        prefilling_seconds: [0.0; LANES],
        engine: [0; LANES],
        tokens_per_second: [0.0; LANES],
        weight: [0.0; LANES],
        error_rate: [0.0; LANES],
        taken_in: [0.0; LANES],
    };

    /// Looks at what a worker has to do. What its engine said before `engine_since` does not count.
    #[inline]
    pub fn look_at_load(&mut self, lane: usize, state: &WorkerState, engine_since: Timestamp, now: Timestamp) {
        let Seen { requests, pending_tokens, prefilling_seconds, engine } = state.load.seen(engine_since, now);
        self.requests[lane] = requests;
        self.pending_tokens[lane] = pending_tokens;
        self.prefilling_seconds[lane] = prefilling_seconds;
        self.engine[lane] = engine;
    }

    /// Looks at how fast a worker is.
    #[inline]
    pub fn look_at_rates(&mut self, lane: usize, state: &WorkerState, now: Timestamp) {
        let speed = state.rates.speed();
        self.tokens_per_second[lane] = speed.tokens_per_second;
        self.weight[lane] = speed.weight;
        (self.error_rate[lane], self.taken_in[lane]) = state.rates.faded(now);
    }

    /// Requests in one lane, whosever they are.
    #[inline]
    pub fn requests_in(&self, lane: usize) -> u32 {
        let (of_gateways, _) = load::halves(self.requests[lane]);
        of_gateways.wrapping_add(load::foreign(self.engine[lane]).requests)
    }

    /// Requests there, whosever they are.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than seven digits")]
    pub fn requests(&self) -> Lanes<f32> {
        each_lane(|lane| self.requests_in(lane).cast_signed() as f32)
    }

    /// Prompt tokens of the gateways' requests whose first token has not come.
    #[inline]
    pub fn pending_tokens(&self) -> &Lanes<f32> {
        &self.pending_tokens
    }

    /// Requests of others than the gateways that wait in the engine.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than seven digits")]
    pub fn foreign_waiting(&self) -> Lanes<f32> {
        each_lane(|lane| load::foreign(self.engine[lane]).waiting.cast_signed() as f32)
    }

    /// How many seconds ago the engine began with the prompt that it likely works on. Until its first token comes all of it
    /// counts as pending, but the longer ago it began, the less of it is still to be done.
    #[inline]
    pub fn prefilling_seconds(&self) -> &Lanes<f32> {
        &self.prefilling_seconds
    }

    /// How long that prompt is at most: as long as all that are pending, or half of that if there are several, for which one it is
    /// nobody knows. An engine that gives no first token any more therefore soon looks as full as it is.
    #[inline]
    pub fn prefilling_tokens_max(&self) -> Lanes<f32> {
        each_lane(|lane| {
            let (requests, decoding) = load::halves(self.requests[lane]);
            let are_several = requests.cast_signed() > decoding.cast_signed().wrapping_add(1);
            self.pending_tokens[lane] * if are_several { 0.5 } else { 1.0 }
        })
    }

    /// k ÷ (1 − k) of a KV cache filled to k: nothing when there is room, a wall of finite height when there is none.
    #[inline]
    pub fn kv_pressure(&self) -> Lanes<f32> {
        each_lane(|lane| f32::from_bits(load::halves(self.engine[lane]).1))
    }

    /// Prompt tokens computed in a second; zero if not measured.
    #[inline]
    pub fn tokens_per_second(&self) -> &Lanes<f32> {
        &self.tokens_per_second
    }

    /// What that weighs against what is known of other workers: [`crate::Speed::weight`].
    #[inline]
    pub fn weight(&self) -> &Lanes<f32> {
        &self.weight
    }

    /// The share of requests that fail.
    #[inline]
    pub fn error_rate(&self) -> &Lanes<f32> {
        &self.error_rate
    }

    /// Prompt tokens that the cache took in from this gateway, older ones counting less.
    #[inline]
    pub fn taken_in(&self) -> &Lanes<f32> {
        &self.taken_in
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        BreakerConfig, EngineLoad, PeerLoad,
        testing::{at, trusted_worker},
    };

    #[test]
    fn what_anybody_has_there_is_added_up_whatever_they_say() {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        let seen = |since: u64, now: u64| {
            let mut looks = Looks::NONE;
            looks.look_at_load(5, &state, at(since), at(now));
            let others = looks.requests_in(4);
            assert_eq!((others, looks.requests()[5]), (0, looks.requests_in(5) as f32));
            (looks.requests_in(5), looks.foreign_waiting()[5], looks.pending_tokens()[5], looks.kv_pressure()[5])
        };
        let _own = state.begin(100, at(1));
        let engine = EngineLoad { running: 3, waiting: 9, kv_usage: 0.5, generation_tokens_per_second: 0.0, at: at(2) };
        state.load.set_engine(engine);
        assert_eq!(seen(2, 3), (12, 9.0, 100.0, 1.0));
        assert_eq!(seen(3, 3), (1, 0.0, 100.0, 0.0), "too old to count");
        state.set_peers(PeerLoad { requests: 4, decoding: 1, pending_tokens: 900 }, at(3));
        assert_eq!(seen(2, 3), (16, 9.0, 1_000.0, 1.0));
        state.set_peers(PeerLoad { requests: u32::MAX, decoding: u32::MAX, pending_tokens: u64::MAX }, at(3));
        state.load.set_engine_heard(EngineLoad { waiting: u32::MAX, ..engine }, u32::MAX);
        let (requests, waiting, pending_tokens, _) = seen(2, 3);
        assert_eq!((requests, waiting), ((1 << 24) + 1 + 0xffff, 65_535.0));
        assert!((7e16..8e16).contains(&pending_tokens), "{pending_tokens}");
        state.set_peers(PeerLoad::default(), at(3));
        assert_eq!(seen(3, 3), (1, 0.0, 100.0, 0.0));
    }

    #[test]
    fn speed_errors_and_what_was_taken_in_are_those_of_the_rates() {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        state.rates.observe_ttft(4_000, 0, std::time::Duration::from_secs(1));
        state.rates.observe_outcome(crate::Outcome::Failure, at(1));
        drop(state.begin(700, at(1)));
        for now in [1, 40, 4_000] {
            let mut looks = Looks::NONE;
            looks.look_at_rates(7, &state, at(now));
            let (speed, taken_in) = (state.rates.speed(), state.rates.taken_in(at(now)));
            assert_eq!((looks.tokens_per_second()[7], looks.weight()[7]), (speed.tokens_per_second, speed.weight));
            assert_eq!(
                (f64::from(looks.error_rate()[7]), looks.taken_in()[7]),
                (state.rates.error_rate(at(now)), taken_in)
            );
            assert!((taken_in > 1.0) == (now < 4_000) && looks.taken_in()[6] == 0.0, "{taken_in}");
        }
    }
}
