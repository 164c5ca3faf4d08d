//! What one worker's engine holds, by what it reports.

mod blocks;
mod parked;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::{
    blocks::{Before, Blocks, Holdings, Meaning, NewBlock, Unplaced},
    parked::Parked,
};
use crate::{Change, EngineHash, KvBatch, KvEvent, Namespace, Stored, Tier};

/// The most ranks of one worker, and the most attention groups that are told apart.
const RANKS_MAX: usize = 256;
const GROUPS_MAX: usize = 64;

/// How much is remembered of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineCacheConfig {
    /// Blocks of one rank; what is stored beyond is not known of.
    pub blocks_max: usize,
    /// Blocks of one rank that wait for their parent.
    pub parked_max: usize,
}

impl Default for EngineCacheConfig {
    fn default() -> Self {
        Self { blocks_max: 1 << 22, parked_max: 1 << 14 }
    }
}

/// Whether a batch is the one that was to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sequence {
    /// It is, and was applied.
    InOrder,
    /// It came before; nothing was done.
    Duplicate,
    /// Some are missing before it; nothing was done. Apply those first, or say that they are lost.
    Gap {
        /// The sequence that was to come.
        expected: u64,
        /// That of the batch.
        got: u64,
    },
}

/// What an [`EngineCache`] holds, and what it could not use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineCacheStats {
    /// Blocks by the engine's names, of all ranks.
    pub blocks: usize,
    /// Chunks held.
    pub chunks: usize,
    /// Blocks that wait for their parent.
    pub parked: usize,
    /// Blocks that were stored and that nobody may take for their tokens.
    pub opaque: u64,
    /// Removals of blocks that are not known.
    pub unknown_removed: u64,
    /// Stores that say nothing of use here: of a windowed group, of blocks whose size makes no chunks, malformed ones.
    pub ignored: u64,
    /// Blocks for which there was no room.
    pub refused: u64,
    /// Memory in use.
    pub bytes: usize,
    /// The part of it that leads from the engine's names to places.
    pub reverse_bytes: usize,
}

/// One worker's blocks by its engine's names, and the chunks that they make.
///
/// A chunk is held exactly if all blocks of it and before it are, on one rank or another. The engine's names serve to resolve
/// parents and removals and go no further: chunks are named by the tokens, as [`crate::Chunker::of_tokens`] names those of
/// prompts.
#[derive(Debug)]
pub struct EngineCache {
    seed: u64,
    config: EngineCacheConfig,
    ranks: BTreeMap<u32, Rank>,
    holdings: Holdings,
    counts: EngineCacheStats,
}

#[derive(Debug, Default)]
struct Rank {
    /// The sequence that is to come; none if any may.
    expected: Option<u64>,
    blocks: Option<Blocks>,
    parked: Parked,
    /// The group whose blocks count: the first that attends to everything.
    group: Option<u32>,
    windowed: BTreeSet<u32>,
}

impl EngineCache {
    /// Nothing held. `seed` is the one of [`Namespace::root`].
    pub fn new(seed: u64, config: EngineCacheConfig) -> Self {
        Self {
            seed,
            config,
            ranks: BTreeMap::new(),
            holdings: Holdings::default(),
            counts: EngineCacheStats::default(),
        }
    }

    /// Takes in what an engine reports, and appends to `out` what follows from it. The first batch of a rank may have any
    /// sequence; one that says that the engine has started begins anew.
    pub fn apply(&mut self, batch: KvBatch, out: &mut Vec<Change>) -> Sequence {
        let KvBatch { sequence: got, rank, events } = batch;
        if !self.ranks.contains_key(&rank) && self.ranks.len() >= RANKS_MAX {
            self.counts.ignored += 1;
            return Sequence::InOrder;
        }
        let state = self.ranks.entry(rank).or_default();
        let has_started = events.iter().any(|event| matches!(event, KvEvent::Started));
        match state.expected {
            Some(expected) if !has_started && got < expected => return Sequence::Duplicate,
            Some(expected) if !has_started && got > expected => return Sequence::Gap { expected, got },
            _ => state.expected = Some(got.saturating_add(1)),
        }
        for event in events {
            match event {
                KvEvent::Stored(stored) => self.store(rank, stored, out),
                KvEvent::Removed { blocks, tier, group } => self.remove(rank, &blocks, tier, group, out),
                KvEvent::Cleared => self.clear(rank, out),
                KvEvent::Started => {
                    self.clear(rank, out);
                    self.ranks.insert(rank, Rank { expected: Some(got.saturating_add(1)), ..Rank::default() });
                }
            }
        }
        Sequence::InOrder
    }

    /// Batches of `rank` are gone for good: what it holds is not known any more, and the next batch may have any sequence.
    pub fn lost(&mut self, rank: u32, out: &mut Vec<Change>) {
        self.clear(rank, out);
        if let Some(state) = self.ranks.get_mut(&rank) {
            state.expected = None;
        }
    }

    /// What is held, and what could not be used.
    pub fn stats(&self) -> EngineCacheStats {
        let mut stats = EngineCacheStats { chunks: self.holdings.chunks(), ..self.counts };
        stats.bytes = self.holdings.bytes();
        for rank in self.ranks.values() {
            stats.parked += rank.parked.blocks();
            let Some(blocks) = &rank.blocks else { continue };
            stats.blocks += blocks.count();
            stats.bytes += blocks.bytes();
            stats.reverse_bytes += blocks.reverse_bytes();
        }
        stats
    }

