//! The memory of one engine's KV cache.

use smg_base::map::StableMap;
use smg_prefix::Change;

const NONE: u32 = u32::MAX;

/// The longest stretch of one change.
const STRETCH_MAX: usize = 256;

/// Blocks of one chunk each. A block is *private* while a request fills it, then has a *name* and may be shared; nobody's
/// blocks keep their names until their memory is needed, those let go of longest ago first. Requests let go of their blocks
/// from the last to the first, so that prompts vanish from their ends.
#[derive(Debug)]
pub(super) struct Blocks {
    capacity: u32,
    private: u32,
    /// Named blocks that requests hold.
    shared: u32,
    named: Vec<Named>,
    vacant: Vec<u32>,
    index: StableMap<u64, u32>,
    newest: u32,
    oldest: u32,
    /// What changed and was not taken yet.
    changes: Vec<Change>,
}

#[derive(Clone, Copy, Debug)]
struct Named {
    chunk: u64,
    holders: u32,
    newer: u32,
    older: u32,
}

impl Blocks {
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            capacity,
            private: 0,
            shared: 0,
            named: Vec::new(),
            vacant: Vec::new(),
            index: StableMap::default(),
            newest: NONE,
            oldest: NONE,
            changes: Vec::new(),
        }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Blocks that requests hold.
    pub(super) fn in_use(&self) -> u32 {
        self.private + self.shared
    }

    /// All blocks whose content is worth something.
    #[cfg(test)]
    pub(super) fn filled(&self) -> u32 {
        self.private + u32::try_from(self.index.len()).expect("no more than the capacity")
    }

    /// How many of the first of `chunks` are there.
    pub(super) fn matched(&self, chunks: &[u64]) -> usize {
        chunks.iter().take_while(|chunk| self.index.contains_key(*chunk)).count()
    }

    /// Of the first `count` of `chunks`, which are there, how many nobody holds.
    pub(super) fn idle_among(&self, chunks: &[u64]) -> u32 {
        let idle = chunks.iter().filter(|chunk| self.index.get(*chunk).is_some_and(|at| self.at(*at).holders == 0));
        u32::try_from(idle.count()).expect("no more than the capacity")
    }

    /// Holds `chunks`, all of which are there.
    pub(super) fn hold(&mut self, chunks: &[u64]) {
        for chunk in chunks {
            let at = self.index[chunk];
            self.hold_at(at);
        }
    }

    /// Takes memory for `count` private blocks, all of it or none; drops what nobody holds for it.
    pub(super) fn take(&mut self, count: u32) -> bool {
        if count > self.capacity - self.in_use() {
            return false;
        }
        self.private += count;
        while self.in_use() + self.idle() > self.capacity {
            self.drop_oldest();
        }
        true
    }

    /// A private block is full and gets its name; `before` is the block it follows. If there is one of that name, that is held
    /// instead and the memory of this one is free.
    pub(super) fn name(&mut self, before: Option<u64>, chunk: u64) {
        self.private -= 1;
        if let Some(at) = self.index.get(&chunk) {
            self.hold_at(*at);
            return;
        }
        let named = Named { chunk, holders: 1, newer: NONE, older: NONE };
        let at = match self.vacant.pop() {
            Some(at) => {
                self.named[at as usize] = named;
                at
            }
            None => {
                self.named.push(named);
                u32::try_from(self.named.len() - 1).expect("no more than the capacity")
            }
        };
        self.index.insert(chunk, at);
        self.shared += 1;
        match self.changes.last_mut() {
            Some(Change::Held { chunks, .. }) if chunks.last().copied() == before && chunks.len() < STRETCH_MAX => {
                chunks.push(chunk);
            }
            _ => self.changes.push(Change::Held { after: before, chunks: vec![chunk] }),
        }
    }

    /// Lets go of `chunks`, from the last to the first, and of private blocks.
    pub(super) fn release(&mut self, chunks: &[u64], private: u32) {
        self.private -= private;
        for chunk in chunks.iter().rev() {
            let at = self.index[chunk];
            let named = &mut self.named[at as usize];
            named.holders -= 1;
            if named.holders == 0 {
                self.shared -= 1;
                self.link(at);
            }
        }
    }

    /// What changed since the last time.
    pub(super) fn changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    fn idle(&self) -> u32 {
        u32::try_from(self.index.len()).expect("no more than the capacity") - self.shared
    }

    fn at(&self, at: u32) -> &Named {
        &self.named[at as usize]
    }

    fn hold_at(&mut self, at: u32) {
        if self.at(at).holders == 0 {
            self.unlink(at);
            self.shared += 1;
        }
        self.named[at as usize].holders += 1;
    }

    fn drop_oldest(&mut self) {
        let at = self.oldest;
        let chunk = self.at(at).chunk;
        self.unlink(at);
        self.index.remove(&chunk);
        self.vacant.push(at);
        match self.changes.last_mut() {
            Some(Change::Dropped { chunks }) if chunks.len() < STRETCH_MAX => chunks.push(chunk),
            _ => self.changes.push(Change::Dropped { chunks: vec![chunk] }),
        }
    }

    fn link(&mut self, at: u32) {
        let older = std::mem::replace(&mut self.newest, at);
        let named = &mut self.named[at as usize];
        (named.newer, named.older) = (NONE, older);
        match self.named.get_mut(older as usize) {
            Some(older) => older.newer = at,
            None => self.oldest = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Named { newer, older, .. } = *self.at(at);
        match self.named.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.newest = older,
        }
        match self.named.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::dice::Dice;

    /// Fills `chunks` as one request does, and lets go of them.
    fn use_once(blocks: &mut Blocks, chunks: &[u64]) -> bool {
        let matched = blocks.matched(chunks);
        blocks.hold(&chunks[..matched]);
        let missing = u32::try_from(chunks.len() - matched).unwrap();
        let fits = blocks.take(missing);
        let filled = if fits { chunks.len() } else { matched };
        for place in matched..filled {
            blocks.name(place.checked_sub(1).map(|before| chunks[before]), chunks[place]);
        }
        blocks.release(&chunks[..filled], 0);
        fits
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_from_its_end() {
        let mut blocks = Blocks::new(6);
        assert!(use_once(&mut blocks, &[1, 2, 3]) && use_once(&mut blocks, &[11, 12]));
        assert!(use_once(&mut blocks, &[21, 22]));
        assert_eq!((blocks.matched(&[1, 2, 3]), blocks.matched(&[11, 12])), (2, 2));
        assert!(use_once(&mut blocks, &[1, 2]), "used anew");
        assert!(use_once(&mut blocks, &[31]));
        assert_eq!((blocks.matched(&[1, 2, 3]), blocks.matched(&[11, 12])), (2, 1));
        assert!(!use_once(&mut blocks, &[41, 42, 43, 44, 45, 46, 47]), "more than there is");
    }

    #[test]
    fn held_blocks_stay_and_twins_become_one() {
        let mut blocks = Blocks::new(4);
        assert!(blocks.take(2));
        blocks.name(None, 1);
        assert!(blocks.take(2) && !blocks.take(1));
        blocks.name(None, 1);
        assert_eq!((blocks.in_use(), blocks.filled()), (3, 3), "two private ones and the shared one");
        blocks.release(&[1], 1);
        assert_eq!((blocks.in_use(), blocks.idle()), (2, 0), "its other holder is still there");
        blocks.release(&[1], 1);
        assert_eq!((blocks.in_use(), blocks.idle(), blocks.matched(&[1])), (0, 1, 1));
    }

    /// Whoever applies the changes in order holds what the blocks hold, and with each chunk all before it.
    #[test]
    fn changes_tell_everything_and_leave_no_holes() {
        let mut dice = Dice::new(3, 0);
        let mut blocks = Blocks::new(40);
        let mut held: BTreeSet<u64> = BTreeSet::new();
        let mut before_of: StableMap<u64, Option<u64>> = StableMap::default();
        for _ in 0..2_000 {
            let (root, length) = (dice.below(6), 1 + dice.below(12));
            let fork = dice.below(3);
            let chunks: Vec<u64> =
                (0..length).map(|at| root * 100 + at + if at > 4 { fork * 1_000 } else { 0 }).collect();
            use_once(&mut blocks, &chunks);
            assert!(blocks.filled() <= blocks.capacity());
            for change in blocks.changes() {
                match change {
                    Change::Held { mut after, chunks } => {
                        for chunk in chunks {
                            assert!(after.is_none_or(|after| held.contains(&after)) && held.insert(chunk));
                            before_of.insert(chunk, after);
                            after = Some(chunk);
                        }
                    }
                    Change::Dropped { chunks } => {
                        for chunk in chunks {
                            assert!(held.remove(&chunk));
                            assert!(!held.iter().any(|other| before_of[other] == Some(chunk)), "a hole");
                        }
                    }
                    Change::Cleared => panic!("nothing clears it"),
                }
            }
            assert_eq!(held.len(), blocks.index.len());
        }
    }
}
