//! Frames of membership.

use std::net::SocketAddr;

use bincode::{Decode, Encode};

use crate::{NodeId, membership::Identity};

/// The first frame of each side.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Hello {
    /// Oldest version of the protocol the sender understands.
    pub(crate) protocol_min: u16,
    /// Newest.
    pub(crate) protocol_max: u16,
    /// What it can do beyond that, one bit each; unknown ones are ignored.
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
    /// How far it has come.
    pub(crate) start: Start,
    /// Since when this run of it is there: of two with one name the older stays.
    pub(crate) age_ms: u64,
    /// What the sender knows of the receiver's past; none if nothing.
    pub(crate) holds: Option<Holds>,
    /// The run of the receiver that had the boot in `holds`, if known.
    pub(crate) holds_instance: Option<u64>,
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

/// The short form of the exchange of member lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Roll {
    /// Hash of the sorted list without the two that speak; none if it is not to be compared.
    pub(crate) hash: Option<u128>,
    /// The sender as it sees itself.
    pub(crate) me: Seen,
    /// The receiver as the sender sees it.
    pub(crate) you: Option<Seen>,
}

/// The long form: everybody whom the sender knows, itself included.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Members {
    /// The members.
    pub(crate) members: Vec<Seen>,
    /// Whether the receiver is to send its list.
    pub(crate) answer: Answer,
}

/// Whether an answer is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Answer {
    /// Yes.
    Wanted,
    /// No.
    NotWanted,
}

/// A member as somebody sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Seen {
    /// Who.
    pub(crate) identity: Identity,
    /// foca's counter of refutations.
    pub(crate) incarnation: u16,
    /// What is thought of it.
    pub(crate) state: SeenState,
}

/// What is thought of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(crate) enum SeenState {
    /// It lives.
    Alive,
    /// It may not.
    Suspect,
    /// It does not.
    Down,
    /// It said that it leaves.
    Left,
}

/// Asks for an immediate answer, or is it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Echo {
    /// Pairs question and answer.
    pub(crate) nonce: u64,
}

/// Asks whether the receiver too has lost a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Confirm {
    /// Which member.
    pub(crate) about: NodeId,
}

/// The answer to [`Confirm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct ConfirmReply {
    /// Which member.
    pub(crate) about: NodeId,
    /// How its connection looks from here.
    pub(crate) heard: Heard,
}

/// How the connection to a member looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Heard {
    /// Something came over it within a second.
    Lately,
    /// It was lost, and there is no new one.
    Lost,
    /// Neither.
    Unsure,
}

/// Tells a node, before its connection is closed, that a live node has its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct NameTaken {
    /// Where that node is.
    pub(crate) address: SocketAddr,
}

/// The sender leaves for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Leaving {
    /// Which of its starts.
    pub(crate) boot: u64,
}
