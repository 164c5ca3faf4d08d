//! Everybody's lanes on one node.

use std::collections::BTreeMap;

use bincode::{Decode, Encode};
use bytes::Bytes;
use crdts::CvRDT;
use smg_base::hash;

use super::{Change, Lane, Part, Patch, Pending, Position, lane::Diverged};
use crate::{Digest, Kind, NodeId, Record};

/// A node's lane of one kind, up to this position, is gone: what was live in it goes on in the lane that says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Retired {
    /// The lane's epoch.
    pub(crate) epoch: u64,
    /// Its version.
    pub(crate) version: u64,
    /// The epoch of the node's ephemeral lanes, which are gone too; said in the workers lane, and 0 elsewhere.
    pub(crate) boot: u64,
}

/// All lanes, by kind and writer.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    lanes: BTreeMap<(Kind, NodeId), Lane>,
    /// By kind: the sum of what identifies each of its lanes.
    sums: [u128; Kind::ALL.len()],
    bytes: BTreeMap<NodeId, usize>,
    retired: BTreeMap<(NodeId, Kind), Retired>,
    /// What the disk does not know yet.
    pub(crate) pending: Pending,
}

impl Lanes {
    /// The lanes that the disk held, and the boot number.
    pub(crate) fn restore(records: Vec<Record>) -> (Self, u64) {
        let mut boot = 0;
        let mut lanes: BTreeMap<(Kind, NodeId), Lane> = BTreeMap::new();
        for record in records {
            match record {
                Record::Boot(number) => boot = number,
                Record::Lane { writer, kind, epoch, collected, version } => {
                    let mut lane = Lane::new(epoch);
                    lane.restore_header(version, collected);
                    lanes.insert((kind, writer), lane);
                }
                Record::Entry { writer, kind, key, version, value } => {
                    if let Some(lane) = lanes.get_mut(&(kind, writer)) {
                        lane.restore(Part { version, key, value });
                    }
                }
                Record::Collect { writer, kind, collected } => {
                    if let Some(lane) = lanes.get_mut(&(kind, writer)) {
                        lane.collect(collected);
                    }
                }
                Record::Drop { writer, kind } => {
                    lanes.remove(&(kind, writer));
                }
            }
        }
        let mut restored = Self::default();
        for ((kind, writer), lane) in lanes {
            // What is not journalled by this program's rules was put there by another.
            if kind.is_durable() && lane.position().version > 0 {
                restored.insert(writer, kind, lane);
            }
        }
        (restored, boot)
    }

    /// A lane.
    pub(crate) fn lane(&self, writer: NodeId, kind: Kind) -> Option<&Lane> {
        self.lanes.get(&(kind, writer))
    }

    /// How far a lane is; the origin if there is none.
    pub(crate) fn position(&self, writer: NodeId, kind: Kind) -> Position {
        self.lane(writer, kind).map(Lane::position).unwrap_or_default()
    }

    /// The lanes of a kind, by writer.
    pub(crate) fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (NodeId, &Lane)> {
        let all = (kind, NodeId::from_u128(0))..=(kind, NodeId::from_u128(u128::MAX));
        self.lanes.range(all).map(|((_, writer), lane)| (*writer, lane))
    }

    /// Everybody who has a lane.
    pub(crate) fn writers(&self) -> impl Iterator<Item = NodeId> {
        self.bytes.keys().copied()
    }

    /// Whether a writer has any lane.
    pub(crate) fn has_writer(&self, writer: NodeId) -> bool {
        self.bytes.contains_key(&writer)
    }

    /// Bytes of all lanes of a writer.
    pub(crate) fn writer_bytes(&self, writer: NodeId) -> usize {
        self.bytes.get(&writer).copied().unwrap_or_default()
    }

    /// The digest of a kind: equal on two nodes with the same version vector.
    pub(crate) fn digest(&self, kind: Kind) -> u128 {
        self.sums[kind as usize]
    }

