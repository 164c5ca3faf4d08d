//! What only writers know: who has which slot, in which order each worker used its runs, and how much there is.
//!
//! One property carries the design: a worker holds a run only if it holds every run before it whole. It is kept because a
//! write touches the runs of its path from the last to the first, so that in a worker's order of use a run is always
//! older than the one before it, and forgetting starts from the oldest run's end. Engines free their blocks in the same order.
//!
//! Readers see each run change in one step, and runs in an order that keeps the property true for them too: a hold
//! appears on a run after it has on the run before, and goes before it does there; of a run that is split, the lower part
//! appears before the upper part takes the place of the whole.

use std::{collections::VecDeque, sync::Arc};

use smallvec::SmallVec;
use smg_base::{WorkerId, map::StableMap};

use crate::{
    memory::{mean_bytes, reserve_some},
    places::{Places, RUNS_MAX},
    recency::Recency,
    record::{Hold, NONE, Record},
    run::{Pinned, RootCounts, agreement},
};

/// The writers' state. Its methods change what readers see too; one writer at a time, which holding the ledger makes sure of.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    slots: Vec<Slot>,
    members: StableMap<WorkerId, u16>,
    free_slots: Vec<u16>,
    /// Slots of forgotten workers whose holds are not all released yet.
    graves: VecDeque<u16>,
    /// The runs by number.
    records: Vec<Record>,
    free_records: Vec<u32>,
    /// Where each chunk is. Only there once somebody has asked: those who only predict never do.
    places: Option<Places>,
    roots: RootCounts,
    stamp: u64,
    used: usize,
}

#[derive(Debug, Default)]
struct Slot {
    recency: Recency,
    chunks: u64,
    /// Sum of the hashes held.
    sum: u64,
}

/// A place in the tree: so many chunks into a run, at least one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    run: u32,
    chunks: usize,
}

/// Whether a worker's order of use is to be exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// A part of a run that is used is newer than the rest.
    OfChunks,
    /// A run of which a part is used is as new as that.
    OfRuns,
}

/// A slot that was given to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seat {
    /// Nobody had it before.
    Fresh(u16),
    /// It was another worker's.
    Reused(u16),
}

