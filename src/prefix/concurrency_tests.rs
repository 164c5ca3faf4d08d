//! Readers beside writers.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize},
};

use smg_base::{Random, SplitMix};

use super::{
    tests::{audit, depths, line, worker},
    *,
};
use crate::run::interleaving;

/// What a writer does, one after the other, and how much of each of some paths two workers hold after each of them.
struct History {
    changes: Vec<(u64, Change)>,
    paths: Vec<Vec<u64>>,
    /// By path, then by change, then by worker.
    depths: Vec<Vec<[u32; 2]>>,
}

impl History {
    fn new(seed: u64) -> Self {
        let random = SplitMix::new(seed);
        let draw = |bound: usize| usize::try_from(random.below(bound as u64)).unwrap();
        let trunk = line(seed, 24);
        let paths: Vec<Vec<u64>> = (0..6)
            .map(|branch| {
                trunk[..4 * branch].iter().copied().chain(line(100 + seed * 10 + branch as u64, 12)).collect()
            })
            .collect();
        let mut now = vec![[0_usize; 2]; paths.len()];
        let (mut changes, mut depths) = (Vec::new(), vec![vec![[0; 2]]; paths.len()]);
        for _ in 0..3_000 {
            let (who, at) = (draw(2), draw(paths.len()));
            let (path, held) = (&paths[at], now[at][who]);
            let change = if draw(40) == 0 {
                now.iter_mut().for_each(|depths| depths[who] = 0);
                Change::Cleared
            } else if held < path.len() && draw(3) > 0 {
                let to = held + 1 + draw(path.len() - held);
                Change::Held { after: held.checked_sub(1).map(|at| path[at]), chunks: path[held..to].to_vec() }
            } else if held > 0 {
                // No deeper than where another path that the worker holds leaves this one.
                let shared = |other: usize| path.iter().zip(&paths[other]).take_while(|(one, two)| one == two).count();
                let others = (0..paths.len()).filter(|other| *other != at);
                let fixed = others.map(|other| shared(other).min(now[other][who])).max().unwrap_or(0);
                let to = fixed + draw(held - fixed + 1);
                Change::Dropped { chunks: path[to..held].iter().rev().copied().collect() }
            } else {
                continue;
            };
            apply(&paths, &mut now, who, &change);
            changes.push((who as u64, change));
            for (depths, now) in depths.iter_mut().zip(&now) {
                depths.push(now.map(|depth| u32::try_from(depth).unwrap()));
            }
        }
        Self { changes, paths, depths }
    }
}

fn apply(paths: &[Vec<u64>], now: &mut [[usize; 2]], who: usize, change: &Change) {
    for (path, depths) in paths.iter().zip(now) {
        match change {
            Change::Held { after, chunks } => {
                let from =
                    after.map_or(Some(0), |after| path.iter().position(|chunk| *chunk == after).map(|at| at + 1));
                if let Some(from) = from {
                    let more = path[from..].iter().zip(chunks).take_while(|(one, two)| one == two).count();
                    depths[who] = depths[who].max(from + more);
                }
            }
            Change::Dropped { chunks } => {
                depths[who] = path[..depths[who]].iter().take_while(|chunk| !chunks.contains(chunk)).count();
            }
            Change::Cleared => depths[who] = 0,
        }
    }
}

