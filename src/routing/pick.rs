//! Ways to take one of many.

use smg_base::{Random, WorkerId, hash};

use crate::{
    Reason,
    candidates::{Candidate, Candidates},
};

/// A worker, by its place in the pool, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) position: usize,
    /// Its place among the candidates.
    pub(crate) index: usize,
    pub(crate) reason: Reason,
}

impl Candidate<'_> {
    /// The choice of this candidate.
    pub(crate) fn because(self, reason: Reason) -> Choice {
        Choice { position: self.position as usize, index: self.index(), reason }
    }
}

/// One by chance, each with the probability of its share.
pub(crate) fn chance<'a>(candidates: &Candidates<'a>, random: &dyn Random) -> Candidate<'a> {
    if candidates.are_equal() {
        candidates.at(below(random, candidates.len()))
    } else {
        candidates.at(at_share(candidates, random.unit() * candidates.shares()))
    }
}

/// The one whose turn the `turn`th choice is. Equal shares take turns in order. Others are spread by the multiples of the
/// golden ratio, which fill any interval evenly at every moment: a worker's turns never cluster (Weyl, 1916; the
/// constant has the lowest discrepancy).
pub(crate) fn turn<'a>(candidates: &Candidates<'a>, turn: u64) -> Candidate<'a> {
    if candidates.are_equal() {
        let index = usize::try_from(turn % candidates.len() as u64).unwrap_or(0);
        return candidates.at(index);
    }
    #[expect(clippy::cast_precision_loss, reason = "the upper bits decide")]
    let point = turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) as f64 / 2_f64.powi(64);
    candidates.at(at_share(candidates, point * candidates.shares()))
}

/// Two different ones by chance, by index; twice the same if there is only one.
pub(crate) fn two<'a>(candidates: &Candidates<'a>, random: &dyn Random) -> (Candidate<'a>, Candidate<'a>) {
    let count = candidates.len();
    if count == 1 {
        return (candidates.at(0), candidates.at(0));
    }
    if candidates.are_equal() {
        let first = below(random, count);
        let second = below(random, count - 1);
        return (candidates.at(first), candidates.at(second + usize::from(second >= first)));
    }
    let first = at_share(candidates, random.unit() * candidates.shares());
    let chosen = candidates.at(first);
    let before: f64 = candidates.iter().take(first).map(|candidate| f64::from(candidate.share)).sum();
    let own = f64::from(chosen.share);
    // The first one's stretch is cut out of the line.
    let point = random.unit() * (candidates.shares() - own).max(0.0);
    let second = at_share(candidates, if point < before { point } else { point + own });
    let second = if second == first { (first + 1) % count } else { second };
    (chosen, candidates.at(second))
}

/// The one with the least score. Among equals chance decides, by share.
pub(crate) fn least<'a>(
    candidates: &Candidates<'a>,
    random: &dyn Random,
    score: impl Fn(Candidate<'a>) -> f64,
) -> Candidate<'a> {
    let mut best = candidates.at(0);
    let mut best_score = score(best);
    let mut tied = f64::from(best.share);
    for candidate in candidates.iter().skip(1) {
        let score = score(candidate);
        if score < best_score {
            (best, best_score, tied) = (candidate, score, f64::from(candidate.share));
        } else if score <= best_score {
            // The place among all that tie so far, drawn anew for each (reservoir sampling).
            tied += f64::from(candidate.share);
            if random.unit() * tied < f64::from(candidate.share) {
                best = candidate;
            }
        }
    }
    best
}

/// Shares keys out by rendezvous hashing (Thaler and Ravishankar, 1998; by weight as in Schindelhauer and Schomaker,
/// 2005): each key goes to the worker with the best score for it. All gateways agree without speaking; if a worker comes or
/// goes, only the keys that it gets or had move; and the second best takes over for the best, a different one for
/// each key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rendezvous {
    key: u64,
    equal: bool,
}

impl Rendezvous {
    pub(crate) fn new(key: u64, candidates: &Candidates<'_>) -> Self {
        Self { key, equal: candidates.are_equal() }
    }

    /// The best of `some` of the candidates.
    pub(crate) fn best<'a>(self, some: impl Iterator<Item = Candidate<'a>>) -> Option<Candidate<'a>> {
        let hash_of = |candidate: &Candidate<'_>| hash::mix(self.key, seed(candidate.member.id));
        if self.equal {
            let mut best = None;
            let mut best_hash = 0;
            for candidate in some {
                let hash = hash_of(&candidate);
                if hash >= best_hash {
                    (best, best_hash) = (Some(candidate), hash);
                }
            }
            return best;
        }
        let hashed = some.map(|candidate| (hash_of(&candidate), candidate));
        let scored = hashed.map(|(hash, candidate)| (-unit(hash).ln() / f64::from(candidate.share), candidate));
        scored.min_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, candidate)| candidate)
    }
}

/// A worker's id is a hash already; half of it will do.
#[expect(clippy::cast_possible_truncation, reason = "half of it will do")]
fn seed(worker: WorkerId) -> u64 {
    worker.as_u128() as u64
}

/// A number in `0.0..1.0`, never zero.
#[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
fn unit(hash: u64) -> f64 {
    ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

pub(crate) fn below(random: &dyn Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap_or(0)
}

/// The index of the candidate in whose stretch of the line of all shares `point` lies.
pub(crate) fn at_share(candidates: &Candidates<'_>, point: f64) -> usize {
    let mut end = 0.0;
    for (index, candidate) in candidates.iter().enumerate() {
        end += f64::from(candidate.share);
        if point < end {
            return index;
        }
    }
    // Rounding can leave the point just behind the end.
    candidates.len() - 1
}
