//! Chance, in the shapes that faults need. Everything a run draws comes from its plan's seed.

use std::time::Duration;

use smg_base::{Random, SplitMix, hash};

/// A sequence of draws.
#[derive(Debug)]
pub(crate) struct Dice(SplitMix);

impl Dice {
    /// The sequence for one purpose of a run: those of two purposes do not disturb each other, so that a plan from which a
    /// fault was dropped draws the rest as before.
    pub(crate) fn new(seed: u64, purpose: u64) -> Self {
        Self(SplitMix::new(hash::mix(seed, purpose)))
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    /// A position in something of `length` items; zero if there are none.
    pub(crate) fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("below a usize")
    }

    /// In `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        self.0.unit()
    }

    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// In `low..high`; `low` if that is empty.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high.saturating_sub(low))
    }

    /// Up to `longest`, every length as likely as any other.
    pub(crate) fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.unit())
    }

    /// The time to the next of events that come at random, `mean` apart.
    pub(crate) fn pause(&mut self, mean: Duration) -> Duration {
        mean.mul_f64((-(1.0 - self.unit()).ln()).min(20.0))
    }
}
