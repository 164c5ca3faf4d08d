//! What only writers know: who has which slot, in which order each worker used its runs, and how much there is.
//!
//! One property carries the design: a worker holds a run only if it holds every run before it whole. It is kept because a
//! write touches the runs of its path from the last to the first, so that in a worker's order of use a run is always
//! older than the one before it, and forgetting starts from the oldest run's end. Engines free their blocks in the same order.

use std::collections::VecDeque;

use smallvec::{SmallVec, smallvec};
use smg_base::{WorkerId, map::StableMap};

use crate::{
    recency::Recency,
    run::{Owner, Run, Runs},
};

/// The writers' state. Its methods change the runs too; one writer at a time, which holding the ledger makes sure of.
#[derive(Debug)]
pub(crate) struct Ledger {
    slots: Vec<Slot>,
    members: StableMap<WorkerId, u16>,
    free: Vec<u16>,
    /// Slots of forgotten workers whose holds are not all released yet.
    graves: VecDeque<u16>,
    /// Which runs have others after them, by their last hash: unlike the first, it stays when a run is split.
    forks: StableMap<u64, Fork>,
    stamp: u64,
    used: usize,
}

#[derive(Debug)]
struct Slot {
    recency: Recency,
    chunks: u64,
}

#[derive(Debug)]
struct Fork {
    /// First hash of the run.
    head: u64,
    /// How many runs come next after it; at least one.
    followers: u32,
}

/// The entries, in a worker's order of use, of the runs on one path, from the root.
type Path = SmallVec<[u32; 32]>;

/// What claiming one run led to.
enum Step {
    /// There is no such run.
    Missing,
    /// The path goes on after these many chunks, at the end of a run.
    Onward { chunks: usize, tail: u64 },
    /// The run must be split after these many chunks first.
    Split(usize),
    /// The path ended in this run.
    Done,
}

