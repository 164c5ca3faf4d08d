//! Coverage by meaning: names of states that some run must get into, or the tests do not test what they say.

use std::collections::BTreeMap;

/// A state worth getting into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Mark {
    Suspected,
    Refuted,
    DeclaredDown,
    CameBack,
    Left,
    JoinedAlone,
    JoinedPeers,
    NameRefused,
    ClosedRedundant,
    ClosedMisbehaved,
    IdleTimeout,
    StatelessReset,
    StuckFrames,
    WokenBacklog,
    Snapshot,
    Doubted,
    Stretched,
    OwnLaneRaised,
    TombstonesCollected,
    Adopted,
    RemovedStably,
    RemovalOfAnothersAdd,
    DeclaredStaysRemoved,
    WriteFailed,
    AcknowledgedAlone,
    LostWithItsDisk,
    VerdictDown,
    OnlyThroughPeer,
    Revoked,
    Draining,
    HostileFrames,
    NewerFrames,
    PowerCut,
}

impl Mark {
    /// Every one.
    pub const ALL: [Self; 33] = [
        Self::Suspected,
        Self::Refuted,
        Self::DeclaredDown,
        Self::CameBack,
        Self::Left,
        Self::JoinedAlone,
        Self::JoinedPeers,
        Self::NameRefused,
        Self::ClosedRedundant,
        Self::ClosedMisbehaved,
        Self::IdleTimeout,
        Self::StatelessReset,
        Self::StuckFrames,
        Self::WokenBacklog,
        Self::Snapshot,
        Self::Doubted,
        Self::Stretched,
        Self::OwnLaneRaised,
        Self::TombstonesCollected,
        Self::Adopted,
        Self::RemovedStably,
        Self::RemovalOfAnothersAdd,
        Self::DeclaredStaysRemoved,
        Self::WriteFailed,
        Self::AcknowledgedAlone,
        Self::LostWithItsDisk,
        Self::VerdictDown,
        Self::OnlyThroughPeer,
        Self::Revoked,
        Self::Draining,
        Self::HostileFrames,
        Self::NewerFrames,
        Self::PowerCut,
    ];
}

/// How often each state was got into.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached(BTreeMap<Mark, u64>);

impl Reached {
    pub(crate) fn mark(&mut self, mark: Mark) {
        *self.0.entry(mark).or_default() += 1;
    }

    /// How often.
    pub fn count(&self, mark: Mark) -> u64 {
        self.0.get(&mark).copied().unwrap_or(0)
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (mark, count) in &other.0 {
            *self.0.entry(*mark).or_default() += count;
        }
    }

    /// Those that were never got into.
    pub fn missed(&self) -> Vec<Mark> {
        Mark::ALL.into_iter().filter(|mark| self.count(*mark) == 0).collect()
    }
}
