//! What happened to blocks, in order, and the batches it was told in.

use std::{collections::VecDeque, hash::BuildHasher};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Value, json};
use smg_base::hash;
use tokio::sync::Notify;

use super::encode;
use crate::{
    cache::Change,
    config::{CacheConfig, KvEventFormat},
    tokens::{Namespace, Token},
};

/// The events of one engine.
#[derive(Debug)]
pub(crate) struct Journal {
    outlet: Outlet,
    block_tokens: u32,
    /// What names of blocks begin with. It is drawn when the engine starts, so that two engines name the same block
    /// differently, and a restarted one differs from itself.
    root: u64,
    kept_max: usize,
    pages: Mutex<Pages>,
    changed: Notify,
}

/// How events leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlet {
    /// In numbered batches.
    Published(KvEventFormat),
    /// When they are asked for, once.
    Drained,
}

#[derive(Debug, Default)]
struct Pages {
    /// Of the batch that is still open.
    open: Vec<Happening>,
    next_sequence: u64,
    /// The latest batches, oldest first.
    batches: VecDeque<Batch>,
    /// What waits to be drained, oldest first.
    undrained: VecDeque<Value>,
    next_id: u64,
}

/// A closed batch, as it is sent.
#[derive(Clone, Debug)]
pub(crate) struct Batch {
    pub(crate) sequence: u64,
    pub(crate) payload: Bytes,
}

/// Something happened to blocks; they have the names that the outside knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Happening {
    Stored { blocks: Vec<u64>, parent: Option<u64>, tokens: Vec<Token>, namespace: Namespace },
    Removed { blocks: Vec<u64> },
    Cleared,
}

/// The blocks of one request, of which some may be new.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks<'a> {
    pub(crate) tokens: &'a [Token],
    /// Of the full blocks.
    pub(crate) hashes: &'a [u64],
    pub(crate) namespace: &'a Namespace,
}

impl Journal {
    pub(crate) fn new(outlet: Outlet, cache: &CacheConfig, kept_max: usize) -> Self {
        let journal = Self {
            outlet,
            block_tokens: cache.block_tokens.max(1),
            root: std::hash::RandomState::new().hash_one(kept_max),
            kept_max: kept_max.max(1),
            pages: Mutex::default(),
            changed: Notify::new(),
        };
        if outlet == Outlet::Drained {
            let created = json!({ "type": "created", "num_blocks_per_cache_level": [cache.blocks, 0] });
            journal.pages.lock().put_up(created, kept_max);
        }
        journal
    }

    /// The name that the outside knows a block by.
    pub(crate) fn name(&self, content: u64) -> u64 {
        hash::mix(self.root, content)
    }

    /// Notes `changes`, in which every block that was stored is one of `blocks`, in their order.
    pub(crate) fn note(&self, changes: &mut Vec<Change>, blocks: Blocks<'_>) {
        if changes.is_empty() {
            return;
        }
        let mut pages = self.pages.lock();
        let mut place = 0;
        for change in changes.drain(..) {
            match change {
                Change::Stored(content) => {
                    let found = blocks.hashes[place..].iter().position(|hash| *hash == content);
                    let Some(offset) = found else { continue };
                    place += offset;
                    self.stored(&mut pages.open, blocks, place);
                    place += 1;
                }
                Change::Removed(content) => {
                    let name = self.name(content);
                    match pages.open.last_mut() {
                        Some(Happening::Removed { blocks }) => blocks.push(name),
                        _ => pages.open.push(Happening::Removed { blocks: vec![name] }),
                    }
                }
                Change::Cleared => pages.open.push(Happening::Cleared),
            }
        }
    }

    fn stored(&self, open: &mut Vec<Happening>, all: Blocks<'_>, place: usize) {
        let size = self.block_tokens as usize;
        let own = &all.tokens[place * size..(place + 1) * size];
        let name = self.name(all.hashes[place]);
        let before = place.checked_sub(1).map(|before| self.name(all.hashes[before]));
        // SGLang tells of each page by itself.
        let is_joined = self.outlet != Outlet::Published(KvEventFormat::Sglang);
        if let Some(Happening::Stored { blocks, tokens, namespace, .. }) = open.last_mut()
            && is_joined
            && before.is_some()
            && blocks.last().copied() == before
            && namespace == all.namespace
        {
            blocks.push(name);
            tokens.extend_from_slice(own);
            return;
        }
        open.push(Happening::Stored {
            blocks: vec![name],
            parent: before,
            tokens: own.to_vec(),
            namespace: all.namespace.clone(),
        });
    }

    /// Closes the batch, if anything happened.
    pub(crate) fn close(&self) {
        let mut pages = self.pages.lock();
        if pages.open.is_empty() {
            return;
        }
        let happened = std::mem::take(&mut pages.open);
        match self.outlet {
            Outlet::Drained => {
                for happening in &happened {
                    pages.put_up(encode::drained(happening, self.block_tokens), self.kept_max);
                }
            }
            Outlet::Published(format) => {
                let payload = encode::payload(&happened, format, self.block_tokens);
                let sequence = pages.next_sequence;
                pages.next_sequence += 1;
                if pages.batches.len() >= self.kept_max {
                    pages.batches.pop_front();
                }
                pages.batches.push_back(Batch { sequence, payload });
                drop(pages);
                self.changed.notify_one();
            }
        }
    }

    /// Whether the topic is repeated with what was missed.
    pub(crate) fn repeats_topic(&self) -> bool {
        matches!(self.outlet, Outlet::Published(format) if encode::is_map(format))
    }

    /// The batches that are kept, from `first` on.
    pub(crate) fn since(&self, first: u64) -> Vec<Batch> {
        let pages = self.pages.lock();
        let from = pages.batches.partition_point(|batch| batch.sequence < first);
        pages.batches.range(from..).cloned().collect()
    }

    /// The number of the next batch.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.pages.lock().next_sequence
    }

    /// Returns when there may be more batches. One task may wait.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Takes what was not yet taken.
    pub(crate) fn drain(&self) -> Value {
        self.pages.lock().undrained.drain(..).collect()
    }
}

impl Pages {
    fn put_up(&mut self, data: Value, kept_max: usize) {
        if self.undrained.len() >= kept_max {
            self.undrained.pop_front();
        }
        let id = self.next_id;
        self.next_id += 1;
        self.undrained.push_back(json!({ "event_id": id, "window_size": encode::WINDOW, "data": data }));
    }
}
