//! The prefix index beside those that others publish as crates, in one run.
//!
//! ```sh
//! cargo run --release --manifest-path benches/rivals/Cargo.toml --target-dir target/rivals
//! ```
//!
//! Each index answers with the workers that hold something and how much, in the form that is cheapest for it, and is told
//! the same events. `dynamo-kv-router` applies events on a thread that it owns; the others on the caller's.

#![forbid(unsafe_code)]

use std::{cell::RefCell, fs};

use dynamo_kv_router::{
    ConcurrentRadixTreeCompressed,
    indexer::{SyncIndexer as _, ThreadPoolIndexer},
    protocols::{
        ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
        KvCacheStoredBlockData, LocalBlockHash, OverlapScores, RouterEvent,
    },
};
use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};
use parking_lot::Mutex;

use crate::measuring::{
    Table,
    indexes::{self, Index, Runs, WORKERS},
};

#[path = "../lib.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other benches, which use other parts of it")]
mod measuring;

fn main() {
    let content = indexes::content();
    println!("prefix indexes side by side: one thread, one more where a writer is named\n");
    let mut memory = Table::new(&format!("memory, bytes a block of {}", indexes::blocks()), &["", "resident"]);
    let smg = filled(Runs::default, &content, &mut memory);
    let chains = filled(Chains::default, &content, &mut memory);
    let dynamo = filled(Dynamo::default, &content, &mut memory);
    println!("{memory}");
    let measured = indexes::measure(&[indexes::entrant(&smg), indexes::entrant(&chains), indexes::entrant(&dynamo)]);
    println!("{}\n{}", indexes::table_of_lookups(&measured), indexes::table_of_events(&measured));
}

fn filled<I: Index>(index: impl FnOnce() -> I, content: &[(usize, Vec<u64>)], memory: &mut Table) -> I {
    let before = resident_bytes();
    let index = index();
    indexes::fill(&index, content);
    let bytes = resident_bytes().saturating_sub(before);
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    let per_block = bytes as f64 / indexes::blocks() as f64;
    memory.row(vec![index.name().to_owned(), format!("{per_block:.1}")]);
    index
}

/// Memory of this process, from Linux; zero where there is none.
fn resident_bytes() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4_096
}

/// The index of `kv-index`. A worker's own map of its blocks is kept by who feeds it.
struct Chains {
    index: ChainIndex,
    ids: Vec<u32>,
    maps: Vec<Mutex<ChainBlockMap>>,
}

impl Default for Chains {
    fn default() -> Self {
        let index = ChainIndex::with_max_workers(WORKERS);
        let ids = (0..WORKERS).map(|at| index.intern_worker(&at.to_string()).expect("room for all")).collect();
        Self { index, ids, maps: (0..WORKERS).map(|_| Mutex::default()).collect() }
    }
}

impl Index for Chains {
    type Query = Vec<ContentHash>;
    type Answer = Vec<(u32, u32)>;

    fn name(&self) -> &'static str {
        "kv-index"
    }

    fn store(&self, worker: usize, after: Option<u64>, chunks: &[u64]) {
        let blocks: Vec<StoredBlock> = chunks
            .iter()
            .map(|chunk| StoredBlock { seq_hash: SequenceHash(*chunk), content_hash: ContentHash(*chunk) })
            .collect();
        let mut map = self.maps[worker].lock();
        // What it cannot place shows in the comparison with the oracle.
        let _ = self.index.apply_stored(self.ids[worker], &blocks, after.map(SequenceHash), &mut map);
    }

    fn remove(&self, worker: usize, chunks: &[u64]) {
        let chunks: Vec<SequenceHash> = chunks.iter().copied().map(SequenceHash).collect();
        self.index.apply_removed(self.ids[worker], &chunks, &mut self.maps[worker].lock());
    }

    fn clear(&self, worker: usize) {
        self.index.apply_cleared(self.ids[worker], &mut self.maps[worker].lock());
    }

    fn query(&self, chunks: &[u64]) -> Vec<ContentHash> {
        chunks.iter().copied().map(ContentHash).collect()
    }

    fn find(&self, query: &Vec<ContentHash>, answer: &mut Vec<(u32, u32)>) {
        answer.clear();
        self.index.score_into(query, |hash| hash.0, false, |worker, depth| answer.push((worker, depth)));
    }

    fn depths(&self, answer: &Vec<(u32, u32)>) -> Vec<u32> {
        let depth = |id: &u32| answer.iter().find(|(worker, _)| worker == id).map_or(0, |(_, depth)| *depth);
        self.ids.iter().map(depth).collect()
    }
}

/// The concurrent index of `dynamo-kv-router`.
struct Dynamo {
    index: ThreadPoolIndexer<ConcurrentRadixTreeCompressed>,
}

thread_local! {
    static RUNTIME: RefCell<tokio::runtime::Runtime> =
        RefCell::new(tokio::runtime::Builder::new_current_thread().build().expect("a runtime"));
}

impl Default for Dynamo {
    fn default() -> Self {
        Self { index: ThreadPoolIndexer::new(ConcurrentRadixTreeCompressed::new(), 1, 16) }
    }
}

impl Dynamo {
    fn tell(&self, worker: usize, data: KvCacheEventData) {
        let event = RouterEvent::new(worker as u64, KvCacheEvent { event_id: 0, data, dp_rank: 0 });
        self.index.enqueue_event(event).expect("its thread runs");
    }
}

impl Index for Dynamo {
    type Query = Vec<LocalBlockHash>;
    type Answer = OverlapScores;

    fn name(&self) -> &'static str {
        "dynamo"
    }

    fn store(&self, worker: usize, after: Option<u64>, chunks: &[u64]) {
        let block = |chunk: &u64| KvCacheStoredBlockData {
            block_hash: ExternalSequenceBlockHash(*chunk),
            tokens_hash: LocalBlockHash(*chunk),
            mm_extra_info: None,
        };
        self.tell(
            worker,
            KvCacheEventData::Stored(KvCacheStoreData {
                parent_hash: after.map(ExternalSequenceBlockHash),
                start_position: None,
                blocks: chunks.iter().map(block).collect(),
            }),
        );
    }

    fn remove(&self, worker: usize, chunks: &[u64]) {
        let block_hashes = chunks.iter().copied().map(ExternalSequenceBlockHash).collect();
        self.tell(worker, KvCacheEventData::Removed(KvCacheRemoveData { block_hashes }));
    }

    fn clear(&self, worker: usize) {
        self.tell(worker, KvCacheEventData::Cleared);
    }

    fn settle(&self) {
        RUNTIME.with_borrow(|runtime| runtime.block_on(self.index.flush()));
    }

    fn query(&self, chunks: &[u64]) -> Vec<LocalBlockHash> {
        chunks.iter().copied().map(LocalBlockHash).collect()
    }

    fn find(&self, query: &Vec<LocalBlockHash>, answer: &mut OverlapScores) {
        *answer = self.index.backend().find_matches(query, false);
    }

    fn depths(&self, answer: &OverlapScores) -> Vec<u32> {
        let mut depths = vec![0; WORKERS];
        for (worker, depth) in &answer.scores {
            if let Some(of_worker) = depths.get_mut(usize::try_from(worker.worker_id).unwrap_or(WORKERS)) {
                *of_worker = *depth;
            }
        }
        depths
    }
}
