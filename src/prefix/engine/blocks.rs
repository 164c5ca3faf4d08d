//! The blocks of one cache as an engine names them, in a tree, and which chunks they make.
//!
//! A segment is a stretch of blocks within one chunk, each after the one before; a branch begins another segment, so segments
//! never split and a block's place never changes. A block that is gone while others follow it stays as a hole: what follows
//! counts for nothing until the hole is filled, and then counts again.

use hashbrown::HashTable;
use smallvec::SmallVec;
use smg_base::{hash, map::StableMap};

use crate::{
    Change, Tier,
    chunk::{CHUNK_TOKENS, TOKEN_BYTES, next_link},
};

/// No segment, or no place.
const NONE: u32 = u32::MAX;

/// Low bits of a place: which block of its segment. A chunk has at most as many blocks as tokens.
const OFFSET_BITS: u32 = CHUNK_TOKENS.ilog2();

/// The longest stretch in one change, so that no change is large on the wire.
const STRETCH_MAX: usize = 1_024;

/// Where a block is: its segment and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u32);

impl Place {
    const NONE: Self = Self(NONE);

    fn new(segment: u32, offset: usize) -> Self {
        Self(segment << OFFSET_BITS | u32::try_from(offset).unwrap_or(NONE))
    }

    fn segment(self) -> usize {
        (self.0 >> OFFSET_BITS) as usize
    }

    fn offset(self) -> usize {
        (self.0 & ((1 << OFFSET_BITS) - 1)) as usize
    }
}

/// Whether a block is made of its tokens alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    Plain,
    /// Of something else too, or a block before it is: it makes no chunks.
    Opaque,
}

/// A block to be placed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewBlock<'a> {
    pub(crate) name: u64,
    pub(crate) tokens: &'a [u32],
    pub(crate) tier: Tier,
    pub(crate) meaning: Meaning,
    /// How many blocks are about to be placed after it.
    pub(crate) following: usize,
}

/// What a block follows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Before {
    /// Nothing: it begins a prompt in the namespace with this root.
    Root(u64),
    /// The block of this name.
    Block(u64),
}

/// Why a block was not placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unplaced {
    /// What it follows is not known.
    UnknownParent,
    /// There is no room.
    Full,
}

/// How many caches hold each chunk; tells of the first and of the last.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    counts: StableMap<u64, u32>,
}

impl Holdings {
    pub(crate) fn chunks(&self) -> usize {
        self.counts.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.counts.allocation_size()
    }

    /// Nobody holds anything any more.
    pub(crate) fn clear(&mut self, out: &mut Vec<Change>) {
        if !self.counts.is_empty() {
            self.counts = StableMap::default();
            out.push(Change::Cleared);
        }
    }

    fn acquire(&mut self, after: Option<u64>, chunk: u64, out: &mut Vec<Change>) {
        let count = self.counts.entry(chunk).or_insert(0);
        *count += 1;
        if *count > 1 {
            return;
        }
        match out.last_mut() {
            Some(Change::Held { chunks, .. }) if chunks.last().copied() == after && chunks.len() < STRETCH_MAX => {
                chunks.push(chunk);
            }
            _ => out.push(Change::Held { after, chunks: vec![chunk] }),
        }
    }

    fn release(&mut self, chunk: u64, out: &mut Vec<Change>) {
        let Some(count) = self.counts.get_mut(&chunk) else { return };
        *count -= 1;
        if *count > 0 {
            return;
        }
        self.counts.remove(&chunk);
        match out.last_mut() {
            Some(Change::Dropped { chunks }) if chunks.len() < STRETCH_MAX => chunks.push(chunk),
            _ => out.push(Change::Dropped { chunks: vec![chunk] }),
        }
    }
}

#[derive(Debug)]
struct Segment {
    /// The block before the first of these.
    parent: Place,
    first_child: u32,
    /// The segments beside it under the same parent.
    next: u32,
    before: u32,
    /// Chunks before this one.
    level: u32,
    /// How many blocks of the chunk come before the first of these.
    start: u8,
    /// How many blocks are there with everything before them.
    live: u8,
    meaning: Meaning,
    /// The link of the chain before this chunk: the hash of the chunk before it, or the root.
    link: u64,
    names: Vec<u64>,
    /// Per block, the tiers it is in, a bit for each.
    tiers: Vec<u8>,
    tokens: Vec<u32>,
    /// The hash of the chunk that ends here, once it does; several where a block is longer than a chunk.
    chunks: SmallVec<[u64; 1]>,
}

