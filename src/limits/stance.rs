//! What nodes tell each other of a counter, and what a node may take of it by itself.

use smg_base::Timestamp;

use crate::rule::{Mode, OnSplit, Rule, Window};

/// What a node tells the others of one of its counters: not what it did, but how it stands. A later word replaces an earlier one, all
/// zero is what is told when nothing is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Slot {
    /// What the node took within its window and has not given back.
    pub used: u64,
    /// How much of `used` is above the node's rights, and so came out of the shared part.
    pub shared: u64,
    /// How much of `used` will still count half a window later.
    pub lasting: u64,
    /// The greatest charge refused since the last word for want of rights, rounded up to a power of two; zero if none was.
    pub wants: u64,
}

/// The nodes that hear each other after some were lost without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// How many still hear each other, this one included.
    pub alive: u32,
    /// How many they were before.
    pub clean: u32,
}

/// A node's part of what is divided as rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The node's place among those who divide, from zero. Who is behind the last gets nothing of what an even division leaves.
    pub rank: u32,
    /// How many divide the rights; at least one.
    pub members: u32,
}

/// How a node stands among others: which part of the rights is its own, and until when it may spend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stance {
    /// Its part by [`class`](Self::class) of window; none while it holds no rights there.
    pub shares: [Option<Share>; Self::CLASSES],
    /// When its rights end unless it hears of others before. Compared with the time of each charge, so that a process that stood
    /// still meanwhile spends nothing that others were given.
    pub rights_until: Timestamp,
    /// Set while nodes are cut off.
    pub split: Option<Split>,
}

impl Default for Stance {
    /// A node by itself, to which all belongs.
    fn default() -> Self {
        let shares = [Some(Share { rank: 0, members: 1 }); Self::CLASSES];
        Self { shares, rights_until: Timestamp::from_nanos(u64::MAX), split: None }
    }
}

/// What a node may take of a counter: its own use may reach `own` and, beyond that, what the others leave of `shared`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// The node's rights, which nobody else spends.
    pub own: u64,
    /// The part that everybody spends.
    pub shared: u64,
    /// Whose portion of what is left of `shared` this node may take until the others have heard of it; none where it is not
    /// portioned.
    pub portion: Option<Share>,
}

impl Share {
    /// Whether it is the node's turn, which goes round with time.
    pub(crate) fn has_turn(self, nanos: u64) -> bool {
        nanos / Self::TURN_NANOS % u64::from(self.members.max(1)) == u64::from(self.rank)
    }

    /// Longer than news of another node takes.
    const TURN_NANOS: u64 = 64_000_000;

    /// The part of `rights`: they are divided evenly, what remains goes to the first in rank.
    pub fn of(self, rights: u64) -> u64 {
        let members = u64::from(self.members.max(1));
        rights / members + u64::from(u64::from(self.rank) < rights % members)
    }
}

impl Stance {
    /// Classes of windows: each window, and what has none.
    pub const CLASSES: usize = Window::ALL.len() + 1;

    /// The class of a window.
    pub const fn class(window: Option<Window>) -> usize {
        match window {
            Some(window) => window as usize,
            None => Self::CLASSES - 1,
        }
    }

    /// One of how many parts of what is divided a node that stands so may spend, by [`Self::class`]; zero where it may spend none.
    pub fn parts(&self, now: Timestamp) -> [u32; Self::CLASSES] {
        self.shares.map(|share| share.filter(|_| now < self.rights_until).map_or(0, |share| share.members.max(1)))
    }

    /// What a node that stands so may take by `rule`, `lent` being what it was lent of others' rights (negative: lent away or owed).
    pub fn allowance(&self, rule: &Rule, lent: i64, now: Timestamp) -> Allowance {
        let share = self.shares[Self::class(rule.window)];
        let own = match share {
            Some(share) if now < self.rights_until => share.of(rule.rights()).saturating_add_signed(lent),
            _ => 0,
        };
        let shared = match (self.split, rule.on_split) {
            (None, _) | (Some(_), OnSplit::FailOpen) => rule.shared(),
            (Some(_), OnSplit::FailClosed) => 0,
            (Some(split), OnSplit::KeepShare) => split.part(rule.shared()),
        };
        // Who spends rights first comes to the shared part with all that is asked of it, not with its share of that: unportioned, news
        // that is late would cost as much as if everything was shared.
        let portion = match rule.mode {
            Mode::Hybrid => Some(share.unwrap_or(Share { rank: 0, members: 1 })),
            Mode::Shared | Mode::Strict => None,
        };
        Allowance { own, shared, portion }
    }
}

impl Split {
    fn part(self, amount: u64) -> u64 {
        let clean = u128::from(self.clean.max(1));
        let alive = u128::from(self.alive).min(clean);
        u64::try_from(u128::from(amount) * alive / clean).unwrap_or(amount)
    }
}

/// How this node itself stands with a counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Own {
    /// What it took within the window.
    pub used: u64,
    /// What it may take; zero for a counter whose rule this node has not met.
    pub allowance: Allowance,
    /// What [`Limiter::lend`](crate::Limiter::lend) set.
    pub lent: i64,
    /// How its rule is divided; none for a rule that this node has not met.
    pub mode: Option<Mode>,
    /// What its rule divides as rights, all nodes together.
    pub rights: u64,
}

/// The bytes are no snapshot of a counter. The counter is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a snapshot of a counter")]
pub struct SnapshotError;
