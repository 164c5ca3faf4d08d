//! Whom to dial, and when: seeds for ever, members without a session.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use smg_base::{Backoff, Random as _, SplitMix, Timestamp};

use super::{roster::Roster, sessions::Sessions};
use crate::{Limits, MemberState, NodeId, Timers};

/// First pause between two attempts to reach a seed.
const SEED_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two attempts once there are peers: heals splits that are older than memory.
const SEED_PAUSE_AMONG_PEERS_MAX: Duration = Duration::from_secs(60);
/// How long a seed that is reached is not looked at.
const SEED_REACHED: Duration = Duration::from_secs(1);
/// How much rarer those are dialled that have left.
const LEFT_PAUSE: u32 = 5;
/// How long the node with the greater id leaves the dialling to the other.
const COURTESY: Duration = Duration::from_secs(1);

/// Whom this node dials.
pub(crate) struct Dialer {
    me: NodeId,
    own: SocketAddr,
    timers: Timers,
    seeds_max: usize,
    /// None until the seeds have been told.
    seeds: Option<Vec<Seed>>,
    members: BTreeMap<NodeId, Wanted>,
}

struct Seed {
    address: SocketAddr,
    attempts: u32,
    next: Timestamp,
    /// Who answered there last.
    node: Option<NodeId>,
}

/// A member that should have a session and has none.
struct Wanted {
    next: Timestamp,
}

/// An address to dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) address: SocketAddr,
    pub(crate) expect: Option<NodeId>,
}

impl Dialer {
    pub(crate) fn new(me: NodeId, own: SocketAddr, timers: Timers, limits: &Limits) -> Self {
        Self { me, own, timers, seeds_max: limits.seeds_max, seeds: None, members: BTreeMap::new() }
    }

    /// Takes the addresses of all seeds; those known keep their pace.
    pub(crate) fn set_seeds(&mut self, now: Timestamp, addresses: Vec<SocketAddr>) {
        let mut before = self.seeds.take().unwrap_or_default();
        let mut seeds: Vec<Seed> = Vec::new();
        for address in addresses {
            if seeds.len() == self.seeds_max || seeds.iter().any(|seed| seed.address == address) {
                continue;
            }
            let known = before.iter().position(|seed| seed.address == address).map(|at| before.swap_remove(at));
            seeds.push(known.unwrap_or(Seed { address, attempts: 0, next: now, node: None }));
        }
        self.seeds = Some(seeds);
    }

    /// Whether it is known that there is nobody to ask.
    pub(crate) fn has_no_seeds(&self) -> bool {
        self.seeds.as_ref().is_some_and(|seeds| seeds.iter().all(|seed| self.is_own(seed)))
    }

    /// Somebody answered at an address that was dialled.
    pub(crate) fn answered(&mut self, address: SocketAddr, peer: NodeId) {
        for seed in self.seeds.iter_mut().flatten().filter(|seed| seed.address == address) {
            seed.node = Some(peer);
        }
    }

    /// Whom to dial now.
    pub(crate) fn due(&mut self, now: Timestamp, roster: &Roster, sessions: &Sessions, random: &SplitMix) -> Vec<Dial> {
        let mut dials = self.due_members(now, roster, sessions, random);
        dials.extend(self.due_seeds(now, roster, sessions, random));
        dials
    }

    /// When somebody is next to be dialled, as far as is known.
    pub(crate) fn next_tick(&self) -> Option<Timestamp> {
        let seeds = self.seeds.iter().flatten().filter(|seed| !self.is_own(seed)).map(|seed| seed.next);
        seeds.chain(self.members.values().map(|wanted| wanted.next)).min()
    }

    /// The member is dialled right now, by the way; the next attempt follows at the usual pace.
    pub(crate) fn dialled(&mut self, now: Timestamp, node: NodeId, random: &SplitMix) {
        self.members.insert(node, Wanted { next: now + jittered(self.timers.redial, random) });
    }

    fn due_members(&mut self, now: Timestamp, roster: &Roster, sessions: &Sessions, random: &SplitMix) -> Vec<Dial> {
        let mut dials = Vec::new();
        let mut wanted = BTreeMap::new();
        for (node, entry) in roster.iter() {
            let alive = entry.state.is_alive();
            if !alive && now.since(entry.since) >= self.timers.redial_for || sessions.covers(node) {
                continue;
            }
            // One that left may come back with seeds that are gone by then.
            let pause =
                if entry.state == MemberState::Left { self.timers.redial * LEFT_PAUSE } else { self.timers.redial };
            let courtesy = if self.me < node { Duration::ZERO } else { COURTESY };
            let first = if entry.state == MemberState::Left { pause } else { courtesy };
            let mut want = self.members.remove(&node).unwrap_or(Wanted { next: now + first });
            if want.next <= now {
                dials.push(Dial { address: entry.identity.address, expect: Some(node) });
                want.next = now + jittered(pause, random);
            }
            wanted.insert(node, want);
        }
        self.members = wanted;
        dials
    }

    fn due_seeds(&mut self, now: Timestamp, roster: &Roster, sessions: &Sessions, random: &SplitMix) -> Vec<Dial> {
        let max = if sessions.is_empty() { self.timers.seed_pause_max } else { SEED_PAUSE_AMONG_PEERS_MAX };
        let backoff = Backoff { initial: SEED_PAUSE, max, ..Backoff::default() };
        let mut dials = Vec::new();
        let (me, own) = (self.me, self.own);
        for seed in self.seeds.iter_mut().flatten() {
            if seed.next > now || seed.address == own || seed.node == Some(me) {
                continue;
            }
            let reached = sessions.reaches(seed.address)
                || seed.node.is_some_and(|node| sessions.covers(node))
                || roster.at(seed.address).any(|node| sessions.covers(node));
            if reached {
                seed.attempts = 0;
                seed.next = now + SEED_REACHED;
                continue;
            }
            dials.push(Dial { address: seed.address, expect: None });
            seed.next = now + backoff.delay(seed.attempts, random);
            seed.attempts = seed.attempts.saturating_add(1);
        }
        dials
    }

    fn is_own(&self, seed: &Seed) -> bool {
        seed.address == self.own || seed.node == Some(self.me)
    }
}

/// A duration up to a fifth shorter or longer, so that nodes do not act in step.
pub(crate) fn jittered(duration: Duration, random: &SplitMix) -> Duration {
    duration.mul_f64(0.8 + 0.4 * random.unit())
}
