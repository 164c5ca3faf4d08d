//! One lane.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use crdts::CvRDT;
use smg_base::hash;

/// How far a lane is: the greater one is newer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    /// Counts the times its writer began it anew.
    pub(crate) epoch: u64,
    /// Counts the changes since.
    pub(crate) version: u64,
}

impl Position {
    /// Further than any lane.
    pub(crate) const END: Self = Self { epoch: u64::MAX, version: u64::MAX };
}

/// An entry of a lane with the version that set it; a value of none is a tombstone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    /// The version.
    pub(crate) version: u64,
    /// The key.
    pub(crate) key: Bytes,
    /// The value.
    pub(crate) value: Option<Bytes>,
}

/// What leads a copy of a lane from one version to a later one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// Where it leads.
    pub(crate) to: Position,
    /// From which version; 0 replaces everything.
    pub(crate) since: u64,
    /// Tombstones up to this version are gone.
    pub(crate) collected: u64,
    /// See [`Lane::base`].
    pub(crate) base: Position,
    /// Every entry newer than `since`.
    pub(crate) parts: Vec<Part>,
}

/// What a change did to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// The key.
    pub(crate) key: Bytes,
    /// The value before.
    pub(crate) old: Option<Bytes>,
    /// The value after.
    pub(crate) new: Option<Bytes>,
}

#[derive(Clone, Debug)]
struct Slot {
    version: u64,
    value: Option<Bytes>,
}

/// One writer's map of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lane {
    position: Position,
    /// Tombstones up to this version are gone.
    collected: u64,
    base: Position,
    entries: BTreeMap<Bytes, Slot>,
    by_version: BTreeMap<u64, Bytes>,
    tombstones: BTreeSet<u64>,
    /// Sum of the hashes of the live entries: the order of changes and the collection of tombstones do not show in it.
    hash: u128,
    bytes: usize,
}

impl Lane {
    /// An empty lane.
    pub(crate) fn new(epoch: u64) -> Self {
        Self { position: Position { epoch, version: 0 }, ..Self::default() }
    }

    /// A lane that begins anew with these live entries, over what was known of it.
    pub(crate) fn renewed(epoch: u64, base: Position, live: impl IntoIterator<Item = (Bytes, Bytes)>) -> Self {
        let mut lane = Self { base, ..Self::new(epoch) };
        for (key, value) in live {
            lane.set(key, Some(value));
        }
        if lane.position.version == 0 {
            // That nothing is left is news too: without a version nobody would be told, nor the writer know that it has said so.
            lane.position.version = 1;
        }
        lane
    }

    /// How far it is.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// Tombstones up to this version are gone.
    pub(crate) fn collected(&self) -> u64 {
        self.collected
    }

    /// The newest copy of the epochs before that this epoch began with. An older epoch's copy that is further holds changes
    /// which the writer has lost, and must be asked for them before it is given up.
    pub(crate) fn base(&self) -> Position {
        self.base
    }

    /// The hash over its live entries.
    pub(crate) fn hash(&self) -> u128 {
        self.hash
    }

    /// Bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Entries with a value.
    pub(crate) fn live(&self) -> usize {
        self.entries.len() - self.tombstones.len()
    }

    /// Entries without.
    pub(crate) fn tombstones(&self) -> usize {
        self.tombstones.len()
    }

    /// Entries, tombstones included.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The value of a key.
    pub(crate) fn value(&self, key: &[u8]) -> Option<&Bytes> {
        self.entries.get(key)?.value.as_ref()
    }

    /// The version that set a key, also if that was its deletion.
    pub(crate) fn version_of(&self, key: &[u8]) -> Option<u64> {
        Some(self.entries.get(key)?.version)
    }

