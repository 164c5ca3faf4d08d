//! How busy a worker is.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use parking_lot::Mutex;

use smg_base::{Timestamp, map::StableMap};

use crate::{Bell, WorkerState};

/// What this gateway has sent to a worker and not yet got back, and what the worker's engine last said of itself.
/// The counts change only through [`LoadGuard`]s, which give back exactly what they took.
///
/// What decisions read comes first and stays in this order: see [`WorkerState`].
#[derive(Debug, Default)]
#[repr(C)]
pub struct Load {
    /// Requests, and those that decode.
    requests: AtomicU64,
    pending_tokens: AtomicU64,
    /// When the engine began with the prompt that it works on, as far as known.
    prefilling_since: AtomicU64,
    peers: PeerWords,
    engine: EngineWords,
    relayed: AtomicU32,
    keys_active: AtomicU32,
    processed: AtomicU64,
    dispatched_tokens: AtomicU64,
    keys: Mutex<StableMap<u64, u32>>,
    /// Rung where there is something to tell other nodes after a silence.
    to_tell: OnceLock<Arc<Bell>>,
}

/// What an engine says of its own load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineLoad {
    /// Requests being worked on.
    pub running: u32,
    /// Requests waiting in the engine.
    pub waiting: u32,
    /// The used share of the KV cache, in `0.0..=1.0`.
    pub kv_usage: f32,
    /// Tokens generated per second, all requests together.
    pub generation_tokens_per_second: f32,
    /// When it said so.
    pub at: Timestamp,
}

/// What the other gateways together have at a worker, as far as they have told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerLoad {
    /// Requests sent and not finished.
    pub requests: u32,
    /// Of those, how many decode.
    pub decoding: u32,
    /// Prompt tokens of those whose first token has not come.
    pub pending_tokens: u64,
}

/// What decisions read of a load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    /// Requests of all gateways, and those that decode.
    pub(crate) requests: u64,
    pub(crate) pending_tokens: f32,
    pub(crate) prefilling_seconds: f32,
    /// [`EngineWords::look`], or nothing if the engine has not spoken lately.
    pub(crate) engine: u64,
}

/// What an engine has from others than the gateways that are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Foreign {
    pub(crate) requests: u32,
    /// Of these, how many wait in the engine.
    pub(crate) waiting: u32,
}

/// [`PeerLoad`] in words of its own, for the same reason as [`EngineWords`].
#[derive(Debug, Default)]
#[repr(C)]
struct PeerWords {
    /// Requests, and those that decode.
    requests: AtomicU64,
    pending_tokens: AtomicU64,
}

/// An engine's figures, and this gateway's own at the same moment, in words of their own: every decision reads those of every
/// candidate, and a shared pointer would cost it more than all else. Who reads while they change may get some new and
/// some old ones, which is no worse than to have come a moment earlier.
#[derive(Debug, Default)]
#[repr(C)]
struct EngineWords {
    /// Zero if the engine never spoke, else one more than the time.
    at: AtomicU64,
    /// [`Foreign`] by its bits, and those of [`crate::Looks::kv_pressure`]: computed once and not in every decision.
    look: AtomicU64,
    /// Requests running and waiting.
    requests: AtomicU64,
    /// The bits of the used share of the KV cache.
    kv_usage: AtomicU32,
    /// The bits of the tokens generated per second.
    rate: AtomicU32,
    /// [`Load`]'s `dispatched_tokens` at the time.
    dispatched_tokens: AtomicU64,
}

/// The most tokens one request is taken for; keeps the sum of all requests far from the end of its type.
const TOKENS_MAX: u64 = 1 << 32;
/// The most requests that peers are taken to have at a worker, for the same reason.
const PEER_REQUESTS_MAX: u32 = 1 << 24;
/// One request in [`Load::requests`].
const REQUEST: u64 = 1 << 32;
/// One that decodes, besides.
const DECODING: u64 = 1;
/// How full a KV cache is taken to be at most.
const KV_USAGE_MAX: f32 = 0.999;

impl Load {
    #[cfg(test)]
    pub(crate) const READ_BY_DECISIONS_BYTES: usize =
        std::mem::offset_of!(Self, engine) + std::mem::offset_of!(EngineWords, look) + size_of::<AtomicU64>();

    /// Requests sent and not finished.
    #[inline]
    pub fn in_flight(&self) -> u32 {
        halves(self.requests.load(Ordering::Relaxed)).0
    }

    /// Requests sent for a peer and not finished. They are in the count of that peer, which tells of them, and so in none
    /// of the others here.
    pub fn relayed(&self) -> u32 {
        self.relayed.load(Ordering::Acquire)
    }

