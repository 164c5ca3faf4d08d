//! The queue of an engine: running slots, one prefill at a time, decode steps, and room in the prefix cache.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as Turnstile, oneshot},
    time::Instant,
};

use crate::{
    cache::{Held, PrefixCache, hash_blocks},
    config::{CacheConfig, Speed},
    kv_events::{Blocks, Journal},
    tokens::{Namespace, Token},
};

/// Who runs and who waits.
#[derive(Debug)]
pub(crate) struct Scheduler {
    state: Mutex<State>,
    /// Whoever holds it has its prompt computed.
    prefill: Turnstile<()>,
    speed: Speed,
    block_tokens: usize,
    /// Where the cache's changes are told, if anybody asked for them.
    journal: Option<Arc<Journal>>,
}

#[derive(Debug)]
struct State {
    cache: PrefixCache,
    running: u32,
    waiting: VecDeque<Waiting>,
    last_id: u64,
    totals: Totals,
    pace: Pace,
}

/// How fast output has come lately: the rate of the last window that is over.
#[derive(Debug)]
struct Pace {
    since: Instant,
    tokens: u64,
    per_second: f64,
}

impl Pace {
    const WINDOW: Duration = Duration::from_secs(1);

    /// The rate, after `tokens` more.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    fn add(&mut self, tokens: u64) -> f64 {
        let elapsed = self.since.elapsed();
        self.tokens += tokens;
        if elapsed >= Self::WINDOW {
            self.per_second = self.tokens as f64 / elapsed.as_secs_f64();
            (self.since, self.tokens) = (Instant::now(), 0);
        }
        self.per_second
    }
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    job: Job,
    granted: oneshot::Sender<Grant>,
}

/// What an engine counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) output_tokens: u64,
    pub(crate) requests: u64,
}

/// How busy an engine is.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) running: u32,
    pub(crate) waiting: usize,
    pub(crate) used_blocks: usize,
    pub(crate) blocks: usize,
    pub(crate) totals: Totals,
    /// Output tokens per second, lately.
    pub(crate) tokens_per_second: f64,
}

impl Load {
    /// The part of the cache that running requests hold.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub(crate) fn usage(&self) -> f64 {
        if self.blocks == 0 { 0.0 } else { self.used_blocks as f64 / self.blocks as f64 }
    }
}

/// What a request needs.
#[derive(Debug)]
pub(crate) struct Job {
    /// The prompt, and what will be generated, which a fake engine knows beforehand.
    tokens: Vec<Token>,
    prompt_tokens: usize,
    /// Of the blocks that are full by now.
    hashes: Vec<u64>,
    namespace: Namespace,
}

impl Job {
    fn blocks(&self) -> Blocks<'_> {
        Blocks { tokens: &self.tokens, hashes: &self.hashes, namespace: &self.namespace }
    }
}

/// The queue is full.
#[derive(Debug)]
pub(crate) struct QueueFull;

/// A place in the queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Place {
    scheduler: Arc<Scheduler>,
    id: u64,
    granted: Option<oneshot::Receiver<Grant>>,
    ready: Option<Grant>,
}

/// Leave to run. Dropping it makes room for the next.
#[derive(Debug)]
pub(crate) struct Grant {
    scheduler: Arc<Scheduler>,
    job: Job,
    held: Held,
    generated: usize,
    next_token: Option<Instant>,
}

impl Scheduler {
    pub(crate) fn new(speed: Speed, cache: &CacheConfig, journal: Option<Arc<Journal>>) -> Self {
        let mut blocks = PrefixCache::new(cache.block_tokens, cache.blocks);
        if journal.is_some() {
            blocks.record();
        }
        let block_tokens = blocks.block_tokens();
        let state = State {
            cache: blocks,
            running: 0,
            waiting: VecDeque::new(),
            last_id: 0,
            totals: Totals::default(),
            pace: Pace { since: Instant::now(), tokens: 0, per_second: 0.0 },
        };
        Self { state: Mutex::new(state), prefill: Turnstile::new(()), speed, block_tokens, journal }
    }

