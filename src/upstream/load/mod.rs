//! Asking engines how busy they are. What the gateway itself sent them it knows better; this shows what came from
//! elsewhere, and how full their caches are.

mod reading;
#[cfg(test)]
mod tests;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use smg_base::{Clock, Timestamp, WorkerId, map::StableMap};
use smg_fleet::{DirectPath, Engine, EngineLoad, EngineSource, Fleet, Status, Worker};
use smg_runtime::{Phase, Shutdown};
use tokio::time::MissedTickBehavior;

use crate::{
    Upstream,
    fetch::{Bounds, FetchError, fetch},
    outbound::Outbound,
};
use reading::{Generation, Reading};

/// Metrics of an engine with many models and ranks are some hundred kilobytes.
const POLL: Bounds = Bounds { bytes_max: 8 << 20, timeout: Duration::from_secs(5) };

/// Workers asked at the same time.
const CONCURRENT_MAX: usize = 32;

/// Figures older than this many intervals are forgotten.
const STALE_AFTER_INTERVALS: u32 = 3;

/// A worker that cannot say is asked again after this many intervals.
const UNSUPPORTED_PAUSE_INTERVALS: u32 = 30;

/// Why an engine's load is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It does not say, being what it is or being started as it was.
    #[error("the worker does not say how busy it is")]
    Unsupported,
    /// It could not be asked.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It answered with an error.
    #[error("the worker answered with status {0}")]
    Status(u16),
    /// Its answer does not hold what it should.
    #[error("the worker's answer holds no load figures")]
    Unreadable,
}

impl LoadError {
    /// The label in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::Fetch(_) => "failed",
            Self::Status(_) => "status",
            Self::Unreadable => "unreadable",
        }
    }
}

/// Asks a worker's engine how busy it is. The time of the answer is left for the caller to fill in, and so is the rate
/// of generation where the engine only counts tokens.
pub async fn poll(upstream: &Upstream, worker: &Worker) -> Result<EngineLoad, LoadError> {
    Ok(read(upstream, worker).await?.load(None, Timestamp::ORIGIN))
}

