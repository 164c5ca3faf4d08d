use std::collections::{BTreeMap, BTreeSet};

use smg_base::{Random, SplitMix, hash};

use super::*;
use crate::{CHUNK_TOKENS, Chunker};

const SEED: u64 = 77;

/// What changes make of a cache, and whether they keep their promise.
#[derive(Default)]
struct Reader {
    held: BTreeMap<u64, Option<u64>>,
}

impl Reader {
    fn apply(&mut self, changes: &[Change], about: &str) {
        for change in changes {
            match change {
                Change::Held { after, chunks } => {
                    assert!(!chunks.is_empty(), "{about}");
                    let mut after = *after;
                    for chunk in chunks {
                        assert!(after.is_none_or(|after| self.held.contains_key(&after)), "{about}: no chunk before");
                        assert_eq!(self.held.insert(*chunk, after), None, "{about}: held twice");
                        after = Some(*chunk);
                    }
                }
                Change::Dropped { chunks } => {
                    assert!(!chunks.is_empty(), "{about}");
                    for chunk in chunks {
                        assert!(self.held.remove(chunk).is_some(), "{about}: dropped what is not held");
                        assert!(!self.held.values().any(|after| *after == Some(*chunk)), "{about}: something follows");
                    }
                }
                Change::Cleared => self.held.clear(),
            }
        }
    }

    fn chunks(&self) -> BTreeSet<u64> {
        self.held.keys().copied().collect()
    }
}

/// A block as the engine itself sees it.
#[derive(Clone)]
struct Truth {
    parent: Option<u64>,
    tokens: Vec<u32>,
    root: u64,
    opaque: bool,
    tiers: BTreeSet<Tier>,
}

/// The same content worked out the slow way: of each block, whether all before it are there.
#[derive(Default)]
struct Oracle {
    ranks: BTreeMap<u32, BTreeMap<u64, Truth>>,
}

impl Oracle {
    fn apply(&mut self, rank: u32, events: &[KvEvent]) {
        let blocks = self.ranks.entry(rank).or_default();
        for event in events {
            match event {
                KvEvent::Stored(stored) if stored.windowed => {}
                KvEvent::Stored(stored) => Self::store(blocks, stored),
                KvEvent::Removed { blocks: names, tier, group: 0 } => {
                    for name in names {
                        if let Some(block) = blocks.get_mut(&name.0) {
                            block.tiers.remove(tier);
                        }
                    }
                    blocks.retain(|_, block| !block.tiers.is_empty());
                }
                KvEvent::Removed { .. } => {}
                KvEvent::Cleared | KvEvent::Started => blocks.clear(),
            }
        }
    }

    fn store(blocks: &mut BTreeMap<u64, Truth>, stored: &Stored) {
        let namespace = Namespace { lora: stored.lora.as_deref(), salt: stored.salt.as_deref() };
        let mut parent = stored.parent.map(|name| name.0);
        for (at, name) in stored.blocks.iter().enumerate() {
            let width = stored.block_tokens as usize;
            if stored.tokens.is_empty() {
                if let Some(block) = blocks.get_mut(&name.0) {
                    block.tiers.insert(stored.tier);
                }
                continue;
            }
            let tokens = &stored.tokens[at * width..(at + 1) * width];
            let block = blocks.entry(name.0).or_insert_with(|| Truth {
                parent,
                tokens: tokens.to_vec(),
                root: namespace.root(SEED),
                opaque: stored.opaque,
                tiers: BTreeSet::new(),
            });
            block.tiers.insert(stored.tier);
            parent = Some(name.0);
        }
    }

    fn is_reached(blocks: &BTreeMap<u64, Truth>, name: u64) -> bool {
        blocks.get(&name).is_some_and(|block| block.parent.is_none_or(|parent| Self::is_reached(blocks, parent)))
    }

    fn tokens(blocks: &BTreeMap<u64, Truth>, name: u64) -> Option<(u64, Vec<u32>)> {
        let block = blocks.get(&name).filter(|block| !block.opaque)?;
        let (root, mut tokens) = match block.parent {
            None => (block.root, Vec::new()),
            Some(parent) => Self::tokens(blocks, parent)?,
        };
        tokens.extend(&block.tokens);
        Some((root, tokens))
    }

    fn chunks(&self) -> BTreeSet<u64> {
        let mut chunks = BTreeSet::new();
        for blocks in self.ranks.values() {
            for (root, tokens) in blocks.keys().filter_map(|name| Self::tokens(blocks, *name)) {
                chunks.extend(chunks_of(root, &tokens));
            }
        }
        chunks
    }
}

fn chunks_of(root: u64, tokens: &[u32]) -> Vec<u64> {
    let mut chunker = Chunker::of_tokens(root);
    chunker.push_tokens(tokens);
    chunker.finish().chunks
}