    /// Enters the queue for `prompt`, after which `output` will be generated.
    pub(crate) fn enter(
        self: &Arc<Self>,
        prompt: Vec<Token>,
        output: Vec<Token>,
        namespace: Namespace,
    ) -> Result<Place, QueueFull> {
        let mut hashes = Vec::with_capacity(prompt.len() / self.block_tokens);
        hash_blocks(&mut hashes, &prompt, self.block_tokens, namespace.root());
        let (prompt_tokens, mut tokens) = (prompt.len(), prompt);
        tokens.extend(output);
        let job = Job { tokens, prompt_tokens, hashes, namespace };
        let mut state = self.state.lock();
        state.last_id += 1;
        let id = state.last_id;
        let place = |granted, ready| Place { scheduler: Arc::clone(self), id, granted, ready };
        if state.waiting.is_empty() {
            match state.grant(self, job) {
                Ok(grant) => return Ok(place(None, Some(grant))),
                Err(job) => return state.wait(id, job, &self.speed).map(|granted| place(Some(granted), None)),
            }
        }
        state.wait(id, job, &self.speed).map(|granted| place(Some(granted), None))
    }

    pub(crate) fn load(&self) -> Load {
        let mut state = self.state.lock();
        Load {
            tokens_per_second: state.pace.add(0),
            running: state.running,
            waiting: state.waiting.len(),
            used_blocks: state.cache.used(),
            blocks: state.cache.capacity(),
            totals: state.totals.clone(),
        }
    }

    /// Empties the prefix cache, unless requests run or wait; whether it did.
    pub(crate) fn flush_cache(&self) -> bool {
        let mut state = self.state.lock();
        let is_idle = state.running == 0 && state.waiting.is_empty();
        if is_idle {
            state.cache.flush();
            let nobody = Blocks { tokens: &[], hashes: &[], namespace: &Namespace::default() };
            self.note(&mut state, nobody);
            self.tell();
        }
        is_idle
    }

    /// Notes what happened to the cache, of which `blocks` is the cause.
    fn note(&self, state: &mut State, blocks: Blocks<'_>) {
        if let (Some(journal), Some(changes)) = (&self.journal, state.cache.changes()) {
            journal.note(changes, blocks);
        }
    }

    /// Tells what was noted.
    fn tell(&self) {
        if let Some(journal) = &self.journal {
            journal.close();
        }
    }

    /// The hashes of the blocks in the cache.
    #[cfg(test)]
    pub(crate) fn content(&self) -> Vec<u64> {
        self.state.lock().cache.content().collect()
    }

    /// Lets those in front of the queue run for whom there is room.
    fn advance(self: &Arc<Self>) {
        loop {
            let (granted, grant) = {
                let mut state = self.state.lock();
                let Some(Waiting { id, job, granted }) = state.waiting.pop_front() else { return };
                match state.grant(self, job) {
                    Ok(grant) => (granted, grant),
                    Err(job) => {
                        state.waiting.push_front(Waiting { id, job, granted });
                        return;
                    }
                }
            };
            // Who has gone away meanwhile gets nothing: the grant is dropped here, outside the lock.
            drop(granted.send(grant));
        }
    }

    /// How long `tokens` take at `per_second`.
    fn time_of(&self, tokens: f64, per_second: f64) -> Duration {
        if per_second <= 0.0 || self.speed.time_scale <= 0.0 {
            return Duration::ZERO;
        }
        Duration::try_from_secs_f64(tokens / per_second * self.speed.time_scale).unwrap_or(Duration::MAX)
    }

    /// The time between two tokens of one stream.
    fn decode_interval(&self) -> Duration {
        let Speed { decode_tokens_per_second: alone, decode_tokens_per_second_total: total, .. } = self.speed;
        if alone <= 0.0 && total <= 0.0 {
            return Duration::ZERO;
        }
        let running = f64::from(self.state.lock().running);
        self.time_of(1.0, alone).max(self.time_of(running, total))
    }
}

