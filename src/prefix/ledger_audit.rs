//! What is kept twice must agree.

use std::collections::BTreeMap;

use super::*;
use crate::run::{Part, WORD_SLOTS};

impl Ledger {
    /// Checks all that the ledger and the readers' table say against each other.
    pub(crate) fn audit(&self, runs: &Pinned<'_>) {
        let live: Vec<u32> =
            (0..).zip(&self.records).filter(|(_, record)| !record.hashes.is_empty()).map(|(run, _)| run).collect();
        assert_eq!(live.len() + self.free_records.len(), self.records.len());
        let mut published = 0;
        runs.for_each(|head, run| {
            published += 1;
            self.audit_run(head, run);
        });
        assert_eq!(published, live.len());
        let roots = live.iter().map(|run| &self.records[*run as usize]).filter(|record| record.parent == NONE);
        assert!(roots.map(|record| record.hashes[0]).all(|head| runs.roots.may_have(head)));
        let mut bytes = 0;
        for run in &live {
            bytes += self.audit_record(*run);
        }
        assert_eq!(self.used, bytes, "memory is counted as it is taken");
        for (slot, number) in self.slots.iter().zip(0..) {
            self.audit_slot(slot, number);
        }
        if let Some(places) = &self.places {
            assert_eq!(places.len(), live.iter().map(|run| self.records[*run as usize].hashes.len()).sum::<usize>());
            for run in live {
                for hash in &*self.records[run as usize].hashes {
                    assert!(places.candidates(*hash).any(|candidate| candidate == run), "{hash} in {run}");
                }
            }
        }
    }

    fn audit_run(&self, head: u64, run: &crate::run::Run) {
        let record = &self.records[run.id as usize];
        assert_eq!((run.hashes[0], &run.hashes), (head, &record.hashes));
        assert_eq!(run.followers(), record.followers, "{run:?}");
        let mut seen: BTreeMap<u16, u32> = run.parts.iter().map(|Part { slot, depth }| (*slot, *depth)).collect();
        let length = chunk_count(run.hashes.len());
        for at in 0..=self.slots.len() / WORD_SLOTS {
            for bit in (0..WORD_SLOTS).filter(|bit| run.whole(at) >> bit & 1 == 1) {
                let slot = u16::try_from(at * WORD_SLOTS + bit).unwrap();
                assert_eq!(seen.insert(slot, length), None, "a part and the whole: {run:?}");
            }
        }
        let held: BTreeMap<u16, u32> = record.holds.iter().map(|hold| (hold.slot, hold.depth)).collect();
        assert_eq!(seen, held, "{run:?} {record:?}");
    }

    fn audit_record(&self, run: u32) -> usize {
        let record = &self.records[run as usize];
        assert!(record.holds.is_sorted_by(|one, other| one.slot < other.slot), "{record:?}");
        assert_eq!(record.deepest(), record.hashes.len(), "somebody holds all of it: {record:?}");
        assert!(record.holds.iter().all(|hold| hold.depth > 0));
        let following: Vec<&Record> =
            self.records.iter().filter(|other| other.parent == run && !other.hashes.is_empty()).collect();
        assert_eq!(record.followers as usize, following.len());
        for hold in &record.holds {
            let below = following.iter().filter(|other| other.hold(hold.slot).is_some()).count();
            assert_eq!(hold.below as usize, below, "{record:?}");
            assert!(below == 0 || hold.depth as usize == record.hashes.len(), "a hole: {record:?}");
            if let Some(parent) = self.records.get(record.parent as usize) {
                assert_eq!(parent.depth(hold.slot), parent.hashes.len(), "a hole before {record:?}");
            }
            assert_eq!(self.slots[usize::from(hold.slot)].recency.run(hold.entry), Some(run));
        }
        record.bytes() + record.holds.len() * Self::ENTRY_BYTES
    }

    fn audit_slot(&self, slot: &Slot, number: u16) {
        let held: Vec<u32> = slot.recency.newest_first().collect();
        let (mut chunks, mut sum) = (0, 0_u64);
        for (at, run) in held.iter().enumerate() {
            let record = &self.records[*run as usize];
            let depth = record.depth(number);
            chunks += depth as u64;
            sum = record.hashes[..depth].iter().fold(sum, |sum, hash| sum.wrapping_add(*hash));
            let parent = held.iter().position(|other| *other == record.parent);
            assert!(record.parent == NONE || parent.is_some_and(|parent| parent < at), "older than the one before it");
        }
        assert_eq!((slot.chunks, slot.sum), (chunks, sum));
    }
}