    /// The digest of everything.
    pub(crate) fn root(&self) -> Digest {
        let mut bytes = [0; 16 * Kind::ALL.len()];
        for (sum, slot) in self.sums.iter().zip(bytes.chunks_exact_mut(16)) {
            slot.copy_from_slice(&sum.to_le_bytes());
        }
        Digest(hash::stable128(&bytes))
    }

    /// The versions of a kind's lanes, without their epochs.
    #[cfg(test)]
    pub(crate) fn version_vector(&self, kind: Kind) -> crdts::VClock<NodeId> {
        use crdts::CmRDT;
        let mut clock = crdts::VClock::new();
        for (writer, lane) in self.of_kind(kind) {
            clock.apply(crdts::Dot::new(writer, lane.position().version));
        }
        clock
    }

    /// The greatest epoch of a writer's ephemeral lanes: its boot number, as far as lanes tell.
    pub(crate) fn boot(&self, writer: NodeId) -> u64 {
        self.greatest_epoch(writer, |kind| !kind.is_durable()).max(self.retired(writer, Kind::Workers).boot)
    }

    /// The greatest epoch of a writer's durable lanes.
    pub(crate) fn epoch(&self, writer: NodeId) -> u64 {
        let retired = Kind::ALL.into_iter().map(|kind| self.retired(writer, kind).epoch).max();
        self.greatest_epoch(writer, Kind::is_durable).max(retired.unwrap_or_default())
    }

    fn greatest_epoch(&self, writer: NodeId, of: impl Fn(Kind) -> bool) -> u64 {
        let kinds = Kind::ALL.into_iter().filter(|kind| of(*kind));
        kinds.map(|kind| self.position(writer, kind).epoch).max().unwrap_or_default()
    }

    /// What is retired of a writer's lane.
    fn retired(&self, writer: NodeId, kind: Kind) -> Retired {
        self.retired.get(&(writer, kind)).copied().unwrap_or_default()
    }

    /// How far a writer's lane of this kind is gone for good.
    pub(crate) fn given_up(&self, writer: NodeId, kind: Kind) -> Position {
        if kind.is_durable() {
            let Retired { epoch, version, .. } = self.retired(writer, kind);
            return Position { epoch, version };
        }
        let retired = self.retired(writer, Kind::Workers).boot;
        Position { epoch: self.boot(writer).saturating_sub(1).max(retired), version: u64::MAX }
    }

    /// Whether a lane that is no further than this is gone for good.
    pub(crate) fn is_dead(&self, writer: NodeId, kind: Kind, position: Position) -> bool {
        position <= self.given_up(writer, kind)
    }

    /// Notes that a writer's lane is retired, as all notes about it together say.
    pub(crate) fn retire(&mut self, writer: NodeId, kind: Kind, retired: Option<Retired>) {
        match retired {
            Some(retired) => self.retired.insert((writer, kind), retired),
            None => self.retired.remove(&(writer, kind)),
        };
    }

    /// The writer sets or deletes an entry; a lane that is not there begins under `epoch`.
    pub(crate) fn set(&mut self, writer: NodeId, kind: Kind, epoch: u64, key: Bytes, value: Option<Bytes>) -> Change {
        let mut lane = self.remove(writer, kind).unwrap_or_else(|| Lane::new(epoch));
        let begins = lane.position().version == 0;
        let change = lane.set(key, value);
        if kind.is_durable() {
            if begins {
                self.pending.begin(writer, kind, &lane);
            } else {
                let part =
                    Part { version: lane.position().version, key: change.key.clone(), value: change.new.clone() };
                self.pending.entry(writer, kind, part);
            }
        }
        self.insert(writer, kind, lane);
        change
    }

    /// Brings a lane further.
    pub(crate) fn apply(&mut self, writer: NodeId, kind: Kind, patch: Patch) -> Vec<Change> {
        let mut lane = self.remove(writer, kind).unwrap_or_default();
        let whole = patch.since == 0;
        let collected = lane.collected();
        if kind.is_durable() && !whole {
            for part in &patch.parts {
                self.pending.entry(writer, kind, part.clone());
            }
        }
        let changes = lane.apply(patch);
        if kind.is_durable() && whole {
            self.pending.begin(writer, kind, &lane);
        } else if kind.is_durable() && lane.collected() > collected {
            self.pending.collect(writer, kind, lane.collected());
        }
        self.insert(writer, kind, lane);
        changes
    }

