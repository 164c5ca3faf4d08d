//! What a node tells operators of its mesh.

use std::sync::Arc;

use crate::{Digest, Kind, Member, NodeId};

/// The mesh as this node sees it.
#[derive(Clone, Debug)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// The cluster.
    pub cluster: String,
    /// Whether it has joined and knows what its peers know.
    pub joined: bool,
    /// Whether it acts alone because no peer came.
    pub alone: bool,
    /// All members, by name; itself included.
    pub members: Vec<Arc<Member>>,
    /// All planes, by kind.
    pub planes: Vec<PlaneStatus>,
    /// One digest over all planes.
    pub digest: Digest,
    /// Whether this node's own links lose so much that it probes more slowly.
    pub stretched: bool,
    /// What was passed over so far.
    pub skipped: Skipped,
}

/// What came and only a newer program understands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Frames of a kind or version that is not known here.
    pub frames: u64,
    /// Entries of lanes of such a kind.
    pub entries: u64,
}

/// A plane: all lanes of one kind.
#[derive(Clone, Debug)]
pub struct PlaneStatus {
    /// Which.
    pub kind: Kind,
    /// Over its live entries; equal on two nodes with the same version vector.
    pub digest: Digest,
    /// Bytes of keys and values, tombstones included.
    pub bytes: usize,
    /// Its lanes, by writer: the version vector.
    pub lanes: Vec<LaneStatus>,
}

/// A lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneStatus {
    /// Who writes it.
    pub writer: NodeId,
    /// Its epoch.
    pub epoch: u64,
    /// Its newest version.
    pub version: u64,
    /// Tombstones up to this version are gone.
    pub collected: u64,
    /// Live entries.
    pub entries: usize,
    /// Tombstones.
    pub tombstones: usize,
    /// The greatest lag of a connected peer, in versions it has not acknowledged; own lanes only.
    pub lag: u64,
}
