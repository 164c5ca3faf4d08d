//! Adoption of the dead, and what may be forgotten.

use bytes::Bytes;
use smg_base::{Timestamp, WorkerId};

use super::Replica;
use crate::{
    Kind, NodeId,
    lanes::{Claim, Lane, Position, Retired, WorkersKey, adopted, claim, owned, retired, retired_keys},
    planes::Removal,
    wire::{decode_value, encode_value},
};

/// A lane keeps at least so many tombstones: whoever was away for a short while is sent changes, not everything.
const TOMBSTONES_MIN: usize = 1_024;
/// Most removals that are looked at in one round.
const REMOVALS_LOOKED_AT: usize = 4_096;
/// After so many rounds it is noted anew that a lane is behind.
const BEHIND_ROUNDS: u32 = 30;
/// Most notes about retired nodes that one lane keeps.
const RETIRED_MAX: usize = 1_024;

/// What our lane says about a retired node.
struct Note {
    version: u64,
    key: Bytes,
    node: NodeId,
    retired: Retired,
}

impl Replica {
    /// What is done about once a second.
    pub(super) fn upkeep(&mut self, now: Timestamp) {
        self.note_silence(now);
        self.collect_tombstones();
        if self.has_started() {
            self.adopt_the_dead(now);
            self.release_the_living(now);
            self.forget_removals(now);
            self.settle_retired(now);
        }
        self.forget_written();
        self.behind.retain(|_, since| now.since(*since) < self.timers.digest * BEHIND_ROUNDS);
    }

    /// What this run wrote counts only as long as the lane still has the key, if only as a tombstone.
    fn forget_written(&mut self) {
        let durable = Kind::ALL.into_iter().filter(|kind| kind.is_durable());
        let entries: usize = durable.filter_map(|kind| self.lanes.lane(self.me, kind)).map(Lane::len).sum();
        if self.written.len() > 2 * entries + TOMBSTONES_MIN {
            let (me, lanes) = (self.me, &self.lanes);
            self.written.retain(|(kind, key)| lanes.lane(me, *kind).is_some_and(|lane| lane.version_of(key).is_some()));
        }
    }

    /// Assertions in our lane that a removal covers go: they say nothing any more.
    pub(super) fn cover(&mut self) {
        if !self.has_started() {
            return;
        }
        let now = self.schedule.flushed;
        for worker in self.planes.touched_workers() {
            for (dot, place) in self.planes.workers.held_by(self.me, worker) {
                if self.planes.workers.is_removed(dot) {
                    let key = WorkersKey::Add(dot).bytes();
                    let key = if place.author == self.me { owned(&key) } else { adopted(place.author, &key) };
                    self.erase(now, Kind::Workers, &key);
                }
            }
        }
    }

    /// Whoever has lanes and no voice is counted from when that was first seen.
    fn note_silence(&mut self, now: Timestamp) {
        let alive = self.planes.alive();
        for writer in self.lanes.writers().filter(|writer| !alive.contains(writer)) {
            self.silent.entry(writer).or_insert(now);
        }
        self.silent.retain(|writer, _| self.lanes.has_writer(*writer));
    }

    /// Tombstones of ours that every peer has may go; who comes later is sent the lane as a whole.
    fn collect_tombstones(&mut self) {
        for kind in Kind::ALL {
            let Some(lane) = self.lanes.lane(self.me, kind) else { continue };
            if lane.tombstones() <= TOMBSTONES_MIN.max(lane.live()) {
                continue;
            }
            let position = lane.position();
            let acked = self.peers.values().map(|peer| self.acked_by(peer, kind));
            let known = acked.map(|acked| if acked.epoch == position.epoch { acked.version } else { 0 });
            self.lanes.collect(self.me, kind, known.min().unwrap_or(position.version));
        }
    }

    /// A writer that has been silent for too long goes on in the lane of the survivor that the rendezvous names.
    fn adopt_the_dead(&mut self, now: Timestamp) {
        let long_silent = self.silent.iter().filter(|(_, since)| now.since(**since) >= self.timers.adopt_after);
        let dead: Vec<NodeId> = long_silent.map(|(writer, _)| *writer).filter(|writer| *writer != self.me).collect();
        for writer in dead {
            let own = self.me.score(writer.as_u128());
            let alive = self.planes.alive();
            if alive.iter().all(|node| (node.score(writer.as_u128()), *node) <= (own, self.me)) {
                self.adopt(now, writer);
            }
        }
    }

