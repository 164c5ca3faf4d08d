//! A part of the table of counters, behind one lock.

use std::collections::VecDeque;

use hashbrown::HashTable;

use crate::{
    counter::{Counter, Moment, State},
    rule::Window,
    rules::CounterId,
};

/// Counters that are made room for at a time.
const CHUNK: usize = 64;
/// Places looked through for one that nothing counts in, when there is no room.
const LOOKED_AT: usize = 256;

/// Counters by their ids. A counter keeps its place for as long as it is there.
#[derive(Debug, Default)]
pub(crate) struct Shard {
    index: HashTable<u32>,
    chunks: Vec<Box<[Counter]>>,
    /// Places given back.
    free: Vec<u32>,
    /// Places that were ever given out.
    given: u32,
    changed: VecDeque<u32>,
    /// The next place to look through.
    cursor: u32,
    /// Which rules the counters' `rule` means.
    pub(crate) generation: u32,
    /// Words of other nodes, in all counters.
    pub(crate) heard: usize,
}

/// Whether what changes is to be told to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    /// There is nobody to tell.
    Nobody,
    /// There is.
    Others,
}

impl Shard {
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        let counters = self.chunks.len() * CHUNK * size_of::<Counter>();
        let words = self.heard * size_of::<crate::counter::Heard>();
        let places = (self.free.capacity() + self.changed.capacity()) * size_of::<u32>();
        counters + words + places + self.index.allocation_size() + self.chunks.capacity() * size_of::<Box<[Counter]>>()
    }

    pub(crate) fn find(&self, id: CounterId) -> Option<u32> {
        let is_it = |&place: &u32| self.at(place).is_some_and(|counter| counter.id == id);
        self.index.find(spread(id), is_it).copied()
    }

    /// The counter at `place`, which is there because the place was found.
    #[inline]
    pub(crate) fn at(&self, place: u32) -> Option<&Counter> {
        let place = place as usize;
        self.chunks.get(place / CHUNK)?.get(place % CHUNK)
    }

    /// The counter at `place`.
    #[inline]
    pub(crate) fn at_mut(&mut self, place: u32) -> Option<&mut Counter> {
        let place = place as usize;
        self.chunks.get_mut(place / CHUNK)?.get_mut(place % CHUNK)
    }

    /// Where `id` was found last, or is now.
    #[inline]
    pub(crate) fn find_at(&self, id: CounterId, place: u32) -> Option<u32> {
        match self.at(place) {
            Some(counter) if counter.id == id && counter.state != State::Free => Some(place),
            _ => self.find(id),
        }
    }

    /// Makes room for a counter that is not there yet.
    pub(crate) fn insert(&mut self, id: CounterId, tick: u32) -> Option<u32> {
        let place = self.free.pop().or_else(|| self.new_place())?;
        if let Some(counter) = self.at_mut(place) {
            *counter = Counter::new(id, tick, State::Quiet);
        }
        let chunks = &self.chunks;
        let hash = |&place: &u32| spread(chunks[place as usize / CHUNK][place as usize % CHUNK].id);
        self.index.insert_unique(spread(id), place, hash);
        Some(place)
    }

    fn new_place(&mut self) -> Option<u32> {
        let place = self.given;
        self.given = place.checked_add(1)?;
        if place as usize / CHUNK == self.chunks.len() {
            self.chunks.push((0..CHUNK).map(|_| Counter::free()).collect());
        }
        Some(place)
    }

    fn remove(&mut self, place: u32) {
        let Some(id) = self.at(place).map(|counter| counter.id) else { return };
        if let Ok(found) = self.index.find_entry(spread(id), |&other| other == place) {
            found.remove();
            self.free.push(place);
        }
        if let Some(counter) = self.at_mut(place) {
            *counter = Counter::free();
        }
    }

    /// Puts the counter at `place` in the queue of those to tell of, if it is not in it.
    #[inline]
    pub(crate) fn mark(&mut self, place: u32, telling: Telling) {
        if telling == Telling::Nobody {
            return;
        }
        let Some(counter) = self.at_mut(place) else { return };
        if counter.state == State::Quiet {
            counter.state = State::Changed;
            self.changed.push_back(place);
        }
    }

    /// The place of the counter that waits longest to be told of.
    pub(crate) fn next_changed(&mut self) -> Option<u32> {
        let place = self.changed.pop_front()?;
        self.at_mut(place)?.state = State::Quiet;
        Some(place)
    }

    /// Removes one counter in which nothing counts, if one is near.
    pub(crate) fn make_room(&mut self, now: Moment, telling: Telling) -> bool {
        self.look_through(LOOKED_AT, 1, now, telling) > 0
    }

    /// Looks through `places`, lets pass what has passed, and removes at most `removed_max` counters; returns how many.
    pub(crate) fn look_through(&mut self, places: usize, removed_max: usize, now: Moment, telling: Telling) -> usize {
        let ticks = Window::ALL.map(|window| now.short_tick(Some(window)));
        let mut removed = 0;
        for _ in 0..places.min(self.given as usize) {
            if removed == removed_max {
                break;
            }
            let place = if self.cursor < self.given { self.cursor } else { 0 };
            self.cursor = place + 1;
            let Some(counter) = self.at_mut(place).filter(|counter| counter.state != State::Free) else { continue };
            let tick = counter.id.window().map_or(0, |window| ticks[window as usize]);
            counter.advance(tick);
            let fewer = counter.drop_passed(tick);
            let (is_idle, is_untold) = (counter.is_idle(), !counter.is_as_told());
            self.heard = self.heard.saturating_add_signed(fewer);
            if is_idle {
                self.remove(place);
                removed += 1;
            } else if is_untold {
                self.mark(place, telling);
            }
        }
        removed
    }

    /// Every counter.
    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Counter> {
        self.chunks.iter_mut().flatten().filter(|counter| counter.state != State::Free)
    }
}

/// The id's hash again: its lowest bits are no hash, and its highest chose the shard.
#[inline]
const fn spread(id: CounterId) -> u64 {
    id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)
}