    /// Puts a lane in the place of what was there.
    pub(crate) fn replace(&mut self, writer: NodeId, kind: Kind, lane: Lane) -> Vec<Change> {
        let old = self.remove(writer, kind).unwrap_or_default();
        let changes = lane.changes_from(old);
        if lane.position().version == 0 {
            if kind.is_durable() {
                self.pending.drop_lane(writer, kind);
            }
            return changes;
        }
        if kind.is_durable() {
            self.pending.begin(writer, kind, &lane);
        }
        self.insert(writer, kind, lane);
        changes
    }

    /// Forgets a lane.
    pub(crate) fn drop_lane(&mut self, writer: NodeId, kind: Kind) -> Vec<Change> {
        let Some(lane) = self.remove(writer, kind) else { return Vec::new() };
        if kind.is_durable() {
            self.pending.drop_lane(writer, kind);
        }
        lane.into_changes()
    }

    /// The writer forgets tombstones up to `version`.
    pub(crate) fn collect(&mut self, writer: NodeId, kind: Kind, version: u64) {
        let Some(mut lane) = self.remove(writer, kind) else { return };
        lane.collect(version);
        if kind.is_durable() {
            self.pending.collect(writer, kind, lane.collected());
        }
        self.insert(writer, kind, lane);
    }

    fn insert(&mut self, writer: NodeId, kind: Kind, lane: Lane) {
        let sum = &mut self.sums[kind as usize];
        *sum = sum.wrapping_add(identity(writer, &lane));
        *self.bytes.entry(writer).or_default() += lane.bytes();
        self.lanes.insert((kind, writer), lane);
    }

    fn remove(&mut self, writer: NodeId, kind: Kind) -> Option<Lane> {
        let lane = self.lanes.remove(&(kind, writer))?;
        let sum = &mut self.sums[kind as usize];
        *sum = sum.wrapping_sub(identity(writer, &lane));
        if let Some(bytes) = self.bytes.get_mut(&writer) {
            *bytes -= lane.bytes();
        }
        if !Kind::ALL.into_iter().any(|kind| self.lanes.contains_key(&(kind, writer))) {
            self.bytes.remove(&writer);
        }
        Some(lane)
    }
}

/// What a lane adds to the digest of its kind.
fn identity(writer: NodeId, lane: &Lane) -> u128 {
    let position = lane.position();
    let mut bytes = [0; 48];
    bytes[..16].copy_from_slice(&writer.as_u128().to_le_bytes());
    bytes[16..24].copy_from_slice(&position.epoch.to_le_bytes());
    bytes[24..32].copy_from_slice(&position.version.to_le_bytes());
    bytes[32..].copy_from_slice(&lane.hash().to_le_bytes());
    hash::stable128(&bytes)
}

#[cfg(test)]
impl Lanes {
    /// Merges a copy of other lanes in.
    pub(crate) fn merge_from(&mut self, other: &Self) {
        let lanes = other.lanes.clone();
        self.merge(Self { lanes, ..Self::default() });
    }
}

impl CvRDT for Lanes {
    type Validation = Diverged;

    fn validate_merge(&self, other: &Self) -> Result<(), Diverged> {
        let pairs = other.lanes.iter().filter_map(|(key, lane)| Some((self.lanes.get(key)?, lane)));
        pairs.into_iter().try_for_each(|(ours, theirs)| ours.validate_merge(theirs))
    }

    fn merge(&mut self, other: Self) {
        for ((kind, writer), theirs) in other.lanes {
            let mut lane = self.remove(writer, kind).unwrap_or_default();
            lane.merge(theirs);
            self.insert(writer, kind, lane);
        }
    }
}
