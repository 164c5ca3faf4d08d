//! Which worker has which slot, as readers see it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use smg_base::WorkerId;

/// The workers known, by ascending id. Replaced when one comes or goes.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    ids: Box<[WorkerId]>,
    seats: Box<[Seated]>,
    /// Where the worker of each slot is, or [`NOBODY`].
    by_slot: Box<[u32]>,
}

const NOBODY: u32 = u32::MAX;

#[derive(Debug)]
struct Seated {
    /// An `f32` by its bits.
    trust: AtomicU32,
    slot: u16,
}

impl Directory {
    /// How many workers are known.
    pub(crate) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Where a worker is.
    pub(crate) fn find(&self, worker: WorkerId) -> Option<usize> {
        self.ids.binary_search(&worker).ok()
    }

    /// The same, without a search if `worker` is at `guess`, or would be.
    #[inline]
    pub(crate) fn find_from(&self, guess: usize, worker: WorkerId) -> Option<usize> {
        let here = self.ids.get(guess);
        if here == Some(&worker) {
            return Some(guess);
        }
        let is_before =
            guess.checked_sub(1).and_then(|before| self.ids.get(before)).is_none_or(|before| *before < worker);
        let is_after = here.is_none_or(|here| *here > worker);
        if is_before && is_after && guess <= self.ids.len() { None } else { self.find(worker) }
    }

    fn members(&self) -> impl Iterator<Item = (WorkerId, u16, f32)> {
        self.ids.iter().zip(0..).map(|(id, at)| (*id, self.seat(at).0, self.seat(at).1))
    }

    /// The slot of the worker at a place, and its trust.
    #[inline]
    pub(crate) fn seat(&self, at: usize) -> (u16, f32) {
        let seat = &self.seats[at];
        (seat.slot, f32::from_bits(seat.trust.load(Relaxed)))
    }

    /// The worker that has a slot, and its trust.
    pub(crate) fn at_slot(&self, slot: usize) -> Option<(WorkerId, f32)> {
        let at = *self.by_slot.get(slot)? as usize;
        Some((*self.ids.get(at)?, self.seat(at).1))
    }

    /// Changes the trust of the worker at a place. Of two changes at once one may be lost, or one that meets the change
    /// of another worker: an average bears that.
    pub(crate) fn set_trust(&self, at: usize, trust: f32) {
        self.seats[at].trust.store(trust.to_bits(), Relaxed);
    }

    /// The directory with `worker` in `slot`; what is known of its trust stays.
    pub(crate) fn with(&self, worker: WorkerId, slot: u16) -> Self {
        let trust = self.find(worker).map_or(1.0, |at| self.seat(at).1);
        let mut members: Vec<(WorkerId, u16, f32)> = self.members().filter(|(id, ..)| *id != worker).collect();
        members.insert(members.partition_point(|(id, ..)| *id < worker), (worker, slot, trust));
        members.into_iter().collect()
    }

    /// The directory without `worker`.
    pub(crate) fn without(&self, worker: WorkerId) -> Self {
        self.members().filter(|(id, ..)| *id != worker).collect()
    }
}

impl FromIterator<(WorkerId, u16, f32)> for Directory {
    fn from_iter<I: IntoIterator<Item = (WorkerId, u16, f32)>>(members: I) -> Self {
        let (mut ids, mut seats, mut by_slot) = (Vec::new(), Vec::new(), Vec::new());
        for ((id, slot, trust), at) in members.into_iter().zip(0..) {
            ids.push(id);
            if by_slot.len() <= usize::from(slot) {
                by_slot.resize(usize::from(slot) + 1, NOBODY);
            }
            by_slot[usize::from(slot)] = at;
            seats.push(Seated { trust: AtomicU32::new(trust.to_bits()), slot });
        }
        Self { ids: ids.into(), seats: seats.into(), by_slot: by_slot.into() }
    }
}