#[test]
fn readers_see_what_was_held_at_some_moment_of_their_lookup() {
    for seed in 0..4 {
        let history = History::new(seed);
        let index = PrefixIndex::new(usize::MAX);
        let (begun, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let finished = AtomicBool::new(false);
        let read = |seed: u64| {
            let random = SplitMix::new(seed);
            let mut lookups = 0;
            while !finished.load(Acquire) || lookups < 100 {
                let at = usize::try_from(random.below(history.paths.len() as u64)).unwrap();
                let from = done.load(Acquire);
                let seen = depths(&index, &history.paths[at], &[worker(0), worker(1)]);
                let to = begun.load(Acquire);
                for (who, seen) in seen.iter().enumerate() {
                    let moments = history.depths[at][from..=to].iter().map(|depths| depths[who]);
                    let (least, most) = (moments.clone().min().unwrap(), moments.max().unwrap());
                    assert!(
                        (least..=most).contains(seen),
                        "seed {seed} {from} to {to}: {seen} not in {least}..={most}"
                    );
                }
                lookups += 1;
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| read(seed));
            scope.spawn(|| read(seed + 100));
            for ((who, change), at) in history.changes.iter().zip(1..) {
                begun.store(at, Release);
                assert_eq!(index.apply(worker(*who), change), 0);
                // Others come and go meanwhile, and take over slots.
                let other = worker(10 + at as u64 % 3);
                match at % 8 {
                    0 => index.forget(other),
                    2 => index.sweep(),
                    _ => index.insert(other, &history.paths[at % history.paths.len()], 30),
                }
                done.store(at, Release);
            }
            finished.store(true, Release);
        });
        audit(&index);
    }
}

/// Runs `write` beside lookups of `path` for two workers in every order in which their steps can come, and hands what
/// was seen to `check`.
fn interleave(
    prepare: impl Fn(&PrefixIndex) + Sync + Send + 'static,
    write: fn(&PrefixIndex),
    path: &[u64],
    check: impl Fn(&[u32]) + Sync + Send + 'static,
) {
    loom::lazy_static! {
        static ref STEPS: loom::sync::atomic::AtomicUsize = loom::sync::atomic::AtomicUsize::new(0);
    }
    let path = path.to_vec();
    let model = move || {
        let index = Arc::new(PrefixIndex::new(usize::MAX));
        prepare(&index);
        interleaving::at_each_step(Some(|| {
            STEPS.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }));
        let writer = loom::thread::spawn({
            let index = Arc::clone(&index);
            move || write(&index)
        });
        let seen = depths(&index, &path, &[worker(1), worker(2)]);
        writer.join().expect("the writer ends well");
        interleaving::at_each_step(None);
        check(&seen);
        audit(&index);
    };
    loom::model(model);
}

#[test]
fn a_split_hides_nothing_in_whatever_order_its_steps_come() {
    interleave(
        |index| index.insert(worker(1), &line(1, 8), 100),
        |index| index.insert(worker(2), &[&line(1, 3)[..], &line(2, 2)].concat(), 100),
        &line(1, 8),
        |seen| assert!(seen[0] == 8 && seen[1] <= 3, "{seen:?}"),
    );
}

#[test]
fn what_goes_and_comes_is_seen_before_or_after_in_whatever_order_its_steps_come() {
    interleave(
        |index| {
            index.insert(worker(1), &line(1, 8), 100);
            index.insert(worker(2), &[&line(1, 4)[..], &line(2, 2)].concat(), 100);
        },
        |index| {
            let text = line(1, 8);
            index.apply(worker(1), &Change::Dropped { chunks: text[2..].iter().rev().copied().collect() });
            index.apply(worker(1), &Change::Held { after: Some(text[1]), chunks: text[2..6].to_vec() });
        },
        &line(1, 8),
        |seen| assert!((2..=8).contains(&seen[0]) && seen[1] == 4, "{seen:?}"),
    );
}

#[test]
fn a_slot_taken_over_credits_nobody_else_in_whatever_order_its_steps_come() {
    interleave(
        |index| {
            index.insert(worker(1), &line(1, 2), 100);
            index.insert(worker(3), &line(2, 3), 100);
        },
        |index| {
            index.apply(worker(1), &Change::Cleared);
            index.sweep();
            index.insert(worker(2), &line(2, 3), 100);
        },
        &line(1, 2),
        |seen| assert!([0, 2].contains(&seen[0]) && seen[1] == 0, "{seen:?}"),
    );
}