    /// Prompt tokens of the requests whose first token has not come.
    #[inline]
    pub fn pending_tokens(&self) -> u64 {
        self.pending_tokens.load(Ordering::Relaxed)
    }

    /// Requests whose first token has come and that are not finished.
    #[inline]
    pub fn decoding(&self) -> u32 {
        halves(self.requests.load(Ordering::Relaxed)).1
    }

    /// What the other gateways have there.
    #[inline]
    pub fn peers(&self) -> PeerLoad {
        let (requests, decoding) = halves(self.peers.requests.load(Ordering::Relaxed));
        PeerLoad { requests, decoding, pending_tokens: self.peers.pending_tokens.load(Ordering::Relaxed) }
    }

    /// What decisions read; what the engine said before `engine_since` does not count.
    #[inline]
    #[expect(clippy::cast_precision_loss, reason = "an estimate needs no more than seven digits")]
    pub(crate) fn seen(&self, engine_since: Timestamp, now: Timestamp) -> Seen {
        let read = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let is_fresh = self.engine.at.load(Ordering::Acquire) > engine_since.as_nanos();
        let engine = read(&self.engine.look);
        let pending_tokens = read(&self.pending_tokens).wrapping_add(read(&self.peers.pending_tokens));
        Seen {
            requests: read(&self.requests).wrapping_add(read(&self.peers.requests)),
            pending_tokens: pending_tokens.cast_signed() as f32,
            // Not by a `Duration`, which would divide.
            prefilling_seconds: now.as_nanos().wrapping_sub(read(&self.prefilling_since)).cast_signed() as f32 * 1e-9,
            engine: if is_fresh { engine } else { 0 },
        }
    }

    /// The engine begins with a prompt.
    fn prefills_from(&self, now: Timestamp) {
        self.prefilling_since.fetch_max(now.as_nanos(), Ordering::Relaxed);
    }

    /// Takes down what the other gateways have there.
    pub(crate) fn set_peers(&self, peers: PeerLoad, now: Timestamp) {
        let peers = peers.bounded();
        let before = self.peers();
        let had_first_token = peers.pending_tokens < before.pending_tokens || peers.decoding > before.decoding;
        if had_first_token || before.pending_tokens == 0 && self.pending_tokens() == 0 {
            self.prefills_from(now);
        }
        self.peers.requests.store(word(peers.requests, peers.decoding), Ordering::Relaxed);
        self.peers.pending_tokens.store(peers.pending_tokens, Ordering::Relaxed);
    }

    /// Requests ever sent.
    pub fn processed(&self) -> u64 {
        self.processed.load(Ordering::Relaxed)
    }

    /// Distinct routing keys among the requests in flight.
    pub fn active_keys(&self) -> u32 {
        self.keys_active.load(Ordering::Relaxed)
    }

    /// The engine's last word on itself.
    #[inline]
    pub fn engine(&self) -> Option<EngineLoad> {
        let words = &self.engine;
        let at = words.at.load(Ordering::Acquire).checked_sub(1)?;
        let (running, waiting) = halves(words.requests.load(Ordering::Relaxed));
        Some(EngineLoad {
            running,
            waiting,
            kv_usage: f32::from_bits(words.kv_usage.load(Ordering::Relaxed)),
            generation_tokens_per_second: f32::from_bits(words.rate.load(Ordering::Relaxed)),
            at: Timestamp::from_nanos(at),
        })
    }

    /// Requests the engine had from others than this gateway and those it knows of when it last spoke.
    #[inline]
    pub fn foreign_requests(&self) -> u32 {
        foreign(self.engine.look.load(Ordering::Relaxed)).requests
    }

    /// Prompt tokens sent since the engine last spoke, or ever if it never did: what its figures do not show yet.
    pub fn tokens_since_engine(&self) -> u64 {
        let sent = self.dispatched_tokens.load(Ordering::Relaxed);
        sent.saturating_sub(self.engine.dispatched_tokens.load(Ordering::Relaxed))
    }

    /// Takes down the engine's figures; not a number and out of range become the nearest that makes sense.
    pub fn set_engine(&self, engine: EngineLoad) {
        let foreign = engine
            .running
            .saturating_add(engine.waiting)
            .saturating_sub(self.in_flight())
            .saturating_sub(self.peers().requests);
        self.set_engine_heard(engine, foreign);
        self.ring();
    }

