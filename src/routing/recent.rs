//! What was sent lately to workers of which this gateway is told.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use smg_base::{Timestamp, WorkerId};
use smg_prefix::{Found, Held, PrefixIndex};

/// In two parts, of which the older is dropped whole, so that forgetting costs nothing; and without any part as long as
/// nothing is sent, so that asking costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    parts: ArcSwap<Parts>,
    turning: Mutex<()>,
}

#[derive(Debug, Default)]
struct Parts {
    newer: Option<Part>,
    older: Option<Part>,
}

/// What was sent in the time after `since`.
#[derive(Clone, Debug)]
struct Part {
    index: Arc<PrefixIndex>,
    since: Timestamp,
}

/// How many of a prompt's first chunks are remembered as sent to a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) chunks: usize,
    /// The same of the newer part alone: what is in it is not noted again.
    pub(crate) just_now: usize,
}

impl Recent {
    /// How long a part is filled. What was sent is remembered for one to two times that: long enough for a prompt to be
    /// computed and for the news of it to come back.
    pub(crate) const PART: Duration = Duration::from_secs(5);
    /// Memory of one part; what is sent beyond that pushes out what was sent before.
    const PART_BYTES: usize = 16 << 20;

    /// Adds what is remembered to what was found; `trust` is a worker's, where nothing was found.
    pub(crate) fn add(
        &self,
        chunks: &[u64],
        workers: impl ExactSizeIterator<Item = WorkerId> + Clone,
        now: Timestamp,
        trust: impl Fn(WorkerId) -> f32,
        found: &mut Found,
    ) {
        for part in self.parts.load().at(now) {
            let mut recent = Found::default();
            part.index.lookup(chunks, workers.clone(), &mut recent);
            if recent.holders.is_empty() {
                continue;
            }
            if found.holders.is_empty() {
                found.holders.extend(workers.clone().map(|worker| Held { chunks: 0, trust: trust(worker) }));
            }
            for (held, recent) in found.holders.iter_mut().zip(&recent.holders) {
                held.chunks = held.chunks.max(recent.chunks);
            }
        }
    }

    /// How much of a prompt is remembered as sent to `worker`.
    pub(crate) fn sent(&self, chunks: &[u64], worker: WorkerId, now: Timestamp) -> Sent {
        let parts = self.parts.load();
        let held = |part: &Part| {
            let mut found = Found::default();
            part.index.lookup(chunks, std::iter::once(worker), &mut found);
            found.holders.first().map_or(0, |held| held.chunks as usize)
        };
        Sent { chunks: parts.at(now).map(held).max().unwrap_or(0), just_now: parts.filling(now).map_or(0, held) }
    }

    /// Notes that a prompt was sent to `worker`.
    pub(crate) fn insert(&self, worker: WorkerId, chunks: &[u64], now: Timestamp) {
        let filling = self.parts.load().filling(now).cloned();
        filling.unwrap_or_else(|| self.begin(now)).index.insert(worker, chunks, u64::from(u32::MAX));
    }

    fn begin(&self, now: Timestamp) -> Part {
        let _one_at_a_time = self.turning.lock();
        let parts = self.parts.load();
        if let Some(part) = parts.filling(now) {
            return part.clone();
        }
        let part = Part { index: Arc::new(PrefixIndex::new(Self::PART_BYTES)), since: now };
        let older = parts.newer.clone().filter(|part| part.counts(now));
        self.parts.store(Arc::new(Parts { newer: Some(part.clone()), older }));
        part
    }

    /// Drops what has had its time, while nothing is sent.
    pub(crate) fn sweep(&self, now: Timestamp) {
        let _one_at_a_time = self.turning.lock();
        let parts = self.parts.load();
        if parts.all().any(|part| !part.counts(now)) {
            let rest = |part: &Option<Part>| part.clone().filter(|part| part.counts(now));
            self.parts.store(Arc::new(Parts { newer: rest(&parts.newer), older: rest(&parts.older) }));
        }
    }

    pub(crate) fn forget(&self, worker: WorkerId) {
        self.parts.load().all().for_each(|part| part.index.forget(worker));
    }

    /// Memory in use.
    pub(crate) fn used_bytes(&self) -> usize {
        self.parts.load().all().map(|part| part.index.used_bytes()).sum()
    }
}

impl Parts {
    fn all(&self) -> impl Iterator<Item = &Part> {
        self.newer.iter().chain(&self.older)
    }

    /// Those that still count.
    fn at(&self, now: Timestamp) -> impl Iterator<Item = &Part> {
        self.all().filter(move |part| part.counts(now))
    }

    /// The one to which belongs what is sent now.
    fn filling(&self, now: Timestamp) -> Option<&Part> {
        self.newer.as_ref().filter(|part| now.since(part.since) < Recent::PART)
    }
}

impl Part {
    fn counts(&self, now: Timestamp) -> bool {
        now.since(self.since) < 2 * Recent::PART
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::at;

    fn worker() -> WorkerId {
        WorkerId::of("w", None)
    }

    fn sent(chunks: usize, just_now: usize) -> Sent {
        Sent { chunks, just_now }
    }

    #[test]
    fn what_was_sent_is_remembered_for_a_while_whether_anybody_sweeps_or_not() {
        for sweeps in [false, true] {
            let recent = Recent::default();
            let check = |seconds: u64, expected: Sent| {
                if sweeps {
                    recent.sweep(at(seconds));
                }
                assert_eq!(recent.sent(&[1, 2, 3, 4], worker(), at(seconds)), expected, "{seconds} s, {sweeps}");
            };
            check(100, sent(0, 0));
            recent.insert(worker(), &[1, 2, 3], at(100));
            check(104, sent(3, 3));
            check(105, sent(3, 0));
            check(109, sent(3, 0));
            recent.insert(worker(), &[1, 2], at(109));
            check(113, sent(2, 2));
            check(114, sent(2, 0));
            check(118, sent(2, 0));
            check(119, sent(0, 0));
            recent.sweep(at(119));
            assert_eq!(recent.used_bytes(), 0);
        }
    }

    #[test]
    fn memory_is_bounded_whatever_is_sent() {
        let recent = Recent::default();
        for prompt in 0..3_000_u64 {
            let chunks: Vec<u64> = (1..1_000).map(|chunk| prompt << 20 | chunk).collect();
            recent.insert(worker(), &chunks, at(1));
        }
        assert!(recent.used_bytes() <= Recent::PART_BYTES, "{}", recent.used_bytes());
    }
}
