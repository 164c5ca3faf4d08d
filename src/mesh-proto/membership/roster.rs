//! The members as this node knows them: what SWIM says of each, and what each said of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use foca::State;
use smg_base::{Timestamp, hash};

use super::identity::Identity;
use crate::{
    Member, MemberState, NodeId, NodeInfo,
    wire::{Hello, Seen, SeenState},
};

/// All other members, by node.
#[derive(Default)]
pub(crate) struct Roster {
    entries: BTreeMap<NodeId, Entry>,
    /// What nodes said in their Hello; also of nodes that SWIM does not know yet.
    facts: BTreeMap<NodeId, Facts>,
    /// Those of whom something that is shown may have changed.
    touched: BTreeSet<NodeId>,
}

/// A member.
pub(crate) struct Entry {
    pub(crate) identity: Identity,
    pub(crate) incarnation: u16,
    pub(crate) state: MemberState,
    /// Since when it is in this state.
    pub(crate) since: Timestamp,
    /// The identity that said it leaves.
    left: Option<(u64, u16)>,
    /// As last shown to the node.
    shown: Option<Arc<Member>>,
}

/// What a node said of itself when it connected.
struct Facts {
    name: String,
    zone: String,
    region: String,
    software: String,
    instance: u64,
    boot: u64,
}

/// A member's word begins or ceases to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) node: NodeId,
    pub(crate) state: MemberState,
}

/// What only the sessions know of a member.
pub(crate) struct Link {
    pub(crate) connected: bool,
    pub(crate) rtt: Option<Duration>,
    pub(crate) doubted: bool,
}

impl Roster {
    pub(crate) fn entry(&self, node: NodeId) -> Option<&Entry> {
        self.entries.get(&node)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, &Entry)> {
        self.entries.iter().map(|(node, entry)| (*node, entry))
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_alive(&self, node: NodeId) -> bool {
        self.entries.get(&node).is_some_and(|entry| entry.state.is_alive())
    }

    /// The run that had this boot, if the node said so itself.
    pub(crate) fn instance(&self, node: NodeId, boot: u64) -> Option<u64> {
        self.facts.get(&node).filter(|facts| facts.boot == boot).map(|facts| facts.instance)
    }

    /// Takes over what foca knows of one member. Tells whether its word begins or ceases to count.
    pub(crate) fn learn(&mut self, now: Timestamp, member: &foca::Member<Identity>) -> Option<Turn> {
        let identity = *member.id();
        let node = identity.node;
        let before = self.entries.get(&node);
        let left = before.and_then(|entry| entry.left).filter(|left| *left == identity.age());
        let state = match member.state() {
            State::Alive => MemberState::Alive,
            State::Suspect => MemberState::Suspect,
            State::Down if left.is_some() => MemberState::Left,
            State::Down => MemberState::Down,
        };
        let same = before.is_some_and(|entry| {
            entry.identity == identity && entry.incarnation == member.incarnation() && entry.state == state
        });
        if same {
            return None;
        }
        let counted = before.map(|entry| entry.state.is_alive());
        let since = before.filter(|entry| entry.state == state && entry.identity == identity).map(|entry| entry.since);
        let shown = before.and_then(|entry| entry.shown.clone());
        let entry =
            Entry { identity, incarnation: member.incarnation(), state, since: since.unwrap_or(now), left, shown };
        self.entries.insert(node, entry);
        self.touched.insert(node);
        (counted != Some(state.is_alive())).then_some(Turn { node, state })
    }

    /// Notes that this identity said it leaves: when SWIM takes it for dead, it has left.
    pub(crate) fn note_left(&mut self, now: Timestamp, identity: Identity) {
        if let Some(entry) = self.entries.get_mut(&identity.node)
            && entry.identity.age() == identity.age()
        {
            entry.left = Some(identity.age());
            if entry.state == MemberState::Down {
                entry.state = MemberState::Left;
                entry.since = now;
                self.touched.insert(identity.node);
            }
        }
    }

    /// Takes over what a node says of itself.
    pub(crate) fn introduce(&mut self, hello: &Hello) {
        let facts = Facts {
            name: hello.name.clone(),
            zone: hello.zone.clone(),
            region: hello.region.clone(),
            software: hello.software.clone(),
            instance: hello.instance,
            boot: hello.boot,
        };
        self.facts.insert(hello.node, facts);
        self.touched.insert(hello.node);
    }

    /// The node goes on under a greater boot than it said at first.
    pub(crate) fn reboot(&mut self, identity: Identity) {
        if let Some(facts) = self.facts.get_mut(&identity.node) {
            facts.boot = facts.boot.max(identity.boot);
        }
    }

    pub(crate) fn forget(&mut self, node: NodeId) {
        self.entries.remove(&node);
        self.facts.remove(&node);
        self.touched.remove(&node);
    }

    pub(crate) fn touch(&mut self, node: NodeId) {
        self.touched.insert(node);
    }

    pub(crate) fn take_touched(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.touched)
    }

