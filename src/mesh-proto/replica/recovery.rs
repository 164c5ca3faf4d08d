//! A writer that has lost its memory, in part or whole, or is back after its lanes were retired. Its peers remember what it said: it asks
//! for that, lays it under what it has said since, and begins the lane anew under a greater epoch.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use smg_base::Timestamp;

use super::Replica;
use crate::{
    Kind, NodeId,
    lanes::{Lane, Patch, Position},
    planes::INFO_KEY,
    wire::encode_value,
};

/// Lanes begin anew at most so often because of what peers have...
const ANEW_MAX: u32 = 12;
/// ... within so much time.
const ANEW_WINDOW: Duration = Duration::from_secs(10);

/// How often our lanes began anew lately.
#[derive(Debug, Default)]
pub(super) struct Anew {
    since: Timestamp,
    count: u32,
}

impl Replica {
    /// The epoch of one of our own lanes, or the one it would begin under.
    pub(super) fn own_epoch(&self, kind: Kind) -> u64 {
        if !kind.is_durable() {
            return self.boot.max(1);
        }
        let epoch = self.lanes.position(self.me, kind).epoch;
        if epoch != 0 {
            return epoch;
        }
        let known = self.lanes.epoch(self.me);
        // Of a past that we do not remember, peers hold lanes of that epoch.
        if known >= self.told_epoch { known.max(1) } else { self.told_epoch + 1 }
    }

    /// A peer's copy of one of our own durable lanes has arrived.
    pub(super) fn recover(&mut self, now: Timestamp, kind: Kind, patch: Patch) {
        let theirs = Lane::of(patch);
        let empty = Lane::default();
        let ours = self.lanes.lane(self.me, kind).unwrap_or(&empty);
        let (at, their) = (ours.position(), theirs.position());
        let same = their == at && theirs.hash() == ours.hash();
        let merged_before = their.epoch < at.epoch && their <= ours.base();
        let lags = their.epoch == at.epoch && their.version < at.version;
        if same || merged_before || lags {
            return;
        }
        let begun = self.begun.get(&kind).copied().unwrap_or_default();
        let live = self.merged(kind, ours, &theirs, begun);
        let known = if begun.epoch == at.epoch { begun.max(their) } else { their };
        let base = if ours.base() == Position::END { known } else { known.max(ours.base()) };
        let epoch = at.epoch.max(their.epoch).max(self.told_epoch) + 1;
        self.note_anew(now);
        self.renew(now, kind, Lane::renewed(epoch, base, live));
    }

    /// Our copy laid over theirs.
    fn merged(&self, kind: Kind, ours: &Lane, theirs: &Lane, begun: Position) -> BTreeMap<Bytes, Bytes> {
        let (at, their) = (ours.position(), theirs.position());
        let said_now = |key: &Bytes| self.written.contains(&(kind, key.clone()));
        let mut live: BTreeMap<Bytes, Bytes> =
            ours.live_from(&[]).map(|(key, value)| (key.clone(), value.clone())).collect();
        // What a later copy no longer has was deleted, and even that has been forgotten.
        live.retain(|key, _| {
            let version = ours.version_of(key).unwrap_or_default();
            let was_known = their.epoch > at.epoch || (their.epoch == at.epoch && version <= begun.version);
            said_now(key) || theirs.version_of(key).is_some() || !was_known || version > their.version
        });
        for (version, key, value) in theirs.newer_than(0) {
            let newer = match their.epoch.cmp(&at.epoch) {
                std::cmp::Ordering::Greater => true,
                std::cmp::Ordering::Equal => ours.version_of(key).unwrap_or(ours.collected()) < version,
                std::cmp::Ordering::Less => Position { epoch: their.epoch, version } > ours.base(),
            };
            if newer && !said_now(key) {
                match value {
                    Some(value) => live.insert(key.clone(), value.clone()),
                    None => live.remove(key),
                };
            }
        }
        live
    }

