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
    /// What was sent since `since`, and in the time before.
    newer: Option<Arc<PrefixIndex>>,
    older: Option<Arc<PrefixIndex>>,
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
        workers: impl Iterator<Item = WorkerId> + Clone,
        now: Timestamp,
        trust: impl Fn(WorkerId) -> f32,
        found: &mut Found,
    ) {
        for part in self.parts.load().at(now) {
            let mut recent = Found::default();
            part.lookup(chunks, workers.clone(), &mut recent);
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
        let mut sent = Sent::default();
        for (part, is_newer) in parts.at(now).zip([true, false]) {
            let mut found = Found::default();
            part.lookup(chunks, std::iter::once(worker), &mut found);
            let held = found.holders.first().map_or(0, |held| held.chunks as usize);
            sent.chunks = sent.chunks.max(held);
            if is_newer && parts.is_filling(now) {
                sent.just_now = held;
            }
        }
        sent
    }

    /// Notes that a prompt was sent to `worker`.
    pub(crate) fn insert(&self, worker: WorkerId, chunks: &[u64], now: Timestamp) {
        let parts = self.parts.load();
        match &parts.newer {
            Some(newer) if parts.is_filling(now) => newer.insert(worker, chunks, u64::from(u32::MAX)),
            _ => self.begin(now).insert(worker, chunks, u64::from(u32::MAX)),
        }
    }

    fn begin(&self, now: Timestamp) -> Arc<PrefixIndex> {
        let _one_at_a_time = self.turning.lock();
        let parts = self.parts.load();
        if let Some(newer) = parts.newer.as_ref().filter(|_| parts.is_filling(now)) {
            return newer.clone();
        }
        let newer = Arc::new(PrefixIndex::new(Self::PART_BYTES));
        let older = parts.newer.clone().filter(|_| now.since(parts.since) < 2 * Self::PART);
        self.parts.store(Arc::new(Parts { newer: Some(newer.clone()), older, since: now }));
        newer
    }

    /// Drops what has had its time, while nothing is sent.
    pub(crate) fn sweep(&self, now: Timestamp) {
        let _one_at_a_time = self.turning.lock();
        let parts = self.parts.load();
        let age = now.since(parts.since);
        if parts.newer.is_some() && age >= 2 * Self::PART {
            self.parts.store(Arc::default());
        } else if parts.older.is_some() && age >= Self::PART {
            self.parts.store(Arc::new(Parts { newer: parts.newer.clone(), older: None, since: parts.since }));
        }
    }

    pub(crate) fn forget(&self, worker: WorkerId) {
        let parts = self.parts.load();
        for part in [&parts.newer, &parts.older].into_iter().flatten() {
            part.forget(worker);
        }
    }

    /// Memory in use.
    pub(crate) fn used_bytes(&self) -> usize {
        let parts = self.parts.load();
        [&parts.newer, &parts.older].into_iter().flatten().map(|part| part.used_bytes()).sum()
    }
}

impl Parts {
    /// Whether what is sent now goes to the newer part.
    fn is_filling(&self, now: Timestamp) -> bool {
        self.newer.is_some() && now.since(self.since) < Recent::PART
    }

    /// Those that still count, the newer one first.
    fn at(&self, now: Timestamp) -> impl Iterator<Item = &PrefixIndex> {
        let age = now.since(self.since);
        let newer = self.newer.as_deref().filter(|_| age < 2 * Recent::PART);
        let older = self.older.as_deref().filter(|_| age < Recent::PART);
        newer.into_iter().chain(older)
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
            check(113, sent(3, 2));
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
