//! What the index promises, against plain models of it.

use std::sync::atomic::AtomicBool;

use smg_base::{Random, SplitMix};

use super::*;

pub(super) fn worker(number: u64) -> WorkerId {
    WorkerId::of(&number.to_string(), None)
}

/// The chained hashes of a text given as one symbol a chunk.
pub(super) fn chain(symbols: &[u64]) -> Vec<u64> {
    let mut link = 1;
    let chained = symbols.iter().map(|symbol| {
        link = hash::mix(link, *symbol);
        link
    });
    chained.collect()
}

/// Text `name`, `chunks` long.
pub(super) fn line(name: u64, chunks: u64) -> Vec<u64> {
    chain(&(0..chunks).map(|at| name * 1_000 + at).collect::<Vec<_>>())
}

pub(super) fn depths(index: &PrefixIndex, chunks: &[u64], workers: &[WorkerId]) -> Vec<u32> {
    let mut found = Found::default();
    index.lookup(chunks, workers.iter().copied(), &mut found);
    (0..workers.len()).map(|at| found.holders.get(at).map_or(0, |held| held.chunks)).collect()
}

fn branch(index: &PrefixIndex, chunks: &[u64]) -> Option<u64> {
    let mut found = Found::default();
    index.lookup(chunks, std::iter::empty(), &mut found);
    found.branch
}

/// What an engine does with its cache: every chunk used again becomes the newest, the first of a path newer than the
/// next, and the oldest go.
#[derive(Default, Clone)]
pub(super) struct Engine(pub(super) Vec<u64>);

impl Engine {
    pub(super) fn take(&mut self, path: &[u64], capacity: usize) {
        let path = &path[..path.len().min(capacity)];
        self.0.retain(|chunk| !path.contains(chunk));
        self.0.splice(0..0, path.iter().copied());
        self.0.truncate(capacity);
    }

    pub(super) fn depth(&self, path: &[u64]) -> usize {
        path.iter().take_while(|chunk| self.0.contains(chunk)).count()
    }
}

/// Everything that is kept twice agrees, and all that is kept adds up.
pub(super) fn audit(index: &PrefixIndex) {
    let size = index.size();
    assert_eq!(size.bytes, index.used_bytes());
    index.audited(|ledger, runs| ledger.audit(runs));
}

fn play(seed: u64) {
    let random = SplitMix::new(seed);
    let draw = |bound: u64| random.below(bound);
    let index = PrefixIndex::new(usize::MAX);
    let workers: Vec<_> = (0..4).map(worker).collect();
    let capacities = [0, 3, 17, 60];
    let mut engines = vec![Engine::default(); workers.len()];
    let mut asked = vec![0; workers.len()];
    for step in 0..1_500 {
        let symbols: Vec<u64> = (0..draw(24)).map(|_| u64::from(draw(10) < 2)).collect();
        let path = chain(&symbols);
        let who = usize::try_from(draw(4)).unwrap();
        if draw(200) == 0 {
            index.forget(workers[who]);
            engines[who] = Engine::default();
        } else if draw(3) > 0 {
            index.insert(workers[who], &path, capacities[who]);
            engines[who].take(&path, usize::try_from(capacities[who]).unwrap());
            asked[who] += 1;
        }
        let expected: Vec<_> = engines.iter().map(|engine| u32::try_from(engine.depth(&path)).unwrap()).collect();
        assert_eq!(depths(&index, &path, &workers), expected, "seed {seed} step {step} path {symbols:?}");
        for (worker, engine) in workers.iter().zip(&engines) {
            assert_eq!(index.chunks_held(*worker), engine.0.len() as u64, "seed {seed} step {step}");
        }
        if step % 16 == 0 {
            audit(&index);
        }
    }
    assert!(asked.iter().all(|asked| *asked > 100));
    for worker in workers {
        index.forget(worker);
    }
    index.sweep();
    assert_eq!(index.size(), IndexSize::default(), "nothing is left, and nothing miscounted");
}

#[test]
fn it_holds_what_an_engine_with_that_capacity_would_hold() {
    for seed in 0..12 {
        play(seed);
    }
}

#[test]
fn memory_stays_within_its_limit_and_the_latest_texts_stay() {
    let limit = 200_000;
    let index = PrefixIndex::new(limit);
    for text in 0..3_000 {
        index.insert(worker(text % 5), &line(text, 40), u64::from(u32::MAX));
        assert!(index.used_bytes() <= limit, "{} bytes", index.used_bytes());
    }
    audit(&index);
    let workers: Vec<_> = (0..5).map(worker).collect();
    for text in 2_900..3_000 {
        let at = usize::try_from(text % 5).unwrap();
        assert_eq!(depths(&index, &line(text, 40), &workers)[at], 40, "text {text}");
    }
    assert_eq!(depths(&index, &line(0, 40), &workers), [0; 5]);
    assert!(index.size().chunks > 100 * 40);
}

