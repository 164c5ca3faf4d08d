//! Seeds that once found something: they run for ever.

use crate::{plan::Plan, swarm::Shape};

const KEPT: &str = include_str!("seeds.txt");

/// A seed and the size of its plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptSeed {
    /// The seed.
    pub seed: u64,
    /// Nodes and length.
    pub shape: Shape,
}

impl KeptSeed {
    /// Every seed that is kept.
    pub fn all() -> Vec<Self> {
        KEPT.lines().filter_map(Self::parse).collect()
    }

    /// Its plan.
    pub fn plan(self) -> Plan {
        self.shape.plan(self.seed)
    }

    /// A line is `seed nodes seconds`, then a comment with the cause.
    fn parse(line: &str) -> Option<Self> {
        let line = line.split('#').next()?;
        let mut words = line.split_whitespace();
        let seed = words.next()?.parse().ok()?;
        let nodes = words.next()?.parse().ok()?;
        let seconds = words.next()?.parse().ok()?;
        Some(Self { seed, shape: Shape { nodes, seconds } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_no_comment_is_a_seed() {
        let lines = KEPT.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')).count();
        assert_eq!(KeptSeed::all().len(), lines);
    }
}
