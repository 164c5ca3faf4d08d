//! Routing keys and the workers they had.

use parking_lot::Mutex;
use smallvec::SmallVec;
use smg_base::{Timestamp, TtlMap, WorkerId, hash};

use crate::{Ask, NoChoice, PolicyConfig};

/// A bounded memory of which routing key had which workers. A key keeps its worker as long as that can be used; if it cannot, the key
/// gets another, and goes back to the first when that returns, for its cache is there. Keys idle for too long are forgotten.
#[derive(Debug)]
pub(crate) struct Sticky {
    shards: Box<[Mutex<TtlMap<u128, Past>>]>,
}

/// The workers a key had, the earliest first.
type Past = SmallVec<[WorkerId; PAST_MAX]>;

/// How many workers of a key are remembered.
const PAST_MAX: usize = 2;

/// What became of a key.
pub(crate) enum Kept<T> {
    /// It has had a worker that can be used.
    Found(usize),
    /// It was given one.
    Assigned(T),
}

impl Sticky {
    const SHARDS: usize = 16;
    /// Memory of one key: its entry and its place in the order of use, with the slack of both.
    const KEY_BYTES: usize = 192;

    pub(crate) fn new(config: &PolicyConfig) -> Self {
        let capacity = config.routing_keys_max.div_ceil(Self::SHARDS);
        let shard = || Mutex::new(TtlMap::new(capacity, config.key_idle_max));
        Self { shards: (0..Self::SHARDS).map(|_| shard()).collect() }
    }

    /// What a request is remembered by, if anything.
    pub(crate) fn key(ask: &Ask<'_>) -> Option<u128> {
        match ask.routing_key {
            Some(key) => Some(hash::stable128(key.as_bytes())),
            None => ask.session.map(u128::from),
        }
    }

    /// The first worker the key had for which `usable` says a place, else the one that `assign` gives. Two requests
    /// with one new key get the same worker: the second waits until the first has its own.
    pub(crate) fn keep<T>(
        &self,
        key: u128,
        now: Timestamp,
        usable: impl Fn(WorkerId) -> Option<usize>,
        assign: impl FnOnce() -> Result<(WorkerId, T), NoChoice>,
    ) -> Result<Kept<T>, NoChoice> {
        let mut keys = self.shards[shard_of(key)].lock();
        if let Some(past) = keys.touch(&key, now) {
            if let Some(position) = past.iter().find_map(|worker| usable(*worker)) {
                return Ok(Kept::Found(position));
            }
            let (worker, assigned) = assign()?;
            if past.len() == PAST_MAX {
                past.remove(0);
            }
            past.push(worker);
            return Ok(Kept::Assigned(assigned));
        }
        let (worker, assigned) = assign()?;
        keys.insert(key, Past::from_slice(&[worker]), now);
        Ok(Kept::Assigned(assigned))
    }

    /// Forgets keys idle for too long.
    pub(crate) fn sweep(&self, now: Timestamp) {
        for shard in &self.shards {
            shard.lock().sweep(now);
        }
    }

    /// How many keys are remembered.
    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Memory in use, estimated.
    pub(crate) fn used_bytes(&self) -> usize {
        self.len() * Self::KEY_BYTES
    }
}

fn shard_of(key: u128) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "a few bits decide")]
    let low = key as u64;
    usize::try_from(hash::mix(low, 0) % Sticky::SHARDS as u64).unwrap_or(0)
}