    /// The same where another gateway asked the engine, and says how many requests came from none of them.
    pub fn set_engine_heard(&self, engine: EngineLoad, foreign: u32) {
        let sane = |value: f32, max: f32| if value.is_nan() { 0.0 } else { value.clamp(0.0, max) };
        let words = &self.engine;
        words.requests.store(word(engine.running, engine.waiting), Ordering::Relaxed);
        let kv_usage = sane(engine.kv_usage, 1.0);
        words.kv_usage.store(kv_usage.to_bits(), Ordering::Relaxed);
        let kv_usage = kv_usage.min(KV_USAGE_MAX);
        let pressure = kv_usage / (1.0 - kv_usage);
        let foreign = Foreign { requests: foreign, waiting: engine.waiting.min(foreign) };
        words.look.store(word(foreign.bits(), pressure.to_bits()), Ordering::Relaxed);
        words.rate.store(sane(engine.generation_tokens_per_second, 1e9).to_bits(), Ordering::Relaxed);
        words.dispatched_tokens.store(self.dispatched_tokens.load(Ordering::Relaxed), Ordering::Relaxed);
        words.at.store(engine.at.as_nanos().saturating_add(1), Ordering::Release);
    }

    /// Forgets the engine's figures, because they have become too old to mean anything.
    pub fn clear_engine(&self) {
        self.engine.at.store(0, Ordering::Release);
        self.engine.look.store(0, Ordering::Relaxed);
        self.engine.dispatched_tokens.store(0, Ordering::Relaxed);
    }

    /// Rings this bell from now on.
    pub(crate) fn announce_to(&self, to_tell: &Arc<Bell>) {
        // The load goes with its worker to the end, and so does the bell.
        let _ = self.to_tell.set(Arc::clone(to_tell));
    }

    #[inline]
    fn ring(&self) {
        if let Some(to_tell) = self.to_tell.get() {
            to_tell.ring();
        }
    }

    fn take_key(&self, key: u64) {
        let mut keys = self.keys.lock();
        *keys.entry(key).or_insert(0) += 1;
        self.publish_keys(&keys);
    }

