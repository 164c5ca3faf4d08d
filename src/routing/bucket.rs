//! Prompts by size: long ones must not make short ones wait.
//!
//! The sizes of the last prompts divide the range of sizes into slices that carry equal text. A prompt goes to the worker
//! at whose place, on the line of all shares, its slice lies: with two workers the short prompts that make up half of all text
//! go to the first, the long ones to the second. Slices are many and workers come and go, so nothing has to be divided
//! anew when they do. Prompts of one size that fill several slices are spread over them by chance.

use parking_lot::{Mutex, RwLock};
use smg_base::{Random, Timestamp};

use crate::{
    PolicyConfig, Reason,
    candidates::{Candidate, Candidates},
    pick::{self, Choice},
};

/// The state of the `bucket` policy.
#[derive(Debug)]
pub(crate) struct Buckets {
    /// The greatest size, in bytes, of each slice but the last.
    ends: RwLock<[u64; SLICES - 1]>,
    recent: Mutex<Recent>,
    interval_nanos: u64,
    difference_min: f64,
    ratio_min: f64,
}

/// The sizes of the last prompts, as a ring.
#[derive(Debug)]
struct Recent {
    sizes: Vec<u64>,
    next: usize,
    fresh: usize,
    divided: Timestamp,
}

const SLICES: usize = 64;
/// How many sizes are remembered.
const RECENT_MAX: usize = 2_048;
/// How many new sizes make it worth to divide anew.
const FRESH_MIN: usize = SLICES;
/// Before any prompt was seen, sizes up to this are divided evenly.
const FIRST_RANGE_BYTES: u64 = 4_096;

impl Buckets {
    pub(crate) fn new(config: &PolicyConfig) -> Self {
        let first = std::array::from_fn(|slice| (slice as u64 + 1) * FIRST_RANGE_BYTES / SLICES as u64);
        Self {
            ends: RwLock::new(first),
            recent: Mutex::new(Recent { sizes: Vec::new(), next: 0, fresh: 0, divided: Timestamp::ORIGIN }),
            interval_nanos: u64::try_from(config.bucket_interval.as_nanos()).unwrap_or(u64::MAX),
            #[expect(clippy::cast_precision_loss, reason = "a threshold")]
            difference_min: config.balance_abs_threshold as f64,
            ratio_min: config.balance_rel_threshold,
        }
    }

    /// The worker for a prompt of `bytes`, unless others are so much more loaded than the least that it goes there.
    #[expect(clippy::cast_precision_loss, reason = "sizes for a comparison")]
    pub(crate) fn pick(
        &self,
        candidates: &Candidates<'_>,
        bytes: u64,
        bytes_per_token: f64,
        random: &dyn Random,
    ) -> Choice {
        let load = |candidate: Candidate<'_>| candidate.state().pending_tokens() as f64 * bytes_per_token;
        let loads = candidates.iter().map(load);
        let (least, most) =
            loads.fold((f64::INFINITY, 0.0_f64), |(least, most), load| (least.min(load), most.max(load)));
        if most - least > self.difference_min && most > self.ratio_min * least {
            let least = pick::least(candidates, random, |candidate| load(candidate) / f64::from(candidate.share));
            return least.because(Reason::Rebalanced);
        }
        let point = self.place(bytes, random) * candidates.shares();
        candidates.at(pick::at_share(candidates, point)).because(Reason::Size)
    }

    /// Takes note of a prompt's size; from time to time divides the sizes anew.
    pub(crate) fn note(&self, bytes: u64, now: Timestamp) {
        let mut recent = self.recent.lock();
        if recent.sizes.len() < RECENT_MAX {
            recent.sizes.push(bytes);
        } else {
            let next = recent.next;
            recent.sizes[next] = bytes;
            recent.next = (next + 1) % RECENT_MAX;
        }
        recent.fresh += 1;
        let waited = now.as_nanos().saturating_sub(recent.divided.as_nanos()) >= self.interval_nanos;
        if waited && recent.fresh >= FRESH_MIN {
            (recent.fresh, recent.divided) = (0, now);
            let ends = divide(recent.sizes.clone());
            *self.ends.write() = ends;
        }
    }

    /// Where on a line from 0 to 1 a prompt of this size belongs.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    fn place(&self, bytes: u64, random: &dyn Random) -> f64 {
        let ends = self.ends.read();
        let first = ends.partition_point(|end| *end < bytes);
        let last = ends.partition_point(|end| *end <= bytes);
        (first as f64 + random.unit() * (last - first + 1) as f64) / SLICES as f64
    }
}

/// The ends of slices that carry equal text.
fn divide(mut sizes: Vec<u64>) -> [u64; SLICES - 1] {
    sizes.sort_unstable();
    let total: u128 = sizes.iter().map(|size| u128::from(*size)).sum();
    let mut ends = [u64::MAX; SLICES - 1];
    let mut carried = 0_u128;
    let mut slice = 0;
    for size in sizes {
        carried += u128::from(size);
        while slice < ends.len() && carried * SLICES as u128 >= total * (slice as u128 + 1) {
            ends[slice] = size;
            slice += 1;
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_carry_equal_text() {
        let sizes: Vec<u64> = (0..1_000).map(|at| if at % 10 == 0 { 9_000 } else { 1_000 }).collect();
        let ends = divide(sizes);
        assert_eq!(ends.iter().filter(|end| **end == 1_000).count(), SLICES / 2);
        assert_eq!(ends.iter().filter(|end| **end == 9_000).count(), SLICES / 2 - 1);
        assert!(divide(Vec::new()).is_sorted());
        assert!(divide(vec![0; 9]).is_sorted());
        assert!(divide(vec![u64::MAX; 4_000]).is_sorted());
    }
}
