//! Where a chunk is: from its hash to the run that it is in.
//!
//! A chunk costs about five bytes here, because its hash is not stored again: an entry is the run's number and how far the
//! entry lies from where its hash would have it (P. Celis, Robin Hood hashing, 1986, with linear probing), which is
//! enough to move entries; the run itself tells whether, and where, the hash is in it.

/// From hashes to numbers of runs.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Zero, or a run's number plus one above the distance from home.
    entries: Vec<u32>,
    used: usize,
}

const DISTANCE_BITS: u32 = 8;
/// Half a megabyte.
const PART_ENTRIES: usize = 1 << 17;
const DISTANCE_MAX: u32 = (1 << DISTANCE_BITS) - 1;
/// The first number that no run may have.
pub(crate) const RUNS_MAX: u32 = (1 << (u32::BITS - DISTANCE_BITS)) - 1;

/// The table has to grow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Places {
    /// A table with room for `chunks` and a sixth more: to grow by more would be done less often, but then it would be mostly empty.
    pub(crate) fn with_room_for(chunks: usize) -> Self {
        let most = chunks + chunks / 6 + 2 * DISTANCE_MAX as usize;
        Self { entries: vec![0; most + most / 6], used: 0 }
    }

    /// How many parts it has; writing to one after the other is faster than here and there.
    pub(crate) fn parts(&self) -> usize {
        self.entries.len() / PART_ENTRIES + 1
    }

    /// Which part a hash belongs to.
    #[inline]
    pub(crate) fn part(&self, hash: u64) -> usize {
        self.home(hash) / PART_ENTRIES
    }

    /// Memory taken.
    pub(crate) fn bytes(&self) -> usize {
        self.entries.capacity() * size_of::<u32>()
    }

    /// Whether it has far more room than it needs.
    pub(crate) fn is_sparse(&self) -> bool {
        self.used * 4 + 1_024 < self.entries.len()
    }

    /// Whether so few places are taken that no room can only mean too many equal hashes.
    pub(crate) fn is_crowded_in_one_place(&self) -> bool {
        self.used < self.entries.len() / 2
    }

    /// How many chunks it has.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// The runs that `hash` may be in.
    pub(crate) fn candidates(&self, hash: u64) -> impl Iterator<Item = u32> {
        let home = self.home(hash);
        (0..=DISTANCE_MAX)
            .map(move |distance| (distance, self.entries.get(self.at(home, distance)).copied().unwrap_or(0)))
            .take_while(|(distance, entry)| *entry != 0 && entry & DISTANCE_MAX >= *distance)
            .filter(|(distance, entry)| entry & DISTANCE_MAX == *distance)
            .map(|(_, entry)| (entry >> DISTANCE_BITS) - 1)
    }

    /// Notes that `hash` is in `run`.
    pub(crate) fn insert(&mut self, hash: u64, run: u32) -> Result<(), Full> {
        if (self.used + 1) * 7 > self.entries.len() * 6 {
            return Err(Full);
        }
        // Behind those that are at least as far from home, and before the others, which move on by one.
        let (mut at, mut distance) = (self.home(hash), 0);
        while self.entries[at] != 0 && self.entries[at] & DISTANCE_MAX >= distance {
            if distance == DISTANCE_MAX {
                return Err(Full);
            }
            (at, distance) = (self.at(at, 1), distance + 1);
        }
        let mut end = at;
        while self.entries[end] != 0 {
            if self.entries[end] & DISTANCE_MAX == DISTANCE_MAX {
                return Err(Full);
            }
            end = self.at(end, 1);
        }
        let mut moving = ((run + 1) << DISTANCE_BITS) | distance;
        while at != end {
            moving = std::mem::replace(&mut self.entries[at], moving) + 1;
            at = self.at(at, 1);
        }
        self.entries[end] = moving;
        self.used += 1;
        Ok(())
    }

    /// Notes that `hash` is in run `to` instead of run `from`.
    pub(crate) fn rename(&mut self, hash: u64, from: u32, to: u32) {
        if let Some(at) = self.find(hash, from) {
            self.entries[at] = ((to + 1) << DISTANCE_BITS) | (self.entries[at] & DISTANCE_MAX);
        }
    }

    /// Notes that `hash` is no longer in `run`.
    pub(crate) fn remove(&mut self, hash: u64, run: u32) {
        let Some(mut at) = self.find(hash, run) else { return };
        self.used -= 1;
        loop {
            let next = self.at(at, 1);
            let follower = self.entries[next];
            if follower & DISTANCE_MAX == 0 {
                self.entries[at] = 0;
                return;
            }
            self.entries[at] = follower - 1;
            at = next;
        }
    }

    fn find(&self, hash: u64, run: u32) -> Option<usize> {
        let home = self.home(hash);
        for distance in 0..=DISTANCE_MAX {
            let at = self.at(home, distance);
            let entry = *self.entries.get(at)?;
            if entry == 0 || entry & DISTANCE_MAX < distance {
                return None;
            }
            if entry == ((run + 1) << DISTANCE_BITS) | distance {
                return Some(at);
            }
        }
        None
    }

    fn home(&self, hash: u64) -> usize {
        let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of entries")]
        let home = ((u128::from(spread) * self.entries.len() as u128) >> u64::BITS) as usize;
        home
    }

    fn at(&self, home: usize, distance: u32) -> usize {
        let at = home + distance as usize;
        if at < self.entries.len() { at } else { at - self.entries.len() }
    }
}

