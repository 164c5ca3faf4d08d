//! One stream as somebody else tells it, and what follows for whoever goes by it.

use std::collections::{BTreeMap, BTreeSet};

use crate::Change;
use bytes::Bytes;

use super::lane::{Header, Parent, Segment};

/// What another node tells of one stream. The segments stay the bytes that came, which the lane holds too.
#[derive(Debug, Default)]
pub(super) struct Copy {
    header: Option<Header>,
    segments: BTreeMap<u64, Told>,
    /// Segments by the segment that they follow.
    followers: BTreeSet<(u64, u64)>,
    bytes: usize,
}

#[derive(Debug)]
struct Told {
    value: Bytes,
    /// Of how many of its chunks whoever goes by it has been told.
    placed: usize,
}

/// News of one stream, each about something else.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) header: Option<Option<Header>>,
    pub(super) segments: Vec<(u64, Option<Bytes>)>,
}

/// Whether somebody goes by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Followed,
    Kept,
}

impl Copy {
    /// Whether it says all that the worker is known to hold.
    pub(super) fn is_complete(&self) -> bool {
        self.header.is_some_and(|header| header.is_complete)
    }

    /// Whether nothing is told.
    pub(super) fn is_empty(&self) -> bool {
        self.header.is_none() && self.segments.is_empty()
    }

    /// Memory of what is told.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many chunks are told.
    pub(super) fn chunks(&self) -> usize {
        let of = |told: &Told| 1 + told.value.len().saturating_sub(1) / 8 - 2 * usize::from(told.value[0] & 1);
        self.segments.values().map(of).sum()
    }

    /// Takes news in, and appends what follows for whoever goes by it.
    pub(super) fn take(&mut self, news: News, use_: Use, out: &mut Vec<Change>) {
        if let Some(header) = news.header {
            let incarnation = |header: Option<Header>| header.map(|header| header.incarnation);
            let begins_anew = incarnation(self.header) != incarnation(header);
            self.header = header;
            if begins_anew {
                let was_placed: usize = self.segments.values_mut().map(|told| std::mem::take(&mut told.placed)).sum();
                if was_placed > 0 && use_ == Use::Followed {
                    out.push(Change::Cleared);
                }
                self.store(news.segments);
                return self.place_all(use_, out);
            }
        }
        if use_ == Use::Kept {
            return self.store(news.segments);
        }
        // What goes first, for a chunk may come back in another segment.
        for (first, value) in &news.segments {
            self.shrink_to(*first, value.as_ref(), out);
        }
        let firsts: Vec<u64> = news.segments.iter().map(|(first, _)| *first).collect();
        self.store(news.segments);
        for first in firsts {
            self.place_from(first, out);
        }
    }

    /// Begins to be followed by somebody who holds nothing, and appends all that it says.
    pub(super) fn follow(&mut self, out: &mut Vec<Change>) {
        self.leave();
        self.place_all(Use::Followed, out);
    }

    /// Nobody goes by it any more.
    pub(super) fn leave(&mut self) {
        self.segments.values_mut().for_each(|told| told.placed = 0);
    }

    /// Shows what whoever goes by it has been told; what comes before is shown before.
    pub(super) fn show(&self, visit: &mut dyn FnMut(Option<u64>, &[u64])) {
        let mut open: Vec<u64> = self.roots();
        while let Some(first) = open.pop() {
            if let Some(segment) = self.segment(first)
                && self.is_placed(first)
            {
                visit(segment.parent.map(|parent| parent.after), &segment.chunks);
                open.extend(self.followers_of(first));
            }
        }
    }

    /// Shows all that is told, for somebody who holds nothing and goes by it no further.
    pub(super) fn show_all(&self, visit: &mut dyn FnMut(Change)) {
        let mut open: Vec<u64> = self.roots();
        while let Some(first) = open.pop() {
            if let Some(segment) = self.segment(first) {
                let after = segment.parent.map(|parent| parent.after);
                visit(Change::Held { after, chunks: segment.chunks });
                open.extend(self.followers_of(first));
            }
        }
    }

    #[cfg(test)]
    pub(super) fn firsts(&self) -> Vec<u64> {
        self.segments.keys().copied().collect()
    }

    fn roots(&self) -> Vec<u64> {
        let is_root = |(first, told): &(&u64, &Told)| parent(**first, &told.value).is_none();
        self.segments.iter().filter(is_root).map(|(first, _)| *first).collect()
    }

