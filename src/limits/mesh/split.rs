//! Which part of shared amounts belongs to those who still hear each other, after some were lost without a word.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smg_base::Timestamp;

use crate::stance::Split;

/// How long a majority goes on with its part only: by then who is lost has been dropped, or is known to have crashed.
const MAJORITY_WAITS: Duration = Duration::from_secs(60);
/// How long others do, for whom it is more likely that the lost go on without them.
const MINORITY_WAITS: Duration = Duration::from_secs(600);
/// How long who is back is not yet counted on to hear everything.
const HEALS: Duration = Duration::from_secs(1);

/// Who is there, and who was lost.
#[derive(Debug, Default)]
pub(super) struct Company {
    alive: BTreeSet<u64>,
    /// Since when; and since when it is back, if it is.
    lost: BTreeMap<u64, (Timestamp, Option<Timestamp>)>,
}

impl Company {
    /// Who is there and who has said that it leaves. The first are forgotten before it is known who is.
    pub(super) fn set(&mut self, alive: &BTreeSet<u64>, left: &BTreeSet<u64>, now: Timestamp) {
        for gone in self.alive.difference(alive).filter(|node| !left.contains(node)) {
            self.lost.insert(*gone, (now, None));
        }
        for (node, (_, back)) in &mut self.lost {
            *back = back.or(alive.contains(node).then_some(now)).filter(|_| alive.contains(node));
        }
        self.lost.retain(|node, _| !left.contains(node));
        self.alive.clone_from(alive);
    }

    /// The part of those who are there.
    pub(super) fn split(&mut self, now: Timestamp) -> Option<Split> {
        let clean = self.alive.len() + self.lost.values().filter(|(_, back)| back.is_none()).count();
        let waits = if self.alive.len() * 2 > clean { MAJORITY_WAITS } else { MINORITY_WAITS };
        self.lost.retain(|_, (since, back)| match back {
            Some(back) => now.since(*back) < HEALS,
            None => now.since(*since) < waits,
        });
        if self.lost.is_empty() {
            return None;
        }
        let back = self.lost.values().filter(|(_, back)| back.is_some()).count();
        let clean = self.alive.len() + self.lost.len() - back;
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Some(Split { alive: number(self.alive.len() - back.min(self.alive.len() - 1)), clean: number(clean) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(nodes: &[u64]) -> BTreeSet<u64> {
        nodes.iter().copied().collect()
    }

    #[test]
    fn who_is_lost_takes_its_part_along_for_a_while() {
        let at = |seconds| Timestamp::ORIGIN + Duration::from_secs(seconds);
        let none = BTreeSet::new();
        let mut company = Company::default();
        company.set(&set(&[1, 2, 3, 4]), &none, at(0));
        assert_eq!(company.split(at(0)), None);
        company.set(&set(&[1, 2, 3]), &set(&[4]), at(1));
        assert_eq!(company.split(at(1)), None, "it said so");
        company.set(&set(&[1, 2]), &set(&[4]), at(2));
        assert_eq!(company.split(at(2)), Some(Split { alive: 2, clean: 3 }));
        company.set(&set(&[1, 2, 3]), &set(&[4]), at(10));
        assert_eq!(company.split(at(10)), Some(Split { alive: 2, clean: 3 }), "it may not have heard all");
        assert_eq!(company.split(at(12)), None);
        company.set(&set(&[1]), &set(&[4]), at(20));
        assert_eq!(company.split(at(100)), Some(Split { alive: 1, clean: 3 }), "the others may be together");
        assert_eq!(company.split(at(700)), None);
        company.set(&set(&[1, 2, 3]), &none, at(800));
        company.set(&set(&[1, 2]), &none, at(801));
        assert_eq!(company.split(at(862)), None, "a majority need not wait so long");
    }
}
