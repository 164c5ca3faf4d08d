//! What decisions read of a worker.

use smg_base::Timestamp;

use crate::{
    WorkerState, load,
    rates::{self, ERRORS, TAKEN_IN, Tick},
};

/// The words that a decision reads of each candidate, read at once and as plainly as can be, and what they mean.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    /// Requests of all gateways, and those that decode.
    pub(crate) requests: u64,
    pub(crate) pending_tokens: f32,
    pub(crate) prefilling_seconds: f32,
    /// Nothing if the engine has not spoken lately.
    pub(crate) engine: u64,
    pub(crate) speed: u64,
    pub(crate) errors: u64,
    pub(crate) taken_in: u64,
}

impl Look {
    /// Looks at a worker. What its engine said before `engine_since` does not count.
    #[inline]
    pub fn at(state: &WorkerState, engine_since: Timestamp, now: Timestamp) -> Self {
        let mut look = Self::default();
        state.load.show(&mut look, engine_since, now);
        state.rates.show(&mut look);
        look
    }

    /// Requests there, whosever they are.
    #[inline]
    pub fn requests(&self) -> u32 {
        let (of_gateways, _) = load::halves(self.requests);
        of_gateways.wrapping_add(load::foreign(self.engine).requests)
    }

    /// Prompt tokens of the gateways' requests whose first token has not come.
    #[inline]
    pub fn pending_tokens(&self) -> f32 {
        self.pending_tokens
    }

    /// Requests of others than the gateways that wait in the engine.
    #[inline]
    pub fn foreign_waiting(&self) -> u32 {
        load::foreign(self.engine).waiting
    }

    /// How many seconds ago the engine began with the prompt that it likely works on. Until its first token comes all of it
    /// counts as pending, but the longer ago it began, the less of it is still to be done.
    #[inline]
    pub fn prefilling_seconds(&self) -> f32 {
        self.prefilling_seconds
    }

    /// How long that prompt is at most: as long as all that are pending, or half of that if there are several, for which one it is
    /// nobody knows. An engine that gives no first token any more therefore soon looks as full as it is.
    #[inline]
    pub fn prefilling_tokens_max(&self) -> f32 {
        let (requests, decoding) = load::halves(self.requests);
        self.pending_tokens * if requests <= decoding.wrapping_add(1) { 1.0 } else { 0.5 }
    }

    /// k ÷ (1 − k) of a KV cache filled to k: nothing when there is room, a wall of finite height when there is none.
    #[inline]
    pub fn kv_pressure(&self) -> f32 {
        f32::from_bits(load::halves(self.engine).1)
    }

    /// Prompt tokens computed in a second; zero if not measured.
    #[inline]
    pub fn tokens_per_second(&self) -> f32 {
        rates::halves(self.speed).0
    }

    /// What that weighs against what is known of other workers: [`crate::Speed::weight`].
    #[inline]
    pub fn weight(&self) -> f32 {
        rates::halves(self.speed).1
    }

    /// The share of requests that fail.
    #[inline]
    pub fn error_rate(&self, now: Tick) -> f32 {
        ERRORS.value(self.errors, now)
    }

    /// Prompt tokens that the cache took in from this gateway, older ones counting less.
    #[inline]
    pub fn taken_in(&self, now: Tick) -> f32 {
        TAKEN_IN.value(self.taken_in, now)
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
        let look = |since, now| Look::at(&state, at(since), at(now));
        let _own = state.begin(100, at(1));
        let engine = EngineLoad { running: 3, waiting: 9, kv_usage: 0.5, generation_tokens_per_second: 0.0, at: at(2) };
        state.load.set_engine(engine);
        let of = |look: Look| (look.requests(), look.foreign_waiting(), look.pending_tokens(), look.kv_pressure());
        assert_eq!(of(look(2, 3)), (12, 9, 100.0, 1.0));
        assert_eq!(of(look(3, 3)), (1, 0, 100.0, 0.0), "too old to count");
        state.set_peers(PeerLoad { requests: 4, decoding: 1, pending_tokens: 900 }, at(3));
        assert_eq!(of(look(2, 3)), (16, 9, 1_000.0, 1.0));
        state.set_peers(PeerLoad { requests: u32::MAX, decoding: u32::MAX, pending_tokens: u64::MAX }, at(3));
        state.load.set_engine_heard(EngineLoad { waiting: u32::MAX, ..engine }, u32::MAX);
        let most = look(2, 3);
        assert_eq!((most.requests(), most.foreign_waiting()), ((1 << 24) + 1 + 0xffff, 0xffff));
        assert!((7e16..8e16).contains(&most.pending_tokens()), "{}", most.pending_tokens());
        state.set_peers(PeerLoad::default(), at(3));
        assert_eq!(look(3, 3).requests(), 1);
    }
}
