//! What the faults of a plan do to the world.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use smg_base::Timestamp;
use smg_mesh_proto::{Class, CloseCode, Input, Mesh};

use crate::{
    agenda::Happening,
    disk::Disk,
    judge::{Expected, Promise},
    network::Side,
    plan::{DiskFate, Harm, Pace},
    process,
    reached::Mark,
    world::World,
};

/// Loss up to which no live node may be declared down.
const CALM_LOSS_PERCENT: u8 = 10;

impl World {
    pub(crate) fn fault_begins(&mut self, fault: usize) {
        self.active[fault] = true;
        match self.plan.faults[fault].what.clone() {
            Harm::Pause { node } => self.pause(node),
            Harm::Crash { node, .. } => {
                if (0..self.plan.nodes).all(|other| other == node || self.places[other].process.is_none()) {
                    self.reached.mark(Mark::PowerCut);
                }
                self.kill(node);
            }
            Harm::Leave { node } => {
                if self.places[node].process.is_some() {
                    self.places[node].has_left = true;
                    self.give_soon(node, Input::Leave);
                }
            }
            Harm::Twin { .. } => self.start(self.twin(fault), DiskFate::Kept),
            Harm::Hostile { .. } => self.agenda.at(self.now, Happening::Mischief { fault }),
            Harm::SlowDisk { .. } | Harm::Skew { .. } => {}
            Harm::Loss { .. }
            | Harm::Bursts { .. }
            | Harm::Delay { .. }
            | Harm::Cut { .. }
            | Harm::Split { .. }
            | Harm::Duplicate { .. } => self.set_links(),
        }
        self.note_calm();
    }

    pub(crate) fn fault_ends(&mut self, fault: usize) {
        self.active[fault] = false;
        match self.plan.faults[fault].what.clone() {
            Harm::Pause { node } => {
                let is_paused = self.active_harms().any(|harm| *harm == Harm::Pause { node });
                if !is_paused && self.network.standings[node].is_paused {
                    self.resume(node);
                }
            }
            Harm::Crash { node, disk } => self.start_again(node, disk),
            Harm::Leave { node } => {
                self.kill(node);
                self.start_again(node, DiskFate::Kept);
            }
            Harm::Twin { .. } => self.kill(self.twin(fault)),
            Harm::Hostile { .. } | Harm::SlowDisk { .. } | Harm::Skew { .. } => {}
            Harm::Loss { .. }
            | Harm::Bursts { .. }
            | Harm::Delay { .. }
            | Harm::Cut { .. }
            | Harm::Split { .. }
            | Harm::Duplicate { .. } => self.set_links(),
        }
        self.note_calm();
    }

    /// Starts a node unless another fault keeps it down.
    pub(crate) fn start_again(&mut self, node: usize, disk: DiskFate) {
        let is_down = self.active_harms().any(|harm| match harm {
            Harm::Crash { node: other, .. } | Harm::Leave { node: other } => *other == node,
            _ => false,
        });
        let is_early = self.now < Timestamp::ORIGIN + Duration::from_millis(self.plan.starts_ms[node]);
        if !is_down && !is_early {
            self.start(node, disk);
        }
    }

    /// The place of the second process that a fault starts.
    fn twin(&self, fault: usize) -> usize {
        let earlier = self.plan.faults[..fault].iter().filter(|fault| matches!(fault.what, Harm::Twin { .. }));
        self.plan.nodes + earlier.count()
    }

    fn set_links(&mut self) {
        let node_of: Vec<usize> = self.places.iter().map(|place| place.node).collect();
        let faults = self.plan.faults.iter().zip(&self.active);
        let harms = faults.filter(|(_, active)| **active).map(|(fault, _)| &fault.what);
        self.network.links.set(self.now, harms, &node_of);
        self.topology_changed();
    }

    /// Notes since when places and links are calm.
    pub(crate) fn note_calm(&mut self) {
        let now = self.now;
        let is_fast = self.plan.pace == Pace::Fast;
        let links_calm = !self.active_harms().any(|harm| match harm {
            Harm::Loss { percent, .. } => is_fast || *percent > CALM_LOSS_PERCENT,
            Harm::Bursts { .. } => true,
            Harm::Delay { .. } => is_fast,
            _ => false,
        });
        self.links_calm_since = links_calm.then(|| self.links_calm_since.unwrap_or(now));
        for place in 0..self.places.len() {
            let is_calm = self.is_calm(place);
            let spot = &mut self.places[place];
            spot.calm_since = is_calm.then(|| spot.calm_since.unwrap_or(now));
        }
    }

    fn is_calm(&self, place: usize) -> bool {
        let standing = self.network.standings[place];
        let node = self.places[place].node;
        let others = (0..self.places.len()).filter(|other| *other != place);
        let mut running = others.filter(|other| self.network.standings[*other].is_running);
        let is_meddled_with = self.active_harms().any(|harm| match harm {
            Harm::Hostile { node: one, victim } => *one == node || *victim == node,
            Harm::Twin { node: one } | Harm::Leave { node: one } => *one == node,
            _ => false,
        });
        standing.is_running
            && !standing.is_paused
            && !is_meddled_with
            && running.all(|other| self.network.links.are_open(place, other))
    }