    /// Live entries whose key begins with `prefix`.
    pub(crate) fn live_from<'a>(&'a self, prefix: &'a [u8]) -> impl Iterator<Item = (&'a Bytes, &'a Bytes)> {
        let from = self.entries.range::<[u8], _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        from.take_while(move |(key, _)| key.starts_with(prefix))
            .filter_map(|(key, slot)| slot.value.as_ref().map(|value| (key, value)))
    }

    /// Entries newer than `version`, tombstones included, by version.
    pub(crate) fn newer_than(&self, version: u64) -> impl Iterator<Item = (u64, &Bytes, Option<&Bytes>)> {
        let from = (std::ops::Bound::Excluded(version), std::ops::Bound::Unbounded);
        self.by_version.range(from).map(|(version, key)| {
            let slot = self.entries.get(key).expect("both maps hold the same entries");
            (*version, key, slot.value.as_ref())
        })
    }

    /// Its writer changes it.
    pub(crate) fn set(&mut self, key: Bytes, value: Option<Bytes>) -> Change {
        self.position.version += 1;
        let version = self.position.version;
        self.put(Part { version, key, value })
    }

    /// Brings a copy further. The caller has seen to it that the patch leads from a version that is here, to a later one.
    pub(crate) fn apply(&mut self, patch: Patch) -> Vec<Change> {
        let mut changes = Vec::with_capacity(patch.parts.len());
        if patch.since == 0 {
            return self.replace(patch);
        }
        for part in patch.parts {
            if self.version_of(&part.key).is_none_or(|known| known < part.version) {
                changes.push(self.put(part));
            }
        }
        self.position = patch.to;
        self.base = patch.base;
        self.collect(patch.collected);
        changes
    }

    fn replace(&mut self, patch: Patch) -> Vec<Change> {
        let mut fresh = Self { base: patch.base, ..Self::new(patch.to.epoch) };
        for part in patch.parts {
            if fresh.version_of(&part.key).is_none_or(|known| known < part.version) {
                fresh.put(part);
            }
        }
        fresh.position = patch.to;
        fresh.collected = patch.collected;
        let old = std::mem::replace(self, fresh);
        self.changes_from(old)
    }

    /// What differs from `old`, key by key.
    pub(crate) fn changes_from(&self, old: Self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (key, slot) in &self.entries {
            let before = old.value(key);
            if before != slot.value.as_ref() {
                changes.push(Change { key: key.clone(), old: before.cloned(), new: slot.value.clone() });
            }
        }
        for (key, slot) in old.entries {
            if slot.value.is_some() && !self.entries.contains_key(&key) {
                changes.push(Change { key, old: slot.value, new: None });
            }
        }
        changes
    }

    /// Everything that goes with it.
    pub(crate) fn into_changes(self) -> Vec<Change> {
        Self::default().changes_from(self)
    }

    /// Forgets tombstones up to `version`. The newest entry stays, for it shows how far the lane is.
    pub(crate) fn collect(&mut self, version: u64) {
        let version = version.min(self.position.version.saturating_sub(1));
        if version <= self.collected {
            return;
        }
        self.collected = version;
        while let Some(first) = self.tombstones.first().copied().filter(|first| *first <= version) {
            self.tombstones.remove(&first);
            let key = self.by_version.remove(&first).expect("every tombstone is an entry");
            self.bytes -= key.len();
            self.entries.remove(&key);
        }
    }

    /// The copy that a patch from nothing makes.
    pub(crate) fn of(patch: Patch) -> Self {
        let mut lane = Self::default();
        lane.replace(patch);
        lane
    }

    /// Puts an entry as it was on disk.
    pub(crate) fn restore(&mut self, part: Part) {
        self.position.version = self.position.version.max(part.version);
        self.put(part);
    }

    /// Continues from where the disk says it was.
    pub(crate) fn restore_header(&mut self, version: u64, collected: u64) {
        self.position.version = self.position.version.max(version);
        self.collected = self.collected.max(collected);
        // What it was merged over is not on disk; nobody is asked again.
        self.base = Position::END;
    }

    fn put(&mut self, part: Part) -> Change {
        let Part { version, key, value } = part;
        let old = self.forget(&key);
        // Whoever gives one version to two keys has broken the rules; the later word stays.
        if let Some(shadowed) = self.by_version.insert(version, key.clone()) {
            self.forget(&shadowed);
            self.by_version.insert(version, key.clone());
        }
        self.bytes += key.len();
        match &value {
            Some(value) => {
                self.hash = self.hash.wrapping_add(entry_hash(version, &key, value));
                self.bytes += value.len();
            }
            None => {
                self.tombstones.insert(version);
            }
        }
        self.entries.insert(key.clone(), Slot { version, value: value.clone() });
        Change { key, old, new: value }
    }

    /// Takes an entry out and returns its value.
    fn forget(&mut self, key: &Bytes) -> Option<Bytes> {
        let slot = self.entries.remove(key)?;
        self.by_version.remove(&slot.version);
        self.bytes -= key.len();
        match &slot.value {
            Some(value) => {
                self.hash = self.hash.wrapping_sub(entry_hash(slot.version, key, value));
                self.bytes -= value.len();
            }
            None => {
                self.tombstones.remove(&slot.version);
            }
        }
        slot.value
    }
}

fn entry_hash(version: u64, key: &[u8], value: &[u8]) -> u128 {
    let mut bytes = Vec::with_capacity(12 + key.len() + value.len());
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(value);
    hash::stable128(&bytes)
}

/// Two copies of a lane say different things at the same position: somebody else wrote under the writer's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("two copies of a lane differ at the same position")]
pub(crate) struct Diverged;

impl CvRDT for Lane {
    type Validation = Diverged;

    fn validate_merge(&self, other: &Self) -> Result<(), Diverged> {
        if self.position == other.position && self.hash != other.hash { Err(Diverged) } else { Ok(()) }
    }

    fn merge(&mut self, other: Self) {
        // The hash settles what must not happen, so that even then all copies become the same.
        let order = (other.position, other.hash).cmp(&(self.position, self.hash));
        let collected = self.collected.max(other.collected);
        match order {
            std::cmp::Ordering::Greater => *self = other,
            std::cmp::Ordering::Equal => self.collect(collected),
            std::cmp::Ordering::Less => {}
        }
    }
}