    /// Whether some member says that it is at this address.
    pub(crate) fn at(&self, address: SocketAddr) -> impl Iterator<Item = NodeId> {
        self.entries.iter().filter(move |(_, entry)| entry.identity.address == address).map(|(node, _)| *node)
    }

    /// As others are told. Those dead for longer than `fresh` are left out: else two nodes that forget at different times would
    /// remind each other for ever.
    pub(crate) fn seen(&self, now: Timestamp, fresh: Duration) -> impl Iterator<Item = Seen> {
        self.entries
            .values()
            .filter(move |entry| entry.state.is_alive() || now.since(entry.since) < fresh)
            .map(Entry::seen)
    }

    /// Hash of [`Self::seen`] without `peer`: equal on both sides if they know the same of all others.
    pub(crate) fn digest(&self, now: Timestamp, fresh: Duration, peer: NodeId) -> u128 {
        let mut bytes = Vec::with_capacity(self.entries.len() * 32);
        for seen in self.seen(now, fresh).filter(|seen| seen.identity.node != peer) {
            bytes.extend_from_slice(&seen.identity.node.as_u128().to_le_bytes());
            bytes.extend_from_slice(&seen.identity.boot.to_le_bytes());
            bytes.extend_from_slice(&seen.identity.bump.to_le_bytes());
            bytes.extend_from_slice(&seen.incarnation.to_le_bytes());
            bytes.push(seen.state as u8);
        }
        hash::stable128(&bytes)
    }

    /// The member as it is shown; none if nothing shown has changed since.
    pub(crate) fn show(&mut self, node: NodeId, link: &Link, info: Option<NodeInfo>) -> Option<Arc<Member>> {
        let member = self.member(node, link, info)?;
        let entry = self.entries.get_mut(&node)?;
        if entry.shown.as_ref().is_some_and(|shown| looks_same(shown, &member)) {
            return None;
        }
        let member = Arc::new(member);
        entry.shown = Some(Arc::clone(&member));
        Some(member)
    }

    /// The member as it is now.
    pub(crate) fn member(&self, node: NodeId, link: &Link, info: Option<NodeInfo>) -> Option<Member> {
        let entry = self.entries.get(&node)?;
        let facts = self.facts.get(&node);
        let info = info.unwrap_or_default();
        let pick = |said: String, hello: Option<&String>| {
            if said.is_empty() { hello.cloned().unwrap_or_default() } else { said }
        };
        let name = pick(info.name, facts.map(|facts| &facts.name));
        Some(Member {
            node,
            name: if name.is_empty() { node.to_string() } else { name },
            address: entry.identity.address,
            traffic_url: info.traffic_url,
            zone: pick(info.zone, facts.map(|facts| &facts.zone)),
            region: pick(info.region, facts.map(|facts| &facts.region)),
            software: pick(info.software, facts.map(|facts| &facts.software)),
            boot: entry.identity.boot,
            state: entry.state,
            doubted: link.doubted || entry.state == MemberState::Suspect,
            draining: info.draining,
            connected: link.connected,
            rtt: link.rtt,
            since: entry.since,
            is_self: false,
        })
    }
}

impl Entry {
    pub(crate) fn seen(&self) -> Seen {
        let state = match self.state {
            MemberState::Alive => SeenState::Alive,
            MemberState::Suspect => SeenState::Suspect,
            MemberState::Down => SeenState::Down,
            MemberState::Left => SeenState::Left,
        };
        Seen { identity: self.identity, incarnation: self.incarnation, state }
    }
}

/// Round trip times waver, which is not news.
fn looks_same(before: &Member, after: &Member) -> bool {
    let rtt = match (before.rtt, after.rtt) {
        (Some(before), Some(after)) => before.abs_diff(after) > before / 4 + Duration::from_micros(250),
        (before, after) => before != after,
    };
    !rtt && *before == Member { rtt: before.rtt, ..after.clone() }
}
