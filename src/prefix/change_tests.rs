//! Workers that are told of, beside workers that are predicted, against plain sets of what they hold.

use std::collections::BTreeMap;

use smg_base::{Random, SplitMix, hash};

use super::{
    tests::{Engine, audit, chain, depths, line, worker},
    *,
};

/// What a worker holds, whoever says so.
enum Truth {
    /// From each chunk to the one before it.
    Told(BTreeMap<u64, Option<u64>>),
    Predicted(Engine),
}

impl Truth {
    fn depth(&self, path: &[u64]) -> usize {
        match self {
            Self::Told(held) => path.iter().take_while(|chunk| held.contains_key(chunk)).count(),
            Self::Predicted(engine) => engine.depth(path),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Told(held) => held.len(),
            Self::Predicted(engine) => engine.0.len(),
        }
    }
}

struct Play {
    random: SplitMix,
    index: PrefixIndex,
    /// Is told the same, chunk by chunk.
    mirror: PrefixIndex,
    truths: Vec<Truth>,
}

const CAPACITY: u64 = 40;

impl Play {
    fn new(seed: u64) -> Self {
        Self {
            random: SplitMix::new(seed),
            index: PrefixIndex::new(usize::MAX),
            mirror: PrefixIndex::new(usize::MAX),
            truths: (0..5).map(|_| Truth::Told(BTreeMap::new())).collect(),
        }
    }

    fn draw(&self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap()
    }

    fn path(&self) -> Vec<u64> {
        let length = 1 + self.draw(30);
        chain(&(0..length).map(|_| u64::from(self.draw(10) < 2)).collect::<Vec<_>>())
    }

    fn step(&mut self) {
        let who = self.draw(self.truths.len());
        let id = worker(who as u64);
        match self.draw(60) {
            0 => {
                self.index.forget(id);
                self.mirror.forget(id);
                self.restart(who);
            }
            1 => {
                assert_eq!(self.apply(who, &Change::Cleared), 0);
                self.restart(who);
            }
            2 => {
                let change = Change::Held { after: Some(hash::mix(7, self.random.next_u64())), chunks: self.path() };
                for index in [&self.index, &self.mirror] {
                    assert!(index.apply(id, &change) > 0, "what follows the unknown has no place");
                }
            }
            3..40 => self.hold(who),
            _ => self.drop(who),
        }
    }

    fn restart(&mut self, who: usize) {
        let predicted = self.draw(3) == 0;
        self.truths[who] = if predicted { Truth::Predicted(Engine::default()) } else { Truth::Told(BTreeMap::new()) };
    }

    fn hold(&mut self, who: usize) {
        let path = self.path();
        match &mut self.truths[who] {
            Truth::Predicted(engine) => {
                engine.take(&path, usize::try_from(CAPACITY).unwrap());
                self.index.insert(worker(who as u64), &path, CAPACITY);
                self.mirror.insert(worker(who as u64), &path, CAPACITY);
            }
            Truth::Told(held) => {
                let known = path.iter().take_while(|chunk| held.contains_key(chunk)).count();
                // Some of what is known may be told again.
                let from = usize::try_from(self.random.below(known as u64 + 1)).unwrap();
                let after = from.checked_sub(1).map(|at| path[at]);
                let chunks = path[from..].to_vec();
                let mut before = after;
                for chunk in &chunks {
                    held.insert(*chunk, before.replace(*chunk));
                }
                if !chunks.is_empty() {
                    assert_eq!(self.apply(who, &Change::Held { after, chunks }), 0);
                }
            }
        }
    }

    /// Drops some chunk and all that follow it, these first, or in one list in whatever order.
    fn drop(&mut self, who: usize) {
        let draw = self.random.next_u64();
        let Truth::Told(held) = &mut self.truths[who] else { return };
        let Some(first) = held.keys().nth(usize::try_from(draw % 97).unwrap() % held.len().max(1)).copied() else {
            return;
        };
        let mut dropped = vec![first];
        let mut at = 0;
        while let Some(chunk) = dropped.get(at).copied() {
            dropped.extend(held.iter().filter(|(_, before)| **before == Some(chunk)).map(|(chunk, _)| *chunk));
            at += 1;
        }
        held.retain(|chunk, _| !dropped.contains(chunk));
        match draw % 3 {
            0 => {}
            1 => dropped.sort_unstable(),
            _ => dropped.reverse(),
        }
        self.apply(who, &Change::Dropped { chunks: dropped });
    }

