//! Maps whose hasher has a fixed seed: two runs with the same input iterate in the same order.
//!
//! Not for keys an attacker picks freely at scale without a bound on the map's size: the seed is public.

/// A hash map with a fixed seed.
pub type StableMap<K, V> = hashbrown::HashMap<K, V, foldhash::fast::FixedState>;

/// A hash set with a fixed seed.
pub type StableSet<K> = hashbrown::HashSet<K, foldhash::fast::FixedState>;