impl State {
    /// Lets `job` run, or gives it back if there is no room.
    fn grant(&mut self, scheduler: &Arc<Scheduler>, job: Job) -> Result<Grant, Job> {
        if self.running >= scheduler.speed.running_max.max(1) {
            return Err(job);
        }
        let block_tokens = self.cache.block_tokens();
        // The last token of a prompt is always computed: its output is what is wanted.
        let hits_max = job.prompt_tokens.saturating_sub(1) / block_tokens;
        let blocks = job.tokens.len().div_ceil(block_tokens);
        let Some(held) = self.cache.hold(&job.hashes, hits_max, blocks - job.hashes.len()) else { return Err(job) };
        scheduler.note(self, job.blocks());
        self.running += 1;
        self.totals.prompt_tokens += job.prompt_tokens as u64;
        self.totals.cached_tokens += (held.hits * block_tokens) as u64;
        Ok(Grant { scheduler: Arc::clone(scheduler), job, held, generated: 0, next_token: None })
    }

    fn wait(&mut self, id: u64, job: Job, speed: &Speed) -> Result<oneshot::Receiver<Grant>, QueueFull> {
        if self.waiting.len() >= speed.waiting_max as usize {
            return Err(QueueFull);
        }
        let (granted, receiver) = oneshot::channel();
        self.waiting.push_back(Waiting { id, job, granted });
        Ok(receiver)
    }
}

impl Place {
    /// Leave to run, if it is there already.
    pub(crate) fn take_ready(&mut self) -> Option<Grant> {
        self.ready.take()
    }

    /// Waits for leave to run.
    pub(crate) async fn granted(mut self) -> Option<Grant> {
        let Some(granted) = self.granted.as_mut() else { return self.ready.take() };
        let grant = granted.await.ok();
        // It has left the queue: dropping it need not look there.
        self.granted = None;
        grant
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.granted.take().is_some() {
            self.scheduler.state.lock().waiting.retain(|waiting| waiting.id != self.id);
            self.scheduler.advance();
        }
    }
}

impl Grant {
    /// Tokens of the prompt that the cache had.
    pub(crate) fn cached_tokens(&self) -> u64 {
        (self.held.hits * self.scheduler.block_tokens) as u64
    }

    /// Whether the prompt takes time to compute.
    pub(crate) fn prefill_takes_time(&self) -> bool {
        !self.prefill_time().is_zero()
    }

    /// Computes what the cache lacks of the prompt, when its turn has come.
    pub(crate) async fn prefill(&mut self) {
        let duration = self.prefill_time();
        if !duration.is_zero() {
            let _turn = self.scheduler.prefill.lock().await;
            tokio::time::sleep(duration).await;
        }
        self.scheduler.tell();
        let interval = self.scheduler.decode_interval();
        self.next_token = (!interval.is_zero()).then(Instant::now);
    }

    /// When the next token is due: `None` if now.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.next_token.filter(|due| *due > Instant::now())
    }

    /// Counts a step that generated `tokens` tokens of one answer.
    pub(crate) fn generated(&mut self, tokens: u32) {
        self.generated += tokens as usize;
        self.name_blocks();
        if let Some(next) = &mut self.next_token {
            *next += self.scheduler.decode_interval() * tokens;
        }
    }

    /// Names the blocks that generation has filled since the last step.
    fn name_blocks(&mut self) {
        let Self { scheduler, job, .. } = self;
        let full = job.tokens.len().min(job.prompt_tokens + self.generated);
        let named = job.hashes.len();
        if full / scheduler.block_tokens <= named {
            return;
        }
        hash_blocks(&mut job.hashes, &job.tokens[..full], scheduler.block_tokens, job.namespace.root());
        let mut state = scheduler.state.lock();
        state.cache.name(&self.held, &job.hashes, named);
        scheduler.note(&mut state, job.blocks());
        drop(state);
        scheduler.tell();
    }

    fn prefill_time(&self) -> Duration {
        let uncached = (self.job.prompt_tokens as u64).saturating_sub(self.cached_tokens());
        #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^52 tokens")]
        let uncached = uncached as f64;
        self.scheduler.time_of(uncached, self.scheduler.speed.prefill_tokens_per_second)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let job = &self.job;
        let generated = self.generated.min(job.tokens.len() - job.prompt_tokens) as u64;
        {
            let mut state = self.scheduler.state.lock();
            state.cache.release(std::mem::take(&mut self.held), &job.hashes);
            self.scheduler.note(&mut state, job.blocks());
            state.running -= 1;
            state.totals.output_tokens += generated;
            state.totals.requests += 1;
            state.pace.add(generated);
        }
        self.scheduler.tell();
        self.scheduler.advance();
    }
}