/// An engine that stores and forgets as chance has it. A block is known by the choices that led to it.
struct Engine<'a> {
    random: &'a SplitMix,
    width: u32,
    depth: u64,
}

impl Engine<'_> {
    fn draw(&self, below: u64) -> u64 {
        self.random.below(below)
    }

    fn path(&self) -> Vec<u8> {
        let blocks = 1 + self.draw(self.depth);
        (0..blocks).map(|_| u8::try_from(self.draw(12).saturating_sub(8)).unwrap()).collect()
    }

    fn name(path: &[u8]) -> EngineHash {
        EngineHash(hash::stable64(path))
    }

    fn tokens(&self, path: &[u8]) -> Vec<u32> {
        let choice = path.last().map_or(0, |choice| u32::from(*choice));
        (0..self.width).map(|at| choice * 1_000 + at).collect()
    }

    fn stored(&self, path: &[u8], from: usize) -> Stored {
        let blocks = from + 1..=path.len();
        Stored {
            blocks: blocks.clone().map(|end| Self::name(&path[..end])).collect(),
            parent: (from > 0).then(|| Self::name(&path[..from])),
            tokens: blocks.flat_map(|end| self.tokens(&path[..end])).collect(),
            block_tokens: self.width,
            lora: (path[0] == 1).then(|| "adapter".to_owned()),
            salt: (path[0] == 2).then(|| "tenant".to_owned()),
            ..Stored::default()
        }
    }

    /// The events that store `path` from block `from` on; those from an opaque choice on apart.
    fn store(&self, path: &[u8], from: usize) -> Vec<KvEvent> {
        let opaque = path.iter().skip(from).position(|choice| *choice == 3).map_or(path.len(), |at| from + at);
        let mut events = Vec::new();
        if opaque > from {
            events.push(KvEvent::Stored(self.stored(&path[..opaque], from)));
        }
        if opaque < path.len() {
            events.push(KvEvent::Stored(Stored { opaque: true, ..self.stored(path, opaque) }));
        }
        events
    }

    fn events(&self, blocks: &BTreeMap<u64, Truth>) -> Vec<KvEvent> {
        let names: Vec<u64> = blocks.keys().copied().collect();
        let pick = |among: &[u64]| among.get(usize::try_from(self.draw(among.len().max(1) as u64)).unwrap()).copied();
        match self.draw(100) {
            0 => vec![KvEvent::Cleared],
            1 => vec![KvEvent::Started],
            2..=9 => {
                let reached: Vec<u64> =
                    names.iter().copied().filter(|name| Oracle::is_reached(blocks, *name)).collect();
                let Some(name) = pick(&reached) else { return Vec::new() };
                let stored = Stored { blocks: vec![EngineHash(name)], tier: Tier::Host, ..Stored::default() };
                vec![KvEvent::Stored(stored)]
            }
            10..=14 => {
                let path = self.path();
                vec![KvEvent::Stored(Stored { windowed: true, group: 1, ..self.stored(&path, 0) })]
            }
            15..=54 => {
                let count = 1 + self.draw(3);
                let is_leaf = |name: &u64| !blocks.values().any(|block| block.parent == Some(*name));
                let leaves: Vec<u64> = names.iter().copied().filter(is_leaf).collect();
                let from = if self.draw(3) == 0 { &names } else { &leaves };
                let tier = if self.draw(5) == 0 { Tier::Host } else { Tier::Device };
                let group = u32::from(self.draw(20) == 0);
                let blocks = (0..count).filter_map(|_| pick(from)).map(EngineHash).collect();
                vec![KvEvent::Removed { blocks, tier, group }]
            }
            _ => {
                let path = self.path();
                let from = if self.draw(2) == 0 { 0 } else { self.draw(path.len() as u64) };
                self.store(&path, usize::try_from(from).unwrap())
            }
        }
    }
}

