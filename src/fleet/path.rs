//! The ways to a worker: directly, or through a peer that reaches it.
//!
//! A gateway without peers knows only the direct path, and everything else here stays as it begins: it costs a decision one
//! atomic read. Each path has a breaker of its own, because a peer that cannot be reached says nothing about the worker.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use arc_swap::ArcSwapOption;

use smg_base::PeerId;

use crate::{Breaker, BreakerConfig};

/// How a request gets to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// From here.
    Direct,
    /// Through a peer.
    Via(Via),
}

/// A peer that reaches a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Via {
    /// Which.
    pub peer: PeerId,
    /// The time to it and back.
    pub rtt: Duration,
}

/// Whether a request may be handed to a peer. One that a peer has handed on itself may not: it would wander.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Relaying {
    /// It may.
    #[default]
    Allowed,
    /// Only the direct path counts.
    Forbidden,
}

/// What the nodes of a cluster together know of a worker, and what follows for this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Their judgement.
    pub verdict: ClusterVerdict,
    /// The peer through which it is best reached.
    pub via: Option<Via>,
    /// How often this node probes it.
    pub duty: ProbeDuty,
}

/// What all nodes together found out about a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClusterVerdict {
    /// Nobody says anything; this gateway's own probes decide.
    #[default]
    Unknown,
    /// Who reaches it may use it.
    Up,
    /// Nobody is to use it.
    Down,
}

/// How often a node probes a worker. Each probes a new one until it has answered once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProbeDuty {
    /// At the worker's interval.
    #[default]
    Full,
    /// At [`ProbeDuty::LIGHT`] times that, because others probe it.
    Light,
}

impl ProbeDuty {
    /// How many intervals lie between two probes of a node that leaves a worker to others.
    pub const LIGHT: u32 = 10;
}

/// Whether this node may use a worker itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectPath {
    /// It may.
    #[default]
    Allowed,
    /// Its URL means something only on another machine: it is neither probed nor used from here.
    Forbidden,
}

/// Where the figures of a worker's engine come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineSource {
    /// This node asks the engine.
    #[default]
    Asked,
    /// Another node asks it and tells.
    Heard,
}

/// What a node has found out about a worker, for others to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthVote {
    /// It answers well.
    Up,
    /// It answers, and badly.
    Sick,
    /// It cannot be reached from here, which says nothing about the worker.
    Unreachable,
}

/// The paths to a worker. Who reads while they change may see the old ones, which is no worse than to have come a moment
/// earlier.
#[derive(Debug)]
pub(crate) struct Paths {
    word: AtomicU64,
    via: ArcSwapOption<Via>,
    /// The breaker of the path through the peer.
    pub(crate) breaker: Breaker,
}

/// What a decision needs to know of all paths, in one word; zero where there are no peers. Its lower half is the round-trip
/// time to the peer, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outlook(u64);

const DOWN: u64 = 1 << 63;
const UP: u64 = 1 << 62;
const VIA: u64 = 1 << 61;
const LIGHT: u64 = 1 << 60;
const NOT_DIRECT: u64 = 1 << 59;
const HEARD: u64 = 1 << 58;
const RTT: u64 = (1 << 32) - 1;
/// The bits that [`Reach`] sets.
const REACH: u64 = DOWN | UP | VIA | LIGHT | RTT;

impl Outlook {
    /// Whether all nodes together say that nobody is to use the worker.
    #[inline]
    pub(crate) fn is_down(self) -> bool {
        self.0 & DOWN != 0
    }

    /// Whether there is a peer that reaches it.
    #[inline]
    pub(crate) fn has_via(self) -> bool {
        self.0 & VIA != 0
    }

    /// Whether this node may use it itself.
    #[inline]
    pub(crate) fn direct(self) -> DirectPath {
        if self.0 & NOT_DIRECT == 0 { DirectPath::Allowed } else { DirectPath::Forbidden }
    }

    /// How often it is probed.
    pub(crate) fn duty(self) -> ProbeDuty {
        if self.0 & LIGHT == 0 { ProbeDuty::Full } else { ProbeDuty::Light }
    }

    pub(crate) fn engine_source(self) -> EngineSource {
        if self.0 & HEARD == 0 { EngineSource::Asked } else { EngineSource::Heard }
    }

    pub(crate) fn verdict(self) -> ClusterVerdict {
        match self.0 & (UP | DOWN) {
            0 => ClusterVerdict::Unknown,
            UP => ClusterVerdict::Up,
            _ => ClusterVerdict::Down,
        }
    }

    /// The time to the peer and back; none without a peer.
    pub(crate) fn rtt(self) -> Option<Duration> {
        self.has_via().then(|| Duration::from_micros(self.0 & RTT))
    }
}

impl Paths {
    pub(crate) fn new(breaker: BreakerConfig) -> Self {
        Self { word: AtomicU64::new(0), via: ArcSwapOption::empty(), breaker: Breaker::new(breaker) }
    }

    #[inline]
    pub(crate) fn outlook(&self) -> Outlook {
        Outlook(self.word.load(Ordering::Acquire))
    }

    /// The peer through which the worker is best reached.
    pub(crate) fn via(&self) -> Option<Via> {
        self.via.load().as_deref().copied()
    }

    /// Takes on a new reach. Called by one at a time.
    pub(crate) fn set_reach(&self, reach: Reach) {
        let before = self.via();
        if before != reach.via {
            if before.map(|via| via.peer) != reach.via.map(|via| via.peer) {
                // Another path: what is known of the old one says nothing about it.
                self.breaker.reset();
            }
            self.via.store(reach.via.map(std::sync::Arc::new));
        }
        let verdict = match reach.verdict {
            ClusterVerdict::Unknown => 0,
            ClusterVerdict::Up => UP,
            ClusterVerdict::Down => DOWN,
        };
        let via = reach.via.map_or(0, |via| VIA | u64::try_from(via.rtt.as_micros()).unwrap_or(RTT).min(RTT));
        let duty = if reach.duty == ProbeDuty::Light { LIGHT } else { 0 };
        self.change(REACH, verdict | via | duty);
    }

    pub(crate) fn set_direct(&self, direct: DirectPath) {
        self.change(NOT_DIRECT, if direct == DirectPath::Forbidden { NOT_DIRECT } else { 0 });
    }

    pub(crate) fn set_engine_source(&self, source: EngineSource) {
        self.change(HEARD, if source == EngineSource::Heard { HEARD } else { 0 });
    }

    fn change(&self, mask: u64, bits: u64) {
        let replaced = |word: u64| Some(word & !mask | bits);
        // It always gives a new word, so it cannot fail.
        let _ = self.word.fetch_update(Ordering::AcqRel, Ordering::Acquire, replaced);
    }
}
