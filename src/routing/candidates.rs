//! Who takes part in a choice.

use smallvec::SmallVec;
use smg_fleet::{LANES, Member, Pool, Shares, Way, Worker, WorkerState};

use crate::{Ask, NoChoice, Standing, explain::Counts};

/// The workers of a pool that can take a request: of the highest priority there is among them, by ascending id.
#[derive(Debug, Default)]
pub(crate) struct Candidates<'a> {
    list: SmallVec<[Candidate<'a>; 128]>,
    /// Where they are equal, the policies need not divide.
    shares: Shares,
    /// Who was left out.
    pub(crate) counts: Counts,
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) member: &'a Member,
    /// Its place in the pool.
    pub(crate) position: u32,
    /// Its place among the candidates.
    index: u32,
    /// Its share of the traffic, relative to the others'; positive.
    pub(crate) share: f32,
    /// How a request would get there.
    pub(crate) way: Way,
}

impl Candidate<'_> {
    /// Its place among the candidates.
    #[inline]
    pub(crate) fn index(&self) -> usize {
        self.index as usize
    }

    /// What changes while it works.
    #[inline]
    pub(crate) fn state(&self) -> &WorkerState {
        &self.member.state
    }
}

/// Whether to ask of each worker if it offers what the request needs. That is slow where engines list their paths, and
/// nearly always all of them offer it: so a choice is made first, and made again with the question asked of all if
/// the chosen worker turns out not to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offers {
    Assumed,
    Checked,
}

impl<'a> Candidates<'a> {
    /// Finds those of `pool` that can take what `ask` asks for.
    pub(crate) fn gather(&mut self, pool: &'a Pool, ask: &Ask<'_>, offers: Offers) -> Result<(), NoChoice> {
        self.list.clear();
        self.counts = Counts::default();
        let is_direct = |member: &Member| member.state.way(ask.relaying, ask.now) == Some(Way::Direct);
        let are_plain = ask.excluded.is_empty() && offers == Offers::Assumed && pool.has_one_priority();
        if are_plain && pool.members().iter().all(is_direct) {
            self.gather_all(pool);
        } else {
            self.gather_some(pool, ask, offers);
        }
        self.counts.considered = self.list.len();
        self.shares = match self.list.len() == pool.members().len() {
            true => pool.shares(),
            false => Shares::of(self.list.iter().map(|candidate| candidate.share)),
        };
        if self.list.is_empty() { Err(self.nobody(pool)) } else { Ok(()) }
    }

    /// Nearly always everybody can take what is asked for, from here.
    fn gather_all(&mut self, pool: &'a Pool) {
        let candidate = |(member, position): (&'a Member, u32)| Candidate {
            member,
            position,
            index: position,
            share: member.share,
            way: Way::Direct,
        };
        self.list.extend(pool.members().iter().zip(0_u32..).map(candidate));
    }

    fn gather_some(&mut self, pool: &'a Pool, ask: &Ask<'_>, offers: Offers) {
        let (mut priority, mut index) = (0, 0);
        for (member, position) in pool.members().iter().zip(0_u32..) {
            let way = match member.state.way(ask.relaying, ask.now) {
                Some(way) if ask.excluded.is_empty() && offers == Offers::Assumed => way,
                way => match standing_by(way, &pool.workers[position as usize], ask, offers) {
                    (Standing::Considered, Some(way)) => way,
                    (standing, _) => {
                        self.counts.leave_out(standing);
                        continue;
                    }
                },
            };
            if member.priority != priority {
                if member.priority < priority {
                    self.counts.lower_priority += 1;
                    continue;
                }
                priority = member.priority;
                self.counts.lower_priority += self.list.len();
                self.list.clear();
                index = 0;
            }
            self.list.push(Candidate { member, position, index, share: member.share, way });
            index += 1;
        }
    }

    /// Them, by ascending id.
    #[inline]
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Candidate<'a>> + Clone {
        self.list.iter().copied()
    }

    /// The same, so many at a time as are looked at together.
    #[inline]
    pub(crate) fn groups(&self) -> impl Iterator<Item = &[Candidate<'a>]> {
        self.list.chunks(LANES)
    }

    /// How many there are; never zero.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// One of them.
    pub(crate) fn at(&self, index: usize) -> Candidate<'a> {
        self.list[index]
    }

    /// Sum of all shares; positive.
    pub(crate) fn shares(&self) -> f64 {
        self.shares.sum
    }

    /// The mean of their shares; positive.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "a mean of shares")]
    pub(crate) fn mean_share(&self) -> f32 {
        (self.shares.sum / self.list.len() as f64) as f32
    }

    /// Whether all shares are equal.
    pub(crate) fn are_equal(&self) -> bool {
        self.shares.are_equal
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
    standing_by(worker.state.way(ask.relaying, ask.now), worker, ask, offers).0
}

/// The same where it is known which way the request would take, if any.
fn standing_by(way: Option<Way>, worker: &Worker, ask: &Ask<'_>, offers: Offers) -> (Standing, Option<Way>) {
    let standing = if way.is_none() {
        Standing::Unavailable
    } else if ask.excluded.contains(&worker.id) {
        Standing::Excluded
    } else if offers == Offers::Checked && !ask.is_offered_by(worker) {
        Standing::NotOffered
    } else {
        Standing::Considered
    };
    (standing, way)
}