    /// Whether lanes of ours began anew so often lately that another node seems to write under our name: the two must not chase each
    /// other with ever greater epochs.
    pub(super) fn has_begun_anew_too_often(&self, now: Timestamp) -> bool {
        self.anew.count >= ANEW_MAX && now.since(self.anew.since) < ANEW_WINDOW
    }

    /// A lane of ours begins anew because of what a peer has.
    pub(super) fn note_anew(&mut self, now: Timestamp) {
        if now.since(self.anew.since) >= ANEW_WINDOW {
            self.anew = Anew { since: now, count: 0 };
        }
        self.anew.count += 1;
    }

    /// Puts one of our own durable lanes in the place of what it was.
    fn renew(&mut self, now: Timestamp, kind: Kind, lane: Lane) {
        self.begun.insert(kind, lane.position());
        let changes = self.lanes.replace(self.me, kind, lane);
        self.absorb(now, self.me, kind, &changes);
        self.wait_for_all(kind);
    }

    /// Our ephemeral lanes begin anew under the boot number, with what this node says of itself.
    pub(super) fn restart_ephemeral(&mut self, now: Timestamp) {
        for kind in Kind::ALL.into_iter().filter(|kind| !kind.is_durable()) {
            let Some(lane) = self.lanes.lane(self.me, kind).filter(|lane| lane.position().epoch != self.boot) else {
                continue;
            };
            let live: Vec<(Bytes, Bytes)> =
                lane.live_from(&[]).map(|(key, value)| (key.clone(), value.clone())).collect();
            let lane = Lane::renewed(self.boot, Position::default(), live);
            let changes = self.lanes.replace(self.me, kind, lane);
            self.absorb(now, self.me, kind, &changes);
        }
        let info = encode_value(&self.info);
        let put = self.put(now, Kind::Node, Bytes::from_static(INFO_KEY), Some(info));
        debug_assert!(put.is_ok(), "what a node says of itself is small");
        self.stir(now);
    }

    /// Does what the notes about retired nodes ask for.
    pub(super) fn settle_retired(&mut self, now: Timestamp) {
        // Dropping lanes may drop notes, which are then looked at again; each round drops lanes or ends.
        loop {
            let lanes = self.planes.take_retired();
            if lanes.is_empty() {
                return;
            }
            for (node, kind) in lanes {
                self.lanes.retire(node, kind, self.planes.retired(node, kind));
                let runs = Kind::ALL.into_iter().filter(|other| kind == Kind::Workers && !other.is_durable());
                for kind in std::iter::once(kind).chain(runs) {
                    if node == self.me {
                        self.revive(now, kind, self.lanes.given_up(node, kind));
                    } else {
                        self.drop_dead(now, node, kind);
                    }
                }
            }
        }
    }

    fn drop_dead(&mut self, now: Timestamp, writer: NodeId, kind: Kind) {
        let position = self.lanes.position(writer, kind);
        if position.version != 0 && self.lanes.is_dead(writer, kind, position) {
            let changes = self.lanes.drop_lane(writer, kind);
            self.absorb(now, writer, kind, &changes);
        }
    }

    /// Others took us for dead and went on in our name. We say everything again, beyond what they gave up; removals of what we said
    /// stand, for they are kept as long as we are noted as dead.
    pub(super) fn revive(&mut self, now: Timestamp, kind: Kind, given_up: Position) {
        if !kind.is_durable() {
            if self.boot <= given_up.epoch {
                self.set_boot(given_up.epoch + 1);
            }
            return;
        }
        let Some(lane) = self.lanes.lane(self.me, kind).filter(|lane| lane.position() <= given_up) else { return };
        let live: Vec<(Bytes, Bytes)> = lane.live_from(&[]).map(|(key, value)| (key.clone(), value.clone())).collect();
        let renewed = Lane::renewed(given_up.epoch + 1, given_up, live);
        self.renew(now, kind, renewed);
    }
}