impl Ledger {
    /// Memory of one hold outside the run: its place in the order of use, at a mean fill of two thirds.
    const ENTRY_BYTES: usize = Recency::ENTRY_BYTES * 3 / 2;
    /// Memory of one fork, likewise.
    const FORK_BYTES: usize = size_of::<(u64, Fork)>() * 3 / 2;

    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            members: StableMap::default(),
            free: Vec::new(),
            graves: VecDeque::new(),
            forks: StableMap::default(),
            stamp: 0,
            used: 0,
        }
    }

    /// Bytes in use.
    pub(crate) fn used(&self) -> usize {
        self.used
    }

    /// How many slots were ever given out.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The slot of a worker, if it has one.
    pub(crate) fn slot(&self, worker: WorkerId) -> Option<u16> {
        self.members.get(&worker).copied()
    }

    /// Gives a slot to a worker that has none. Nothing if all are taken.
    pub(crate) fn admit(&mut self, worker: WorkerId) -> Option<u16> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                let slot = u16::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot { recency: Recency::new(), chunks: 0 });
                slot
            }
        };
        self.members.insert(worker, slot);
        Some(slot)
    }

    /// Takes a worker's slot away. What it held is released by [`Ledger::bury`].
    pub(crate) fn dismiss(&mut self, worker: WorkerId) {
        if let Some(slot) = self.members.remove(&worker) {
            self.graves.push_back(slot);
        }
    }

    /// How many chunks `slot` holds.
    pub(crate) fn chunks(&self, slot: u16) -> u64 {
        self.slots.get(usize::from(slot)).map_or(0, |slot| slot.chunks)
    }

    /// Chunks held by all workers together, those of forgotten workers included until released.
    pub(crate) fn chunks_total(&self) -> u64 {
        self.slots.iter().map(|slot| slot.chunks).sum()
    }

    /// Makes `slot` hold `path`, as its latest use.
    pub(crate) fn claim(&mut self, runs: &Runs, slot: u16, path: &[u64]) {
        self.stamp += 1;
        let mut entries = Path::new();
        let (mut base, mut head_before, mut tail_before) = (0, 0, 0);
        while let Some(&head) = path.get(base) {
            match self.claim_run(runs, slot, &path[base..], &mut entries) {
                Step::Onward { chunks, tail } => {
                    base += chunks;
                    (head_before, tail_before) = (head, tail);
                }
                Step::Split(at) => self.split(runs, head, at),
                Step::Missing => {
                    entries.push(self.add(runs, slot, &path[base..], tail_before));
                    self.follow(runs, head_before, tail_before);
                    break;
                }
                Step::Done => break,
            }
        }
        let (stamp, recency) = (self.stamp, &mut self.slots[usize::from(slot)].recency);
        for entry in entries.into_iter().rev() {
            recency.touch(entry, stamp);
        }
    }

    /// Forgets the chunks `slot` used longest ago until it holds `capacity`.
    pub(crate) fn fit(&mut self, runs: &Runs, slot: u16, capacity: u64) {
        while let Some(excess @ 1..) = self.chunks(slot).checked_sub(capacity) {
            if !self.release_oldest(runs, slot, u32::try_from(excess).unwrap_or(u32::MAX)) {
                return;
            }
        }
    }

    /// Forgets the runs used longest ago by anybody until at most `bytes` are used.
    pub(crate) fn fit_bytes(&mut self, runs: &Runs, bytes: usize) {
        while self.used > bytes {
            let oldest = self.slots.iter().zip(0_u16..).filter_map(|(slot, number)| {
                let (_, stamp) = slot.recency.oldest()?;
                Some((stamp, number))
            });
            let Some((_, slot)) = oldest.min() else { return };
            self.release_oldest(runs, slot, u32::MAX);
        }
    }

    /// Releases up to `holds` holds of forgotten workers; says whether any are left.
    pub(crate) fn bury(&mut self, runs: &Runs, holds: usize) -> bool {
        for _ in 0..holds {
            let Some(&slot) = self.graves.front() else { return false };
            if !self.release_oldest(runs, slot, u32::MAX) {
                self.graves.pop_front();
                self.slots[usize::from(slot)] = Slot { recency: Recency::new(), chunks: 0 };
                self.free.push(slot);
            }
        }
        !self.graves.is_empty()
    }

    /// Claims the run at the head of `rest`.
    fn claim_run(&mut self, runs: &Runs, slot: u16, rest: &[u64], entries: &mut Path) -> Step {
        let mut shard = runs.write(rest[0]);
        let Some(run) = shard.get_mut(&rest[0]) else { return Step::Missing };
        let matched = run.matched(rest);
        let (whole, ended) = (matched == run.hashes.len(), matched == rest.len());
        let owner = run.owner(slot);
        let held = owner.map_or(0, |at| run.owners[at].depth as usize);
        let claimable = whole || (ended && held <= matched);
        if !claimable {
            // The path leaves the run midway, or ends where this worker holds more than it uses now.
            return Step::Split(matched);
        }
        let bytes = run.bytes();
        let extends = whole && run.leaf && !ended;
        if extends {
            run.hashes.reserve_exact(rest.len() - matched);
            run.hashes.extend_from_slice(&rest[matched..]);
        }
        let depth = if extends { rest.len() } else { matched };
        let slot_state = &mut self.slots[usize::from(slot)];
        let entry = match owner {
            Ok(at) => {
                run.owners[at].depth = chunk_count(depth);
                run.owners[at].entry
            }
            Err(at) => {
                let entry = slot_state.recency.push(rest[0], self.stamp);
                run.owners.insert(at, Owner { slot, depth: chunk_count(depth), entry });
                self.used += Self::ENTRY_BYTES;
                entry
            }
        };
        slot_state.chunks += (depth - held) as u64;
        self.used = self.used + run.bytes() - bytes;
        entries.push(entry);
        if ended || extends { Step::Done } else { Step::Onward { chunks: matched, tail: run.tail() } }
    }

    /// Adds a run held by `slot` alone; gives its entry in the order of use.
    fn add(&mut self, runs: &Runs, slot: u16, hashes: &[u64], before: u64) -> u32 {
        let slot_state = &mut self.slots[usize::from(slot)];
        let entry = slot_state.recency.push(hashes[0], self.stamp);
        slot_state.chunks += hashes.len() as u64;
        let owner = Owner { slot, depth: chunk_count(hashes.len()), entry };
        let run = Run { hashes: hashes.to_vec(), before, leaf: true, owners: smallvec![owner] };
        self.used += run.bytes() + Self::ENTRY_BYTES;
        runs.write(hashes[0]).insert(hashes[0], run);
        entry
    }

    /// Splits the run at `head` after `at` chunks. The lower part appears before the upper one is cut, so that a reader
    /// in between sees the whole.
    fn split(&mut self, runs: &Runs, head: u64, at: usize) {
        let mut lower = {
            let shard = runs.read(head);
            let Some(run) = shard.get(&head) else { return };
            let deeper = run.owners.iter().filter(|owner| owner.depth as usize > at);
            let owners = deeper.map(|owner| Owner { depth: owner.depth - chunk_count(at), ..*owner }).collect();
            Run { hashes: run.hashes[at..].to_vec(), before: run.hashes[at - 1], leaf: run.leaf, owners }
        };
        let (lower_head, lower_tail, fork) = (lower.hashes[0], lower.tail(), lower.before);
        for owner in &mut lower.owners {
            owner.entry = self.slots[usize::from(owner.slot)].recency.push_behind(owner.entry, lower_head);
        }
        self.used += lower.bytes() + lower.owners.len() * Self::ENTRY_BYTES + Self::FORK_BYTES;
        runs.write(lower_head).insert(lower_head, lower);
        if let Some(fork) = self.forks.get_mut(&lower_tail) {
            fork.head = lower_head;
        }
        self.forks.insert(fork, Fork { head, followers: 1 });

        let mut shard = runs.write(head);
        let Some(upper) = shard.get_mut(&head) else { return };
        let bytes = upper.bytes();
        upper.hashes.truncate(at);
        upper.hashes.shrink_to_fit();
        upper.leaf = false;
        for owner in &mut upper.owners {
            owner.depth = owner.depth.min(chunk_count(at));
        }
        self.used = self.used + upper.bytes() - bytes;
    }

    /// Notes that one more run comes after the one with these ends.
    fn follow(&mut self, runs: &Runs, head: u64, tail: u64) {
        if tail == 0 {
            return;
        }
        let forks = self.forks.len();
        self.forks.entry(tail).or_insert(Fork { head, followers: 0 }).followers += 1;
        if self.forks.len() > forks {
            self.used += Self::FORK_BYTES;
            change(runs, head, |run| run.leaf = false);
        }
    }

    /// Notes that one run fewer comes after the one that ends with `tail`.
    fn unfollow(&mut self, runs: &Runs, tail: u64) {
        let Some(fork) = self.forks.get_mut(&tail) else { return };
        fork.followers -= 1;
        if fork.followers == 0 {
            let head = fork.head;
            self.forks.remove(&tail);
            self.used -= Self::FORK_BYTES;
            change(runs, head, |run| run.leaf = true);
        }
    }

    /// Takes up to `most` chunks off the end of the run that `slot` used longest ago; false if it holds nothing.
    fn release_oldest(&mut self, runs: &Runs, slot: u16, most: u32) -> bool {
        let slot_state = &mut self.slots[usize::from(slot)];
        let Some((entry, _)) = slot_state.recency.oldest() else { return false };
        let head = slot_state.recency.head(entry);
        let mut shard = runs.write(head);
        let hold = shard.get_mut(&head).and_then(|run| Some((run.owner(slot).ok()?, run)));
        let Some((at, run)) = hold else {
            // Two paths with one hash: the hold went with the other path's run.
            slot_state.recency.remove(entry);
            self.used -= Self::ENTRY_BYTES;
            return true;
        };
        let bytes = run.bytes();
        let cut = run.owners[at].depth.min(most);
        run.owners[at].depth -= cut;
        slot_state.chunks -= u64::from(cut);
        if run.owners[at].depth == 0 {
            run.owners.remove(at);
            slot_state.recency.remove(entry);
            self.used -= Self::ENTRY_BYTES;
        }
        if run.owners.is_empty() {
            let before = run.before;
            self.used -= bytes;
            shard.remove(&head);
            drop(shard);
            self.unfollow(runs, before);
        } else {
            run.trim();
            self.used = self.used + run.bytes() - bytes;
        }
        true
    }
}

fn change(runs: &Runs, head: u64, change: impl FnOnce(&mut Run)) {
    if let Some(run) = runs.write(head).get_mut(&head) {
        change(run);
    }
}

fn chunk_count(chunks: usize) -> u32 {
    u32::try_from(chunks).unwrap_or(u32::MAX)
}