impl Segment {
    fn after(&self) -> Option<u64> {
        (self.level > 0).then_some(self.link)
    }

    /// Leading blocks that are in some tier.
    fn present(&self) -> u8 {
        let present = self.tiers.iter().take_while(|tiers| **tiers != 0).count();
        u8::try_from(present).unwrap_or(u8::MAX)
    }

    fn is_held(&self, live: u8) -> bool {
        !self.chunks.is_empty() && usize::from(live) == self.names.len()
    }

    fn tokens_of(&self, offset: usize, block_tokens: usize) -> &[u32] {
        self.tokens.get(offset * block_tokens..(offset + 1) * block_tokens).unwrap_or_default()
    }

    fn heap_bytes(&self) -> usize {
        let tokens = self.tokens.capacity() * size_of::<u32>();
        let chunks = if self.chunks.spilled() { self.chunks.capacity() * size_of::<u64>() } else { 0 };
        self.names.capacity() * size_of::<u64>() + self.tiers.capacity() + tokens + chunks
    }
}

/// The blocks of one cache.
#[derive(Debug)]
pub(crate) struct Blocks {
    segments: Vec<Segment>,
    free: Vec<u32>,
    /// From names to places; the names themselves are in the segments.
    index: HashTable<Place>,
    block_tokens: usize,
    /// Blocks in a chunk; one where a block holds several chunks.
    per_chunk: usize,
    count: usize,
    blocks_max: usize,
}

impl Blocks {
    /// The most blocks whose places have numbers.
    pub(crate) const BLOCKS_MAX: usize = (NONE >> OFFSET_BITS) as usize;

    /// No blocks yet, of `block_tokens` each. None if chunks cannot be made of such blocks.
    pub(crate) fn new(block_tokens: usize, blocks_max: usize) -> Option<Self> {
        let per_chunk = match block_tokens {
            0 => return None,
            _ if CHUNK_TOKENS.is_multiple_of(block_tokens) => CHUNK_TOKENS / block_tokens,
            _ if block_tokens.is_multiple_of(CHUNK_TOKENS) => 1,
            _ => return None,
        };
        Some(Self {
            segments: Vec::new(),
            free: Vec::new(),
            index: HashTable::new(),
            block_tokens,
            per_chunk,
            count: 0,
            blocks_max: blocks_max.min(Self::BLOCKS_MAX),
        })
    }

    pub(crate) fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks known, holes included.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Memory in use; counts for itself.
    pub(crate) fn bytes(&self) -> usize {
        let segments = self.segments.capacity() * size_of::<Segment>();
        let heap: usize = self.segments.iter().map(Segment::heap_bytes).sum();
        self.index.allocation_size() + segments + heap + self.free.capacity() * size_of::<u32>()
    }

    /// The part of [`Self::bytes`] that leads from names to places.
    pub(crate) fn reverse_bytes(&self) -> usize {
        let names: usize = self.segments.iter().map(|segment| segment.names.capacity() * size_of::<u64>()).sum();
        self.index.allocation_size() + names
    }

