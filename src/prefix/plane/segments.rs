//! One stream as its writer keeps it: what is held, cut into segments, and which of them are still to be told.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use crate::Change;
use bytes::Bytes;
use smg_base::{Timestamp, map::StableMap};

use super::lane::{Header, Key, Parent, SEGMENT_CHUNKS_MAX, Segment, Stream};

/// A segment up to this long that was told before is written anew when something follows it; after a longer one, another
/// segment costs less.
const GROWS_UP_TO: usize = 8;

/// How long it may stay untold that something is held no longer, so that what goes together is told together.
const DROP_DELAY: Duration = Duration::from_secs(3);

/// An entry to write.
pub type Entry = (Bytes, Option<Bytes>);

/// What is held, in segments.
#[derive(Debug, Default)]
pub(super) struct Segments {
    incarnation: u8,
    segments: BTreeMap<u64, Piece>,
    /// The segment of each chunk.
    places: StableMap<u64, u64>,
    telling: Option<Telling>,
}

#[derive(Debug)]
struct Piece {
    parent: Option<Parent>,
    chunks: Vec<u64>,
}

/// What of it is in this node's lane.
#[derive(Debug, Default)]
struct Telling {
    header: Option<Header>,
    is_complete: bool,
    told: BTreeSet<u64>,
    urgent: VecDeque<u64>,
    /// The same, to keep each once.
    waiting: BTreeSet<u64>,
    /// Segments from which only something was taken.
    shrunk: BTreeMap<u64, Shrunk>,
    /// Chunks that the lane still names, and in which segment.
    lost: StableMap<u64, u64>,
}

#[derive(Debug)]
struct Shrunk {
    since: Timestamp,
    chunks: Vec<u64>,
}

impl Segments {
    /// How many chunks are held.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Takes a change in.
    pub(super) fn apply(&mut self, change: &Change, now: Timestamp) {
        match change {
            Change::Held { after, chunks } => self.hold(*after, chunks),
            Change::Dropped { chunks } => chunks.iter().for_each(|chunk| self.give_up(*chunk, now)),
            Change::Cleared => self.clear(now),
        }
    }

    fn hold(&mut self, mut after: Option<u64>, chunks: &[u64]) {
        for chunk in chunks {
            if !self.places.contains_key(chunk) {
                let parent = match after {
                    None => None,
                    Some(after) => match self.places.get(&after) {
                        Some(first) => Some(Parent { first: *first, after }),
                        // Nothing is held without what comes before it.
                        None => return,
                    },
                };
                self.add(parent, *chunk);
            }
            after = Some(*chunk);
        }
    }

    fn add(&mut self, parent: Option<Parent>, chunk: u64) {
        let before = self.telling.as_mut().and_then(|telling| telling.lost.remove(&chunk));
        // A chunk that the lane still names as a segment's first begins one again: in another it might for a moment be told twice.
        let may_follow = before != Some(chunk);
        let first = match parent.filter(|parent| may_follow && self.can_grow(*parent)) {
            Some(parent) => parent.first,
            None => chunk,
        };
        match self.segments.get_mut(&first) {
            Some(piece) => piece.chunks.push(chunk),
            None => drop(self.segments.insert(first, Piece { parent, chunks: vec![chunk] })),
        }
        self.places.insert(chunk, first);
        if let Some(telling) = &mut self.telling {
            // The same for the rest: where it was is written first.
            if let Some(before) = before {
                telling.hurry(before);
            }
            telling.hurry(first);
        }
    }

    fn can_grow(&self, parent: Parent) -> bool {
        let Some(piece) = self.segments.get(&parent.first) else { return false };
        let is_fresh = self.telling.as_ref().is_none_or(|telling| telling.is_waiting(parent.first));
        piece.chunks.last() == Some(&parent.after)
            && piece.chunks.len() < SEGMENT_CHUNKS_MAX
            && (is_fresh || piece.chunks.len() <= GROWS_UP_TO)
    }

    fn give_up(&mut self, chunk: u64, now: Timestamp) {
        let Some(first) = self.places.get(&chunk).copied() else { return };
        let piece = self.segments.get_mut(&first).expect("every place is a segment");
        let at = piece.chunks.iter().position(|held| *held == chunk).unwrap_or_default();
        // What follows it goes with it; it should have gone before.
        let gone = piece.chunks.split_off(at);
        if at == 0 {
            self.segments.remove(&first);
        }
        for chunk in gone {
            self.places.remove(&chunk);
            if let Some(telling) = &mut self.telling {
                telling.lose(first, chunk, now);
            }
        }
    }

    fn clear(&mut self, now: Timestamp) {
        self.incarnation = (self.incarnation + 1) & 0x7f;
        self.segments.clear();
        self.places.clear();
        if let Some(telling) = &mut self.telling {
            // They no longer count, so there is no hurry.
            let told = std::mem::take(&mut telling.told);
            let (header, is_complete) = (telling.header, telling.is_complete);
            *telling = Telling { header, is_complete, ..Telling::default() };
            for first in &told {
                telling.shrunk.insert(*first, Shrunk { since: now, chunks: Vec::new() });
            }
            telling.told = told;
        }
    }

    /// Begins to tell.
    pub(super) fn begin_telling(&mut self) {
        if self.telling.is_none() {
            let mut telling = Telling::default();
            self.segments.keys().for_each(|first| telling.hurry(*first));
            self.telling = Some(telling);
        }
    }

    /// Whether it is told.
    pub(super) fn is_told(&self) -> bool {
        self.telling.is_some()
    }

