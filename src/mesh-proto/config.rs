//! What the mesh is told at its start.

use std::{net::SocketAddr, time::Duration};

/// Settings of one node's mesh; they do not change while it runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node's name, unique in its cluster: 1 to 128 visible ASCII characters.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// Where peers reach this node's mesh port.
    pub advertise: SocketAddr,
    /// Where clients reach it, as shown to operators; empty if not said.
    pub traffic_url: String,
    /// The failure domain it is in.
    pub zone: String,
    /// The region it is in.
    pub region: String,
    /// Version of the program, as shown to operators.
    pub software: String,
    /// Drawn at random when the process starts: tells this run from any other with the same name.
    pub instance: u64,
    /// Seed of everything the mesh draws.
    pub seed: u64,
    /// How fast faults are noticed.
    pub timers: Timers,
    /// Bounds on what peers can make it hold.
    pub limits: Limits,
}

/// Ready-made [`Timers`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// One region, links that may lose packets.
    #[default]
    Lan,
    /// One zone, clean links: crashes are known in about a second.
    Fast,
    /// Links between regions.
    Wan,
}

impl Profile {
    /// The profile called `name`.
    pub fn of(name: &str) -> Option<Self> {
        match name {
            "lan" => Some(Self::Lan),
            "fast" => Some(Self::Fast),
            "wan" => Some(Self::Wan),
            _ => None,
        }
    }

    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Fast => "fast",
            Self::Wan => "wan",
        }
    }

    /// Its timers.
    pub const fn timers(self) -> Timers {
        let (probe, probe_rtt, suspicion, gossip) = match self {
            Self::Lan => (500, 300, 2_500, 200),
            Self::Fast => (320, 60, 600, 100),
            Self::Wan => (1_000, 400, 3_000, 400),
        };
        Timers {
            probe: Duration::from_millis(probe),
            probe_rtt: Duration::from_millis(probe_rtt),
            suspicion: Duration::from_millis(suspicion),
            gossip: Duration::from_millis(gossip),
            exchange: Duration::from_secs(2),
            announce_down: Duration::from_secs(2),
            flush: Duration::from_millis(10),
            digest: Duration::from_secs(1),
            resend: Duration::from_secs(1),
            redial: Duration::from_secs(1),
            redial_for: Duration::from_secs(600),
            seed_pause_max: Duration::from_secs(30),
            adopt_after: Duration::from_secs(600),
            join_patience: Duration::from_secs(2),
        }
    }
}

/// How fast faults are noticed and news travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Time between two SWIM probes.
    pub probe: Duration,
    /// How long a direct answer to a probe may take.
    pub probe_rtt: Duration,
    /// How long a suspect has to refute.
    pub suspicion: Duration,
    /// Time between two rounds of membership gossip.
    pub gossip: Duration,
    /// Time between two comparisons of whole member lists with one peer.
    pub exchange: Duration,
    /// Time between two announcements to members that are down, while there are any.
    pub announce_down: Duration,
    /// How long changes of lanes are gathered before they are sent.
    pub flush: Duration,
    /// Time between two comparisons of lane digests with one peer.
    pub digest: Duration,
    /// How long an acknowledgement of lane changes may take.
    pub resend: Duration,
    /// Time between two attempts to reach a member that is down.
    pub redial: Duration,
    /// How long such attempts go on.
    pub redial_for: Duration,
    /// Longest pause between two attempts to reach a seed; the first is half a second.
    pub seed_pause_max: Duration,
    /// How long a writer is down before others adopt its durable entries.
    pub adopt_after: Duration,
    /// How long a starting node waits for a first peer before it acts alone.
    pub join_patience: Duration,
}

/// Bounds on what peers can make a node hold or do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most members that are kept.
    pub members_max: usize,
    /// Longest frame, bytes.
    pub frame_bytes_max: usize,
    /// Longest key of an entry, bytes.
    pub key_bytes_max: usize,
    /// Longest value of an entry, bytes.
    pub value_bytes_max: usize,
    /// Most entries of one lane, tombstones included.
    pub lane_entries_max: usize,
    /// Bytes of all lanes of one writer.
    pub writer_bytes_max: usize,
    /// Bytes sent to a peer and not yet acknowledged, beyond which it is sent no more.
    pub unacked_bytes_max: usize,
    /// Seeds that are tried.
    pub seeds_max: usize,
    /// Writes that may wait for their acknowledgement.
    pub tickets_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            members_max: 1_024,
            frame_bytes_max: 256 << 10,
            key_bytes_max: 512,
            value_bytes_max: 64 << 10,
            lane_entries_max: 262_144,
            writer_bytes_max: 256 << 20,
            unacked_bytes_max: 1 << 20,
            seeds_max: 64,
            tickets_max: 4_096,
        }
    }
}