    fn adopt(&mut self, now: Timestamp, writer: NodeId) {
        self.silent.remove(&writer);
        let boot = self.lanes.boot(writer);
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_durable()) {
            // The workers lane speaks for the ephemeral ones too.
            if self.lanes.lane(writer, kind).is_some() || kind == Kind::Workers {
                self.adopt_lane(now, writer, kind, if kind == Kind::Workers { boot } else { 0 });
            }
        }
    }

    /// The entries and the note are in one lane, so that nobody learns the one without the other.
    fn adopt_lane(&mut self, now: Timestamp, writer: NodeId, kind: Kind, boot: u64) {
        let Position { epoch, version } = self.lanes.position(writer, kind).max(self.lanes.given_up(writer, kind));
        let lane = self.lanes.lane(writer, kind).into_iter().flat_map(|lane| lane.live_from(&[]));
        let entries: Vec<(Bytes, Bytes)> = lane.map(|(key, value)| (key.clone(), value.clone())).collect();
        for (key, value) in entries {
            let (key, value) = match claim(writer, &key) {
                Some(Claim::Entry(claimed)) if self.is_covered(kind, &claimed.key) => continue,
                // Our own word, which the dead had adopted: it may be all that is left of it.
                Some(Claim::Entry(claimed)) if claimed.author == self.me => {
                    let key = owned(&claimed.key);
                    let own = self.lanes.lane(self.me, kind);
                    if own.is_some_and(|own| own.version_of(&key).is_some()) {
                        continue;
                    }
                    (key, value)
                }
                Some(Claim::Entry(claimed)) => (adopted(claimed.author, &claimed.key), value),
                Some(Claim::Retired(node)) => match self.planes.retired(node, kind) {
                    Some(note) if node != self.me => (key, encode_value(&note)),
                    _ => continue,
                },
                // What a newer program wrote is kept as it is.
                None => (key, value),
            };
            if self.put(now, kind, key, Some(value)).is_err() {
                // No room: it stays where it is until there is.
                return;
            }
        }
        let note = encode_value(&Retired { epoch, version, boot });
        if self.put(now, kind, retired(writer), Some(note)).is_err() {
            // The same: without the note nothing is dropped.
            self.silent.insert(writer, now);
        }
    }

    fn is_covered(&self, kind: Kind, key: &[u8]) -> bool {
        match WorkersKey::of(key) {
            Some(WorkersKey::Add(dot)) if kind == Kind::Workers => self.planes.workers.is_removed(dot),
            _ => false,
        }
    }

    /// A node that was taken for dead and is back says again what was said in its name.
    fn release_the_living(&mut self, now: Timestamp) {
        for kind in Kind::ALL.into_iter().filter(|kind| kind.is_durable()) {
            let mut notes = self.notes(kind);
            notes.sort_unstable_by_key(|note| note.version);
            let surplus = notes.len().saturating_sub(RETIRED_MAX);
            for (index, Note { key, node, retired, .. }) in notes.into_iter().enumerate() {
                let given_up = Position { epoch: retired.epoch, version: retired.version };
                let is_back = self.planes.alive().contains(&node) && self.lanes.position(node, kind) > given_up;
                let known = if is_back {
                    let since = *self.returned.entry((kind, node)).or_insert(now);
                    self.is_known_to_all(kind, since)
                } else {
                    self.returned.remove(&(kind, node));
                    false
                };
                // Not before everybody has its own word again: it would be forgotten between the two.
                if index < surplus || (known && self.release(now, node, kind) == 0) {
                    self.returned.remove(&(kind, node));
                    self.erase(now, kind, &key);
                }
            }
        }
    }

    fn notes(&self, kind: Kind) -> Vec<Note> {
        let Some(lane) = self.lanes.lane(self.me, kind) else { return Vec::new() };
        let read = |(key, value): (&Bytes, &Bytes)| match (claim(self.me, key), decode_value(value)) {
            (Some(Claim::Retired(node)), Some(retired)) => {
                Some(Note { version: lane.version_of(key).unwrap_or_default(), key: key.clone(), node, retired })
            }
            _ => None,
        };
        lane.live_from(&retired_keys()).filter_map(read).collect()
    }

    /// Drops from our lane what `author` says itself again. Says how many entries are left.
    fn release(&mut self, now: Timestamp, author: NodeId, kind: Kind) -> usize {
        let prefix = adopted(author, &[]);
        let Some(lane) = self.lanes.lane(self.me, kind) else { return 0 };
        let theirs = self.lanes.lane(author, kind);
        let said_again =
            |key: &Bytes| theirs.is_some_and(|lane| lane.version_of(&owned(&key[prefix.len()..])).is_some());
        let keys: Vec<Bytes> = lane.live_from(&prefix).map(|(key, _)| key.clone()).collect();
        let (again, kept): (Vec<Bytes>, Vec<Bytes>) = keys.into_iter().partition(said_again);
        for key in again {
            self.erase(now, kind, &key);
        }
        kept.len()
    }

    /// Whether every node that has lanes is there, and has been seen to know what we knew of a plane at that time.
    fn is_known_to_all(&self, kind: Kind, since: Timestamp) -> bool {
        let alive = self.planes.alive();
        let knows = |node: &NodeId| {
            let peer = self.peers.get(node);
            peer.and_then(|peer| peer.matched.get(&kind)).is_some_and(|matched| *matched > since)
        };
        self.lanes.writers().all(|writer| alive.contains(&writer))
            && alive.iter().filter(|node| **node != self.me).all(knows)
    }

    /// A removal of ours may go once its assertion is in no lane, every writer is there to say so, and every peer has been seen to
    /// know it: then nobody can bring the assertion back. Declared assertions come back with every restart, so their removals stay.
    fn forget_removals(&mut self, now: Timestamp) {
        let Some(lane) = self.lanes.lane(self.me, Kind::Workers) else { return };
        let mut gone = Vec::new();
        let prefix = owned(b"x");
        for (key, value) in lane.live_from(&prefix).take(REMOVALS_LOOKED_AT) {
            let (Some(WorkersKey::Remove(dot)), Some(removal)) =
                (WorkersKey::of(&key[1..]), decode_value::<Removal>(value))
            else {
                continue;
            };
            let worker = WorkerId::from_u128(removal.worker);
            // Whoever was taken for dead may come back with what it said before.
            if dot.is_declared()
                || removal.authors.iter().any(|author| self.planes.retired(*author, Kind::Workers).is_some())
            {
                continue;
            }
            if self.planes.workers.is_held(worker, dot) {
                self.settled.remove(key);
                continue;
            }
            let since = *self.settled.entry(key.clone()).or_insert(now);
            if self.is_known_to_all(Kind::Workers, since) {
                gone.push(key.clone());
            }
        }
        for key in gone {
            self.settled.remove(&key);
            self.erase(now, Kind::Workers, &key);
        }
    }
}