    /// Says that this is now all that the worker is known to hold.
    pub(super) fn complete(&mut self) {
        if let Some(telling) = &mut self.telling {
            telling.is_complete = true;
        }
    }

    /// No longer tells; what takes everything back.
    pub(super) fn end_telling(&mut self, stream: Stream) -> Vec<Entry> {
        let Some(telling) = self.telling.take() else { return Vec::new() };
        let header = telling.header.map(|_| (Key::Header(stream).bytes(), None));
        let segments = telling.told.into_iter().map(|first| (Key::Segment(stream, first).bytes(), None));
        header.into_iter().chain(segments).collect()
    }

    /// How many segments are to be told as soon as may be.
    pub(super) fn backlog(&self) -> usize {
        self.telling.as_ref().map_or(0, |telling| telling.urgent.len())
    }

    /// When there is something to be told.
    pub(super) fn due(&self) -> Option<Timestamp> {
        let telling = self.telling.as_ref()?;
        if !telling.urgent.is_empty() || telling.header != Some(self.header(telling)) {
            return Some(Timestamp::ORIGIN);
        }
        telling.shrunk.values().next().map(|shrunk| shrunk.since + DROP_DELAY)
    }

    fn header(&self, telling: &Telling) -> Header {
        // Whoever reads for the first time that it is complete has read the rest before.
        let was_complete = telling.header.is_some_and(|header| header.is_complete);
        let is_complete = telling.is_complete && (was_complete || telling.urgent.is_empty());
        Header { incarnation: self.incarnation, is_complete }
    }

    /// Appends what is to be told, up to about `bytes_max`; says how many bytes that was.
    pub(super) fn flush(&mut self, stream: Stream, bytes_max: usize, now: Timestamp, out: &mut Vec<Entry>) -> usize {
        let Some(mut telling) = self.telling.take() else { return 0 };
        let mut bytes = 0;
        // What no longer counts since it began anew must not count for a moment longer.
        if telling.header.is_none_or(|header| header.incarnation != self.incarnation) {
            bytes += self.tell_header(&mut telling, stream, out);
        }
        while bytes < bytes_max
            && let Some(first) = telling.urgent.pop_front()
        {
            telling.waiting.remove(&first);
            bytes += self.tell(&mut telling, Key::Segment(stream, first), first, out);
        }
        let due: Vec<u64> = telling
            .shrunk
            .iter()
            .filter(|(_, shrunk)| shrunk.since + DROP_DELAY <= now)
            .map(|(first, _)| *first)
            .take(bytes_max / 32)
            .collect();
        for first in due {
            if bytes < bytes_max {
                bytes += self.tell(&mut telling, Key::Segment(stream, first), first, out);
            }
        }
        bytes += self.tell_header(&mut telling, stream, out);
        self.telling = Some(telling);
        bytes
    }

    fn tell_header(&self, telling: &mut Telling, stream: Stream, out: &mut Vec<Entry>) -> usize {
        let header = self.header(telling);
        if telling.header == Some(header) {
            return 0;
        }
        telling.header = Some(header);
        push((Key::Header(stream).bytes(), Some(header.bytes())), out)
    }

    fn tell(&self, telling: &mut Telling, key: Key, first: u64, out: &mut Vec<Entry>) -> usize {
        if let Some(shrunk) = telling.shrunk.remove(&first) {
            for chunk in shrunk.chunks {
                if telling.lost.get(&chunk) == Some(&first) {
                    telling.lost.remove(&chunk);
                }
            }
        }
        let entry = match self.segments.get(&first) {
            Some(Piece { parent, chunks }) => {
                telling.told.insert(first);
                let segment = Segment { incarnation: self.incarnation, parent: *parent, chunks: chunks.clone() };
                (key.bytes(), Some(segment.bytes()))
            }
            None if telling.told.remove(&first) => (key.bytes(), None),
            None => return 0,
        };
        push(entry, out)
    }

    /// Shows all that is held; what comes before is shown before.
    pub(super) fn show(&self, visit: &mut dyn FnMut(Option<u64>, &[u64])) {
        let mut followers: StableMap<u64, Vec<u64>> = StableMap::default();
        let mut ready = Vec::new();
        for (first, piece) in &self.segments {
            match piece.parent {
                Some(parent) => followers.entry(parent.first).or_default().push(*first),
                None => ready.push(*first),
            }
        }
        while let Some(first) = ready.pop() {
            let piece = &self.segments[&first];
            visit(piece.parent.map(|parent| parent.after), &piece.chunks);
            ready.extend(followers.remove(&first).unwrap_or_default());
        }
    }
}

impl Telling {
    fn hurry(&mut self, first: u64) {
        if self.waiting.insert(first) {
            self.urgent.push_back(first);
        }
    }

    fn is_waiting(&self, first: u64) -> bool {
        self.waiting.contains(&first) || self.shrunk.contains_key(&first)
    }

    fn lose(&mut self, first: u64, chunk: u64, now: Timestamp) {
        if !self.told.contains(&first) {
            return;
        }
        let shrunk = self.shrunk.entry(first).or_insert_with(|| Shrunk { since: now, chunks: Vec::new() });
        shrunk.chunks.push(chunk);
        self.lost.insert(chunk, first);
    }
}

/// About what an entry costs on the wire: lengths and version beside key and value.
pub(super) fn cost(entry: &Entry) -> usize {
    entry.0.len() + entry.1.as_ref().map_or(0, Bytes::len) + 8
}

fn push(entry: Entry, out: &mut Vec<Entry>) -> usize {
    let bytes = cost(&entry);
    out.push(entry);
    bytes
}
