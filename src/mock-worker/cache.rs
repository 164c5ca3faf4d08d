//! The prefix cache: blocks of tokens known by a chained hash, shared while in use, evicted least recently used first.
//!
//! A running request holds the blocks of its prompt and of the output to come. Blocks it gives back keep their content
//! and their place in the order of eviction, the end of a prompt before its start, until somebody needs the room.

use smg_base::{hash, map::StableMap};

use crate::tokens::Token;

/// No slot.
const NONE: u32 = u32::MAX;

/// The blocks of one worker.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    block_tokens: usize,
    slots: Vec<Slot>,
    /// Slots by the hash of what they hold.
    index: StableMap<u64, u32>,
    /// Slots that hold nothing.
    empty: Vec<u32>,
    /// The ends of the list of slots that nobody uses but whose content is kept: first to be evicted, last to be evicted.
    oldest: u32,
    newest: u32,
    /// Length of that list.
    idle: usize,
    /// What happened since it was last asked for, if anybody asks.
    changes: Option<Vec<Change>>,
}

/// Something happened to the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The block of this hash is there.
    Stored(u64),
    /// It is there no longer.
    Removed(u64),
    /// None is.
    Cleared,
}

#[derive(Debug, Clone)]
struct Slot {
    /// The hash of the content, once the block is full.
    content: Option<u64>,
    users: u32,
    older: u32,
    newer: u32,
}

/// The blocks that one request holds, in order.
#[derive(Debug, Default)]
pub(crate) struct Held {
    slots: Vec<u32>,
    /// How many of them the cache had.
    pub(crate) hits: usize,
}

/// Adds to `hashes` what it lacks of the hashes of the full blocks of `tokens`, each over everything before it, beginning with
/// `salt`.
pub(crate) fn hash_blocks(hashes: &mut Vec<u64>, tokens: &[Token], block_tokens: usize, salt: u64) {
    let mut chain = hashes.last().copied().unwrap_or_else(|| hash::mix(salt, 0));
    let mut bytes = Vec::with_capacity(block_tokens * 4);
    for block in tokens[hashes.len() * block_tokens..].chunks_exact(block_tokens) {
        bytes.clear();
        bytes.extend(block.iter().flat_map(|token| token.to_le_bytes()));
        chain = hash::stable64_seeded(&bytes, chain);
        hashes.push(chain);
    }
}

impl PrefixCache {
    /// A cache of `blocks` blocks; with none it is off.
    pub(crate) fn new(block_tokens: u32, blocks: u32) -> Self {
        let slot = Slot { content: None, users: 0, older: NONE, newer: NONE };
        Self {
            block_tokens: block_tokens.max(1) as usize,
            slots: vec![slot; blocks as usize],
            index: StableMap::default(),
            empty: (0..blocks).rev().collect(),
            oldest: NONE,
            newest: NONE,
            idle: 0,
            changes: None,
        }
    }

    /// Keeps a record of what happens, for [`PrefixCache::changes`].
    pub(crate) fn record(&mut self) {
        self.changes = Some(Vec::new());
    }

    /// What happened since it was last emptied, in order; none if no record is kept.
    pub(crate) fn changes(&mut self) -> Option<&mut Vec<Change>> {
        self.changes.as_mut()
    }

    pub(crate) fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks in all.
    pub(crate) fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// Blocks held by running requests.
    pub(crate) fn used(&self) -> usize {
        self.slots.len() - self.empty.len() - self.idle
    }

    /// Takes the blocks of a prompt, known by `hashes`, and `more` blocks for what has no hash yet. At most `hits_max`
    /// blocks count as found, for something must be left to compute. `None`, and nothing is changed, if too many blocks
    /// are held by others.
    pub(crate) fn hold(&mut self, hashes: &[u64], hits_max: usize, more: usize) -> Option<Held> {
        // A request larger than the cache gets all of it.
        let wanted = hashes.len().saturating_add(more).min(self.capacity());
        let hashes = &hashes[..hashes.len().min(wanted)];
        let found: Vec<u32> = hashes.iter().map_while(|hash| self.index.get(hash).copied()).collect();
        let found_idle = found.iter().filter(|slot| self.slots[**slot as usize].users == 0).count();
        if wanted - found.len() > self.empty.len() + self.idle - found_idle {
            return None;
        }
        for &slot in &found {
            self.take_up(slot);
        }
        let hits = found.len().min(hits_max);
        let mut held = Held { slots: found, hits };
        for place in held.slots.len()..wanted {
            let slot = self.fresh();
            if let Some(&hash) = hashes.get(place) {
                self.fill(slot, hash);
            }
            held.slots.push(slot);
        }
        Some(held)
    }

    /// Names the blocks of `held` that are full by now, which are the first ones; those before `from` have their names.
    pub(crate) fn name(&mut self, held: &Held, hashes: &[u64], from: usize) {
        for (&slot, &hash) in held.slots.iter().zip(hashes).skip(from) {
            if self.slots[slot as usize].content.is_none() {
                self.fill(slot, hash);
            }
        }
    }

    /// Gives blocks back. `hashes` names the blocks that are full by now, from the first.
    pub(crate) fn release(&mut self, held: Held, hashes: &[u64]) {
        self.name(&held, hashes, 0);
        for &slot in held.slots.iter().rev() {
            let entry = &mut self.slots[slot as usize];
            entry.users -= 1;
            if entry.users > 0 {
                continue;
            }
            match entry.content {
                Some(_) => self.retire(slot),
                None => self.empty.push(slot),
            }
        }
    }