#[test]
fn changes_make_what_the_engine_holds() {
    let lives = smg_base::fuzz::inputs(60);
    let (mut held, mut holes, mut parked) = (0, 0, 0);
    for life in 0..lives {
        let seed = smg_base::fuzz::seed(1).wrapping_add(life);
        let random = SplitMix::new(seed);
        let width = [4, 16, 32, 64, 128, 256][usize::try_from(random.below(6)).unwrap()];
        let depth = (4 * CHUNK_TOKENS as u64 / u64::from(width)).max(3);
        let engine = Engine { random: &random, width, depth };
        let mut cache = EngineCache::new(SEED, EngineCacheConfig::default());
        let (mut oracle, mut reader) = (Oracle::default(), Reader::default());
        let mut sequences = [0; 2];
        for step in 0..120 {
            let rank = u32::from(random.below(4) == 0);
            let events = engine.events(oracle.ranks.entry(rank).or_default());
            let about = format!("seed {seed}, step {step}, blocks of {width}, rank {rank}: {events:?}");
            let sequence = &mut sequences[rank as usize];
            let mut out = Vec::new();
            if random.below(60) == 0 {
                cache.lost(rank, &mut out);
                oracle.apply(rank, &[KvEvent::Cleared]);
                *sequence += 7;
            }
            oracle.apply(rank, &events);
            let applied = cache.apply(KvBatch { sequence: *sequence, rank, events }, &mut out);
            assert_eq!(applied, Sequence::InOrder, "{about}");
            *sequence += 1;
            reader.apply(&out, &about);
            assert_eq!(reader.chunks(), oracle.chunks(), "{about}");
            let stats = cache.stats();
            assert_eq!(stats.chunks, reader.held.len(), "{about}");
            let known: usize = oracle.ranks.values().map(BTreeMap::len).sum();
            held += reader.held.len();
            parked += stats.parked;
            holes += (stats.blocks + stats.parked).saturating_sub(known);
        }
    }
    assert!(held > 1_000 && holes > 100 && parked > 50, "too few to mean anything: {held} {holes} {parked}");
}

fn store(cache: &mut EngineCache, sequence: u64, stored: Stored) -> Vec<Change> {
    let mut out = Vec::new();
    let batch = KvBatch { sequence, rank: 0, events: vec![KvEvent::Stored(stored)] };
    assert_eq!(cache.apply(batch, &mut out), Sequence::InOrder);
    out
}

fn stretch(names: std::ops::Range<u64>, parent: Option<u64>) -> Stored {
    Stored {
        tokens: names.clone().flat_map(|name| [u32::try_from(name).unwrap(); 64]).collect(),
        blocks: names.map(EngineHash).collect(),
        parent: parent.map(EngineHash),
        block_tokens: 64,
        ..Stored::default()
    }
}

fn removed(names: &[u64]) -> KvEvent {
    KvEvent::Removed { blocks: names.iter().copied().map(EngineHash).collect(), tier: Tier::Device, group: 0 }
}

#[test]
fn chunks_are_those_of_prompts() {
    let mut cache = EngineCache::new(SEED, EngineCacheConfig::default());
    let stored = Stored { salt: Some("tenant".to_owned()), ..stretch(1..6, None) };
    let root = Namespace { lora: None, salt: Some("tenant") }.root(SEED);
    let chunks = chunks_of(root, &stored.tokens);
    assert_eq!(chunks.len(), 2);
    assert_eq!(store(&mut cache, 9, stored), [Change::Held { after: None, chunks: chunks.clone() }]);
    // One more block ends the third chunk; the parent's namespace holds.
    let more = stretch(6..7, Some(5));
    let out = store(&mut cache, 10, more);
    assert!(
        matches!(&out[..], [Change::Held { after, chunks: added }] if *after == chunks.last().copied() && added.len() == 1)
    );
}

#[test]
fn a_hole_takes_what_follows_along_and_gives_it_back() {
    let mut cache = EngineCache::new(SEED, EngineCacheConfig::default());
    let whole = store(&mut cache, 0, stretch(1..9, None));
    let [Change::Held { chunks, .. }] = &whole[..] else { panic!("{whole:?}") };
    let apply = |cache: &mut EngineCache, sequence, event| {
        let mut out = Vec::new();
        cache.apply(KvBatch { sequence, rank: 0, events: vec![event] }, &mut out);
        out
    };
    let out = apply(&mut cache, 1, removed(&[3]));
    assert_eq!(out, [Change::Dropped { chunks: vec![chunks[3], chunks[2], chunks[1]] }]);
    let out = apply(&mut cache, 2, removed(&[8, 8]));
    assert_eq!((out, cache.stats().unknown_removed), (Vec::new(), 1));
    let out = apply(&mut cache, 3, KvEvent::Stored(stretch(3..4, Some(2))));
    assert_eq!(out, [Change::Held { after: Some(chunks[0]), chunks: chunks[1..3].to_vec() }]);
}

