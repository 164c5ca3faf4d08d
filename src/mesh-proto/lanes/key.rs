//! Keys of durable lanes. The first byte says whose word an entry is: the writer's own, or that of a dead node it was adopted from.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{Dot, NodeId};

const OWN: u8 = 0;
const ADOPTED: u8 = 1;
const RETIRED: u8 = 2;

const ADD: u8 = b'a';
const REMOVE: u8 = b'x';

/// An entry of a durable lane, as its key tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Somebody's word.
    Entry(Claimed),
    /// This node's lanes are retired.
    Retired(NodeId),
}

/// Whose word an entry is, and about what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claimed {
    /// Who said it first.
    pub(crate) author: NodeId,
    /// The key it said it under.
    pub(crate) key: Bytes,
}

/// The key of an entry that its writer says itself.
pub(crate) fn owned(key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(1 + key.len());
    bytes.put_u8(OWN);
    bytes.put_slice(key);
    bytes.freeze()
}

/// The key under which an entry of `author` goes on; of no key at all, what all such keys begin with.
pub(crate) fn adopted(author: NodeId, key: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(17 + key.len());
    bytes.put_u8(ADOPTED);
    bytes.put_u128_le(author.as_u128());
    bytes.put_slice(key);
    bytes.freeze()
}

/// The key that says that a node's lanes are retired.
pub(crate) fn retired(node: NodeId) -> Bytes {
    let mut bytes = BytesMut::with_capacity(17);
    bytes.put_u8(RETIRED);
    bytes.put_u128_le(node.as_u128());
    bytes.freeze()
}

/// What all keys begin with that say such a thing.
pub(crate) const fn retired_keys() -> [u8; 1] {
    [RETIRED]
}

/// Reads a key of a durable lane of `writer`; none if a newer program made it.
pub(crate) fn claim(writer: NodeId, key: &Bytes) -> Option<Claim> {
    match *key.first()? {
        OWN => Some(Claim::Entry(Claimed { author: writer, key: key.slice(1..) })),
        // Nobody adopts its own word.
        ADOPTED if node_at(key)? != writer => {
            Some(Claim::Entry(Claimed { author: node_at(key)?, key: key.slice(17..) }))
        }
        RETIRED if key.len() == 17 => Some(Claim::Retired(node_at(key)?)),
        _ => None,
    }
}

fn node_at(key: &Bytes) -> Option<NodeId> {
    let number = key.get(1..17)?.try_into().ok()?;
    Some(NodeId::from_u128(u128::from_le_bytes(number)))
}

/// What an entry of the workers plane is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkersKey {
    /// An assertion.
    Add(Dot),
    /// A removal of one.
    Remove(Dot),
}

impl WorkersKey {
    /// As bytes.
    pub(crate) fn bytes(self) -> Bytes {
        let (tag, dot) = match self {
            Self::Add(dot) => (ADD, dot),
            Self::Remove(dot) => (REMOVE, dot),
        };
        let mut bytes = BytesMut::with_capacity(17);
        bytes.put_u8(tag);
        bytes.put_u128_le(dot.as_u128());
        bytes.freeze()
    }

    /// Reads one; none if a newer program made it.
    pub(crate) fn of(key: &[u8]) -> Option<Self> {
        let (tag, number) = key.split_first()?;
        let dot = Dot::from_u128(u128::from_le_bytes(number.try_into().ok()?));
        match *tag {
            ADD => Some(Self::Add(dot)),
            REMOVE => Some(Self::Remove(dot)),
            _ => None,
        }
    }
}