    /// Forgets every block; nobody may hold one.
    pub(crate) fn flush(&mut self) {
        debug_assert_eq!(self.used(), 0, "a running request would bring its blocks back");
        while self.oldest != NONE {
            let slot = self.oldest;
            self.unlink(slot);
            self.slots[slot as usize].content = None;
            self.empty.push(slot);
        }
        self.index.clear();
        self.changed(Change::Cleared);
    }

    /// The hashes of all blocks.
    #[cfg(test)]
    pub(crate) fn content(&self) -> impl Iterator<Item = u64> {
        self.index.keys().copied()
    }

    fn changed(&mut self, change: Change) {
        if let Some(changes) = &mut self.changes {
            changes.push(change);
        }
    }

    /// Names the content of `slot`, unless another slot has the same.
    fn fill(&mut self, slot: u32, hash: u64) {
        if let hashbrown::hash_map::Entry::Vacant(vacant) = self.index.entry(hash) {
            vacant.insert(slot);
            self.slots[slot as usize].content = Some(hash);
            self.changed(Change::Stored(hash));
        }
    }

    /// A slot that holds nothing, held once; there must be one.
    fn fresh(&mut self) -> u32 {
        let slot = self.empty.pop().unwrap_or_else(|| {
            let slot = self.oldest;
            self.unlink(slot);
            if let Some(hash) = self.slots[slot as usize].content.take() {
                self.index.remove(&hash);
                self.changed(Change::Removed(hash));
            }
            slot
        });
        self.slots[slot as usize].users = 1;
        slot
    }

    fn take_up(&mut self, slot: u32) {
        if self.slots[slot as usize].users == 0 {
            self.unlink(slot);
        }
        self.slots[slot as usize].users += 1;
    }

    /// Puts `slot` at the end of the order of eviction.
    fn retire(&mut self, slot: u32) {
        let newest = self.newest;
        let entry = &mut self.slots[slot as usize];
        (entry.older, entry.newer) = (newest, NONE);
        match newest {
            NONE => self.oldest = slot,
            newest => self.slots[newest as usize].newer = slot,
        }
        self.newest = slot;
        self.idle += 1;
    }

    fn unlink(&mut self, slot: u32) {
        let Slot { older, newer, .. } = self.slots[slot as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        self.idle -= 1;
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    fn block_hashes(tokens: &[Token], block_tokens: usize, salt: u64) -> Vec<u64> {
        let mut hashes = Vec::new();
        hash_blocks(&mut hashes, tokens, block_tokens, salt);
        hashes
    }

    fn hashes(tokens: std::ops::Range<u32>) -> Vec<u64> {
        block_hashes(&tokens.collect::<Vec<_>>(), 4, 7)
    }

    fn run(cache: &mut PrefixCache, hashes: &[u64]) -> Option<usize> {
        let held = cache.hold(hashes, usize::MAX, 0)?;
        let hits = held.hits;
        cache.release(held, hashes);
        Some(hits)
    }

    #[test]
    fn only_whole_blocks_of_the_same_beginning_are_found() {
        let mut cache = PrefixCache::new(4, 16);
        assert_eq!(run(&mut cache, &hashes(0..18)), Some(0));
        assert_eq!(run(&mut cache, &hashes(0..18)), Some(4));
        assert_eq!(run(&mut cache, &hashes(0..11)), Some(2));
        assert_eq!(run(&mut cache, &hashes(4..20)), Some(0));
        assert_eq!(run(&mut cache, &block_hashes(&(0..16).collect::<Vec<_>>(), 4, 8)), Some(0));
        cache.flush();
        assert_eq!(run(&mut cache, &hashes(0..18)), Some(0));
    }

    #[test]
    fn the_least_recently_used_goes_first_and_the_end_of_a_prompt_before_its_start() {
        let mut cache = PrefixCache::new(4, 4);
        run(&mut cache, &hashes(0..8));
        run(&mut cache, &hashes(100..108));
        run(&mut cache, &hashes(0..8));
        run(&mut cache, &hashes(200..204));
        assert_eq!(run(&mut cache, &hashes(0..8)), Some(2));
        assert_eq!(run(&mut cache, &hashes(100..108)), Some(1));
    }

    #[test]
    fn blocks_in_use_are_never_evicted() {
        let mut cache = PrefixCache::new(4, 4);
        let first = cache.hold(&hashes(0..8), usize::MAX, 1).unwrap();
        assert_eq!(cache.used(), 3);
        assert!(cache.hold(&hashes(100..108), usize::MAX, 0).is_none());
        let shared = cache.hold(&hashes(0..12), usize::MAX, 0).unwrap();
        assert_eq!((shared.hits, cache.used()), (2, 4));
        cache.release(first, &hashes(0..8));
        cache.release(shared, &hashes(0..12));
        assert_eq!(cache.used(), 0);
        assert!(cache.hold(&hashes(100..1000), usize::MAX, 0).is_some());
    }

    #[test]
    fn it_agrees_with_a_simple_list() {
        // The model: hashes from least to most recently used.
        let (mut cache, mut model) = (PrefixCache::new(1, 8), Vec::<u64>::new());
        let random = SplitMix::new(3);
        for round in 0..20_000 {
            let (first, length) = (random.below(6) * 100, 1 + random.below(6));
            let first = u32::try_from(first).unwrap();
            let wanted = block_hashes(&(first..first + u32::try_from(length).unwrap()).collect::<Vec<_>>(), 1, 0);
            let expected = wanted.iter().take_while(|hash| model.contains(hash)).count();
            assert_eq!(run(&mut cache, &wanted), Some(expected), "round {round}");
            model.retain(|hash| !wanted.contains(hash));
            let excess = (model.len() + wanted.len()).saturating_sub(8);
            model.drain(..excess);
            model.extend(wanted.iter().rev());
        }
    }
}