#[test]
fn batches_are_taken_in_their_order_only() {
    let mut cache = EngineCache::new(SEED, EngineCacheConfig::default());
    let mut out = Vec::new();
    let batch = |sequence, events: &[KvEvent]| KvBatch { sequence, rank: 0, events: events.to_vec() };
    let stored = KvEvent::Stored(stretch(1..3, None));
    assert_eq!(cache.apply(batch(40, std::slice::from_ref(&stored)), &mut out), Sequence::InOrder);
    assert_eq!(cache.apply(batch(40, &[KvEvent::Cleared]), &mut out), Sequence::Duplicate);
    assert_eq!(cache.apply(batch(43, &[KvEvent::Cleared]), &mut out), Sequence::Gap { expected: 41, got: 43 });
    assert_eq!((out.len(), cache.stats().chunks), (1, 1), "nothing was done");
    cache.lost(0, &mut out);
    assert_eq!(cache.apply(batch(43, &[]), &mut out), Sequence::InOrder);
    assert_eq!((out.pop(), cache.stats().chunks), (Some(Change::Cleared), 0));
    assert_eq!(cache.apply(batch(0, &[KvEvent::Started, stored]), &mut out), Sequence::InOrder);
    assert_eq!(cache.apply(batch(1, &[]), &mut out), Sequence::InOrder);
    assert_eq!(cache.stats().chunks, 1);
}

#[test]
fn what_is_not_understood_is_held_by_nobody() {
    let check = |stored: Stored, expected: EngineCacheStats| {
        let mut cache = EngineCache::new(SEED, EngineCacheConfig { blocks_max: 8, parked_max: 4 });
        store(&mut cache, 0, stored);
        assert_eq!(EngineCacheStats { bytes: 0, reverse_bytes: 0, ..cache.stats() }, expected);
    };
    let ignored = EngineCacheStats { ignored: 1, ..EngineCacheStats::default() };
    check(Stored { block_tokens: 48, ..stretch(1..4, None) }, ignored);
    check(Stored { block_tokens: 0, ..stretch(1..4, None) }, ignored);
    check(Stored { tokens: vec![1; 65], ..stretch(1..4, None) }, ignored);
    check(Stored { windowed: true, ..stretch(1..4, None) }, ignored);
    let opaque = EngineCacheStats { opaque: 4, blocks: 4, ..EngineCacheStats::default() };
    check(Stored { opaque: true, ..stretch(1..5, None) }, opaque);
    // Bounds: blocks beyond the most, and a stretch that waits and is longer than may wait.
    check(stretch(1..13, None), EngineCacheStats { blocks: 8, chunks: 4, refused: 4, ..EngineCacheStats::default() });
    check(stretch(1..5, Some(99)), EngineCacheStats { parked: 4, ..EngineCacheStats::default() });
    check(stretch(1..6, Some(99)), EngineCacheStats::default());
}

#[test]
fn one_name_for_two_contents_means_the_newer() {
    let random = SplitMix::new(smg_base::fuzz::seed(3));
    let mut cache = EngineCache::new(SEED, EngineCacheConfig { blocks_max: 40, parked_max: 10 });
    let mut reader = Reader::default();
    for sequence in 0..smg_base::fuzz::inputs(20_000) {
        let draw = |below: u64| random.below(below);
        let blocks: Vec<EngineHash> = (0..1 + draw(5)).map(|_| EngineHash(draw(30))).collect();
        let event = match draw(5) {
            0 => KvEvent::Removed { blocks, tier: Tier::Device, group: 0 },
            _ => KvEvent::Stored(Stored {
                tokens: blocks.iter().flat_map(|_| [u32::try_from(draw(3)).unwrap(); 32]).collect(),
                blocks,
                parent: (draw(4) > 0).then(|| EngineHash(draw(30))),
                block_tokens: 32,
                opaque: draw(10) == 0,
                ..Stored::default()
            }),
        };
        let about = format!("{sequence}: {event:?}");
        let mut out = Vec::new();
        cache.apply(KvBatch { sequence, rank: 0, events: vec![event] }, &mut out);
        reader.apply(&out, &about);
        let stats = cache.stats();
        assert_eq!(stats.chunks, reader.held.len(), "{about}");
        assert!(stats.blocks <= 40 && stats.parked <= 10, "{about}");
    }
}

#[test]
fn the_way_back_from_names_is_small() {
    let mut cache = EngineCache::new(SEED, EngineCacheConfig::default());
    for prompt in 0..2_000_u64 {
        let first = prompt * 64;
        let blocks = first..first + 64;
        let stored = Stored {
            tokens: blocks.clone().flat_map(|name| [u32::try_from(name).unwrap(); 16]).collect(),
            blocks: blocks.map(|name| EngineHash(hash::mix(name, 5))).collect(),
            parent: None,
            block_tokens: 16,
            ..Stored::default()
        };
        store(&mut cache, prompt, stored);
    }
    let stats = cache.stats();
    let (each, reverse) = (stats.bytes / stats.blocks, stats.reverse_bytes / stats.blocks);
    println!("{} blocks of 16 tokens: {reverse} bytes each from names to places, {each} in all", stats.blocks);
    assert_eq!((stats.blocks, stats.chunks), (128_000, 16_000));
    assert!(reverse <= 24 && each <= 128, "{reverse} {each}");
}
