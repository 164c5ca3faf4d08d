//! A model of an engine: continuous batching with chunked prefill over a paged KV cache.
//!
//! It works in steps. In each, every running request that decodes makes one token, and what is left of the step's budget of
//! tokens goes to prompts, in the order in which they came. A step takes `a + b·requests + c·(tokens of context read) + prompt
//! tokens ÷ rate`, so prompts slow down the streams beside them, and streams the prompts. Requests hold the memory of their
//! whole context while they run; when there is none left, the one that came last gives its own back and starts again later. What
//! nobody holds stays as a cache.

use std::{collections::VecDeque, time::Duration};

use smg_base::Timestamp;
use smg_prefix::Change;

use super::{
    blocks::Blocks,
    workload::{CHUNK, Prompt},
};

/// What an engine can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineConfig {
    /// Tokens that its KV cache holds.
    pub capacity_tokens: u64,
    /// Prompt tokens it computes in a second, nothing else running.
    pub prefill_tokens_per_second: f64,
    /// Tokens of one step.
    pub step_tokens: u32,
    /// Requests that run at once.
    pub running_max: usize,
    /// What a step takes in any case.
    pub step_seconds: f64,
    /// What each request adds to it.
    pub request_seconds: f64,
    /// What each token of context of a decoding request adds to it.
    pub context_token_seconds: f64,
}

impl Default for EngineConfig {
    /// Roughly a model of 32 billion parameters on a node of four H100.
    fn default() -> Self {
        Self {
            capacity_tokens: 512_000,
            prefill_tokens_per_second: 8_000.0,
            step_tokens: 2_048,
            running_max: 256,
            step_seconds: 0.008,
            request_seconds: 0.000_05,
            context_token_seconds: 2e-8,
        }
    }
}

impl EngineConfig {
    /// Blocks of its KV cache.
    pub(super) fn blocks(&self) -> u32 {
        u32::try_from(self.capacity_tokens / u64::from(CHUNK)).unwrap_or(u32::MAX / 2)
    }
}

/// Something that a gateway sees of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The first token of an answer, and how many prompt tokens were found in the cache.
    FirstToken {
        request: usize,
        cached_tokens: u32,
    },
    Finished {
        request: usize,
    },
}

/// What an engine says of its load.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Gauges {
    pub(super) running: u32,
    pub(super) waiting: u32,
    pub(super) kv_usage: f32,
}

/// What an engine did in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Work {
    /// Prompt tokens computed, again after a preemption included.
    pub(super) prefilled_tokens: u64,
    /// Answers' tokens made.
    pub(super) decoded_tokens: u64,
    /// Requests that gave back their memory and started again.
    pub(super) preemptions: u64,
}

/// One engine.
#[derive(Debug)]
pub(super) struct Engine {
    config: EngineConfig,
    blocks: Blocks,
    waiting: VecDeque<Job>,
    running: Vec<Job>,
    is_stepping: bool,
    work: Work,
}

/// A request in an engine.
#[derive(Clone, Copy, Debug)]
struct Job {
    request: usize,
    /// Tokens whose keys and values are there.
    computed: u32,
    /// Tokens of the answer that were made.
    produced: u32,
    /// Blocks held: the first with names, then the private ones.
    named: u32,
    private: u32,
    /// Tokens of it in the step that is under way.
    in_step: u32,
    /// What was found in the cache when it first ran.
    cached_tokens: Option<u32>,
}

impl Job {
    fn new(request: usize) -> Self {
        Self { request, computed: 0, produced: 0, named: 0, private: 0, in_step: 0, cached_tokens: None }
    }

    /// Tokens that are known and whose keys and values are to be computed.
    fn known(&self, prompt: &Prompt) -> u32 {
        prompt.input_tokens + self.produced
    }

    fn is_decoding(&self, prompt: &Prompt) -> bool {
        self.produced > 0 && self.computed + 1 == self.known(prompt)
    }
}

impl Engine {
    pub(super) fn new(config: EngineConfig) -> Self {
        let blocks = Blocks::new(config.blocks());
        let (waiting, running) = (VecDeque::new(), Vec::new());
        Self { config, blocks, waiting, running, is_stepping: false, work: Work::default() }
    }

    /// A request comes; false if it is too long for the engine ever to run.
    pub(super) fn take(&mut self, request: usize, prompts: &[Prompt]) -> bool {
        let prompt = &prompts[request];
        let fits = (prompt.input_tokens + prompt.output_tokens).div_ceil(CHUNK) <= self.blocks.capacity();
        if fits {
            self.waiting.push_back(Job::new(request));
        }
        fits
    }