/// Polls all workers every `interval` and keeps the figures in their state, until the process closes its connections.
pub async fn run_load_monitor(
    fleet: Arc<Fleet>,
    upstream: Upstream,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
    interval: Duration,
) {
    let mut ticks = tokio::time::interval(interval.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut monitor = Monitor { fleet, upstream, clock, interval, known: StableMap::default() };
    let rounds = async {
        loop {
            ticks.tick().await;
            monitor.round().await;
        }
    };
    tokio::select! {
        () = shutdown.reached(Phase::Closing) => {}
        () = rounds => {}
    }
}

struct Monitor {
    fleet: Arc<Fleet>,
    upstream: Upstream,
    clock: Arc<dyn Clock>,
    interval: Duration,
    known: StableMap<WorkerId, Known>,
}

/// What the monitor remembers of a worker between rounds.
#[derive(Clone, Copy, Debug)]
struct Known {
    revision: u64,
    engine: Engine,
    /// Tokens the engine had generated, and when.
    generated: Option<(f64, Timestamp)>,
    /// When it last said anything.
    heard: Timestamp,
    /// Not asked before this.
    not_before: Timestamp,
}

impl Monitor {
    async fn round(&mut self) {
        let now = self.clock.now();
        let snapshot = self.fleet.snapshot().clone();
        self.known.retain(|id, _| snapshot.worker(*id).is_some());
        let due: Vec<Arc<Worker>> =
            snapshot.workers().iter().filter(|worker| self.is_due(worker, now)).cloned().collect();
        let upstream = self.upstream.clone();
        let mut answers = stream::iter(due)
            .map(|worker| {
                let upstream = upstream.clone();
                async move {
                    let answer = read(&upstream, &worker).await;
                    (worker, answer)
                }
            })
            .buffer_unordered(CONCURRENT_MAX);
        while let Some((worker, answer)) = answers.next().await {
            self.take_in(&worker, answer);
        }
    }

    fn is_due(&self, worker: &Worker, now: Timestamp) -> bool {
        if !is_ours(worker) || !matches!(worker.status(), Status::Ready | Status::Draining) {
            return false;
        }
        self.known.get(&worker.id).is_none_or(|known| {
            // What it cannot do may change with what it is.
            let is_same = known.revision == worker.revision && known.engine == worker.engine();
            !is_same || now >= known.not_before
        })
    }

    fn take_in(&mut self, worker: &Worker, answer: Result<Reading, LoadError>) {
        if !is_ours(worker) {
            // Another node asks it now, and what that says is there already.
            return;
        }
        let now = self.clock.now();
        let label = answer.as_ref().err().map_or("success", LoadError::as_str);
        self.upstream.metrics().load_polls.with_label_values(&[label]).inc();
        let fresh =
            Known { revision: worker.revision, engine: worker.engine(), generated: None, heard: now, not_before: now };
        let known = self.known.entry(worker.id).or_insert(fresh);
        (known.revision, known.engine) = (worker.revision, worker.engine());
        match answer {
            Ok(reading) => {
                let load = reading.load(known.generated, now);
                worker.state.load.set_engine(load);
                known.generated = match reading.generation {
                    Generation::Total(total) => Some((total, now)),
                    Generation::Rate(_) | Generation::Unknown => None,
                };
                (known.heard, known.not_before) = (now, now);
            }
            Err(error) => {
                if error == LoadError::Unsupported {
                    known.not_before = now + self.interval.saturating_mul(UNSUPPORTED_PAUSE_INTERVALS);
                } else {
                    tracing::debug!(worker = %worker.id, url = %worker.spec.url, %error, "cannot read a worker's load");
                }
                if now.since(known.heard) >= self.interval.saturating_mul(STALE_AFTER_INTERVALS) {
                    worker.state.load.clear_engine();
                }
            }
        }
    }
}

/// Whether this node is the one that asks a worker's engine.
fn is_ours(worker: &Worker) -> bool {
    worker.direct() == DirectPath::Allowed && worker.engine_source() == EngineSource::Asked
}

impl Reading {
    /// The figures as of `now`, with the rate of generation taken from what had been generated before.
    fn load(&self, before: Option<(f64, Timestamp)>, now: Timestamp) -> EngineLoad {
        let generation_tokens_per_second = match (self.generation, before) {
            (Generation::Rate(rate), _) => rate,
            (Generation::Total(total), Some((earlier, at))) if now > at && total >= earlier => {
                #[expect(clippy::cast_possible_truncation, reason = "a rate needs no more than single precision")]
                let rate = ((total - earlier) / now.since(at).as_secs_f64()) as f32;
                rate
            }
            // Its first figure, or the engine was restarted.
            (Generation::Total(_) | Generation::Unknown, _) => 0.0,
        };
        let Self { running, waiting, kv_usage, .. } = *self;
        EngineLoad { running, waiting, kv_usage, generation_tokens_per_second, at: now }
    }
}

async fn read(upstream: &Upstream, worker: &Worker) -> Result<Reading, LoadError> {
    let source = Source { upstream, worker };
    match worker.engine() {
        Engine::Vllm => source.text("/metrics", reading::vllm_metrics).await,
        Engine::Sglang => match source.bytes("/v1/loads?include=core", reading::sglang_loads).await {
            Err(LoadError::Unsupported) => source.text("/metrics", reading::sglang_metrics).await,
            other => other,
        },
        Engine::TrtLlm => source.bytes("/metrics", reading::trtllm_iterations).await,
        Engine::LlamaCpp => match source.text("/metrics", reading::llama_metrics).await {
            Err(LoadError::Unsupported) => source.bytes("/slots", reading::llama_slots).await,
            other => other,
        },
        Engine::Ollama | Engine::OpenAi | Engine::Anthropic | Engine::Unknown => Err(LoadError::Unsupported),
    }
}

struct Source<'a> {
    upstream: &'a Upstream,
    worker: &'a Worker,
}

impl Source<'_> {
    async fn text(&self, path: &'static str, read: fn(&str) -> Option<Reading>) -> Result<Reading, LoadError> {
        let body = self.body(path).await?;
        std::str::from_utf8(&body).ok().and_then(read).ok_or(LoadError::Unreadable)
    }

    async fn bytes(&self, path: &'static str, read: fn(&[u8]) -> Option<Reading>) -> Result<Reading, LoadError> {
        read(&self.body(path).await?).ok_or(LoadError::Unreadable)
    }

    async fn body(&self, path: &'static str) -> Result<Bytes, LoadError> {
        let answer = fetch(self.upstream, self.worker, Outbound::get(path), POLL).await?;
        match answer.status.as_u16() {
            200 => Ok(answer.body),
            // llama.cpp answers with 501 where metrics are switched off.
            404 | 405 | 501 => Err(LoadError::Unsupported),
            status => Err(LoadError::Status(status)),
        }
    }
}
