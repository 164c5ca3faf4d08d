//! What was sent to workers whose content some other node predicts.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use smg_base::WorkerId;
use smg_prefix::Claim;

/// Claims that nobody has taken yet. Bounded: what comes when there is no room is dropped, and then predicted too late, with
/// the next prompt that has the same beginning.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    waiting: Mutex<Waiting>,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    claims: Vec<(WorkerId, Claim)>,
    chunks: usize,
}

impl Claims {
    /// Claims kept at once.
    const CLAIMS_MAX: usize = 1 << 13;
    /// Chunks in them.
    const CHUNKS_MAX: usize = 1 << 20;

    pub(crate) fn push(&self, worker: WorkerId, claim: Claim) {
        let mut waiting = self.waiting.lock();
        let chunks = waiting.chunks + claim.chunks.len();
        if waiting.claims.len() < Self::CLAIMS_MAX && chunks <= Self::CHUNKS_MAX {
            waiting.chunks = chunks;
            waiting.claims.push((worker, claim));
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Hands out those that wait, in order.
    pub(crate) fn take(&self, take: &mut dyn FnMut(WorkerId, Claim)) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for (worker, claim) in waiting.claims {
            take(worker, claim);
        }
    }

    /// How many were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_wait_in_order_and_are_bounded_in_number_and_in_size() {
        let worker = WorkerId::of("w", None);
        let check = |chunks: usize, fit: usize| {
            let claims = Claims::default();
            for number in 0..fit as u64 + 5 {
                claims.push(worker, Claim { after: Some(number), chunks: vec![7; chunks] });
            }
            let mut taken = Vec::new();
            claims.take(&mut |_, claim| taken.push(claim.after));
            assert!(taken.iter().copied().eq((0..fit as u64).map(Some)), "{chunks} chunks: {}", taken.len());
            assert_eq!(claims.dropped(), 5);
            claims.push(worker, Claim { after: None, chunks: vec![7; chunks] });
            let mut count = 0;
            claims.take(&mut |_, _| count += 1);
            assert_eq!(count, 1, "there is room again");
        };
        check(0, Claims::CLAIMS_MAX);
        check(1 << 10, 1 << 10);
    }
}
