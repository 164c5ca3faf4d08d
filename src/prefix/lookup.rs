//! The readers' side: down the tree, without waiting and without allocating.

use smallvec::SmallVec;
use smg_base::WorkerId;

use crate::{
    directory::Directory,
    run::{Pinned, Run, WORD_SLOTS},
};

/// What a lookup found. Reuse it, or make one on the stack.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// For each worker asked about, in the order asked. Empty if nobody holds anything.
    pub holders: SmallVec<[Held; 128]>,
    /// Names the branch of the tree that the text is on: what follows the last point where dispatched texts part. The
    /// turns of one conversation share it, and two conversations after one system prompt do not. Nothing for a text
    /// without a whole chunk.
    pub branch: Option<u64>,
    /// By slot. More slots than workers: those of the forgotten are not free at once.
    depths: SmallVec<[u32; 256]>,
    /// Which slots hold everything up to where the walk is.
    alive: SmallVec<[u64; 4]>,
    /// The slot that holds anything, if there is one only.
    only: Option<usize>,
}

/// What one worker holds of a text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Held {
    /// How many of the text's first chunks.
    pub chunks: u32,
    /// How far the worker's engine has borne out such predictions, in `0.0..=1.0`.
    pub trust: f32,
}

impl Default for Held {
    fn default() -> Self {
        Self { chunks: 0, trust: 1.0 }
    }
}

impl Found {
    /// Nobody holds anything of `chunks`.
    #[inline]
    pub(crate) fn nothing(&mut self, chunks: &[u64]) {
        self.holders.clear();
        self.branch = chunks.first().copied();
    }

    /// Goes down the tree along `chunks`, and notes how deep each of `slots` slots holds them and what the branch is.
    /// False if nobody holds anything.
    pub(crate) fn walk(&mut self, runs: &Pinned<'_>, chunks: &[u64], slots: usize) -> bool {
        self.nothing(chunks);
        self.alive.clear();
        let mut base = 0;
        // At the end of a leaf the text goes on along the branch, as it does where the tree itself only goes on; at a
        // fork it starts a branch of its own.
        let mut followers = None;
        while let Some(&head) = chunks.get(base) {
            let Some(run) = runs.get(head) else {
                if followers != Some(0) {
                    self.branch = Some(head);
                }
                break;
            };
            let matched = run.matched(&chunks[base..]);
            if base == 0 {
                self.begin(run, slots);
            } else {
                self.narrow(run, base);
            }
            let (depths, before, more) = (self.depths.as_mut_slice(), chunk_count(base), chunk_count(matched));
            for part in &run.parts {
                // Whoever does not hold everything before this run was caught in the middle of a write.
                if let Some(depth) = depths.get_mut(usize::from(part.slot))
                    && *depth == before
                {
                    *depth += part.depth.min(more);
                }
            }
            base += matched;
            if followers != Some(1) {
                self.branch = Some(head);
            }
            if matched < run.hashes.len() {
                self.branch = chunks.get(base).copied().or(self.branch);
                break;
            }
            followers = Some(run.followers());
        }
        self.settle(base);
        base > 0
    }

    /// Gives each of `workers` what the walk noted.
    #[inline]
    pub(crate) fn assign(&mut self, directory: &Directory, workers: impl ExactSizeIterator<Item = WorkerId>) {
        self.holders.resize(workers.len(), Held::default());
        if let Some((only, held)) = self.only_holder(directory) {
            for (holder, worker) in self.holders.iter_mut().zip(workers) {
                if worker == only {
                    *holder = held;
                }
            }
            return;
        }
        let depths = self.depths.as_slice();
        let mut ahead = directory.seated();
        for (holder, worker) in self.holders.iter_mut().zip(workers) {
            let seated = match ahead.split_first() {
                Some((first, others)) if first.id() == worker => {
                    ahead = others;
                    first
                }
                _ => match directory.find_apart_from(&mut ahead, worker) {
                    Some(seated) => seated,
                    None => continue,
                },
            };
            let (slot, trust) = seated.seat();
            *holder = Held { chunks: depths.get(usize::from(slot)).copied().unwrap_or(0), trust };
        }
    }

    /// The holder, if there is one only: then there is no need to ask who each of the others is.
    fn only_holder(&self, directory: &Directory) -> Option<(WorkerId, Held)> {
        let slot = self.only?;
        let (worker, trust) = directory.at_slot(slot)?;
        Some((worker, Held { chunks: self.depths[slot], trust }))
    }

    /// Whoever holds the first run whole is alive.
    fn begin(&mut self, run: &Run, slots: usize) {
        let words = slots.div_ceil(WORD_SLOTS);
        if self.depths.len() == words * WORD_SLOTS {
            self.depths.fill(0);
        } else {
            self.depths.clear();
            (0..words).for_each(|_| self.depths.extend_from_slice(&[0; WORD_SLOTS]));
        }
        self.alive.extend((0..words).map(|word| run.whole(word)));
        let whole = self.alive.iter().map(|word| word.count_ones()).sum::<u32>();
        self.only = match (whole, &*run.parts) {
            (0, [part]) => Some(usize::from(part.slot)).filter(|slot| *slot < self.depths.len()),
            (1, []) => {
                let ahead = self.alive.iter().take_while(|word| **word == 0).count();
                self.alive.get(ahead).map(|word| ahead * WORD_SLOTS + word.trailing_zeros() as usize)
            }
            _ => None,
        };
    }

    /// Keeps alive who also holds the next run whole; the others hold `base` chunks, and perhaps a part of the run.
    fn narrow(&mut self, run: &Run, base: usize) {
        let (depths, _) = self.depths.as_chunks_mut();
        for ((alive, depths), word) in self.alive.iter_mut().zip(depths).zip(0..) {
            let whole = run.whole(word);
            note(depths, *alive & !whole, base);
            *alive &= whole;
        }
    }

    fn settle(&mut self, base: usize) {
        let (depths, _) = self.depths.as_chunks_mut();
        for (alive, depths) in self.alive.iter().zip(depths) {
            note(depths, *alive, base);
        }
    }
}

/// Notes the same depth for all slots in a word of a mask.
fn note(depths: &mut [u32; WORD_SLOTS], mut slots: u64, depth: usize) {
    const MANY: u32 = 12;
    let depth = chunk_count(depth);
    if slots.count_ones() >= MANY {
        // Without a branch for each slot, and eight at a time where the processor can.
        let (groups, _) = depths.as_chunks_mut::<8>();
        for (group, bits) in groups.iter_mut().zip(slots.to_le_bytes()) {
            for (noted, bit) in group.iter_mut().zip([1, 2, 4, 8, 16, 32, 64, 128]) {
                *noted = if bits & bit == 0 { *noted } else { depth };
            }
        }
        return;
    }
    while slots != 0 {
        depths[slots.trailing_zeros() as usize % WORD_SLOTS] = depth;
        slots &= slots - 1;
    }
}

fn chunk_count(chunks: usize) -> u32 {
    u32::try_from(chunks).unwrap_or(u32::MAX)
}