    fn apply(&self, who: usize, change: &Change) -> u64 {
        let id = worker(who as u64);
        let unplaced = self.index.apply(id, change);
        let mirrored = match change {
            Change::Held { after, chunks } => {
                let befores = std::iter::once(*after).chain(chunks.iter().copied().map(Some));
                let pieces = befores.zip(chunks).map(|(after, chunk)| Change::Held { after, chunks: vec![*chunk] });
                pieces.map(|piece| self.mirror.apply(id, &piece)).sum()
            }
            Change::Dropped { chunks } => {
                chunks.iter().map(|chunk| self.mirror.apply(id, &Change::Dropped { chunks: vec![*chunk] })).sum()
            }
            Change::Cleared => self.mirror.apply(id, change),
        };
        assert_eq!(unplaced, mirrored);
        unplaced
    }

    fn check(&self) {
        let path = self.path();
        let workers: Vec<_> = (0..self.truths.len() as u64).map(worker).collect();
        let expected: Vec<_> = self.truths.iter().map(|truth| u32::try_from(truth.depth(&path)).unwrap()).collect();
        assert_eq!(depths(&self.index, &path, &workers), expected);
        assert_eq!(depths(&self.mirror, &path, &workers), expected);
        for (worker, truth) in workers.into_iter().zip(&self.truths) {
            assert_eq!(self.index.chunks_held(worker), truth.len() as u64);
            assert_eq!(self.index.digest(worker), self.mirror.digest(worker));
            assert_eq!(self.index.digest(worker) == 0, truth.len() == 0);
        }
    }

    /// Another index that is shown what this one holds comes to hold the same.
    fn copy(&self) {
        let copy = PrefixIndex::new(usize::MAX);
        for (number, truth) in (0..).zip(&self.truths) {
            let mut shown = 0;
            self.index.holds(worker(number), &mut |after, chunks| {
                shown += chunks.len();
                let unplaced = copy.apply(worker(number), &Change::Held { after, chunks: chunks.to_vec() });
                assert_eq!(unplaced, 0, "what comes before is shown before");
            });
            assert_eq!(shown, truth.len(), "each chunk is shown once");
            assert_eq!(copy.digest(worker(number)), self.index.digest(worker(number)));
        }
        audit(&copy);
    }
}

#[test]
fn it_holds_what_it_is_told_and_what_is_predicted() {
    for seed in 0..12 {
        let mut play = Play::new(seed);
        for step in 0..1_200 {
            play.step();
            play.check();
            if step % 50 == 0 {
                audit(&play.index);
                audit(&play.mirror);
                play.copy();
            }
        }
        for number in 0..5 {
            play.index.forget(worker(number));
        }
        play.index.sweep();
        assert_eq!(play.index.size(), IndexSize::default(), "nothing is left, and nothing miscounted");
    }
}

#[test]
fn a_long_text_told_in_small_stretches_is_the_same_as_at_once() {
    let text = line(1, 3_000);
    let at_once = PrefixIndex::new(usize::MAX);
    let by_stretches = PrefixIndex::new(usize::MAX);
    assert_eq!(at_once.apply(worker(1), &Change::Held { after: None, chunks: text.clone() }), 0);
    let mut after = None;
    for stretch in text.chunks(4) {
        let change = Change::Held { after, chunks: stretch.to_vec() };
        assert_eq!(by_stretches.apply(worker(1), &change), 0);
        after = stretch.last().copied();
    }
    for index in [&at_once, &by_stretches] {
        audit(index);
        assert_eq!(depths(index, &text, &[worker(1)]), [3_000]);
    }
    assert_eq!(at_once.digest(worker(1)), by_stretches.digest(worker(1)));
    let mut found = Found::default();
    at_once.lookup(&text, std::iter::once(worker(1)), &mut found);
    assert_eq!(found.branch, Some(text[0]), "a long text is one branch, in however many runs");
    let backwards = text[100..].iter().rev().copied().collect();
    at_once.apply(worker(1), &Change::Dropped { chunks: backwards });
    by_stretches.apply(worker(1), &Change::Dropped { chunks: vec![text[100]] });
    assert_eq!(at_once.chunks_held(worker(1)), 100);
    assert_eq!(by_stretches.digest(worker(1)), at_once.digest(worker(1)), "nothing is held beyond a hole");
    audit(&by_stretches);
}