    /// Puts a block where it belongs, or notes that it is in one more tier.
    pub(crate) fn place(
        &mut self,
        before: Before,
        block: NewBlock<'_>,
        holdings: &mut Holdings,
        out: &mut Vec<Change>,
    ) -> Result<(), Unplaced> {
        if let Some(at) = self.find(block.name) {
            if self.is_at(at, before, block.tokens) {
                self.mark(at, block.tier, holdings, out);
                return Ok(());
            }
            // One name for two contents: only the newer is meant by what will be said of it.
            self.displace(at, holdings, out);
        }
        let parent = match before {
            Before::Root(_) => Place::NONE,
            Before::Block(name) => self.find(name).ok_or(Unplaced::UnknownParent)?,
        };
        if self.count >= self.blocks_max {
            return Err(Unplaced::Full);
        }
        let meaning = match self.segment(parent) {
            Some(before) if before.meaning == Meaning::Opaque => Meaning::Opaque,
            _ => block.meaning,
        };
        let segment = match self.can_append(parent, meaning) {
            true => parent.segment(),
            false => self.add_segment(parent, before, meaning),
        };
        let content = &mut self.segments[segment];
        if content.names.len() == content.names.capacity() {
            let room = self.per_chunk - usize::from(content.start) - content.names.len();
            let blocks = room.min(block.following + 1);
            content.names.reserve_exact(blocks);
            content.tiers.reserve_exact(blocks);
            content.tokens.reserve_exact(blocks * self.block_tokens);
        }
        content.names.push(block.name);
        content.tiers.push(tier_bit(block.tier));
        content.tokens.extend_from_slice(block.tokens);
        let at = Place::new(id(segment), content.names.len() - 1);
        let segments = &self.segments;
        self.index.insert_unique(hash_of(block.name), at, |place| hash_of(name_at(segments, *place)));
        self.count += 1;
        self.complete(segment);
        self.refresh(segment, holdings, out);
        Ok(())
    }

    /// Notes that a block is in one more tier. False if it is not known.
    pub(crate) fn mark_name(&mut self, name: u64, tier: Tier, holdings: &mut Holdings, out: &mut Vec<Change>) -> bool {
        let Some(at) = self.find(name) else { return false };
        self.mark(at, tier, holdings, out);
        true
    }

    /// Takes a block out of a tier. False if it is not known.
    pub(crate) fn remove(&mut self, name: u64, tier: Tier, holdings: &mut Holdings, out: &mut Vec<Change>) -> bool {
        let Some(at) = self.find(name) else { return false };
        let tiers = &mut self.segments[at.segment()].tiers[at.offset()];
        *tiers &= !tier_bit(tier);
        if *tiers == 0 {
            self.refresh(at.segment(), holdings, out);
            self.trim(at.segment());
        }
        true
    }

    /// Gives up everything it holds, beginning with what nothing follows, and forgets it.
    pub(crate) fn clear(&mut self, holdings: &mut Holdings, out: &mut Vec<Change>) {
        let mut held: Vec<(u32, &[u64])> = Vec::new();
        for segment in self.segments.iter().filter(|segment| segment.is_held(segment.live)) {
            held.push((segment.level, &segment.chunks));
        }
        held.sort_by_key(|(level, _)| std::cmp::Reverse(*level));
        for chunk in held.into_iter().flat_map(|(_, chunks)| chunks.iter().rev()) {
            holdings.release(*chunk, out);
        }
        self.segments = Vec::new();
        self.free = Vec::new();
        self.index = HashTable::new();
        self.count = 0;
    }

    fn find(&self, name: u64) -> Option<Place> {
        let found = self.index.find(hash_of(name), |place| name_at(&self.segments, *place) == name);
        found.copied()
    }

    fn segment(&self, place: Place) -> Option<&Segment> {
        (place != Place::NONE).then(|| &self.segments[place.segment()])
    }

    /// Whether the block at `at` follows `before` and has these tokens.
    fn is_at(&self, at: Place, before: Before, tokens: &[u32]) -> bool {
        let segment = &self.segments[at.segment()];
        let parent = match at.offset() {
            0 => segment.parent,
            offset => Place::new(id(at.segment()), offset - 1),
        };
        let follows = match before {
            Before::Root(root) => parent == Place::NONE && segment.link == root,
            Before::Block(name) => self.find(name).is_some_and(|place| place == parent),
        };
        follows && segment.tokens_of(at.offset(), self.block_tokens) == tokens
    }

    fn mark(&mut self, at: Place, tier: Tier, holdings: &mut Holdings, out: &mut Vec<Change>) {
        let tiers = &mut self.segments[at.segment()].tiers[at.offset()];
        let was_gone = *tiers == 0;
        *tiers |= tier_bit(tier);
        if was_gone {
            self.refresh(at.segment(), holdings, out);
        }
    }

