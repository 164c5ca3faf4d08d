//! Frames of membership.

use std::net::SocketAddr;

use bincode::{Decode, Encode};

use crate::NodeId;

/// The first frame of each side.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Hello {
    /// Oldest version of the protocol the sender understands.
    pub(crate) protocol_min: u16,
    /// Newest.
    pub(crate) protocol_max: u16,
    /// What it can do beyond that, one bit each.
    pub(crate) capabilities: u64,
    /// Its cluster.
    pub(crate) cluster: String,
    /// Its name.
    pub(crate) name: String,
    /// Its id.
    pub(crate) node: NodeId,
    /// Tells this run of it from any other.
    pub(crate) instance: u64,
    /// Counts its starts.
    pub(crate) boot: u64,
    /// Where its mesh port is.
    pub(crate) advertise: SocketAddr,
    /// Its failure domain.
    pub(crate) zone: String,
    /// Its region.
    pub(crate) region: String,
    /// Version of its program.
    pub(crate) software: String,
    /// Whether it has joined its cluster.
    pub(crate) start: Start,
    /// What it holds of the receiver's lanes; none if nothing.
    pub(crate) holds: Option<Holds>,
}

/// How far a node has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Start {
    /// It learns what the others know.
    Joining,
    /// It is part of the cluster.
    Joined,
}

/// The greatest numbers known for a node: it must exceed them when it begins anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) struct Holds {
    /// Of its boots.
    pub(crate) boot: u64,
    /// Of the epochs of its durable lanes.
    pub(crate) epoch: u64,
}

/// What a list of members comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ExchangeDigest {
    /// Hash of the sorted list.
    pub(crate) hash: u128,
}

/// A list of members.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ExchangeList {
    /// The members.
    pub(crate) members: Vec<MemberRow>,
    /// Whether the sender wants the receiver's list in return.
    pub(crate) answer: bool,
}

/// A member as foca knows it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct MemberRow {
    /// Who.
    pub(crate) node: NodeId,
    /// Counts its starts.
    pub(crate) boot: u64,
    /// Counts its renewals in this run.
    pub(crate) bump: u16,
    /// Where its mesh port is.
    pub(crate) address: SocketAddr,
    /// Hash of its failure domain's name.
    pub(crate) zone: u32,
    /// Hash of its region's name.
    pub(crate) region: u32,
    /// foca's counter of refutations.
    pub(crate) incarnation: u16,
    /// 0 alive, 1 suspect, 2 down.
    pub(crate) state: u8,
}

/// Asks for an immediate answer, or is it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Echo {
    /// Pairs question and answer.
    pub(crate) nonce: u64,
}

/// Asks whether the receiver reaches a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Confirm {
    /// Pairs question and answer.
    pub(crate) nonce: u64,
    /// Which member.
    pub(crate) about: NodeId,
    /// Which start of it.
    pub(crate) boot: u64,
}

/// Says whether the sender reaches a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ConfirmReply {
    /// Pairs question and answer.
    pub(crate) nonce: u64,
    /// Which member.
    pub(crate) about: NodeId,
    /// Which start of it.
    pub(crate) boot: u64,
    /// Whether it was heard within the last second.
    pub(crate) heard: bool,
}