impl Ledger {
    /// Memory of one hold outside the run: its place in the order of use.
    const ENTRY_BYTES: usize = mean_bytes(Recency::ENTRY_BYTES);
    /// The most chunks in a run. It bounds what is copied when a run changes, and what is searched for a chunk.
    const RUN_CHUNKS_MAX: usize = 512;
    /// Runs kept free for one write, however long its path.
    const RUNS_SPARE: u32 = 1 << 10;
    /// Forgotten workers whose holds wait to be released; beyond, they are released at once.
    const GRAVES_MAX: usize = 64;

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used + self.places.as_ref().map_or(0, Places::bytes)
    }

    /// Of these, what it takes to find a chunk by its hash.
    pub(crate) fn used_by_places(&self) -> usize {
        self.places.as_ref().map_or(0, Places::bytes)
    }

    /// How many slots were ever given out.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a worker, if it has one.
    pub(crate) fn slot(&self, worker: WorkerId) -> Option<u16> {
        self.members.get(&worker).copied()
    }

    /// Gives a slot to a worker that has none. Nothing if all are taken.
    pub(crate) fn admit(&mut self, worker: WorkerId) -> Option<Seat> {
        let seat = match self.free_slots.pop() {
            Some(slot) => Seat::Reused(slot),
            None => {
                let slot = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot::default());
                Seat::Fresh(slot)
            }
        };
        self.members.insert(worker, seat.slot());
        Some(seat)
    }

    /// Takes a worker's slot away. What it held is released by [`Ledger::bury`].
    pub(crate) fn dismiss(&mut self, runs: &Pinned<'_>, worker: WorkerId) {
        let Some(slot) = self.members.remove(&worker) else { return };
        self.graves.push_back(slot);
        while self.graves.len() > Self::GRAVES_MAX {
            self.bury(runs, usize::from(u16::MAX));
        }
    }

    /// How many chunks `slot` holds.
    pub(crate) fn chunks(&self, slot: u16) -> u64 {
        self.slots.get(usize::from(slot)).map_or(0, |slot| slot.chunks)
    }

    /// Sum of the hashes that `slot` holds.
    pub(crate) fn sum(&self, slot: u16) -> u64 {
        self.slots.get(usize::from(slot)).map_or(0, |slot| slot.sum)
    }

    /// Chunks held by all workers together, those of forgotten workers included until released.
    pub(crate) fn chunks_total(&self) -> u64 {
        self.slots.iter().map(|slot| slot.chunks).sum()
    }

    /// What `slot` holds: the chunk before, the hashes, and how many of them. A run comes after the one before it.
    pub(crate) fn holds(&self, slot: u16) -> impl Iterator<Item = (Option<u64>, &Arc<[u64]>, usize)> {
        self.slots[usize::from(slot)].recency.newest_first().map(move |run| {
            let record = &self.records[run as usize];
            let before = self.records.get(record.parent as usize).and_then(|parent| parent.hashes.last());
            (before.copied(), &record.hashes, record.depth(slot))
        })
    }

    /// Where `chunk`, which `slot` holds, is.
    pub(crate) fn place(&mut self, slot: u16, chunk: u64) -> Option<Place> {
        let places = match self.places.take() {
            Some(places) => places,
            None => places_of(&self.records, 0),
        };
        let places = self.places.insert(places);
        places.candidates(chunk).find_map(|run| {
            let record = &self.records[run as usize];
            let held = &record.hashes[..record.depth(slot)];
            // What engines report of next mostly comes at the end.
            let chunks = held.iter().rposition(|hash| *hash == chunk)? + 1;
            Some(Place { run, chunks })
        })
    }

    /// Makes `slot` hold `path`, which begins at the root or `after` a place whose chunks it holds, as its latest use. Says
    /// how many chunks could not be placed.
    pub(crate) fn claim(
        &mut self,
        runs: &Pinned<'_>,
        slot: u16,
        after: Option<Place>,
        path: &[u64],
        order: Order,
    ) -> usize {
        self.stamp += 1;
        let mut rest = path;
        let mut at = after;
        while !rest.is_empty() {
            let Some((next, placed)) = self.step(runs, slot, at, rest, order) else { break };
            at = Some(next);
            rest = &rest[placed..];
        }
        if let Some(place) = at {
            self.touch(slot, place.run);
        }
        rest.len()
    }

    /// Forgets the chunks `slot` used longest ago until it holds `capacity`.
    pub(crate) fn fit(&mut self, runs: &Pinned<'_>, slot: u16, capacity: u64) {
        while let Some(excess @ 1..) = self.chunks(slot).checked_sub(capacity) {
            if !self.release_oldest(runs, slot, usize::try_from(excess).unwrap_or(usize::MAX)) {
                return;
            }
        }
    }

    /// Forgets the runs used longest ago by anybody until at most `bytes` are used.
    pub(crate) fn fit_bytes(&mut self, runs: &Pinned<'_>, bytes: usize) {
        while self.used() > bytes
            || self.records.len() - self.free_records.len() > (RUNS_MAX - Self::RUNS_SPARE) as usize
        {
            if self.places.as_ref().is_some_and(Places::is_sparse) {
                self.places = Some(places_of(&self.records, 0));
                continue;
            }
            let oldest = self.slots.iter().zip(0_u16..).filter_map(|(slot, number)| {
                let (_, stamp) = slot.recency.oldest()?;
                Some((stamp, number))
            });
            let Some((_, slot)) = oldest.min() else { return };
            self.release_oldest(runs, slot, usize::MAX);
        }
    }

    /// Releases up to `holds` holds of forgotten workers; says whether any are left.
    pub(crate) fn bury(&mut self, runs: &Pinned<'_>, holds: usize) -> bool {
        if self.graves.is_empty() {
            return false;
        }
        for _ in 0..holds {
            let Some(&slot) = self.graves.front() else { break };
            if !self.release_oldest(runs, slot, usize::MAX) {
                self.graves.pop_front();
                self.slots[usize::from(slot)] = Slot::default();
                self.free_slots.push(slot);
            }
        }
        if self.graves.is_empty() {
            self.tidy();
        }
        !self.graves.is_empty()
    }

    /// Gives back what was needed to find chunks when there were more of them.
    fn tidy(&mut self) {
        let Some(places) = &self.places else { return };
        if places.len() == 0 {
            self.places = None;
        } else if places.is_sparse() {
            self.places = Some(places_of(&self.records, 0));
        }
    }

    /// Releases `chunks` that `slot` holds, and whatever it holds beyond them. Those before are told after those beyond.
    pub(crate) fn release(&mut self, runs: &Pinned<'_>, slot: u16, chunks: &[u64]) {
        let mut rest = chunks;
        while let Some(&first) = rest.first() {
            let Some(place) = self.place(slot, first) else {
                rest = &rest[1..];
                continue;
            };
            let backwards = self.records[place.run as usize].hashes[..place.chunks].iter().rev();
            let together = rest.iter().zip(backwards).take_while(|(one, other)| one == other).count();
            self.cut(runs, slot, place.run, place.chunks - together);
            rest = &rest[together..];
        }
    }

    /// Claims what comes `after` a place, up to the end of a run; gives the place reached and how many chunks that took.
    fn step(
        &mut self,
        runs: &Pinned<'_>,
        slot: u16,
        after: Option<Place>,
        rest: &[u64],
        order: Order,
    ) -> Option<(Place, usize)> {
        if let Some(Place { run, chunks }) = after {
            let record = &self.records[run as usize];
            let length = record.hashes.len();
            if chunks < length {
                return self.step_within(runs, slot, Place { run, chunks }, rest, order);
            }
            if record.followers == 0 && length < Self::RUN_CHUNKS_MAX {
                let more = &rest[..rest.len().min(Self::RUN_CHUNKS_MAX - length)];
                let placed = self.extend(runs, slot, run, more);
                return (placed > 0).then_some((Place { run, chunks: length + placed }, placed));
            }
        }
        let parent = after.map_or(NONE, |place| place.run);
        let Some(run) = runs.get(rest[0]).map(|run| run.id) else {
            let (run, placed) = self.add(runs, slot, parent, &rest[..rest.len().min(Self::RUN_CHUNKS_MAX)])?;
            return Some((Place { run, chunks: placed }, placed));
        };
        // Two paths that come to one hash are a mistake, or an accident too rare to serve.
        let belongs = self.records[run as usize].parent == parent;
        if belongs { self.step_within(runs, slot, Place { run, chunks: 0 }, rest, order) } else { None }
    }

    /// The same where the next chunk, if anything, is one of the run's.
    fn step_within(
        &mut self,
        runs: &Pinned<'_>,
        slot: u16,
        from: Place,
        rest: &[u64],
        order: Order,
    ) -> Option<(Place, usize)> {
        let record = &self.records[from.run as usize];
        let matched = agreement(&record.hashes[from.chunks..], rest);
        let reached = from.chunks + matched;
        let ended = matched == rest.len();
        let leaves = reached < record.hashes.len() && !ended;
        // The path ends where this worker holds more than it uses now.
        let used_in_part = ended && order == Order::OfChunks && record.depth(slot) > reached;
        let run = if leaves || used_in_part { self.split(runs, from.run, reached)? } else { from.run };
        self.hold(runs, slot, run, reached);
        if leaves && matched == 0 {
            // Nothing follows the upper part but the lower: the path goes on beside it.
            return self.step(runs, slot, Some(Place { run, chunks: reached }), rest, order);
        }
        Some((Place { run, chunks: reached }, matched))
    }

    /// Makes the runs from the first to `run` the latest that `slot` used.
    fn touch(&mut self, slot: u16, run: u32) {
        let mut next = run;
        while let Some(record) = self.records.get(next as usize) {
            let Some(hold) = record.hold(slot) else { return };
            self.slots[usize::from(slot)].recency.touch(hold.entry, self.stamp);
            next = record.parent;
        }
    }

    /// Makes `slot` hold at least `depth` chunks of a run.
    fn hold(&mut self, runs: &Pinned<'_>, slot: u16, run: u32, depth: usize) {
        let record = &mut self.records[run as usize];
        let found = record.find(slot);
        let held = found.map_or(0, |at| record.holds[at].depth as usize);
        if held >= depth {
            return;
        }
        let state = &mut self.slots[usize::from(slot)];
        state.take(&record.hashes[held..depth]);
        let whole = depth == record.hashes.len();
        let (head, parent) = (record.hashes[0], record.parent);
        match found {
            Ok(at) => record.holds[at].depth = chunk_count(depth),
            Err(at) => {
                let before = record.bytes();
                let entry = state.recency.push(run, self.stamp);
                record.holds.insert(at, Hold { slot, depth: chunk_count(depth), entry, below: 0 });
                self.used = self.used + record.bytes() + Self::ENTRY_BYTES - before;
                self.count_below(slot, parent, |below| below + 1);
            }
        }
        let in_place = held == 0 && whole && runs.get(head).is_some_and(|published| published.admit(slot));
        if !in_place {
            self.publish(runs, run);
        }
    }

    /// Adds `more` to a run that nothing follows and that `slot` holds whole; says how many.
    fn extend(&mut self, runs: &Pinned<'_>, slot: u16, run: u32, more: &[u64]) -> usize {
        let more = &more[..self.find_room(run, more)];
        if more.is_empty() {
            return 0;
        }
        let record = &mut self.records[run as usize];
        record.hashes = record.hashes.iter().chain(more).copied().collect();
        if let Ok(at) = record.find(slot) {
            record.holds[at].depth = chunk_count(record.hashes.len());
        }
        self.slots[usize::from(slot)].take(more);
        self.used += size_of_val(more);
        self.publish(runs, run);
        more.len()
    }

    /// Adds a run held by `slot` alone; gives its number and how many of the hashes are in it, at least one.
    fn add(&mut self, runs: &Pinned<'_>, slot: u16, parent: u32, hashes: &[u64]) -> Option<(u32, usize)> {
        let run = self.allocate()?;
        let hashes = &hashes[..self.find_room(run, hashes)];
        if hashes.is_empty() {
            self.free_records.push(run);
            return None;
        }
        let state = &mut self.slots[usize::from(slot)];
        state.take(hashes);
        let entry = state.recency.push(run, self.stamp);
        let hold = Hold { slot, depth: chunk_count(hashes.len()), entry, below: 0 };
        let record = &mut self.records[run as usize];
        *record = Record { hashes: hashes.into(), parent, followers: 0, holds: SmallVec::from_slice(&[hold]) };
        self.used += record.bytes() + Self::ENTRY_BYTES;
        if parent == NONE {
            self.roots.add(runs.roots, record.hashes[0]);
        }
        self.publish(runs, run);
        self.count_below(slot, parent, |below| below + 1);
        self.count_followers(runs, parent, |followers| followers + 1);
        Some((run, hashes.len()))
    }

    /// Splits a run after `at` chunks; gives the upper part. The lower keeps the number, because it is what the runs that
    /// follow know.
    fn split(&mut self, runs: &Pinned<'_>, run: u32, at: usize) -> Option<u32> {
        if runs.get(self.records[run as usize].hashes[at]).is_some() {
            return None;
        }
        let upper = self.allocate()?;
        let record = &mut self.records[run as usize];
        self.used -= record.bytes();
        let (mut upper_holds, mut lower_holds) = (SmallVec::new(), SmallVec::new());
        for hold in record.holds.drain(..) {
            let recency = &mut self.slots[usize::from(hold.slot)].recency;
            if hold.depth as usize <= at {
                recency.rename(hold.entry, upper);
                upper_holds.push(hold);
                continue;
            }
            let entry = recency.push_before(hold.entry, upper);
            self.used += Self::ENTRY_BYTES;
            upper_holds.push(Hold { depth: chunk_count(at), entry, below: 1, ..hold });
            lower_holds.push(Hold { depth: hold.depth - chunk_count(at), ..hold });
        }
        let hashes: Arc<[u64]> = record.hashes[..at].into();
        let parent = std::mem::replace(&mut record.parent, upper);
        record.hashes = record.hashes[at..].into();
        record.holds = lower_holds;
        self.used += record.bytes();
        if let Some(places) = &mut self.places {
            hashes.iter().for_each(|hash| places.rename(*hash, run, upper));
        }
        let record = Record { hashes, parent, followers: 1, holds: upper_holds };
        self.used += record.bytes();
        self.records[upper as usize] = record;
        self.publish(runs, run);
        self.publish(runs, upper);
        Some(upper)
    }

    /// Takes up to `most` chunks off the end of the run that `slot` used longest ago; false if it holds nothing.
    fn release_oldest(&mut self, runs: &Pinned<'_>, slot: u16, most: usize) -> bool {
        let recency = &self.slots[usize::from(slot)].recency;
        let Some(run) = recency.oldest().and_then(|(entry, _)| recency.run(entry)) else { return false };
        let depth = self.records[run as usize].depth(slot);
        self.shorten(runs, slot, run, depth.saturating_sub(most));
        true
    }

    /// Leaves `slot` no more than `depth` chunks of a run, and nothing of what follows.
    fn cut(&mut self, runs: &Pinned<'_>, slot: u16, run: u32, depth: usize) {
        if self.records[run as usize].hold(slot).is_some_and(|hold| hold.below > 0) {
            let parents = |run: &u32| self.records.get(*run as usize).map(|record| record.parent);
            let follows = |other: &u32| std::iter::successors(parents(other), parents).any(|before| before == run);
            let held = self.slots[usize::from(slot)].recency.newest_first();
            let following: Vec<u32> = held.filter(follows).collect();
            for run in following.into_iter().rev() {
                self.shorten(runs, slot, run, 0);
            }
        }
        self.shorten(runs, slot, run, depth);
    }

    /// Leaves `slot` `depth` chunks of a run, of which it holds more, and after which it holds nothing.
    fn shorten(&mut self, runs: &Pinned<'_>, slot: u16, run: u32, depth: usize) {
        let record = &mut self.records[run as usize];
        let Ok(at) = record.find(slot) else { return };
        let held = record.holds[at].depth as usize;
        let state = &mut self.slots[usize::from(slot)];
        state.give(&record.hashes[depth..held]);
        record.holds[at].depth = chunk_count(depth);
        let (head, parent, length) = (record.hashes[0], record.parent, record.hashes.len());
        let before = record.bytes();
        if depth == 0 {
            state.recency.remove(record.holds[at].entry);
            record.holds.remove(at);
            self.used -= Self::ENTRY_BYTES;
            if record.holds.is_empty() {
                self.used -= before;
                self.remove(runs, slot, run);
                return;
            }
        }
        let deepest = record.deepest();
        if deepest < length {
            debug_assert_eq!(record.followers, 0, "whoever holds what follows holds all of it");
            if let Some(places) = &mut self.places {
                record.hashes[deepest..].iter().for_each(|hash| places.remove(*hash, run));
            }
            record.hashes = record.hashes[..deepest].into();
        }
        self.used = self.used + record.bytes() - before;
        let in_place = runs.get(head).filter(|published| depth == 0 && deepest == length && !published.is_part(slot));
        match in_place {
            Some(published) => published.dismiss(slot),
            None => self.publish(runs, run),
        }
        if depth == 0 {
            self.count_below(slot, parent, |below| below - 1);
        }
    }

    /// Takes out a run that `slot` was the last to hold.
    fn remove(&mut self, runs: &Pinned<'_>, slot: u16, run: u32) {
        let record = std::mem::take(&mut self.records[run as usize]);
        if let Some(places) = &mut self.places {
            record.hashes.iter().for_each(|hash| places.remove(*hash, run));
        }
        runs.remove(record.hashes[0]);
        if record.parent == NONE {
            self.roots.remove(runs.roots, record.hashes[0]);
        }
        self.free_records.push(run);
        self.count_below(slot, record.parent, |below| below - 1);
        self.count_followers(runs, record.parent, |followers| followers - 1);
    }

    fn count_below(&mut self, slot: u16, run: u32, count: impl FnOnce(u32) -> u32) {
        let Some(record) = self.records.get_mut(run as usize) else { return };
        if let Ok(at) = record.find(slot) {
            record.holds[at].below = count(record.holds[at].below);
        }
    }

    fn count_followers(&mut self, runs: &Pinned<'_>, run: u32, count: impl FnOnce(u32) -> u32) {
        let Some(record) = self.records.get_mut(run as usize) else { return };
        record.followers = count(record.followers);
        if let Some(published) = runs.get(record.hashes[0]) {
            published.set_followers(record.followers);
        }
    }

    fn publish(&self, runs: &Pinned<'_>, run: u32) {
        runs.put(self.records[run as usize].published(run));
    }

    fn allocate(&mut self) -> Option<u32> {
        if let Some(run) = self.free_records.pop() {
            return Some(run);
        }
        let run = u32::try_from(self.records.len()).ok().filter(|run| *run < RUNS_MAX)?;
        reserve_some(&mut self.records);
        self.records.push(Record::default());
        Some(run)
    }

    /// Notes that `hashes` are about to be in `run`; says of how many that can be noted: what cannot be found again is not
    /// held either.
    fn find_room(&mut self, run: u32, hashes: &[u64]) -> usize {
        let Some(places) = &mut self.places else { return hashes.len() };
        for (at, hash) in hashes.iter().enumerate() {
            if places.insert(*hash, run).is_ok() {
                continue;
            }
            if places.is_crowded_in_one_place() {
                return at;
            }
            *places = places_of(&self.records, hashes.len() - at);
            // These are in no record yet.
            let placed = hashes[..=at].iter().take_while(|hash| places.insert(**hash, run).is_ok()).count();
            if placed <= at {
                return placed;
            }
        }
        hashes.len()
    }
}

