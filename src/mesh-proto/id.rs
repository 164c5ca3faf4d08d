//! Names of things in the mesh.

use std::fmt;

use bincode::{Decode, Encode};
use smg_base::{WorkerId, hash};

/// Identifies a node by its name, whatever its address and however often it was restarted. Nothing is keyed by more than
/// this: boot and address change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct NodeId(u128);

impl NodeId {
    /// The id of the node called `name`.
    pub fn of(name: &str) -> Self {
        Self(hash::stable128(name.as_bytes()))
    }

    /// The id as a number.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The id that this number is.
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }

    /// Where this node stands in the rendezvous for `key`: the greatest score wins (Thaler and Ravishankar, 1998).
    #[expect(clippy::cast_possible_truncation, reason = "both halves are mixed in")]
    pub fn score(self, key: u128) -> u64 {
        let own = hash::mix((self.0 >> 64) as u64, self.0 as u64);
        hash::mix(own, hash::mix((key >> 64) as u64, key as u64))
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 96)
    }
}

/// Identifies one assertion that a worker exists. A removal names the dots it has seen, and nothing else: an assertion made
/// meanwhile, elsewhere, survives it (observed-remove; Shapiro et al., 2011).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Dot(u128);

impl Dot {
    /// The dot of a worker that flags or a file declare: the same one after every restart and on every node that declares the
    /// same, so that a removal stands until the declaration changes.
    pub fn declared(worker: WorkerId, spec: &[u8]) -> Self {
        let mut bytes = worker.as_u128().to_le_bytes().to_vec();
        bytes.extend_from_slice(spec);
        // The lowest bit tells the two kinds apart.
        Self(hash::stable128(&bytes) | 1)
    }

    /// A dot nobody else has: of the `count`th assertion by one run (`instance`, drawn at random) of a node.
    pub fn fresh(node: NodeId, instance: u64, count: u64) -> Self {
        let mut bytes = node.as_u128().to_le_bytes().to_vec();
        bytes.extend_from_slice(&instance.to_le_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        Self(hash::stable128(&bytes) & !1)
    }

    /// Whether it belongs to a declaration.
    pub const fn is_declared(self) -> bool {
        self.0 & 1 == 1
    }

    /// The dot as a number.
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The dot that this number is.
    pub const fn from_u128(number: u128) -> Self {
        Self(number)
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08x}", if self.is_declared() { "d" } else { "f" }, self.0 >> 96)
    }
}

/// One connection to a peer, numbered by the transport; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// A write whose writer waits for it, numbered by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);
