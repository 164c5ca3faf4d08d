//! Collections that cannot grow without limit.

use std::{collections::VecDeque, hash::Hash, time::Duration};

use crate::{Timestamp, map::StableMap};

/// A map with a capacity and an age limit. When full, the entry least recently used goes; an entry idle for longer
/// than `idle` is gone whether or not it was swept yet.
///
/// Recency is kept as a queue of (key, stamp) in which stale positions are skipped when they come up, so every
/// operation is O(1) amortised; the queue is compacted when it outgrows the map twofold.
#[derive(Debug)]
pub struct TtlMap<K, V> {
    entries: StableMap<K, Entry<V>>,
    recency: VecDeque<(K, u64)>,
    stamp: u64,
    capacity: usize,
    idle: Duration,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    used: Timestamp,
    stamp: u64,
}

impl<K: Hash + Eq + Clone, V> TtlMap<K, V> {
    /// An empty map of at most `capacity` entries (at least one), each kept while used within `idle`.
    pub fn new(capacity: usize, idle: Duration) -> Self {
        Self { entries: StableMap::default(), recency: VecDeque::new(), stamp: 0, capacity: capacity.max(1), idle }
    }

    /// How many entries are held, expired ones that were not swept yet included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The live value under `key`, which counts as a use of it.
    pub fn touch<Q>(&mut self, key: &Q, now: Timestamp) -> Option<&mut V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized + ToOwned<Owned = K>,
    {
        let idle = self.idle;
        let expired = self.entries.get(key).is_some_and(|entry| now.since(entry.used) > idle);
        if expired {
            self.entries.remove(key);
            return None;
        }
        if !self.entries.contains_key(key) {
            return None;
        }
        let stamp = self.next_stamp(key.to_owned());
        let entry = self.entries.get_mut(key)?;
        entry.used = now;
        entry.stamp = stamp;
        Some(&mut entry.value)
    }

    /// Puts `value` under `key`, making room if need be.
    pub fn insert(&mut self, key: K, value: V, now: Timestamp) {
        let stamp = self.next_stamp(key.clone());
        self.entries.insert(key, Entry { value, used: now, stamp });
        while self.entries.len() > self.capacity {
            self.evict_oldest();
        }
    }

    /// Takes out the entry under `key`.
    pub fn remove<Q>(&mut self, key: &Q) -> Option<V>
    where
        K: std::borrow::Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.remove(key).map(|entry| entry.value)
    }

    /// Drops what has been idle for too long, oldest first; returns how many went.
    pub fn sweep(&mut self, now: Timestamp) -> usize {
        let before = self.entries.len();
        while let Some((key, stamp)) = self.recency.front() {
            match self.entries.get(key) {
                Some(entry) if entry.stamp == *stamp && now.since(entry.used) <= self.idle => break,
                Some(entry) if entry.stamp == *stamp => self.evict_oldest(),
                _ => drop(self.recency.pop_front()),
            }
        }
        before - self.entries.len()
    }

    fn next_stamp(&mut self, key: K) -> u64 {
        self.stamp += 1;
        self.recency.push_back((key, self.stamp));
        if self.recency.len() > 2 * self.entries.len().max(16) {
            let entries = &self.entries;
            let newest = self.stamp;
            self.recency
                .retain(|(key, stamp)| *stamp == newest || entries.get(key).is_some_and(|entry| entry.stamp == *stamp));
        }
        self.stamp
    }

    fn evict_oldest(&mut self) {
        while let Some((key, stamp)) = self.recency.pop_front() {
            if self.entries.get(&key).is_some_and(|entry| entry.stamp == stamp) {
                self.entries.remove(&key);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::ORIGIN + Duration::from_secs(seconds)
    }

    #[test]
    fn the_least_recently_used_entry_makes_room() {
        let mut map = TtlMap::new(2, IDLE);
        map.insert("a".to_owned(), 1, at(0));
        map.insert("b".to_owned(), 2, at(0));
        assert_eq!(map.touch("a", at(1)), Some(&mut 1));
        map.insert("c".to_owned(), 3, at(1));
        assert_eq!(map.touch("b", at(1)), None);
        assert_eq!(map.touch("a", at(1)), Some(&mut 1));
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn idle_entries_are_gone_swept_or_not() {
        let mut map = TtlMap::new(8, IDLE);
        map.insert(1, "x".to_owned(), at(0));
        map.insert(2, "y".to_owned(), at(5));
        assert_eq!(map.touch(&1, at(11)), None);
        assert_eq!(map.sweep(at(16)), 1);
        assert!(map.is_empty());
    }

    #[test]
    fn touching_for_ever_does_not_grow_the_queue() {
        let mut map = TtlMap::new(4, IDLE);
        for key in 0..4 {
            map.insert(key, (), at(0));
        }
        for turn in 0..10_000 {
            map.touch(&(turn % 4), at(0));
        }
        assert!(map.recency.len() <= 33, "{}", map.recency.len());
    }
}
