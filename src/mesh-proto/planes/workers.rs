//! Which workers exist: an observed-remove map (Shapiro et al., 2011) folded over lanes. A worker exists while some assertion of it
//! is covered by no removal in any lane.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{Decode, Encode};
use bytes::Bytes;
use smg_base::{WorkerId, hash};

use super::Place;
use crate::{
    Dot, Event, NodeId, WorkerAdd, WorkerRow,
    lanes::{Change, WorkersKey},
    wire::decode_value,
};

/// Most authors that a removal names; only declarations have more than one.
const REMOVAL_AUTHORS_MAX: usize = 16;

/// A removal of one assertion.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Removal {
    /// Of which worker.
    pub(crate) worker: u128,
    /// Whose word the assertion was, as far as the remover knew: while one of them may come back with it, the removal stays.
    pub(crate) authors: Vec<NodeId>,
}

/// One holder's copy of an assertion.
#[derive(Clone, Debug)]
struct Assertion {
    lamport: u64,
    /// The entry's value, shared with the lane; the specification is read from it when it is needed.
    value: Bytes,
}

/// The fold.
#[derive(Debug, Default)]
pub(crate) struct WorkersPlane {
    adds: BTreeMap<WorkerId, BTreeMap<Dot, BTreeMap<Place, Assertion>>>,
    removals: BTreeMap<Dot, BTreeSet<Place>>,
    told: BTreeMap<WorkerId, u64>,
}

impl WorkersPlane {
    /// Takes a change in; says which workers may have changed.
    pub(crate) fn change(&mut self, place: Place, change: &Change) -> BTreeSet<WorkerId> {
        let mut touched = BTreeSet::new();
        match WorkersKey::of(&change.key) {
            Some(WorkersKey::Add(dot)) => {
                if let Some(old) = change.old.as_deref().and_then(decode_value::<WorkerAdd>) {
                    let worker = WorkerId::from_u128(old.worker);
                    self.forget(worker, dot, place);
                    touched.insert(worker);
                }
                if let Some(value) = &change.new
                    && let Some(add) = decode_value::<WorkerAdd>(value)
                {
                    let worker = WorkerId::from_u128(add.worker);
                    let assertion = Assertion { lamport: add.lamport, value: value.clone() };
                    self.adds.entry(worker).or_default().entry(dot).or_default().insert(place, assertion);
                    touched.insert(worker);
                }
            }
            Some(WorkersKey::Remove(dot)) => {
                let removers = self.removals.entry(dot).or_default();
                if change.new.is_some() {
                    removers.insert(place);
                } else {
                    removers.remove(&place);
                }
                if removers.is_empty() {
                    self.removals.remove(&dot);
                }
                let removals = change.old.iter().chain(&change.new).filter_map(|value| decode_value::<Removal>(value));
                touched.extend(removals.map(|removal| WorkerId::from_u128(removal.worker)));
            }
            None => {}
        }
        touched
    }

    fn forget(&mut self, worker: WorkerId, dot: Dot, place: Place) {
        let Some(dots) = self.adds.get_mut(&worker) else { return };
        if let Some(places) = dots.get_mut(&dot) {
            places.remove(&place);
            if places.is_empty() {
                dots.remove(&dot);
            }
        }
        if dots.is_empty() {
            self.adds.remove(&worker);
        }
    }

    /// Every worker somebody ever asserted and no lane has forgotten.
    pub(crate) fn ids(&self) -> impl Iterator<Item = WorkerId> {
        self.adds.keys().copied()
    }

    /// The workers that exist.
    pub(crate) fn rows(&self) -> BTreeMap<WorkerId, WorkerRow> {
        self.ids().filter_map(|worker| Some((worker, self.row(worker)?))).collect()
    }

    /// Whether a worker exists.
    pub(crate) fn is_present(&self, worker: WorkerId) -> bool {
        self.standing(worker).next().is_some()
    }

