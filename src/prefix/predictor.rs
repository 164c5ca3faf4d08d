//! What an engine that reports nothing is likely to hold, worked out in one place from what all nodes sent to it.

use smg_base::map::StableMap;

use crate::{Change, Claim};

/// No node.
const NONE: u32 = u32::MAX;

/// The most chunks of one worker.
const CHUNKS_MAX: u64 = 1 << 24;

/// The longest stretch in one change, so that no change is large on the wire.
const STRETCH_MAX: usize = 1_024;

/// A model of one worker's cache in one space: it holds the chunks used last, as many as the engine's cache has room for.
///
/// A claim uses the chunks of its prompt from the last to the first, so in the order of use a chunk is always older than the
/// one before it, and forgetting the oldest takes prompts from their ends, as engines do.
#[derive(Debug)]
pub struct Predictor {
    capacity: u64,
    nodes: Vec<Node>,
    free: Vec<u32>,
    index: StableMap<u64, u32>,
    newest: u32,
    oldest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    chunk: u64,
    parent: u32,
    followers: u32,
    newer: u32,
    older: u32,
}

impl Predictor {
    /// Nothing held, of at most `capacity` chunks.
    pub fn new(capacity: u64) -> Self {
        Self {
            capacity: capacity.min(CHUNKS_MAX),
            nodes: Vec::new(),
            free: Vec::new(),
            index: StableMap::default(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// How many chunks are held.
    pub fn len(&self) -> u64 {
        self.index.len() as u64
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The engine's cache has room for `capacity` chunks.
    pub fn resize(&mut self, capacity: u64, out: &mut Vec<Change>) {
        self.capacity = capacity.min(CHUNKS_MAX);
        self.fit(out);
    }

    /// Takes in that a prompt was sent, and appends to `out` what follows from it. False, with nothing done, if what the
    /// claim goes on from is not held; false too if it contradicts what is known, of which only what comes before counts.
    pub fn claim(&mut self, claim: &Claim, out: &mut Vec<Change>) -> bool {
        let parent = match claim.after {
            None => NONE,
            Some(after) => match self.index.get(&after) {
                Some(node) => *node,
                None => return false,
            },
        };
        let is_sound = self.hold(parent, &claim.chunks, |after, chunk| match out.last_mut() {
            Some(Change::Held { chunks, .. }) if chunks.last().copied() == after && chunks.len() < STRETCH_MAX => {
                chunks.push(chunk);
            }
            _ => out.push(Change::Held { after, chunks: vec![chunk] }),
        });
        self.fit(out);
        is_sound
    }

    /// Takes over what another node has worked out.
    pub fn adopt(&mut self, change: &Change) {
        match change {
            Change::Cleared => self.forget(),
            Change::Held { after, chunks } => {
                let parent = after.map_or(Some(NONE), |after| self.index.get(&after).copied());
                if let Some(parent) = parent {
                    self.hold(parent, chunks, |_, _| {});
                    self.fit(&mut Vec::new());
                }
            }
            Change::Dropped { chunks } => {
                for chunk in chunks {
                    if let Some(node) = self.index.get(chunk).copied()
                        && self.nodes[node as usize].followers == 0
                    {
                        self.remove(node);
                    }
                }
            }
        }
    }

    /// Nothing is held any more.
    pub fn clear(&mut self, out: &mut Vec<Change>) {
        if !self.is_empty() {
            self.forget();
            out.push(Change::Cleared);
        }
    }

    /// Shows the stretches held, each with the chunk that it follows; what comes before is shown before.
    pub fn holds(&self, visit: &mut dyn FnMut(Option<u64>, &[u64])) {
        let mut stretch = Vec::new();
        let (mut after, mut last, mut at) = (None, NONE, self.newest);
        // From the newest to the oldest, a chunk comes after the one before it.
        while let Some(node) = self.nodes.get(at as usize) {
            if node.parent != last || stretch.is_empty() || stretch.len() >= STRETCH_MAX {
                if !stretch.is_empty() {
                    visit(after, &stretch);
                    stretch.clear();
                }
                after = self.chunk_of(node.parent);
            }
            stretch.push(node.chunk);
            (last, at) = (at, node.older);
        }
        if !stretch.is_empty() {
            visit(after, &stretch);
        }
    }

    /// Uses `chunks` after `parent`, and all before it; tells `added` of those that were not held. False if the chunks
    /// contradict what is held; those before the contradiction are used.
    fn hold(&mut self, parent: u32, chunks: &[u64], mut added: impl FnMut(Option<u64>, u64)) -> bool {
        let mut last = parent;
        let mut is_sound = true;
        for chunk in chunks {
            match self.index.get(chunk) {
                Some(node) if self.nodes[*node as usize].parent == last => last = *node,
                Some(_) => {
                    is_sound = false;
                    break;
                }
                None => {
                    added(self.chunk_of(last), *chunk);
                    last = self.add(last, *chunk);
                }
            }
        }
        while last != NONE {
            self.unlink(last);
            self.link_newest(last);
            last = self.nodes[last as usize].parent;
        }
        is_sound
    }

    fn fit(&mut self, out: &mut Vec<Change>) {
        while self.len() > self.capacity {
            let oldest = self.oldest;
            let Some(node) = self.nodes.get(oldest as usize) else { return };
            let chunk = node.chunk;
            match out.last_mut() {
                Some(Change::Dropped { chunks }) if chunks.len() < STRETCH_MAX => chunks.push(chunk),
                _ => out.push(Change::Dropped { chunks: vec![chunk] }),
            }
            self.remove(oldest);
        }
    }

    fn chunk_of(&self, node: u32) -> Option<u64> {
        self.nodes.get(node as usize).map(|node| node.chunk)
    }

    fn add(&mut self, parent: u32, chunk: u64) -> u32 {
        let node = Node { chunk, parent, followers: 0, newer: NONE, older: NONE };
        let added = match self.free.pop() {
            Some(free) => {
                self.nodes[free as usize] = node;
                free
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("capacities and claims are far below a u32")
            }
        };
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.followers += 1;
        }
        self.index.insert(chunk, added);
        self.link_newest(added);
        added
    }

    fn remove(&mut self, node: u32) {
        self.unlink(node);
        let Node { chunk, parent, .. } = self.nodes[node as usize];
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.followers -= 1;
        }
        self.index.remove(&chunk);
        self.free.push(node);
    }

    fn forget(&mut self) {
        *self = Self::new(self.capacity);
    }

    fn link_newest(&mut self, node: u32) {
        let older = std::mem::replace(&mut self.newest, node);
        let content = &mut self.nodes[node as usize];
        (content.newer, content.older) = (NONE, older);
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.newer = node,
            None => self.oldest = node,
        }
    }

    fn unlink(&mut self, node: u32) {
        let Node { newer, older, .. } = self.nodes[node as usize];
        match self.nodes.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use smg_base::{Random, SplitMix, hash};

    use super::*;

    /// The same as a list of chunks from the newest to the oldest, each with the one before it.
    #[derive(Default)]
    struct Plain {
        newest_first: Vec<(u64, Option<u64>)>,
    }

    impl Plain {
        fn holds(&self, chunk: u64) -> bool {
            self.newest_first.iter().any(|(held, _)| *held == chunk)
        }

        fn claim(&mut self, path: &[u64], capacity: usize) {
            for (at, chunk) in path.iter().enumerate().rev() {
                self.newest_first.retain(|(held, _)| held != chunk);
                self.newest_first.insert(0, (*chunk, at.checked_sub(1).map(|before| path[before])));
            }
            self.newest_first.truncate(capacity);
        }

        fn content(&self) -> BTreeMap<u64, Option<u64>> {
            self.newest_first.iter().copied().collect()
        }
    }

    fn apply(held: &mut BTreeMap<u64, Option<u64>>, changes: &[Change], about: &str) {
        for change in changes {
            match change {
                Change::Cleared => held.clear(),
                Change::Held { after, chunks } => {
                    let mut after = *after;
                    for chunk in chunks {
                        assert!(after.is_none_or(|after| held.contains_key(&after)), "{about}: no chunk before");
                        assert_eq!(held.insert(*chunk, after), None, "{about}: held twice");
                        after = Some(*chunk);
                    }
                }
                Change::Dropped { chunks } => {
                    for chunk in chunks {
                        assert!(held.remove(chunk).is_some(), "{about}: dropped what is not held");
                        assert!(!held.values().any(|after| *after == Some(*chunk)), "{about}: something follows");
                    }
                }
            }
        }
    }

    fn content(predictor: &Predictor) -> BTreeMap<u64, Option<u64>> {
        let mut held = BTreeMap::new();
        predictor.holds(&mut |after, chunks| {
            apply(&mut held, &[Change::Held { after, chunks: chunks.to_vec() }], "parents first");
        });
        held
    }

    /// A chain of hashes, as a chunker makes them of equal beginnings.
    fn path(random: &SplitMix) -> Vec<u64> {
        let mut link = 0;
        let chunks = 1 + random.below(8);
        let mut next = || {
            link = hash::mix(link, random.below(12).saturating_sub(9));
            link
        };
        (0..chunks).map(|_| next()).collect()
    }

    #[test]
    fn it_agrees_with_a_plain_list_of_uses() {
        let seed = smg_base::fuzz::seed(5);
        let random = SplitMix::new(seed);
        let mut capacity = 40;
        let mut predictor = Predictor::new(capacity);
        let mut adopter = Predictor::new(1_000);
        let (mut plain, mut held) = (Plain::default(), BTreeMap::new());
        let (mut unknown, mut went_on) = (0, 0);
        for step in 0..smg_base::fuzz::inputs(20_000) {
            let path = path(&random);
            let from = usize::try_from(random.below(path.len() as u64)).unwrap();
            let claim = Claim { after: from.checked_sub(1).map(|at| path[at]), chunks: path[from..].to_vec() };
            let about = format!("seed {seed}, step {step}: {claim:?}");
            let mut out = Vec::new();
            let is_known = claim.after.is_none_or(|after| plain.holds(after));
            assert_eq!(predictor.claim(&claim, &mut out), is_known, "{about}");
            if is_known {
                plain.claim(&path, usize::try_from(capacity).unwrap());
                went_on += u64::from(from > 0);
            } else {
                unknown += 1;
            }
            if random.below(50) == 0 {
                capacity = random.below(60);
                predictor.resize(capacity, &mut out);
                plain.newest_first.truncate(usize::try_from(capacity).unwrap());
            }
            if random.below(500) == 0 {
                predictor.clear(&mut out);
                plain.newest_first.clear();
            }
            apply(&mut held, &out, &about);
            out.iter().for_each(|change| adopter.adopt(change));
            assert_eq!(held, plain.content(), "{about}");
            assert_eq!((content(&predictor), predictor.len()), (plain.content(), plain.newest_first.len() as u64));
            assert_eq!(content(&adopter), held, "{about}: another node takes it over");
        }
        assert!(unknown > 100 && went_on > 100, "too few to mean anything: {unknown} {went_on}");
    }

    #[test]
    fn claims_that_contradict_what_is_held_count_up_to_there() {
        let check = |claim: &Claim, expected: (bool, u64)| {
            let mut predictor = Predictor::new(100);
            let known = Claim { after: None, chunks: vec![1, 2, 3] };
            assert!(predictor.claim(&known, &mut Vec::new()));
            let is_sound = predictor.claim(claim, &mut Vec::new());
            assert_eq!((is_sound, predictor.len()), expected, "{claim:?}");
        };
        check(&Claim { after: Some(9), chunks: vec![4] }, (false, 3));
        check(&Claim { after: None, chunks: vec![4, 4] }, (false, 4));
        check(&Claim { after: None, chunks: vec![4, 5, 2, 6] }, (false, 5));
        check(&Claim { after: Some(2), chunks: vec![1] }, (false, 3));
        check(&Claim { after: Some(3), chunks: Vec::new() }, (true, 3));
    }
}