    /// Takes a block's name away; its content is gone, but what follows it stays.
    fn displace(&mut self, at: Place, holdings: &mut Holdings, out: &mut Vec<Change>) {
        let segment = &mut self.segments[at.segment()];
        segment.tiers[at.offset()] = 0;
        let name = segment.names[at.offset()];
        self.unindex(name, at);
        self.refresh(at.segment(), holdings, out);
        self.trim(at.segment());
    }

    fn unindex(&mut self, name: u64, at: Place) {
        if let Ok(entry) = self.index.find_entry(hash_of(name), |place| *place == at) {
            entry.remove();
        }
    }

    fn can_append(&self, parent: Place, meaning: Meaning) -> bool {
        self.segment(parent).is_some_and(|segment| {
            let length = segment.names.len();
            let is_last = parent.offset() + 1 == length;
            is_last && usize::from(segment.start) + length < self.per_chunk && segment.meaning == meaning
        })
    }

    fn add_segment(&mut self, parent: Place, before: Before, meaning: Meaning) -> usize {
        let (start, level, link) = match (self.segment(parent), before) {
            (Some(segment), _) => match (usize::from(segment.start) + parent.offset() + 1) % self.per_chunk {
                0 => (0, segment.level + 1, segment.chunks.last().copied().unwrap_or_default()),
                start => (u8::try_from(start).unwrap_or(u8::MAX), segment.level, segment.link),
            },
            (None, Before::Root(root)) => (0, 0, root),
            (None, Before::Block(_)) => (0, 0, 0),
        };
        let segment = Segment {
            parent,
            first_child: NONE,
            next: self.segment(parent).map_or(NONE, |segment| segment.first_child),
            before: NONE,
            level,
            start,
            live: 0,
            meaning,
            link,
            names: Vec::new(),
            tiers: Vec::new(),
            tokens: Vec::new(),
            chunks: SmallVec::new(),
        };
        let next = segment.next;
        let added = match self.free.pop() {
            Some(free) => {
                self.segments[free as usize] = segment;
                free
            }
            None => {
                self.segments.push(segment);
                id(self.segments.len() - 1)
            }
        };
        if let Some(next) = self.segments.get_mut(next as usize) {
            next.before = added;
        }
        if parent != Place::NONE {
            self.segments[parent.segment()].first_child = added;
        }
        added as usize
    }

    /// Names the chunks that end in `segment`, if it reaches the end of one now.
    fn complete(&mut self, segment: usize) {
        let content = &self.segments[segment];
        let ends = usize::from(content.start) + content.names.len() == self.per_chunk;
        if !ends || content.meaning == Meaning::Opaque || !content.chunks.is_empty() {
            return;
        }
        let mut pieces = vec![content.tokens.as_slice()];
        let (mut start, mut parent) = (content.start, content.parent);
        while start > 0 {
            let before = &self.segments[parent.segment()];
            pieces.push(&before.tokens[..(parent.offset() + 1) * self.block_tokens]);
            (start, parent) = (before.start, before.parent);
        }
        let mut link = content.link;
        let mut bytes = Vec::with_capacity(CHUNK_TOKENS * TOKEN_BYTES);
        let mut chunks = SmallVec::new();
        for token in pieces.into_iter().rev().flatten() {
            bytes.extend_from_slice(&token.to_le_bytes());
            if bytes.len() == CHUNK_TOKENS * TOKEN_BYTES {
                link = next_link(&bytes, link);
                chunks.push(link);
                bytes.clear();
            }
        }
        self.segments[segment].chunks = chunks;
    }