    /// A disk is not what was written to it. What only it held is no longer promised.
    pub(crate) fn lose_disk(&mut self, place: usize, disk: Disk) {
        self.places[place].disk = disk;
        self.places[place].kept.clear();
        let meshes: Vec<Mesh> = self.places[..self.plan.nodes]
            .iter()
            .map(|spot| {
                let config = process::config(&self.plan, spot, 0);
                Mesh::new(config, spot.disk.restored(), Timestamp::ORIGIN)
            })
            .collect();
        for (number, history) in self.judge.workers.iter_mut().enumerate() {
            let is_lost = match history.expected {
                Expected::Open => false,
                Expected::Gone => true,
                Expected::Present => !meshes.iter().any(|mesh| mesh.workers().contains_key(&process::worker(number))),
                Expected::Absent { since } => !self.places.iter().enumerate().any(|(other, spot)| {
                    other != place && spot.process.as_ref().is_some_and(|process| process.started < since)
                }),
            };
            if is_lost {
                history.expected = Expected::Open;
                self.reached.mark(Mark::LostWithItsDisk);
            }
        }
        self.judge.revoked.retain(|key, _| meshes.iter().any(|mesh| mesh.config_value(&revoked_key(*key)).is_some()));
        self.judge.has_lost_disks = true;
    }

    /// A connection is about to be closed by one side.
    pub(crate) fn closing(&mut self, place: usize, side: Side, code: CloseCode) {
        match code {
            CloseCode::Redundant => self.reached.mark(Mark::ClosedRedundant),
            CloseCode::Misbehaved => {
                self.reached.mark(Mark::ClosedMisbehaved);
                if self.is_judged && !self.plan.has(|harm| matches!(harm, Harm::Hostile { .. })) {
                    let peer = self.network.peer(side);
                    self.judge.blame(self.now, Promise::Honest, format!("place {place} calls place {peer} misbehaved"));
                }
            }
            _ => {}
        }
    }

    /// A node of a later release also sends what this one does not know.
    pub(crate) fn send_newer(&mut self, place: usize, side: Side, like: &Bytes) {
        let node = self.places[place].node;
        if !self.active_harms().any(|harm| *harm == Harm::Skew { node }) || !self.dice.chance(0.1) {
            return;
        }
        self.reached.mark(Mark::NewerFrames);
        let class = if self.dice.chance(0.5) { Class::Swim } else { Class::Lane };
        let bytes = if self.dice.chance(0.5) {
            let payload = self.noise(200);
            frame(200 + self.dice.below(50) as u8, 1, &payload)
        } else {
            let mut newer = BytesMut::from(like.as_ref());
            if let Some(version) = newer.get_mut(1) {
                *version = version.saturating_add(1 + self.dice.below(100) as u8);
            }
            newer.freeze()
        };
        self.network.send(self.now, side, class, bytes, &mut self.agenda);
    }

    /// Something that no node sends is sent in the name of one.
    pub(crate) fn mischief(&mut self, fault: usize) {
        let Harm::Hostile { node, victim } = self.plan.faults[fault].what else { return };
        if !self.active[fault] {
            return;
        }
        let wait = Duration::from_millis(self.dice.between(50, 500));
        self.agenda.at(self.now + wait, Happening::Mischief { fault });
        let Some(side) = self.network.sides(node).into_iter().find(|side| self.network.peer(*side) == victim) else {
            return;
        };
        self.reached.mark(Mark::HostileFrames);
        let bytes = self.spoilt();
        let class = if self.dice.chance(0.5) { Class::Swim } else { Class::Lane };
        self.network.send(self.now, side, class, bytes, &mut self.agenda);
    }

    /// Bytes that cannot be taken for an honest frame: cut short, of a false length, or noise.
    fn spoilt(&mut self) -> Bytes {
        let position = self.dice.index(self.samples.len());
        let sample = self.samples.get(position).cloned().unwrap_or_default();
        match self.dice.below(5) {
            0 => sample.slice(..self.dice.index(sample.len())),
            1 => {
                let mut lying = BytesMut::from(sample.as_ref());
                if lying.len() >= 6 {
                    lying[2..6].copy_from_slice(&(self.dice.number() as u32).to_le_bytes());
                }
                lying.freeze()
            }
            2 => self.noise(300),
            3 => {
                // About lanes only: a member is trusted not to say that another leaves.
                let kind = 16 + self.dice.below(8) as u8;
                let payload = self.noise(100);
                frame(kind, 1, &payload)
            }
            _ => {
                let mut longer = BytesMut::from(sample.as_ref());
                longer.put_u64(self.dice.number());
                longer.freeze()
            }
        }
    }

    fn noise(&mut self, longest: u64) -> Bytes {
        let length = self.dice.below(longest);
        (0..length).map(|_| self.dice.number() as u8).collect()
    }
}

/// The key under which a revocation is kept.
pub(crate) fn revoked_key(key: usize) -> String {
    format!("revoked/{key}")
}

/// A frame by the layout of the wire: kind, version, length, payload.
fn frame(kind: u8, version: u8, payload: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(6 + payload.len());
    bytes.put_u8(kind);
    bytes.put_u8(version);
    bytes.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    bytes.put_slice(payload);
    bytes.freeze()
}
