//! The queue of an engine: running slots, one prefill at a time, decode steps, and room in the prefix cache.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as Turnstile, oneshot},
    time::Instant,
};

use crate::{
    cache::{Held, PrefixCache, block_hashes},
    config::{CacheConfig, Speed},
    tokens::Token,
};

/// Who runs and who waits.
#[derive(Debug)]
pub(crate) struct Scheduler {
    state: Mutex<State>,
    /// Whoever holds it has its prompt computed.
    prefill: Turnstile<()>,
    speed: Speed,
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
    prompt: Vec<Token>,
    /// What will be generated, which a fake engine knows beforehand.
    output: Vec<Token>,
    hashes: Vec<u64>,
    salt: u64,
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
    pub(crate) fn new(speed: Speed, cache: &CacheConfig) -> Self {
        let state = State {
            cache: PrefixCache::new(cache.block_tokens, cache.blocks),
            running: 0,
            waiting: VecDeque::new(),
            last_id: 0,
            totals: Totals::default(),
            pace: Pace { since: Instant::now(), tokens: 0, per_second: 0.0 },
        };
        Self { state: Mutex::new(state), prefill: Turnstile::new(()), speed }
    }

    /// Enters the queue for `prompt`, after which `output` will be generated.
    pub(crate) fn enter(
        self: &Arc<Self>,
        prompt: Vec<Token>,
        output: Vec<Token>,
        salt: u64,
    ) -> Result<Place, QueueFull> {
        let block_tokens = self.state.lock().cache.block_tokens();
        let hashes = block_hashes(&prompt, block_tokens, salt);
        let job = Job { prompt, output, hashes, salt };
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
        }
        is_idle
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
        let hits_max = job.prompt.len().saturating_sub(1) / block_tokens;
        let blocks = (job.prompt.len() + job.output.len()).div_ceil(block_tokens);
        let Some(held) = self.cache.hold(&job.hashes, hits_max, blocks - job.hashes.len()) else { return Err(job) };
        self.running += 1;
        self.totals.prompt_tokens += job.prompt.len() as u64;
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
        (self.held.hits * self.scheduler.state.lock().cache.block_tokens()) as u64
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
        if let Some(next) = &mut self.next_token {
            *next += self.scheduler.decode_interval() * tokens;
        }
    }

    fn prefill_time(&self) -> Duration {
        let uncached = (self.job.prompt.len() as u64).saturating_sub(self.cached_tokens());
        #[expect(clippy::cast_precision_loss, reason = "prompts are far below 2^52 tokens")]
        let uncached = uncached as f64;
        self.scheduler.time_of(uncached, self.scheduler.speed.prefill_tokens_per_second)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let job = &mut self.job;
        job.output.truncate(self.generated);
        let generated = job.output.len() as u64;
        job.prompt.append(&mut job.output);
        {
            let mut state = self.scheduler.state.lock();
            let hashes = block_hashes(&job.prompt, state.cache.block_tokens(), job.salt);
            state.cache.release(std::mem::take(&mut self.held), &hashes);
            state.running -= 1;
            state.totals.output_tokens += generated;
            state.totals.requests += 1;
            state.pace.add(generated);
        }
        self.scheduler.advance();
    }
}