#[test]
fn memory_stays_within_its_limit_and_no_more_is_claimed_than_was_told() {
    let limit = 300_000;
    let index = PrefixIndex::new(limit);
    for text in 0..2_000 {
        let chunks = line(text, 50);
        let told = worker(text % 3);
        index.apply(told, &Change::Held { after: None, chunks: chunks[..30].to_vec() });
        index.apply(told, &Change::Held { after: Some(chunks[29]), chunks: chunks[30..].to_vec() });
        index.insert(worker(7), &chunks, 1_000);
        assert!(index.used_bytes() <= limit, "{} bytes", index.used_bytes());
        assert_eq!(depths(&index, &line(text, 60), &[told, worker(7), worker(8)]), [50, 50, 0], "the latest stays");
    }
    audit(&index);
    assert_eq!(depths(&index, &line(0, 50), &[worker(0)]), [0], "the oldest went");
    let lost = line(0, 50);
    let change = Change::Held { after: Some(lost[49]), chunks: line(9, 3) };
    assert_eq!(index.apply(worker(0), &change), 3, "and nothing can follow it");
}

#[test]
fn nonsense_harms_nobody() {
    for seed in 0..30 {
        let random = SplitMix::new(seed);
        let index = PrefixIndex::new(if seed % 2 == 0 { usize::MAX } else { 40_000 });
        let bound = [3, 12, 200][usize::try_from(seed % 3).unwrap()];
        let chunks = || (0..random.below(60)).map(|_| random.below(bound)).collect::<Vec<u64>>();
        let honest = line(seed, 30);
        for step in 0..800 {
            let id = worker(random.below(4));
            match random.below(8) {
                0 => assert_eq!(index.apply(id, &Change::Dropped { chunks: chunks() }), 0),
                1 => index.insert(id, &chunks(), 100),
                2 if random.below(10) == 0 => assert_eq!(index.apply(id, &Change::Cleared), 0),
                3 if random.below(10) == 0 => index.forget(id),
                _ => {
                    let after = (random.below(3) > 0).then(|| random.below(bound));
                    index.apply(id, &Change::Held { after, chunks: chunks() });
                }
            }
            index.holds(id, &mut |_, _| {});
            if step % 40 == 0 {
                audit(&index);
            }
        }
        index.apply(worker(9), &Change::Held { after: None, chunks: honest.clone() });
        assert_eq!(depths(&index, &honest, &[worker(9), worker(1)]), [30, 0]);
        (0..10).for_each(|number| index.forget(worker(number)));
        index.sweep();
        assert_eq!(index.size(), IndexSize::default());
    }
}

#[test]
fn a_slot_for_each_restart_is_not_needed() {
    let index = PrefixIndex::new(usize::MAX);
    for round in 0..1_000 {
        for number in 0..10 {
            index.apply(worker(number), &Change::Held { after: None, chunks: line(round % 7, 12) });
            index.apply(worker(number), &Change::Cleared);
        }
    }
    assert!(index.slots.load(Relaxed) <= 128, "{} slots", index.slots.load(Relaxed));
    index.calibrate(worker(1), 100, 0);
    let trust = index.trust(worker(1));
    index.apply(worker(1), &Change::Held { after: None, chunks: line(1, 12) });
    index.apply(worker(1), &Change::Cleared);
    assert!((index.trust(worker(1)) - trust).abs() < 1e-6, "what was learned of a worker outlives its restart");
    audit(&index);
}

#[test]
fn more_workers_than_a_mask_has_bits() {
    let index = PrefixIndex::new(usize::MAX);
    let workers: Vec<_> = (0..700).map(worker).collect();
    let text = line(1, 40);
    for (worker, depth) in workers.iter().zip(0..) {
        let depth = 1 + depth % 40;
        index.apply(*worker, &Change::Held { after: None, chunks: text[..depth].to_vec() });
    }
    let expected: Vec<u32> = (0..700).map(|at| 1 + at % 40).collect();
    assert_eq!(depths(&index, &text, &workers), expected);
    audit(&index);
    for worker in &workers[..650] {
        index.forget(*worker);
    }
    index.sweep();
    assert_eq!(depths(&index, &text, &workers)[650..], expected[650..]);
    audit(&index);
}

#[test]
fn a_lookup_allocates_nothing() {
    let index = PrefixIndex::new(usize::MAX);
    let mut workers: Vec<_> = (0..128).map(worker).collect();
    workers.sort_unstable();
    for (told, number) in workers.iter().zip(0..) {
        let shared = [&line(1, 20)[..], &line(2 + number, 20)].concat();
        index.apply(*told, &Change::Held { after: None, chunks: shared });
    }
    let lookup = |text: u64| {
        let asked = [line(1, 20), line(2 + text, 25)].concat();
        let counted = allocation_counter::measure(|| {
            let mut found = Found::default();
            index.lookup(&asked, workers.iter().copied(), &mut found);
            assert!(found.holders.iter().all(|held| held.chunks >= 20));
        });
        counted.count_total
    };
    // A thread gets its place among the readers once.
    lookup(0);
    assert_eq!((0..200).map(lookup).sum::<u64>(), 0);
}
