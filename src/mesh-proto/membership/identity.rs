//! Who a member is to foca: its node, and which of its runs and returns is meant.

use std::net::SocketAddr;

use bincode::{Decode, Encode};
use smg_base::hash;

use crate::{Config, NodeId};

/// A member's identity. The layout is frozen, as all nodes must read each other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    /// Counts the starts.
    pub(crate) boot: u64,
    /// Counts the returns within one run, after the others took it for dead.
    pub(crate) bump: u16,
    pub(crate) address: SocketAddr,
    pub(crate) zone: u32,
    pub(crate) region: u32,
}

impl Identity {
    pub(crate) fn of(config: &Config, boot: u64) -> Self {
        Self {
            node: NodeId::of(&config.name),
            boot,
            bump: 0,
            address: config.advertise,
            zone: short(&config.zone),
            region: short(&config.region),
        }
    }

    /// Which of the node's identities is the newer.
    pub(crate) fn age(&self) -> (u64, u16) {
        (self.boot, self.bump)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "half of a hash is a hash")]
fn short(name: &str) -> u32 {
    hash::stable64(name.as_bytes()) as u32
}

impl foca::Identity for Identity {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        let renewed = match self.bump.checked_add(1) {
            Some(bump) => Self { bump, ..*self },
            None => Self { boot: self.boot.checked_add(1)?, bump: 0, ..*self },
        };
        Some(renewed)
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    /// A total order, as two nodes must agree on which of two identities stays.
    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        let rank = |identity: &Self| (identity.age(), identity.address, identity.zone, identity.region);
        rank(self) > rank(adversary)
    }
}