#[test]
fn a_forgotten_worker_is_gone_at_once_and_its_memory_follows() {
    let index = PrefixIndex::new(usize::MAX);
    let (lost, kept) = (worker(1), worker(2));
    for text in 0..500 {
        index.insert(lost, &line(text, 100), 1_000_000);
        index.insert(kept, &line(text, 10), 1_000_000);
    }
    let full = index.used_bytes();
    index.forget(lost);
    assert_eq!(depths(&index, &line(3, 20), &[lost, kept]), [0, 10]);
    index.insert(lost, &line(3, 15), 1_000_000);
    assert_eq!(depths(&index, &line(3, 20), &[lost, kept]), [15, 10], "a worker that returns starts anew");
    index.sweep();
    assert!(index.used_bytes() < full / 2, "{full} to {}", index.used_bytes());
    assert_eq!(index.size().chunks, 500 * 10 + 15);
    audit(&index);
}

#[test]
fn a_branch_names_a_conversation_not_its_system_prompt() {
    let index = PrefixIndex::new(usize::MAX);
    let chat = |system: u64, topic: u64, turns: u64| {
        let mut symbols: Vec<u64> = (0..12).map(|at| system * 100 + at).collect();
        symbols.extend((0..turns).map(|at| topic * 10_000 + at));
        chain(&symbols)
    };
    assert_eq!(branch(&index, &[]), None);
    index.insert(worker(1), &chat(1, 1, 3), 1_000);
    index.insert(worker(1), &chat(1, 2, 3), 1_000);
    let mut branches = Vec::new();
    for topic in 3..20 {
        let first = branch(&index, &chat(1, topic, 2));
        for turns in 2..9 {
            assert_eq!(branch(&index, &chat(1, topic, turns)), first, "topic {topic} turn {turns}");
            index.insert(worker(topic % 3), &chat(1, topic, turns), 1_000);
        }
        branches.push(first);
    }
    branches.sort_unstable();
    branches.dedup();
    assert_eq!(branches.len(), 17, "conversations differ in their branches");
}

#[test]
fn trust_follows_what_engines_report_and_shrinks_what_they_are_taken_to_hold() {
    let index = PrefixIndex::new(usize::MAX);
    let text = line(1, 100);
    let trust = |index: &PrefixIndex| {
        let mut found = Found::default();
        index.lookup(&text, std::iter::once(worker(1)), &mut found);
        found.holders[0].trust
    };
    index.calibrate(worker(1), 10, 0);
    index.insert(worker(1), &text, 100);
    assert!((trust(&index) - 1.0).abs() < 1e-6, "an unknown worker taught nothing");
    index.calibrate(worker(1), 0, 0);
    for _ in 0..50 {
        index.calibrate(worker(1), 1_000, 500);
    }
    assert!((trust(&index) - 0.5).abs() < 0.02, "{}", trust(&index));
    index.insert(worker(1), &line(2, 10), 100);
    assert!((48..=52).contains(&index.chunks_held(worker(1))), "{}", index.chunks_held(worker(1)));
    for _ in 0..100 {
        index.calibrate(worker(1), 1_000, 0);
    }
    assert!((0.04..0.06).contains(&trust(&index)));
    for _ in 0..100 {
        index.calibrate(worker(1), 1_000, 5_000);
    }
    assert!(trust(&index) > 0.99, "and no more than all of it is trusted: {}", trust(&index));
    assert!(trust(&index) <= 1.0);
}

#[test]
fn readers_see_a_whole_path_while_writers_split_it() {
    let index = PrefixIndex::new(usize::MAX);
    let holder = worker(0);
    let path = line(1, 64);
    index.insert(holder, &path, 1_000_000);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let random = SplitMix::new(9);
            for text in 2..3_000 {
                let shared = usize::try_from(random.below(65)).unwrap();
                let mut other = path[..shared].to_vec();
                other.extend(line(text, 3));
                index.insert(worker(1 + text % 3), &other, 500);
            }
            done.store(true, Relaxed);
        });
        let mut lookups = 0;
        while !done.load(Relaxed) || lookups == 0 {
            assert_eq!(depths(&index, &path, &[holder]), [64]);
            lookups += 1;
        }
    });
    audit(&index);
}