    fn store(&mut self, rank: u32, stored: Stored, out: &mut Vec<Change>) {
        let Some(state) = self.ranks.get_mut(&rank) else { return };
        if !state.counts(&stored) {
            self.counts.ignored += 1;
            return;
        }
        if stored.opaque {
            self.counts.opaque += stored.blocks.len() as u64;
        }
        if stored.tokens.is_empty() {
            // An offload to another tier need not repeat the tokens.
            self.mark(rank, &stored, out);
            return;
        }
        let block_tokens = stored.block_tokens as usize;
        let is_whole = stored.blocks.len().checked_mul(block_tokens) == Some(stored.tokens.len());
        if state.blocks.is_none() {
            state.blocks = Blocks::new(block_tokens, self.config.blocks_max);
        }
        let is_usable = state.blocks.as_ref().is_some_and(|blocks| blocks.block_tokens() == block_tokens);
        if !is_whole || !is_usable {
            self.counts.ignored += 1;
            return;
        }
        let mut ahead = vec![stored];
        while let Some(stored) = ahead.pop() {
            self.place(rank, stored, &mut ahead, out);
        }
    }

    /// Places a stretch as far as it can be, and what waited for it `ahead`.
    fn place(&mut self, rank: u32, mut stored: Stored, ahead: &mut Vec<Stored>, out: &mut Vec<Change>) {
        let Some(Rank { blocks: Some(blocks), parked, .. }) = self.ranks.get_mut(&rank) else { return };
        let namespace = Namespace { lora: stored.lora.as_deref(), salt: stored.salt.as_deref() };
        let mut before = match stored.parent {
            None => Before::Root(namespace.root(self.seed)),
            Some(parent) => Before::Block(parent.0),
        };
        let block_tokens = blocks.block_tokens();
        let meaning = if stored.opaque { Meaning::Opaque } else { Meaning::Plain };
        for (at, (name, tokens)) in stored.blocks.iter().zip(stored.tokens.chunks_exact(block_tokens)).enumerate() {
            if parked.blocks() > 0 {
                parked.forget(*name);
            }
            let following = stored.blocks.len() - at - 1;
            let block = NewBlock { name: name.0, tokens, tier: stored.tier, meaning, following };
            match blocks.place(before, block, &mut self.holdings, out) {
                Ok(()) => before = Before::Block(name.0),
                Err(Unplaced::Full) => {
                    self.counts.refused += (stored.blocks.len() - at) as u64;
                    return;
                }
                Err(Unplaced::UnknownParent) => {
                    stored.parent = if at == 0 { stored.parent } else { Some(stored.blocks[at - 1]) };
                    stored.blocks.drain(..at);
                    stored.tokens.drain(..at * block_tokens);
                    parked.park(stored, self.config.parked_max);
                    return;
                }
            }
            if parked.blocks() > 0 {
                ahead.extend(parked.following(*name));
            }
        }
    }

    fn mark(&mut self, rank: u32, stored: &Stored, out: &mut Vec<Change>) {
        let blocks = self.ranks.get_mut(&rank).and_then(|state| state.blocks.as_mut());
        let Some(blocks) = blocks else { return };
        let is_known = |name: &EngineHash| blocks.mark_name(name.0, stored.tier, &mut self.holdings, out);
        let known = stored.blocks.iter().map(is_known).filter(|known| *known).count();
        if known < stored.blocks.len() {
            self.counts.ignored += 1;
        }
    }

    fn remove(&mut self, rank: u32, names: &[EngineHash], tier: Tier, group: u32, out: &mut Vec<Change>) {
        let Some(state) = self.ranks.get_mut(&rank) else { return };
        if state.group.is_some_and(|counted| counted != group) || state.windowed.contains(&group) {
            return;
        }
        for name in names {
            let was_parked = state.parked.remove(*name, tier);
            let blocks = state.blocks.as_mut();
            let was_known = blocks.is_some_and(|blocks| blocks.remove(name.0, tier, &mut self.holdings, out));
            if !was_known && !was_parked {
                self.counts.unknown_removed += 1;
            }
        }
    }

    fn clear(&mut self, rank: u32, out: &mut Vec<Change>) {
        let others_hold = self
            .ranks
            .iter()
            .any(|(other, state)| *other != rank && state.blocks.as_ref().is_some_and(|blocks| blocks.count() > 0));
        let Some(state) = self.ranks.get_mut(&rank) else { return };
        let blocks = state.blocks.take();
        match blocks {
            Some(mut blocks) if others_hold => blocks.clear(&mut self.holdings, out),
            Some(_) | None if !others_hold => self.holdings.clear(out),
            Some(_) | None => {}
        }
        state.parked = Parked::default();
    }
}

impl Rank {
    /// Whether the group of `stored` is the one that counts.
    fn counts(&mut self, stored: &Stored) -> bool {
        if stored.windowed {
            if self.windowed.len() < GROUPS_MAX {
                self.windowed.insert(stored.group);
            }
            return false;
        }
        *self.group.get_or_insert(stored.group) == stored.group && !self.windowed.contains(&stored.group)
    }
}