    fn give_key(&self, key: u64) {
        let mut keys = self.keys.lock();
        if let Some(count) = keys.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                keys.remove(&key);
            }
        }
        self.publish_keys(&keys);
    }

    fn publish_keys(&self, keys: &StableMap<u64, u32>) {
        self.keys_active.store(u32::try_from(keys.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }
}

impl PeerLoad {
    /// With no more of anything than can be added up.
    fn bounded(self) -> Self {
        Self {
            requests: self.requests.min(PEER_REQUESTS_MAX),
            decoding: self.decoding.min(PEER_REQUESTS_MAX),
            pending_tokens: self.pending_tokens.min(TOKENS_MAX * u64::from(PEER_REQUESTS_MAX)),
        }
    }
}

impl Foreign {
    const MAX: u32 = u16::MAX as u32;

    fn bits(self) -> u32 {
        self.requests.min(Self::MAX) << 16 | self.waiting.min(Self::MAX)
    }
}

/// What is foreign according to [`EngineWords::look`].
#[inline]
pub(crate) fn foreign(look: u64) -> Foreign {
    let (bits, _) = halves(look);
    Foreign { requests: bits >> 16, waiting: bits & Foreign::MAX }
}

#[inline]
fn word(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the halves of the word")]
pub(crate) fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// One request at a worker. Dropping it takes the request out of the worker's load, whatever state it was in.
#[must_use = "the request counts as finished once its guard is dropped"]
#[derive(Debug)]
pub struct LoadGuard {
    state: Arc<WorkerState>,
    tokens: u64,
    tokens_ahead: u64,
    stage: Stage,
    key: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Prefill,
    Decode,
    /// A peer's, from beginning to end.
    Relayed,
}

impl LoadGuard {
    pub(crate) fn begin(state: Arc<WorkerState>, tokens: u64, now: Timestamp) -> Self {
        let tokens = tokens.min(TOKENS_MAX);
        let load = &state.load;
        let before = load.requests.fetch_add(REQUEST, Ordering::Relaxed);
        load.processed.fetch_add(1, Ordering::Relaxed);
        load.dispatched_tokens.fetch_add(tokens, Ordering::Relaxed);
        state.rates.observe_taken_in(tokens, now);
        let own = load.pending_tokens.fetch_add(tokens, Ordering::Relaxed);
        if before == 0 {
            load.ring();
        }
        let tokens_ahead = own.saturating_add(load.peers().pending_tokens);
        if tokens_ahead == 0 {
            load.prefills_from(now);
        }
        Self { state, tokens, tokens_ahead, stage: Stage::Prefill, key: None }
    }

    /// The same for a request that a peer sends here to be passed on.
    pub(crate) fn begin_relayed(state: Arc<WorkerState>) -> Self {
        let load = &state.load;
        load.relayed.fetch_add(1, Ordering::Relaxed);
        load.processed.fetch_add(1, Ordering::Relaxed);
        let tokens_ahead = load.pending_tokens().saturating_add(load.peers().pending_tokens);
        Self { state, tokens: 0, tokens_ahead, stage: Stage::Relayed, key: None }
    }

    /// A guard for the same request at another worker, to take the place of this one.
    #[must_use = "the request counts as finished once its guard is dropped"]
    pub fn moved_to(&self, state: &Arc<WorkerState>, now: Timestamp) -> Self {
        let mut moved = match self.stage {
            Stage::Prefill | Stage::Decode => Self::begin(Arc::clone(state), self.tokens, now),
            Stage::Relayed => Self::begin_relayed(Arc::clone(state)),
        };
        if self.stage == Stage::Decode {
            moved.first_token(now);
        }
        if let Some(key) = self.key {
            moved.hold_key(key);
        }
        moved
    }

    /// Counts the request under a routing key, given by its hash. A second key replaces the first.
    pub fn hold_key(&mut self, key: u64) {
        if self.key == Some(key) {
            return;
        }
        self.state.load.take_key(key);
        if let Some(old) = self.key.replace(key) {
            self.state.load.give_key(old);
        }
    }

    /// The first token came: the prompt is no longer pending, the request decodes, and the engine goes on with the next
    /// prompt. Again is nothing.
    pub fn first_token(&mut self, now: Timestamp) {
        if self.stage == Stage::Prefill {
            self.stage = Stage::Decode;
            let load = &self.state.load;
            load.prefills_from(now);
            load.requests.fetch_add(DECODING, Ordering::Relaxed);
            load.pending_tokens.fetch_sub(self.tokens, Ordering::Relaxed);
        }
    }

    /// Prompt tokens that were pending at the worker when this request joined them; with its own, what the engine
    /// has to prefill before the first token comes.
    pub fn tokens_ahead(&self) -> u64 {
        self.tokens_ahead
    }
}

impl Drop for LoadGuard {
    fn drop(&mut self) {
        let load = &self.state.load;
        if let Some(key) = self.key {
            load.give_key(key);
        }
        // Released last: who sees no request in flight (a drain) also sees everything else given back.
        match self.stage {
            Stage::Prefill => {
                load.pending_tokens.fetch_sub(self.tokens, Ordering::Relaxed);
                load.requests.fetch_sub(REQUEST, Ordering::Release);
            }
            Stage::Decode => {
                load.requests.fetch_sub(REQUEST + DECODING, Ordering::Release);
            }
            Stage::Relayed => {
                load.relayed.fetch_sub(1, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        BreakerConfig, Looks,
        testing::{at, properties, trusted_worker},
    };

    fn counts(load: &Load) -> (u32, u32, u64, u32) {
        (load.in_flight(), load.decoding(), load.pending_tokens(), load.active_keys())
    }

    #[test]
    fn the_prompt_worked_on_begins_with_the_first_and_after_each_first_token() {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        let prefilling = |state: &WorkerState, now| {
            let mut looks = Looks::NONE;
            looks.look_at_load(3, state, at(0), at(now));
            (looks.prefilling_tokens_max()[3], looks.prefilling_seconds()[3])
        };
        let check = |now, tokens_max, seconds| {
            assert_eq!(prefilling(&state, now), (tokens_max, seconds), "at {now} s");
        };
        let mut first = state.begin(300, at(10));
        let _second = state.begin(100, at(12));
        check(15, 200.0, 5.0);
        first.first_token(at(16));
        check(17, 100.0, 1.0);
        drop(first);
        let peers = |requests, decoding, pending_tokens| PeerLoad { requests, decoding, pending_tokens };
        state.set_peers(peers(2, 0, 500), at(18));
        check(19, 300.0, 3.0);
        state.set_peers(peers(3, 1, 600), at(20));
        check(21, 350.0, 1.0);
        let other = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        other.set_peers(peers(1, 0, 400), at(30));
        assert_eq!(prefilling(&other, 31), (400.0, 1.0));
    }

    #[test]
    fn a_request_is_pending_then_decodes_then_is_gone() {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        let mut first = state.begin(100, at(0));
        let second = state.begin(20, at(0));
        assert_eq!((first.tokens_ahead(), second.tokens_ahead()), (0, 100));
        assert_eq!(counts(&state.load), (2, 0, 120, 0));
        first.first_token(at(0));
        first.first_token(at(0));
        assert_eq!(counts(&state.load), (2, 1, 20, 0));
        drop(second);
        assert_eq!(counts(&state.load), (1, 1, 0, 0));
        drop(first);
        assert_eq!(counts(&state.load), (0, 0, 0, 0));
        assert_eq!(state.load.processed(), 2);
    }

    #[test]
    fn keys_count_once_however_many_requests_hold_them() {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        let (mut a, mut b, mut c) = (state.begin(0, at(0)), state.begin(0, at(0)), state.begin(0, at(0)));
        a.hold_key(1);
        a.hold_key(1);
        b.hold_key(1);
        c.hold_key(2);
        assert_eq!(state.load.active_keys(), 2);
        c.hold_key(1);
        assert_eq!(state.load.active_keys(), 1);
        drop((a, b));
        assert_eq!(state.load.active_keys(), 1);
        drop(c);
        assert_eq!(state.load.active_keys(), 0);
        assert!(state.load.keys.lock().is_empty());
    }

    #[test]
    fn the_engines_figures_are_set_against_our_own() {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        let load = &state.load;
        let early = state.begin(10, at(0));
        assert_eq!((load.engine(), load.foreign_requests(), load.tokens_since_engine()), (None, 0, 10));
        let said = EngineLoad {
            running: 3,
            waiting: 2,
            kv_usage: f32::NAN,
            generation_tokens_per_second: f32::INFINITY,
            at: at(1),
        };
        load.set_engine(said);
        assert_eq!((load.foreign_requests(), load.tokens_since_engine()), (4, 0));
        let engine = load.engine().unwrap();
        assert_eq!((engine.kv_usage, engine.generation_tokens_per_second), (0.0, 1e9));
        let late = state.begin(7, at(0));
        assert_eq!(load.tokens_since_engine(), 7);
        drop((early, late));
        assert_eq!(load.foreign_requests(), 4, "as of the time the engine spoke");
        load.set_engine(EngineLoad { running: 0, waiting: 0, ..said });
        assert_eq!(load.foreign_requests(), 0);
        load.clear_engine();
        assert_eq!(load.engine(), None);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u64),
        FirstToken(usize),
        Key(usize, u64),
        Drop(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let tokens = prop_oneof![0..5_000_u64, Just(u64::MAX)];
        let step = prop_oneof![
            tokens.prop_map(Step::Begin),
            any::<usize>().prop_map(Step::FirstToken),
            (any::<usize>(), 0..4_u64).prop_map(|(index, key)| Step::Key(index, key)),
            any::<usize>().prop_map(Step::Drop),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #![proptest_config(properties(256))]

        #[test]
        fn counts_equal_what_the_guards_hold(steps in steps()) {
            let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
            let mut guards: Vec<LoadGuard> = Vec::new();
            for step in steps {
                let place = |index: usize| index.checked_rem(guards.len());
                match step {
                    Step::Begin(tokens) => guards.push(state.begin(tokens, at(0))),
                    Step::FirstToken(index) => place(index).into_iter().for_each(|place| guards[place].first_token(at(0))),
                    Step::Key(index, key) => place(index).into_iter().for_each(|at| guards[at].hold_key(key)),
                    Step::Drop(index) => place(index).into_iter().for_each(|at| drop(guards.swap_remove(at))),
                }
                let pending = guards.iter().filter(|guard| guard.stage == Stage::Prefill);
                let mut keys: Vec<u64> = guards.iter().filter_map(|guard| guard.key).collect();
                keys.sort_unstable();
                keys.dedup();
                let expected = (
                    guards.len() as u32,
                    guards.iter().filter(|guard| guard.stage == Stage::Decode).count() as u32,
                    pending.map(|guard| guard.tokens).sum::<u64>(),
                    keys.len() as u32,
                );
                prop_assert_eq!(counts(&state.load), expected);
            }
            drop(guards);
            prop_assert_eq!(counts(&state.load), (0, 0, 0, 0));
        }
    }

    #[test]
    fn nothing_leaks_between_threads() {
        let state = Arc::clone(&trusted_worker(BreakerConfig::default()).state);
        thread::scope(|scope| {
            for thread in 0..4_u64 {
                let state = &state;
                scope.spawn(move || {
                    for turn in 0..2_000 {
                        let mut guard = state.begin(turn, at(0));
                        guard.hold_key(turn % (3 + thread));
                        if turn % 3 == 0 {
                            guard.first_token(at(0));
                        }
                    }
                });
            }
        });
        assert_eq!(counts(&state.load), (0, 0, 0, 0));
        assert_eq!(state.load.processed(), 8_000);
    }
}
