//! Who takes part in a choice.

use std::cmp::Ordering;

use smallvec::SmallVec;
use smg_base::WorkerId;
use smg_fleet::{Pool, Worker};

use crate::{Ask, NoChoice, Standing, explain::Counts};

/// The workers of a pool that can take a request: of the highest priority there is among them, by ascending id.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    list: SmallVec<[Candidate; 128]>,
    /// Sum of all shares.
    shares: f64,
    /// Whether all shares are equal, so that the policies need not divide.
    equal: bool,
    /// Who was left out.
    pub(crate) counts: Counts,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// Its id, kept here because to look at a worker is to miss the processor's cache.
    pub(crate) id: WorkerId,
    /// Its place in the pool.
    pub(crate) position: u32,
    /// Its share of the traffic, relative to the others'; positive.
    pub(crate) share: f32,
}

/// Whether to ask of each worker if it offers what the request needs. That is slow where engines list their paths, and
/// nearly always all of them offer it: so a choice is made first, and made again with the question asked of all if
/// the chosen worker turns out not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offers {
    Assumed,
    Checked,
}

impl Candidates {
    /// Those of `pool` that can take what `ask` asks for.
    pub(crate) fn gather(pool: &Pool, ask: &Ask<'_>, offers: Offers) -> Result<Self, NoChoice> {
        let mut these = Self { equal: true, ..Self::default() };
        let mut priority = 0;
        for (worker, position) in pool.workers.iter().zip(0_u32..) {
            let standing = standing(worker, ask, offers);
            if standing != Standing::Considered {
                these.counts.leave_out(standing);
                continue;
            }
            match worker.spec.priority.cmp(&priority) {
                Ordering::Less => {
                    these.counts.lower_priority += 1;
                    continue;
                }
                Ordering::Equal => {}
                Ordering::Greater => {
                    priority = worker.spec.priority;
                    these.counts.lower_priority += these.list.len();
                    these.list.clear();
                    (these.shares, these.equal) = (0.0, true);
                }
            }
            these.push(worker, position);
        }
        these.counts.considered = these.list.len();
        if these.list.is_empty() { Err(these.nobody(pool)) } else { Ok(these) }
    }

    /// Them, by ascending id.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Candidate> + Clone {
        self.list.iter().copied()
    }

    /// How many there are; never zero.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// One of them.
    pub(crate) fn at(&self, index: usize) -> Candidate {
        self.list[index]
    }

    /// The index of the one with this place in the pool.
    pub(crate) fn index_of(&self, position: usize) -> Option<usize> {
        self.list.binary_search_by_key(&position, |candidate| candidate.position as usize).ok()
    }

    /// Sum of all shares; positive.
    pub(crate) fn shares(&self) -> f64 {
        self.shares
    }

    /// The mean of their shares; positive.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a mean of shares")]
    pub(crate) fn mean_share(&self) -> f32 {
        (self.shares / self.list.len() as f64) as f32
    }

    /// Whether all shares are equal.
    pub(crate) fn are_equal(&self) -> bool {
        self.equal
    }

    #[expect(clippy::cast_possible_truncation, reason = "a share needs no more than seven digits")]
    fn push(&mut self, worker: &Worker, position: u32) {
        let share = worker.share() as f32;
        self.equal &= self.list.first().is_none_or(|first| first.share.to_bits() == share.to_bits());
        self.shares += f64::from(share);
        self.list.push(Candidate { id: worker.id, position, share });
    }

    fn nobody(&self, pool: &Pool) -> NoChoice {
        if pool.workers.is_empty() {
            NoChoice::Empty
        } else if self.counts.excluded > 0 {
            NoChoice::AllExcluded
        } else if self.counts.not_offered > 0 {
            NoChoice::NotOffered
        } else {
            NoChoice::NoneAvailable
        }
    }
}

/// Whether `worker` can take the request, priorities aside.
pub(crate) fn standing(worker: &Worker, ask: &Ask<'_>, offers: Offers) -> Standing {
    if !worker.can_take(ask.relaying, ask.now) {
        Standing::Unavailable
    } else if ask.excluded.contains(&worker.id) {
        Standing::Excluded
    } else if offers == Offers::Checked && !ask.is_offered_by(worker) {
        Standing::NotOffered
    } else {
        Standing::Considered
    }
}