    /// Begins a step, if none is under way and there is something to do; says when it ends.
    pub(super) fn step(&mut self, now: Timestamp, prompts: &[Prompt]) -> Option<Timestamp> {
        if self.is_stepping {
            return None;
        }
        let budget = self.schedule_running(prompts);
        self.admit(budget, prompts);
        let (mut requests, mut context, mut prefill) = (0_u32, 0_u64, 0_u32);
        for job in self.running.iter().filter(|job| job.in_step > 0) {
            requests += 1;
            if job.is_decoding(&prompts[job.request]) {
                context += u64::from(job.computed);
            } else {
                prefill += job.in_step;
            }
        }
        if requests == 0 {
            return None;
        }
        self.work.prefilled_tokens += u64::from(prefill);
        self.is_stepping = true;
        let EngineConfig { step_seconds, request_seconds, context_token_seconds, .. } = self.config;
        #[expect(clippy::cast_precision_loss, reason = "tokens of one engine")]
        let seconds = step_seconds
            + request_seconds * f64::from(requests)
            + context_token_seconds * context as f64
            + f64::from(prefill) / self.config.prefill_tokens_per_second;
        Some(now + Duration::from_secs_f64(seconds))
    }

    /// The step that was under way has ended; tells what of it is seen.
    pub(super) fn finish_step(&mut self, prompts: &[Prompt], seen: &mut Vec<Seen>) {
        self.is_stepping = false;
        let mut kept = 0;
        for index in 0..self.running.len() {
            let mut job = self.running[index];
            let prompt = &prompts[job.request];
            job.computed += std::mem::take(&mut job.in_step);
            self.name_full_blocks(&mut job, prompt);
            if job.computed == job.known(prompt) {
                job.produced += 1;
                self.work.decoded_tokens += 1;
                if job.produced == 1 {
                    let cached_tokens = job.cached_tokens.unwrap_or(0);
                    seen.push(Seen::FirstToken { request: job.request, cached_tokens });
                }
            }
            if job.produced == prompt.output_tokens {
                self.blocks.release(&prompt.chunks[..job.named as usize], job.private);
                seen.push(Seen::Finished { request: job.request });
            } else {
                self.running[kept] = job;
                kept += 1;
            }
        }
        self.running.truncate(kept);
    }

    pub(super) fn changes(&mut self) -> Vec<Change> {
        self.blocks.changes()
    }

    pub(super) fn gauges(&self) -> Gauges {
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        let kv_usage = (f64::from(self.blocks.in_use()) / f64::from(self.blocks.capacity().max(1))) as f32;
        Gauges { running: count(self.running.len()), waiting: count(self.waiting.len()), kv_usage }
    }

    pub(super) fn work(&self) -> Work {
        self.work
    }

    /// Gives those that run their tokens of this step; returns what is left, or nothing if memory was short.
    fn schedule_running(&mut self, prompts: &[Prompt]) -> u32 {
        let mut budget = self.config.step_tokens;
        let mut is_short = false;
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let job = self.running[index];
            let tokens = (job.known(&prompts[job.request]) - job.computed).min(budget);
            let blocks = (job.computed + tokens).div_ceil(CHUNK).saturating_sub(job.named + job.private);
            while index < self.running.len() {
                if self.blocks.take(blocks) {
                    let job = &mut self.running[index];
                    job.private += blocks;
                    job.in_step = tokens;
                    budget -= tokens;
                    break;
                }
                // At the latest its own memory is enough for those before it.
                is_short = true;
                self.preempt_last(prompts);
            }
            index += 1;
        }
        if is_short { 0 } else { budget }
    }

    /// Lets in those that wait, in their order, as long as there is room for the whole of the next one.
    fn admit(&mut self, mut budget: u32, prompts: &[Prompt]) {
        while budget > 0 && self.running.len() < self.config.running_max {
            let Some(mut job) = self.waiting.front().copied() else { return };
            let prompt = &prompts[job.request];
            let known = job.known(prompt);
            let reusable = prompt.chunks.len().min(((known - 1) / CHUNK) as usize);
            let found = self.blocks.matched(&prompt.chunks[..reusable]);
            let found_chunks = &prompt.chunks[..found];
            let matched = u32::try_from(found).expect("chunks of a prompt");
            let missing = known.div_ceil(CHUNK) - matched;
            let taken = missing + self.blocks.idle_among(found_chunks);
            if taken > self.blocks.capacity() - self.blocks.in_use() {
                return;
            }
            self.waiting.pop_front();
            self.blocks.hold(found_chunks);
            job.computed = matched * CHUNK;
            job.named = matched;
            job.cached_tokens.get_or_insert(job.computed);
            let tokens = (known - job.computed).min(budget);
            job.private = (job.computed + tokens).div_ceil(CHUNK) - matched;
            assert!(self.blocks.take(job.private), "there is room for more than that");
            job.in_step = tokens;
            budget -= tokens;
            self.running.push(job);
        }
    }

    fn preempt_last(&mut self, prompts: &[Prompt]) {
        let Some(mut job) = self.running.pop() else { return };
        self.blocks.release(&prompts[job.request].chunks[..job.named as usize], job.private);
        (job.computed, job.named, job.private, job.in_step) = (0, 0, 0, 0);
        self.work.preemptions += 1;
        self.waiting.push_front(job);
    }

    fn name_full_blocks(&mut self, job: &mut Job, prompt: &Prompt) {
        let full = (job.computed / CHUNK).min(u32::try_from(prompt.chunks.len()).unwrap_or(u32::MAX));
        while job.named < full {
            let at = job.named as usize;
            self.blocks.name(at.checked_sub(1).map(|before| prompt.chunks[before]), prompt.chunks[at]);
            job.named += 1;
            job.private -= 1;
        }
    }
}