    /// Stores values; those that cannot be read are as good as none.
    fn store(&mut self, segments: Vec<(u64, Option<Bytes>)>) {
        for (first, value) in segments {
            let placed = match self.segments.remove(&first) {
                Some(old) => {
                    self.bytes -= old.value.len();
                    if let Some(parent) = parent(first, &old.value) {
                        self.followers.remove(&(parent.first, first));
                    }
                    old.placed
                }
                None => 0,
            };
            let Some(value) = value.filter(|value| Segment::of(first, value).is_some()) else { continue };
            if let Some(parent) = parent(first, &value) {
                self.followers.insert((parent.first, first));
            }
            self.bytes += value.len();
            self.segments.insert(first, Told { value, placed });
        }
    }

    fn place_all(&mut self, use_: Use, out: &mut Vec<Change>) {
        if use_ == Use::Followed {
            for first in self.roots() {
                self.place_from(first, out);
            }
        }
    }

    /// The segment, if it counts.
    fn segment(&self, first: u64) -> Option<Segment> {
        let incarnation = self.header?.incarnation;
        let segment = Segment::of(first, &self.segments.get(&first)?.value)?;
        (segment.incarnation == incarnation).then_some(segment)
    }

    /// Of a segment that is placed, gives up what its new value no longer says, and everything after that.
    fn shrink_to(&mut self, first: u64, value: Option<&Bytes>, out: &mut Vec<Change>) {
        if !self.is_placed(first) {
            return;
        }
        let Some(old) = self.segment(first) else { return };
        let new = value.and_then(|value| Segment::of(first, value));
        let kept = match new {
            Some(new) if new.incarnation == old.incarnation && new.parent == old.parent => {
                old.chunks.iter().zip(&new.chunks).take_while(|(old, new)| old == new).count()
            }
            _ => 0,
        };
        if kept == old.chunks.len() {
            return;
        }
        let mut dropped = Vec::new();
        let mut open = vec![(first, kept)];
        while let Some((at, kept)) = open.pop() {
            let Some(segment) = self.segment(at) else { continue };
            let gone = &segment.chunks[kept..];
            dropped.extend_from_slice(gone);
            if let Some(told) = self.segments.get_mut(&at) {
                told.placed = kept;
            }
            for follower in self.followers_of(at) {
                let hangs = |segment: &Segment| segment.parent.is_some_and(|parent| gone.contains(&parent.after));
                if self.is_placed(follower) && self.segment(follower).as_ref().is_some_and(hangs) {
                    open.push((follower, 0));
                }
            }
        }
        // What follows was met after what it follows.
        dropped.reverse();
        out.push(Change::Dropped { chunks: dropped });
    }

    /// Places a segment that may have come or grown, and whatever waits for it.
    fn place_from(&mut self, first: u64, out: &mut Vec<Change>) {
        let mut open = vec![first];
        while let Some(first) = open.pop() {
            let Some(segment) = self.segment(first) else { continue };
            let placed = self.segments.get(&first).map_or(0, |told| told.placed);
            if placed == 0 && !segment.parent.is_none_or(|parent| self.is_held(parent, first)) {
                continue;
            }
            if placed < segment.chunks.len() {
                let after = match placed.checked_sub(1) {
                    Some(last) => Some(segment.chunks[last]),
                    None => segment.parent.map(|parent| parent.after),
                };
                out.push(Change::Held { after, chunks: segment.chunks[placed..].to_vec() });
            }
            if let Some(told) = self.segments.get_mut(&first) {
                told.placed = segment.chunks.len();
            }
            open.extend(self.followers_of(first).into_iter().filter(|follower| !self.is_placed(*follower)));
        }
    }

    /// Whether what a segment follows is held, and does not go on with the segment itself.
    fn is_held(&self, parent: Parent, first: u64) -> bool {
        let placed = self.segments.get(&parent.first).map_or(0, |told| told.placed);
        placed > 0
            && self.segment(parent.first).is_some_and(|segment| {
                let held = &segment.chunks[..placed.min(segment.chunks.len())];
                held.contains(&parent.after) && !held.contains(&first)
            })
    }

    fn is_placed(&self, first: u64) -> bool {
        self.segments.get(&first).is_some_and(|told| told.placed > 0)
    }

    fn followers_of(&self, first: u64) -> Vec<u64> {
        self.followers.range((first, 0)..=(first, u64::MAX)).map(|(_, follower)| *follower).collect()
    }
}

fn parent(first: u64, value: &[u8]) -> Option<Parent> {
    Segment::of(first, value)?.parent
}