#[cfg(test)]
mod tests {
    use smg_base::{Random, SplitMix};

    use super::*;

    #[test]
    fn it_agrees_with_a_plain_list() {
        let random = SplitMix::new(3);
        let draw = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
        for hashes in [3_u64, 40, u64::MAX] {
            let mut places = Places::with_room_for(200);
            let mut list: Vec<(u64, u32)> = Vec::new();
            for step in 0..20_000 {
                let entry = (random.below(hashes), u32::try_from(random.below(30)).unwrap());
                match draw(5) {
                    0 | 1 if list.len() < 200 => {
                        if places.insert(entry.0, entry.1).is_ok() {
                            list.push(entry);
                        } else {
                            assert!(hashes == 3, "only equal hashes crowd each other out");
                        }
                    }
                    2 if !list.is_empty() => {
                        let at = draw(list.len());
                        places.rename(list[at].0, list[at].1, 77);
                        list[at].1 = 77;
                    }
                    _ if !list.is_empty() => {
                        let (hash, run) = list.swap_remove(draw(list.len()));
                        places.remove(hash, run);
                    }
                    _ => {}
                }
                assert_eq!(places.len(), list.len());
                let probed = list.first().map_or(entry.0, |entry| entry.0);
                let mut expected: Vec<u32> =
                    list.iter().filter(|(hash, _)| *hash == probed).map(|(_, run)| *run).collect();
                let mut found: Vec<u32> = places.candidates(probed).collect();
                found.sort_unstable();
                expected.sort_unstable();
                let missing = expected.iter().find(|run| !found.contains(run));
                assert_eq!(missing, None, "step {step}: {expected:?} among {found:?}");
            }
        }
    }

    #[test]
    fn it_says_when_it_has_to_grow() {
        let mut places = Places::with_room_for(0);
        let mut hash = 1_u64;
        let mut placed = 0;
        while places.insert(hash, 5).is_ok() {
            hash = hash.wrapping_mul(0x2545_f491_4f6c_dd1d).wrapping_add(1);
            placed += 1;
        }
        assert!((500..520).contains(&placed), "{placed}");
        assert!(!places.is_crowded_in_one_place() && !places.is_sparse());
        let mut places = Places::with_room_for(1_000);
        assert!((0..2_000).any(|run| places.insert(9, run) == Err(Full)));
        assert!(places.is_crowded_in_one_place());
    }
}
