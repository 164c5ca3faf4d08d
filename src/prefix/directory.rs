//! Which worker has which slot, as readers see it.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use smg_base::WorkerId;

/// The workers known, by ascending id. Replaced when one comes or goes.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    seated: Box<[Seated]>,
    /// Where the worker of each slot is, or [`NOBODY`].
    by_slot: Box<[u32]>,
}

const NOBODY: u32 = u32::MAX;

/// A worker in its slot.
#[derive(Debug)]
pub(crate) struct Seated {
    id: WorkerId,
    /// An `f32` by its bits.
    trust: AtomicU32,
    slot: u16,
}

impl Seated {
    /// Which worker.
    #[inline]
    pub(crate) fn id(&self) -> WorkerId {
        self.id
    }

    /// Its slot, and its trust.
    #[inline]
    pub(crate) fn seat(&self) -> (u16, f32) {
        (self.slot, f32::from_bits(self.trust.load(Relaxed)))
    }
}

impl Directory {
    /// How many workers are known.
    pub(crate) fn len(&self) -> usize {
        self.seated.len()
    }

    /// Where a worker is.
    pub(crate) fn find(&self, worker: WorkerId) -> Option<usize> {
        self.seated.binary_search_by_key(&worker, |seated| seated.id).ok()
    }

    /// All of them, by ascending id.
    pub(crate) fn seated(&self) -> &[Seated] {
        &self.seated
    }

    /// A worker that is not the first of those `ahead`, who are what is left of all; they become those behind it. No search if it would
    /// come right before them.
    #[cold]
    pub(crate) fn find_apart_from<'a>(&'a self, ahead: &mut &'a [Seated], worker: WorkerId) -> Option<&'a Seated> {
        let behind = &self.seated[..self.seated.len() - ahead.len()];
        let is_behind = behind.last().is_none_or(|last| last.id < worker);
        let is_ahead = ahead.first().is_none_or(|first| first.id > worker);
        if is_behind && is_ahead {
            return None;
        }
        let at = self.find(worker)?;
        *ahead = &self.seated[at + 1..];
        self.seated.get(at)
    }

    fn members(&self) -> impl Iterator<Item = (WorkerId, u16, f32)> {
        self.seated.iter().map(|seated| (seated.id, seated.seat().0, seated.seat().1))
    }

    /// The slot of the worker at a place, and its trust.
    #[inline]
    pub(crate) fn seat(&self, at: usize) -> (u16, f32) {
        self.seated[at].seat()
    }

    /// The worker that has a slot, and its trust.
    pub(crate) fn at_slot(&self, slot: usize) -> Option<(WorkerId, f32)> {
        let seated = self.seated.get(*self.by_slot.get(slot)? as usize)?;
        Some((seated.id, seated.seat().1))
    }

    /// Changes the trust of the worker at a place. Of two changes at once one may be lost, or one that meets the change
    /// of another worker: an average bears that.
    pub(crate) fn set_trust(&self, at: usize, trust: f32) {
        self.seated[at].trust.store(trust.to_bits(), Relaxed);
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
        let (mut seated, mut by_slot) = (Vec::new(), Vec::new());
        for ((id, slot, trust), at) in members.into_iter().zip(0..) {
            if by_slot.len() <= usize::from(slot) {
                by_slot.resize(usize::from(slot) + 1, NOBODY);
            }
            by_slot[usize::from(slot)] = at;
            seated.push(Seated { id, trust: AtomicU32::new(trust.to_bits()), slot });
        }
        Self { seated: seated.into(), by_slot: by_slot.into() }
    }
}
