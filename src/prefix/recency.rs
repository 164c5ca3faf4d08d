//! The order in which one worker's runs were last used.

use crate::memory::reserve_some;

/// No entry.
const NONE: u32 = u32::MAX;

/// A list of runs, by number, from the newest to the oldest, linked through one vector so that every operation is O(1) and
/// entries have stable numbers.
#[derive(Debug)]
pub(crate) struct Recency {
    entries: Vec<Entry>,
    free: u32,
    newest: u32,
    oldest: u32,
}

#[derive(Debug)]
struct Entry {
    /// The write that touched it last.
    stamp: u64,
    run: u32,
    newer: u32,
    /// Also links the free entries.
    older: u32,
}

impl Default for Recency {
    fn default() -> Self {
        Self { entries: Vec::new(), free: NONE, newest: NONE, oldest: NONE }
    }
}

impl Recency {
    /// Bytes of one entry.
    pub(crate) const ENTRY_BYTES: usize = size_of::<Entry>();

    /// The oldest entry and the stamp of its last use.
    pub(crate) fn oldest(&self) -> Option<(u32, u64)> {
        self.entry(self.oldest).map(|entry| (self.oldest, entry.stamp))
    }

    /// The run an entry stands for.
    pub(crate) fn run(&self, entry: u32) -> Option<u32> {
        self.entry(entry).map(|entry| entry.run)
    }

    /// The runs from the newest to the oldest.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = u32> {
        let entries = std::iter::successors(self.entry(self.newest), |entry| self.entry(entry.older));
        entries.map(|entry| entry.run)
    }

    /// Adds the newest entry.
    pub(crate) fn push(&mut self, run: u32, stamp: u64) -> u32 {
        let entry = self.allocate(Entry { stamp, run, newer: NONE, older: NONE });
        self.link_newest(entry);
        entry
    }

    /// Adds an entry for `run` just newer than `entry`, as if last used in the same write.
    pub(crate) fn push_before(&mut self, entry: u32, run: u32) -> u32 {
        let (stamp, newer) = self.entry(entry).map_or((0, NONE), |entry| (entry.stamp, entry.newer));
        let added = self.allocate(Entry { stamp, run, newer, older: entry });
        self.set_newer(entry, added);
        self.set_older(newer, added);
        added
    }

    /// Lets `entry` stand for another run.
    pub(crate) fn rename(&mut self, entry: u32, run: u32) {
        if let Some(entry) = self.entry_mut(entry) {
            entry.run = run;
        }
    }

    /// Makes `entry` the newest.
    pub(crate) fn touch(&mut self, entry: u32, stamp: u64) {
        if entry != self.newest {
            self.unlink(entry);
            self.link_newest(entry);
        }
        if let Some(entry) = self.entry_mut(entry) {
            entry.stamp = stamp;
        }
    }

    /// Takes `entry` out; its number may be given out again.
    pub(crate) fn remove(&mut self, entry: u32) {
        self.unlink(entry);
        let free = self.free;
        if let Some(entry) = self.entry_mut(entry) {
            entry.older = free;
        }
        self.free = entry;
    }

    fn entry(&self, entry: u32) -> Option<&Entry> {
        self.entries.get(entry as usize)
    }

    fn entry_mut(&mut self, entry: u32) -> Option<&mut Entry> {
        self.entries.get_mut(entry as usize)
    }

    fn allocate(&mut self, content: Entry) -> u32 {
        let entry = self.free;
        if let Some(place) = self.entries.get_mut(entry as usize) {
            self.free = place.older;
            *place = content;
            return entry;
        }
        reserve_some(&mut self.entries);
        self.entries.push(content);
        u32::try_from(self.entries.len() - 1).expect("a worker holds fewer runs than its capacity, a u32, has chunks")
    }

    fn link_newest(&mut self, entry: u32) {
        let older = std::mem::replace(&mut self.newest, entry);
        if let Some(entry) = self.entry_mut(entry) {
            (entry.newer, entry.older) = (NONE, older);
        }
        self.set_newer(older, entry);
    }

    fn unlink(&mut self, entry: u32) {
        let Some((newer, older)) = self.entry(entry).map(|entry| (entry.newer, entry.older)) else { return };
        self.set_older(newer, older);
        self.set_newer(older, newer);
    }

    /// Makes `older` follow `entry`, or lead the list where there is no `entry`.
    fn set_older(&mut self, entry: u32, older: u32) {
        match self.entry_mut(entry) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    /// Makes `newer` precede `entry`, or end the list where there is no `entry`.
    fn set_newer(&mut self, entry: u32, newer: u32) {
        match self.entry_mut(entry) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    #[test]
    fn it_agrees_with_a_plain_list() {
        let random = SplitMix::new(11);
        let draw = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
        let mut recency = Recency::default();
        let mut list: Vec<(u32, u32)> = Vec::new();
        let mut most = 0;
        for step in 1..20_000_u32 {
            let at = draw(list.len().max(1));
            match draw(if list.len() > 20 { 5 } else { 3 }) {
                0 => list.insert(0, (step, recency.push(step, u64::from(step)))),
                1 if !list.is_empty() => {
                    list.insert(at, (step, recency.push_before(list[at].1, step)));
                }
                2 if !list.is_empty() => {
                    recency.touch(list[at].1, u64::from(step));
                    let touched = list.remove(at);
                    list.insert(0, touched);
                }
                _ if !list.is_empty() => recency.remove(list.remove(at).1),
                _ => {}
            }
            most = most.max(list.len());
            assert!(recency.newest_first().eq(list.iter().map(|(run, _)| *run)), "step {step}");
            assert_eq!(recency.oldest().map(|(entry, _)| entry), list.last().map(|(_, entry)| *entry));
        }
        assert_eq!(recency.entries.len(), most, "numbers are given out again");
    }
}