    /// What the assertions of a worker come to; none if none stands.
    pub(crate) fn row(&self, worker: WorkerId) -> Option<WorkerRow> {
        let copies = self.standing(worker).flat_map(|(dot, places)| {
            places.iter().map(move |(place, assertion)| ((assertion.lamport, *dot, *place), &assertion.value))
        });
        let ((_, _, place), value) = copies.max_by_key(|(rank, _)| *rank)?;
        let add: WorkerAdd = decode_value(value)?;
        Some(WorkerRow {
            spec: add.spec.into(),
            writer: place.author,
            declared: self.standing(worker).any(|(dot, _)| dot.is_declared()),
            assertions: self.standing(worker).count(),
        })
    }

    fn standing(&self, worker: WorkerId) -> impl Iterator<Item = (&Dot, &BTreeMap<Place, Assertion>)> {
        let dots = self.adds.get(&worker).into_iter().flatten();
        dots.filter(|(dot, _)| !self.removals.contains_key(*dot))
    }

    /// The assertions of a worker that stand.
    pub(crate) fn standing_dots(&self, worker: WorkerId) -> Vec<Dot> {
        self.standing(worker).map(|(dot, _)| *dot).collect()
    }

    /// The assertions of a worker in one node's lane, standing or not, with whose word they are.
    pub(crate) fn held_by(&self, holder: NodeId, worker: WorkerId) -> Vec<(Dot, Place)> {
        let dots = self.adds.get(&worker).into_iter().flatten();
        let held = dots.flat_map(|(dot, places)| places.keys().map(move |place| (*dot, *place)));
        held.filter(|(_, place)| place.holder == holder).collect()
    }

    /// Whether some lane asserts this.
    pub(crate) fn is_held(&self, worker: WorkerId, dot: Dot) -> bool {
        self.adds.get(&worker).is_some_and(|dots| dots.contains_key(&dot))
    }

    /// Whose word an assertion is.
    pub(crate) fn authors(&self, worker: WorkerId, dot: Dot) -> Vec<NodeId> {
        let places = self.adds.get(&worker).and_then(|dots| dots.get(&dot)).into_iter().flatten();
        let authors: BTreeSet<NodeId> = places.map(|(place, _)| place.author).collect();
        authors.into_iter().take(REMOVAL_AUTHORS_MAX).collect()
    }

    /// Whether some lane removes it.
    pub(crate) fn is_removed(&self, dot: Dot) -> bool {
        self.removals.contains_key(&dot)
    }

    /// The greatest Lamport counter among the assertions of a worker, standing or not.
    pub(crate) fn lamport(&self, worker: WorkerId) -> u64 {
        let dots = self.adds.get(&worker).into_iter().flatten();
        dots.flat_map(|(_, places)| places.values().map(|add| add.lamport)).max().unwrap_or_default()
    }

    /// The greatest Lamport counter among the copies of one assertion.
    pub(crate) fn lamport_of(&self, worker: WorkerId, dot: Dot) -> Option<u64> {
        self.adds.get(&worker)?.get(&dot)?.values().map(|add| add.lamport).max()
    }

    /// The next word on a worker counts as new.
    pub(crate) fn forget_told(&mut self, worker: WorkerId) {
        // No row has this print, and "none" is told where something was told before.
        self.told.insert(worker, 0);
    }

    /// What is to be told of a worker, if that changed.
    pub(crate) fn news(&mut self, worker: WorkerId) -> Option<Event> {
        let row = self.row(worker);
        let before = self.told.get(&worker).copied();
        match &row {
            Some(row) => {
                let counts = u64::try_from(row.assertions).unwrap_or(u64::MAX) << 1 | u64::from(row.declared);
                let print = hash::mix(hash::mix(hash::stable64(&row.spec), row.writer.score(1)), counts).max(1);
                self.told.insert(worker, print);
                (before != Some(print)).then(|| Event::Worker { worker, row: Some(row.clone()) })
            }
            None => {
                self.told.remove(&worker);
                before.map(|_| Event::Worker { worker, row: None })
            }
        }
    }
}
