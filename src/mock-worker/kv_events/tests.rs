//! What is told, replayed, is what the cache holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;
use smg_base::{Random, SplitMix, hash};

use super::{Journal, Outlet};
use crate::{
    config::{CacheConfig, KvEventFormat, Speed},
    scheduler::{Grant, Scheduler},
    tokens::{Namespace, Token},
};

const BLOCK: usize = 4;

/// Blocks by the names in events, with the content that their tokens and parents say.
#[derive(Default)]
struct Replayed {
    blocks: BTreeMap<String, u64>,
    next: u64,
}

impl Replayed {
    /// Applies a batch as it was sent.
    fn apply(&mut self, sequence: u64, payload: &[u8], root: u64) {
        assert_eq!(sequence, self.next);
        self.next += 1;
        let batch: Value = rmp_serde::from_slice(payload).unwrap();
        for event in batch[1].as_array().unwrap() {
            match event[0].as_str().unwrap() {
                "BlockStored" => self.stored(event, root),
                "BlockRemoved" => {
                    for name in event[1].as_array().unwrap() {
                        assert!(self.blocks.remove(&name.to_string()).is_some(), "{name} was not there");
                    }
                }
                "AllBlocksCleared" => self.blocks.clear(),
                other => panic!("{other}"),
            }
        }
    }

    fn stored(&mut self, event: &Value, root: u64) {
        let mut content = match &event[2] {
            Value::Null => hash::mix(root, 0),
            parent => *self.blocks.get(&parent.to_string()).expect("the parent was told of before"),
        };
        let names = event[1].as_array().unwrap();
        let tokens: Vec<u8> =
            event[3].as_array().unwrap().iter().flat_map(|id| (id.as_u64().unwrap() as Token).to_le_bytes()).collect();
        assert_eq!((tokens.len(), event[4].as_u64()), (names.len() * BLOCK * 4, Some(BLOCK as u64)));
        for (name, tokens) in names.iter().zip(tokens.chunks(BLOCK * 4)) {
            content = hash::stable64_seeded(tokens, content);
            assert_eq!(self.blocks.insert(name.to_string(), content), None, "told twice");
        }
    }
}

fn engine(format: KvEventFormat, blocks: u32) -> (Arc<Journal>, Arc<Scheduler>) {
    let cache = CacheConfig { block_tokens: BLOCK as u32, blocks };
    let journal = Arc::new(Journal::new(Outlet::Published(format), &cache, 10_000));
    let scheduler = Arc::new(Scheduler::new(Speed::default(), &cache, Some(journal.clone())));
    (journal, scheduler)
}

/// A prompt of one of a few families that branch, and what follows it.
fn job(random: &SplitMix) -> (Vec<Token>, Vec<Token>) {
    let draw = |below: u64| u32::try_from(random.below(below)).unwrap();
    let (family, branch) = (draw(3), draw(4));
    let prompt = (0..4 + draw(30)).map(|place| family * 1_000 + if place < 10 { 0 } else { branch * 100 } + place);
    (prompt.collect(), (0..draw(12)).map(|place| 10_000 + branch * 100 + place).collect())
}

async fn run(format: KvEventFormat, seed: u64) {
    let (journal, scheduler) = engine(format, 24);
    let random = SplitMix::new(seed);
    let (mut replayed, mut running) = (Replayed::default(), Vec::<Grant>::new());
    let namespace = Namespace::default();
    for round in 0..2_000 {
        match random.below(8) {
            0..=2 => {
                let (prompt, output) = job(&random);
                if let Ok(mut place) = scheduler.enter(prompt, output, namespace.clone())
                    && let Some(mut grant) = place.take_ready()
                {
                    grant.prefill().await;
                    running.push(grant);
                }
            }
            3..=5 if !running.is_empty() => {
                let chosen = usize::try_from(random.below(running.len() as u64)).unwrap();
                running[chosen].generated(1 + u32::try_from(random.below(5)).unwrap());
            }
            6 if !running.is_empty() => {
                drop(running.swap_remove(usize::try_from(random.below(running.len() as u64)).unwrap()));
            }
            7 if random.below(20) == 0 => assert_eq!(scheduler.flush_cache(), running.is_empty()),
            _ => continue,
        }
        journal.close();
        for batch in journal.since(replayed.next) {
            replayed.apply(batch.sequence, &batch.payload, namespace.root());
        }
        let content: BTreeSet<u64> = scheduler.content().into_iter().collect();
        let told: BTreeSet<u64> = replayed.blocks.values().copied().collect();
        assert_eq!(told, content, "seed {seed}, round {round}");
    }
    assert!(replayed.next > 200, "too little happened: {}", replayed.next);
}

#[tokio::test]
async fn events_replayed_are_the_content_at_every_moment() {
    for seed in 0..8 {
        run(KvEventFormat::VllmArray, seed).await;
        run(KvEventFormat::Sglang, seed).await;
    }
}

#[tokio::test]
async fn blocks_are_told_of_when_they_are_full_and_two_engines_name_them_differently() {
    let mut names = BTreeSet::new();
    for _ in 0..2 {
        let (journal, scheduler) = engine(KvEventFormat::VllmArray, 24);
        let mut place = scheduler.enter((0..9).collect(), (9..17).collect(), Namespace::default()).unwrap();
        let mut grant = place.take_ready().unwrap();
        let told = |journal: &Journal| journal.since(0).len();
        assert_eq!(told(&journal), 0, "the prompt is not computed yet");
        grant.prefill().await;
        assert_eq!(told(&journal), 1);
        for (generated, batches) in [(1, 1), (1, 1), (1, 2), (4, 3)] {
            grant.generated(generated);
            assert_eq!(told(&journal), batches);
        }
        drop(grant);
        assert_eq!(told(&journal), 3, "nothing new");
        let first: Value = rmp_serde::from_slice(&journal.since(0)[0].payload).unwrap();
        let event = &first[1][0];
        assert_eq!(
            (&event[0], &event[2], event[1].as_array().unwrap().len()),
            (&"BlockStored".into(), &Value::Null, 2)
        );
        names.insert(event[1].to_string());
        assert_eq!(journal.since(2).len(), 1);
    }
    assert_eq!(names.len(), 2);
}

#[tokio::test]
async fn only_the_latest_batches_are_kept() {
    let cache = CacheConfig { block_tokens: 4, blocks: 64 };
    let journal = Arc::new(Journal::new(Outlet::Published(KvEventFormat::VllmArray), &cache, 3));
    let scheduler = Arc::new(Scheduler::new(Speed::default(), &cache, Some(journal.clone())));
    for first in [0, 100, 200, 300, 400] {
        let mut place = scheduler.enter((first..first + 8).collect(), Vec::new(), Namespace::default()).unwrap();
        place.take_ready().unwrap().prefill().await;
    }
    let sequences: Vec<u64> = journal.since(0).iter().map(|batch| batch.sequence).collect();
    assert_eq!(sequences, [2, 3, 4]);
}
