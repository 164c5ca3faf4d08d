//! Blocks whose parent is not known: it may be named in a message that comes later.
//!
//! They are never taken for the beginning of a prompt. When there are too many, the oldest are forgotten.

use std::collections::BTreeMap;

use smg_base::map::StableMap;

use crate::{EngineHash, Stored, Tier};

/// Stretches of blocks that wait for the block before them.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    waiting: BTreeMap<u64, Stored>,
    by_parent: StableMap<EngineHash, Vec<u64>>,
    by_block: StableMap<EngineHash, u64>,
    next: u64,
}

impl Parked {
    /// How many blocks wait.
    pub(crate) fn blocks(&self) -> usize {
        self.by_block.len()
    }

    /// Puts a stretch with a parent aside, at the expense of the oldest where there are more than `blocks_max` blocks.
    pub(crate) fn park(&mut self, stored: Stored, blocks_max: usize) {
        let Some(parent) = stored.parent else { return };
        for block in &stored.blocks {
            self.forget(*block);
        }
        if stored.blocks.is_empty() || stored.blocks.len() > blocks_max {
            return;
        }
        let number = self.next;
        self.next += 1;
        self.by_parent.entry(parent).or_default().push(number);
        self.by_block.extend(stored.blocks.iter().map(|block| (*block, number)));
        self.waiting.insert(number, stored);
        while self.by_block.len() > blocks_max {
            let Some((oldest, _)) = self.waiting.first_key_value() else { return };
            let oldest = *oldest;
            self.take(oldest);
        }
    }

    /// The stretches that waited for `parent`.
    pub(crate) fn following(&mut self, parent: EngineHash) -> Vec<Stored> {
        let numbers = self.by_parent.get(&parent).cloned().unwrap_or_default();
        numbers.into_iter().filter_map(|number| self.take(number)).collect()
    }

    /// Forgets a block that is gone from a tier. False if it does not wait.
    pub(crate) fn remove(&mut self, block: EngineHash, tier: Tier) -> bool {
        let stored = self.by_block.get(&block).and_then(|number| self.waiting.get(number));
        let Some(stored) = stored else { return false };
        stored.tier != tier || self.forget(block)
    }

    /// Forgets a block; those after it wait for it. False if it does not wait.
    pub(crate) fn forget(&mut self, block: EngineHash) -> bool {
        let Some(number) = self.by_block.get(&block).copied() else { return false };
        let Some(mut upper) = self.take(number) else { return false };
        let Some(at) = upper.blocks.iter().position(|name| *name == block) else { return false };
        let block_tokens = upper.block_tokens as usize;
        let lower = Stored {
            blocks: upper.blocks.split_off(at + 1),
            parent: Some(block),
            tokens: upper.tokens.split_off((at + 1) * block_tokens),
            lora: upper.lora.clone(),
            salt: upper.salt.clone(),
            ..upper
        };
        upper.blocks.truncate(at);
        upper.tokens.truncate(at * block_tokens);
        self.put_back(number, upper);
        let number = self.next;
        self.next += 1;
        self.put_back(number, lower);
        true
    }

    fn put_back(&mut self, number: u64, stored: Stored) {
        let Some(parent) = stored.parent.filter(|_| !stored.blocks.is_empty()) else { return };
        self.by_parent.entry(parent).or_default().push(number);
        self.by_block.extend(stored.blocks.iter().map(|block| (*block, number)));
        self.waiting.insert(number, stored);
    }

    fn take(&mut self, number: u64) -> Option<Stored> {
        let stored = self.waiting.remove(&number)?;
        for block in &stored.blocks {
            if self.by_block.get(block) == Some(&number) {
                self.by_block.remove(block);
            }
        }
        if let Some(parent) = stored.parent
            && let Some(numbers) = self.by_parent.get_mut(&parent)
        {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_parent.remove(&parent);
            }
        }
        Some(stored)
    }
}