    /// Works out anew how far `segment`, and what follows it, is there with everything before.
    fn refresh(&mut self, segment: usize, holdings: &mut Holdings, out: &mut Vec<Change>) {
        let (live, now) = (self.segments[segment].live, self.live_now(segment));
        match now.cmp(&live) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => self.revive(segment, holdings, out),
            std::cmp::Ordering::Less => self.lose(segment, now, holdings, out),
        }
    }

    fn live_now(&self, segment: usize) -> u8 {
        let content = &self.segments[segment];
        let is_reached = self.segment(content.parent).is_none_or(|before| {
            let place = content.parent;
            place.offset() < usize::from(before.live)
        });
        if is_reached { content.present() } else { 0 }
    }

    fn revive(&mut self, segment: usize, holdings: &mut Holdings, out: &mut Vec<Change>) {
        let mut ahead = vec![segment];
        while let Some(segment) = ahead.pop() {
            let now = self.live_now(segment);
            let content = &mut self.segments[segment];
            if now <= content.live {
                continue;
            }
            let was_held = content.is_held(content.live);
            content.live = now;
            if !was_held && content.is_held(now) {
                let mut after = content.after();
                for chunk in &content.chunks {
                    holdings.acquire(after, *chunk, out);
                    after = Some(*chunk);
                }
            }
            ahead.extend(self.children(segment).map(|(child, _)| child));
        }
    }

    fn lose(&mut self, segment: usize, now: u8, holdings: &mut Holdings, out: &mut Vec<Change>) {
        let mut lost = vec![(segment, now)];
        let mut at = 0;
        while let Some((segment, now)) = lost.get(at).copied() {
            let cut = self
                .children(segment)
                .filter(|(child, offset)| *offset >= usize::from(now) && self.segments[*child].live > 0);
            lost.extend(cut.map(|(child, _)| (child, 0)).collect::<SmallVec<[_; 8]>>());
            at += 1;
        }
        for (segment, now) in lost.into_iter().rev() {
            let content = &mut self.segments[segment];
            if content.is_held(content.live) {
                for chunk in content.chunks.iter().rev() {
                    holdings.release(*chunk, out);
                }
            }
            content.live = now;
        }
    }

    /// The segments that follow blocks of `segment`, and which block each follows.
    fn children(&self, segment: usize) -> impl Iterator<Item = (usize, usize)> {
        let mut at = self.segments[segment].first_child;
        std::iter::from_fn(move || {
            let child = self.segments.get(at as usize)?;
            let found = (at as usize, child.parent.offset());
            at = child.next;
            Some(found)
        })
    }

    /// Forgets the blocks at the end of `segment` that are gone and that nothing follows; then likewise those before it.
    fn trim(&mut self, mut segment: usize) {
        while self.segments[segment].tiers.last().is_none_or(|tiers| *tiers == 0) {
            let keep = self.children(segment).map(|(_, offset)| offset + 1).max().unwrap_or(0);
            let is_spare = |tiers: &[u8]| tiers.len() > keep && tiers.last() == Some(&0);
            while is_spare(&self.segments[segment].tiers) {
                self.pop(segment);
            }
            let content = &self.segments[segment];
            if !content.names.is_empty() {
                return;
            }
            let parent = content.parent;
            self.unlink(segment);
            if parent == Place::NONE {
                return;
            }
            segment = parent.segment();
        }
    }

    /// Forgets the last block of `segment`.
    fn pop(&mut self, segment: usize) {
        let content = &mut self.segments[segment];
        content.tiers.pop();
        content.chunks.clear();
        let Some(name) = content.names.pop() else { return };
        let length = content.names.len();
        content.tokens.truncate(length * self.block_tokens);
        // The name is looked at no more: the place alone tells.
        self.unindex(name, Place::new(id(segment), length));
        self.count -= 1;
    }

    fn unlink(&mut self, segment: usize) {
        let content = &mut self.segments[segment];
        let (parent, next, before) = (content.parent, content.next, content.before);
        (content.next, content.before) = (NONE, NONE);
        (content.names, content.tiers, content.tokens) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(next) = self.segments.get_mut(next as usize) {
            next.before = before;
        }
        match self.segments.get_mut(before as usize) {
            Some(before) => before.next = next,
            None if parent != Place::NONE => self.segments[parent.segment()].first_child = next,
            None => {}
        }
        self.free.push(id(segment));
    }
}

fn name_at(segments: &[Segment], place: Place) -> u64 {
    segments[place.segment()].names[place.offset()]
}

fn hash_of(name: u64) -> u64 {
    hash::mix(name, 0)
}

fn id(segment: usize) -> u32 {
    u32::try_from(segment).unwrap_or(NONE)
}

fn tier_bit(tier: Tier) -> u8 {
    match tier {
        Tier::Device => 1,
        Tier::Host => 2,
        Tier::Storage => 4,
    }
}
