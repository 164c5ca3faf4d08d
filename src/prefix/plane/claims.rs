//! What nodes send to workers whose content is worked out elsewhere, as claims in their lanes.
//!
//! A node's claims are a ring of entries: a new one takes the place of the oldest. Whoever falls behind by a whole ring, or
//! joins later, has missed claims for good. Nothing but the quality of a prediction is lost by that: the worker is taken to hold
//! less than it does, until the prompt is sent again.

use std::collections::VecDeque;

use crate::Claim;
use bytes::Bytes;

use super::{
    lane::{Batch, CLAIM_CHUNKS_MAX, CLAIMS_BYTES_MAX, Key, SLOTS, Stream},
    segments::Entry,
};

/// The most claims that wait to be told.
const WAITING_MAX: usize = 8_192;

/// The most entries of one flush: a ring then lasts for as many flushes as this goes into it.
pub(super) const ENTRIES_PER_FLUSH: usize = 8;

/// This node's claims.
#[derive(Debug)]
pub(super) struct Ring {
    run: u32,
    number: u32,
    waiting: VecDeque<(Stream, Claim)>,
    pub(super) sent: u64,
    pub(super) dropped: u64,
}

/// How far somebody else's claims have been heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    last: Option<(u32, u32)>,
}

impl Ring {
    pub(super) fn new(run: u32) -> Self {
        Self { run, number: 0, waiting: VecDeque::new(), sent: 0, dropped: 0 }
    }

    /// Takes a claim to be told.
    pub(super) fn push(&mut self, stream: Stream, claim: &Claim) {
        let mut after = claim.after;
        let mut rest = claim.chunks.as_slice();
        loop {
            let (now, later) = rest.split_at(rest.len().min(CLAIM_CHUNKS_MAX));
            if self.waiting.len() >= WAITING_MAX {
                self.dropped += 1;
                return;
            }
            self.waiting.push_back((stream, Claim { after, chunks: now.to_vec() }));
            if later.is_empty() {
                return;
            }
            (after, rest) = (now.last().copied(), later);
        }
    }

    /// Whether any wait.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Appends the entries that tell what waits, as far as one flush may.
    pub(super) fn flush(&mut self, out: &mut Vec<Entry>) {
        for _ in 0..ENTRIES_PER_FLUSH {
            let mut claims = Vec::new();
            let mut bytes = 0;
            while bytes < CLAIMS_BYTES_MAX
                && let Some((stream, claim)) = self.waiting.pop_front()
            {
                bytes += 16 + 8 * claim.chunks.len();
                claims.push((stream, claim));
            }
            if claims.is_empty() {
                return;
            }
            self.sent += claims.len() as u64;
            // Claims about one stream share its name where they follow each other; their order within a stream stays.
            claims.sort_by_key(|(stream, _)| *stream);
            self.number = self.number.wrapping_add(1);
            let slot = u16::try_from(self.number % u32::from(SLOTS)).unwrap_or_default();
            let batch = Batch { run: self.run, number: self.number, claims };
            out.push((Key::Claims(slot).bytes(), Some(batch.bytes())));
        }
    }
}

impl Heard {
    /// Hands out the claims of `values` that were not heard before, in their order; says how many entries were missed.
    pub(super) fn take(&mut self, values: Vec<Bytes>, claim: &mut dyn FnMut(Stream, Claim)) -> u64 {
        let mut batches: Vec<Batch> = values.iter().filter_map(|value| Batch::of(value)).collect();
        batches.sort_by_key(|batch| (batch.run, batch.number));
        let mut missed = 0;
        for batch in batches {
            if let Some((run, number)) = self.last
                && run == batch.run
            {
                // Numbers go round, so what is far ahead is behind.
                match batch.number.wrapping_sub(number) {
                    0 | 0x8000_0000.. => continue,
                    ahead => missed += u64::from(ahead - 1),
                }
            }
            self.last = Some((batch.run, batch.number));
            for (stream, heard) in batch.claims {
                claim(stream, heard);
            }
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use crate::Space;
    use smg_base::WorkerId;

    use super::*;

    fn stream() -> Stream {
        Stream { worker: WorkerId::from_u128(1), model: 2, space: Space::Text }
    }

    fn claims(ring: &mut Ring, first: u64, count: u64) -> Vec<Entry> {
        for chunk in first..first + count {
            ring.push(stream(), &Claim { after: None, chunks: vec![chunk] });
        }
        let mut out = Vec::new();
        ring.flush(&mut out);
        out
    }

    fn values(entries: &[Entry]) -> Vec<Bytes> {
        entries.iter().filter_map(|(_, value)| value.clone()).collect()
    }

    fn heard(heard: &mut Heard, entries: &[Entry]) -> (Vec<u64>, u64) {
        let mut chunks = Vec::new();
        let missed = heard.take(values(entries), &mut |_, claim| chunks.extend(claim.chunks));
        (chunks, missed)
    }

    #[test]
    fn claims_are_heard_once_and_in_order() {
        let mut ring = Ring::new(9);
        let mut ear = Heard::default();
        let first = claims(&mut ring, 0, 400);
        assert!(first.len() > 1, "they fill more than an entry");
        assert_eq!(heard(&mut ear, &first), ((0..400).collect(), 0));
        assert_eq!(heard(&mut ear, &first), (vec![], 0), "all was heard before");
        let _missed = claims(&mut ring, 400, 1);
        assert_eq!(heard(&mut ear, &claims(&mut ring, 401, 1)), (vec![401], 1));
        let mut restarted = Ring::new(3);
        assert_eq!(heard(&mut ear, &claims(&mut restarted, 7, 1)), (vec![7], 0));
    }

    #[test]
    fn a_long_claim_is_cut_and_a_burst_is_bounded() {
        let mut ring = Ring::new(1);
        let chunks: Vec<u64> = (1..=600).collect();
        ring.push(stream(), &Claim { after: None, chunks: chunks.clone() });
        let mut out = Vec::new();
        ring.flush(&mut out);
        assert_eq!(heard(&mut Heard::default(), &out), (chunks, 0));
        for chunk in 0..10_000 {
            ring.push(stream(), &Claim { after: Some(chunk), chunks: vec![chunk] });
        }
        assert_eq!((ring.waiting.len(), ring.dropped), (WAITING_MAX, 10_000 - WAITING_MAX as u64));
        out.clear();
        ring.flush(&mut out);
        assert_eq!(out.len(), ENTRIES_PER_FLUSH);
    }
}
