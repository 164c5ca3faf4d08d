//! The classes of requests, and what each is entitled to.

use std::{str::FromStr, time::Duration};

/// How urgent a request is; the most urgent class comes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// What keeps the service itself going.
    System = 0,
    /// Somebody sits before it.
    Interactive = 1,
    /// Whoever says nothing.
    #[default]
    Default = 2,
    /// It can wait.
    Bulk = 3,
}

impl Class {
    /// Every class, the most urgent first.
    pub const ALL: [Self; 4] = [Self::System, Self::Interactive, Self::Default, Self::Bulk];

    /// The word for it in headers, settings and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Interactive => "interactive",
            Self::Default => "default",
            Self::Bulk => "bulk",
        }
    }

    /// The class, or `greatest` if that is less urgent.
    #[must_use]
    pub fn at_most(self, greatest: Self) -> Self {
        self.max(greatest)
    }

    pub(crate) const fn index(self) -> usize {
        self as usize
    }

    /// The less urgent classes, the least urgent first.
    pub(crate) fn below(self) -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().rev().take_while(move |class| *class > self)
    }
}

/// The text names no class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be system, interactive, default or bulk")]
pub struct UnknownClass;

impl FromStr for Class {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        Self::ALL.into_iter().find(|class| class.as_str().eq_ignore_ascii_case(text)).ok_or(UnknownClass)
    }
}

/// Whether a class may take the place of a less urgent request that nobody has heard of yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preemption {
    /// It may.
    Allowed,
    /// It waits until somebody departs.
    Forbidden,
}

/// What a class is entitled to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Places that are the class's own before others', at least.
    pub reserved_floor: usize,
    /// The same as a part of the capacity; the greater of the two counts.
    pub reserved_share: f64,
    /// How many may wait.
    pub queue_max: usize,
    /// How long one may wait.
    pub queue_timeout: Duration,
    /// How long more urgent classes may pass over those who wait; after it one of them has its turn.
    pub passed_over_max: Duration,
    /// Whether it may preempt.
    pub preemption: Preemption,
}

/// The terms of all classes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Classes([Terms; 4]);

impl Default for Classes {
    fn default() -> Self {
        let terms = |reserved_floor, reserved_share, queue_max, [timeout, passed_over]: [u64; 2], preemption| Terms {
            reserved_floor,
            reserved_share,
            queue_max,
            queue_timeout: Duration::from_secs(timeout),
            passed_over_max: Duration::from_secs(passed_over),
            preemption,
        };
        Self([
            terms(32, 0.0, 64, [30, 5], Preemption::Allowed),
            terms(128, 0.25, 256, [30, 5], Preemption::Allowed),
            terms(0, 0.10, 512, [60, 30], Preemption::Forbidden),
            terms(0, 0.0, 1_024, [300, 120], Preemption::Forbidden),
        ])
    }
}

impl Classes {
    /// One class for all: as many may wait as `queue_max`, so long.
    pub(crate) fn one(queue_max: usize, queue_timeout: Duration) -> Self {
        let terms = Terms {
            reserved_floor: 0,
            reserved_share: 0.0,
            queue_max,
            queue_timeout,
            passed_over_max: Duration::MAX,
            preemption: Preemption::Forbidden,
        };
        Self([terms; 4])
    }

    /// The terms of a class.
    pub fn of(&self, class: Class) -> &Terms {
        &self.0[class.index()]
    }

    /// The terms of a class, to change them.
    pub fn of_mut(&mut self, class: Class) -> &mut Terms {
        &mut self.0[class.index()]
    }

    /// The places reserved for each class: what it asks for, as long as the more urgent ones have left some.
    pub fn reserved(&self, capacity: usize) -> [usize; 4] {
        let mut left = capacity;
        self.0.map(|terms| {
            #[expect(clippy::cast_precision_loss, reason = "places are few")]
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it saturates")]
            let share = (terms.reserved_share.clamp(0.0, 1.0) * capacity as f64).ceil() as usize;
            let reserved = share.max(terms.reserved_floor).min(left);
            left -= reserved;
            reserved
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_never_exceed_the_capacity() {
        let check = |capacity, expected| assert_eq!(Classes::default().reserved(capacity), expected, "{capacity}");
        check(1_000, [32, 250, 100, 0]);
        check(400, [32, 128, 40, 0]);
        check(64, [32, 32, 0, 0]);
        check(10, [10, 0, 0, 0]);
        check(0, [0; 4]);
    }

    #[test]
    fn nobody_is_more_urgent_than_allowed() {
        assert_eq!(Class::System.at_most(Class::Default), Class::Default);
        assert_eq!(Class::Bulk.at_most(Class::Interactive), Class::Bulk);
        assert_eq!("Interactive".parse(), Ok(Class::Interactive));
        assert_eq!("urgent".parse::<Class>(), Err(UnknownClass));
        assert_eq!(Class::Interactive.below().collect::<Vec<_>>(), [Class::Bulk, Class::Default]);
    }
}
