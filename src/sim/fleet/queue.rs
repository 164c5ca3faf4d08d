//! A plainer model of an engine: one prompt after the other, and streams that disturb nobody.
//!
//! Prompts are computed in the order in which they came, at a fixed rate; running requests hold no memory, answers are not
//! kept, and a token of an answer takes 20 ms whatever else there is. Simulators that others publish figures of work like this.

use std::{collections::VecDeque, time::Duration};

use smg_base::Timestamp;
use smg_prefix::Change;

use super::{
    blocks::Blocks,
    engine::{EngineConfig, Gauges, Work},
    workload::{CHUNK, Prompt},
};

const TOKEN_GAP: Duration = Duration::from_millis(20);

/// One engine.
#[derive(Debug)]
pub(super) struct Queue {
    rate: f64,
    blocks: Blocks,
    waiting: VecDeque<usize>,
    /// The request whose prompt is computed, and what was found of it in the cache.
    current: Option<(usize, u32)>,
    decoding: u32,
    work: Work,
}

impl Queue {
    pub(super) fn new(config: EngineConfig) -> Self {
        Self {
            rate: config.prefill_tokens_per_second,
            blocks: Blocks::new(config.blocks()),
            waiting: VecDeque::new(),
            current: None,
            decoding: 0,
            work: Work::default(),
        }
    }

    pub(super) fn take(&mut self, request: usize) {
        self.waiting.push_back(request);
    }

    /// Begins with the next prompt, if none is under way; says when it is done.
    pub(super) fn step(&mut self, now: Timestamp, prompts: &[Prompt]) -> Option<Timestamp> {
        if self.current.is_some() {
            return None;
        }
        let request = self.waiting.pop_front()?;
        let prompt = &prompts[request];
        let found = self.blocks.matched(&prompt.chunks[..prompt.reusable_chunks().min(prompt.chunks.len())]);
        let cached_tokens = u32::try_from(found).expect("chunks of a prompt") * CHUNK;
        self.current = Some((request, cached_tokens));
        let tokens = prompt.input_tokens - cached_tokens;
        self.work.prefilled_tokens += u64::from(tokens);
        Some(now + Duration::from_secs_f64(f64::from(tokens) / self.rate))
    }

    /// The prompt is done; says which, what was found of it, and how long its answer takes.
    pub(super) fn finish_step(&mut self, prompts: &[Prompt]) -> Option<(usize, u32, Duration)> {
        let (request, cached_tokens) = self.current.take()?;
        let prompt = &prompts[request];
        let length = prompt.chunks.len().min(self.blocks.capacity() as usize);
        let chunks = &prompt.chunks[..length];
        let found = self.blocks.matched(chunks);
        self.blocks.hold(&chunks[..found]);
        let missing = u32::try_from(length - found).expect("chunks of a prompt");
        assert!(self.blocks.take(missing), "nobody holds anything, and the prompt was cut to the capacity");
        for at in found..length {
            self.blocks.name(at.checked_sub(1).map(|before| chunks[before]), chunks[at]);
        }
        self.blocks.release(chunks, 0);
        self.decoding += 1;
        self.work.decoded_tokens += u64::from(prompt.output_tokens);
        Some((request, cached_tokens, TOKEN_GAP * (prompt.output_tokens - 1)))
    }

    /// The answer of a request is complete.
    pub(super) fn finish_answer(&mut self) {
        self.decoding -= 1;
    }

    pub(super) fn changes(&mut self) -> Vec<Change> {
        self.blocks.changes()
    }

    pub(super) fn gauges(&self) -> Gauges {
        let waiting = u32::try_from(self.waiting.len()).unwrap_or(u32::MAX);
        Gauges { running: self.decoding + u32::from(self.current.is_some()), waiting, kv_usage: 0.0 }
    }

    pub(super) fn work(&self) -> Work {
        self.work
    }
}