impl Slot {
    fn take(&mut self, chunks: &[u64]) {
        self.chunks += chunks.len() as u64;
        self.sum = chunks.iter().fold(self.sum, |sum, chunk| sum.wrapping_add(*chunk));
    }

    fn give(&mut self, chunks: &[u64]) {
        self.chunks -= chunks.len() as u64;
        self.sum = chunks.iter().fold(self.sum, |sum, chunk| sum.wrapping_sub(*chunk));
    }
}

impl Seat {
    pub(crate) fn slot(self) -> u16 {
        match self {
            Self::Fresh(slot) | Self::Reused(slot) => slot,
        }
    }
}

/// Where the chunks of `records` are, with room for `more`.
fn places_of(records: &[Record], more: usize) -> Places {
    let chunks: usize = records.iter().map(|record| record.hashes.len()).sum();
    let mut places = Places::with_room_for(chunks + more);
    // Part by part, so that what is written to stays in the processor's cache: reading all hashes again costs less.
    for part in 0..places.parts() {
        for (record, run) in records.iter().zip(0..) {
            for hash in &*record.hashes {
                if places.part(*hash) == part {
                    // There is room; and of hashes that crowd each other out, no more were let in before.
                    let _ = places.insert(*hash, run);
                }
            }
        }
    }
    places
}

fn chunk_count(chunks: usize) -> u32 {
    u32::try_from(chunks).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "ledger_audit.rs"]
mod audit;
