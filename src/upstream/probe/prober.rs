//! The loop that probes all workers and finds out what they are. When a worker is due is decided by the fleet; here
//! it is only carried out, a bounded number at a time, by one task.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use smg_base::{Clock, Timestamp, WorkerId, map::StableMap};
use smg_fleet::{DirectPath, Fleet, Status, StatusChange, Worker};
use smg_runtime::{Phase, Shutdown};
use tokio::sync::Notify;

use super::{Verdict, examine};
use crate::{Upstream, detect::detect};

/// Probes and detections under way at the same time.
const CONCURRENT_MAX: usize = 128;

/// The longest sleep between two looks at who is due. A worker that is added or changed wakes the prober at once.
const NAP: Duration = Duration::from_secs(1);

/// How often a worker that is known is asked again what it is, because engines load and unload adapters.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);

/// How long to wait before a worker that could not say what it is is asked again: doubled with each failure.
const DETECT_PAUSE_MIN: Duration = Duration::from_secs(1);
const DETECT_PAUSE_MAX: Duration = Duration::from_secs(60);

/// What the prober does beside probing.
pub struct Hooks {
    /// Whether workers that have failed for long are removed.
    pub remove_unhealthy: bool,
    /// Told of each worker removed by that rule.
    pub on_removed: Box<dyn Fn(WorkerId) + Send + Sync>,
}

/// Probes the fleet's workers until the process closes its connections.
///
/// A worker is asked what it is before its first success is recorded, so that a worker that is ready has its models;
/// again when it comes back after an outage, for it may be another one by then; and every few minutes.
pub async fn run_prober(
    fleet: Arc<Fleet>,
    upstream: Upstream,
    clock: Arc<dyn Clock>,
    shutdown: Shutdown,
    hooks: Hooks,
) {
    let mut prober = Prober {
        fleet,
        upstream,
        clock,
        hooks,
        waiting: VecDeque::new(),
        busy: BTreeSet::new(),
        asked: StableMap::default(),
        next_detection: None,
    };
    let mut under_way: FuturesUnordered<BoxFuture<'static, Done>> = FuturesUnordered::new();
    let closing = shutdown.reached(Phase::Closing);
    tokio::pin!(closing);
    let changed = Arc::new(Notify::new());
    prober.fleet.changed().listen({
        let changed = Arc::clone(&changed);
        move || changed.notify_one()
    });
    loop {
        prober.fleet.changed().arm();
        prober.collect_due();
        while under_way.len() < CONCURRENT_MAX
            && let Some(job) = prober.waiting.pop_front()
        {
            under_way.push(prober.start(job));
        }
        tokio::select! {
            () = &mut closing => return,
            Some(done) = under_way.next() => prober.finish(done),
            () = changed.notified() => {}
            () = tokio::time::sleep(prober.pause()) => {}
        }
    }
}

struct Prober {
    fleet: Arc<Fleet>,
    upstream: Upstream,
    clock: Arc<dyn Clock>,
    hooks: Hooks,
    /// Due, but over the number that may be under way.
    waiting: VecDeque<Job>,
    /// Workers with a job waiting or under way; each has at most one.
    busy: BTreeSet<WorkerId>,
    /// When workers were last asked what they are.
    asked: StableMap<WorkerId, Asked>,
    /// When the first of them is to be asked again.
    next_detection: Option<Timestamp>,
}

struct Job {
    worker: Arc<Worker>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Probe; and ask what it is if it is well and that is wanted.
    Probe { detect: bool },
    /// Only ask what it is.
    Detect,
}

struct Done {
    worker: Arc<Worker>,
    kind: Kind,
    verdict: Verdict,
    detected: Detected,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detected {
    Not,
    Known,
    Failed,
}

/// The last time a worker was asked what it is.
#[derive(Clone, Copy, Debug)]
struct Asked {
    revision: u64,
    at: Timestamp,
    failures: u32,
}

impl Asked {
    fn pause(&self) -> Duration {
        match self.failures {
            0 => REFRESH_INTERVAL,
            failures => DETECT_PAUSE_MIN.saturating_mul(1 << (failures - 1).min(16)).min(DETECT_PAUSE_MAX),
        }
    }
}

impl Prober {
    /// Queues whoever is due.
    fn collect_due(&mut self) {
        let now = self.clock.now();
        for worker in self.fleet.due_probes(now) {
            // One that was away, or has changed, may be something else now.
            let detect = worker.status() != Status::Ready || self.wants_detection(&worker, now);
            self.enqueue(Job { worker, kind: Kind::Probe { detect } });
        }
        let snapshot = self.fleet.snapshot().clone();
        self.next_detection = None;
        for worker in snapshot.workers().iter().filter(|worker| may_ask(worker)) {
            if self.wants_detection(worker, now) {
                self.enqueue(Job { worker: worker.clone(), kind: Kind::Detect });
            } else if let Some(asked) = self.asked.get(&worker.id) {
                let next = asked.at + asked.pause();
                self.next_detection = Some(self.next_detection.map_or(next, |before| before.min(next)));
            }
        }
        // Workers that are gone are forgotten now and then, rather than looked for on every turn.
        if self.asked.len() > snapshot.workers().len() + CONCURRENT_MAX {
            self.asked.retain(|id, _| snapshot.worker(*id).is_some());
        }
        if self.hooks.remove_unhealthy {
            self.remove_unhealthy(now);
        }
    }

    fn enqueue(&mut self, job: Job) {
        if self.busy.insert(job.worker.id) {
            self.waiting.push_back(job);
        }
    }

    fn wants_detection(&self, worker: &Worker, now: Timestamp) -> bool {
        self.asked
            .get(&worker.id)
            .is_none_or(|asked| asked.revision != worker.revision || now.since(asked.at) >= asked.pause())
    }

    fn start(&self, job: Job) -> BoxFuture<'static, Done> {
        let (fleet, upstream, clock) = (self.fleet.clone(), self.upstream.clone(), self.clock.clone());
        Box::pin(async move {
            let Job { worker, kind } = job;
            let started = clock.now();
            let verdict = match kind {
                Kind::Probe { .. } => examine(&upstream, &worker).await,
                Kind::Detect => Verdict::Well,
            };
            if kind != Kind::Detect {
                count(&upstream, verdict, clock.now().since(started));
            }
            let wanted = verdict == Verdict::Well && kind != Kind::Probe { detect: false };
            let detected = if wanted { describe(&fleet, &upstream, &worker).await } else { Detected::Not };
            Done { worker, kind, verdict, detected }
        })
    }

    fn finish(&mut self, done: Done) {
        let Done { worker, kind, verdict, detected } = done;
        let now = self.clock.now();
        self.busy.remove(&worker.id);
        if detected != Detected::Not {
            let before = self.asked.get(&worker.id).filter(|asked| asked.revision == worker.revision);
            let failures = match detected {
                Detected::Failed => before.map_or(1, |asked| asked.failures.saturating_add(1)),
                Detected::Known | Detected::Not => 0,
            };
            self.asked.insert(worker.id, Asked { revision: worker.revision, at: now, failures });
        }
        let current = self.fleet.snapshot().worker(worker.id).cloned();
        if let Some(current) = current.filter(|current| current.revision != worker.revision) {
            // It changed meanwhile; what was found out is about what it was, and its turn was taken up by that.
            self.enqueue(Job { worker: current, kind: Kind::Probe { detect: true } });
            return;
        }
        let result = match (kind, verdict) {
            (Kind::Detect, _) | (_, Verdict::Unknown) => return,
            (_, Verdict::Well) => Ok(()),
            (_, Verdict::Ill(failure)) => Err(failure),
        };
        if let Some(change) = self.fleet.record_probe(worker.id, worker.revision, result, now) {
            log_change(&worker, change, result.err().map(|failure| failure.as_str()));
        }
    }

    fn remove_unhealthy(&self, now: Timestamp) {
        for id in self.fleet.unhealthy_for_removal(now) {
            let Some(worker) = self.fleet.remove(id) else {
                continue;
            };
            tracing::warn!(worker = %id, url = %worker.spec.url, "worker removed because it failed");
            self.upstream.forget(id);
            (self.hooks.on_removed)(id);
        }
    }

    fn pause(&self) -> Duration {
        let now = self.clock.now();
        let next = self.fleet.next_probe_at(now).into_iter().chain(self.next_detection).min();
        // Never zero: a worker that is due and has a job waiting would make the loop spin.
        next.map_or(NAP, |at| at.since(now)).clamp(Duration::from_millis(1), NAP)
    }
}

/// Whether a worker can be asked what it is without being probed: it is well, or a peer that reaches it asks it for us.
fn may_ask(worker: &Worker) -> bool {
    let is_near = worker.direct() == DirectPath::Allowed && worker.status() == Status::Ready;
    is_near || (worker.status() != Status::Draining && worker.via().is_some())
}

async fn describe(fleet: &Fleet, upstream: &Upstream, worker: &Worker) -> Detected {
    match detect(upstream, worker).await {
        Ok(profile) => {
            if worker.profile.as_ref() != Some(&profile) {
                tracing::info!(
                    worker = %worker.id,
                    url = %worker.spec.url,
                    engine = %profile.engine,
                    version = profile.version,
                    models = profile.models.len(),
                    kv_capacity_tokens = profile.kv_capacity_tokens,
                    "worker described"
                );
            }
            fleet.describe(worker.id, worker.revision, profile);
            Detected::Known
        }
        Err(error) => {
            tracing::warn!(worker = %worker.id, url = %worker.spec.url, %error, "cannot find out what a worker is");
            Detected::Failed
        }
    }
}

fn count(upstream: &Upstream, verdict: Verdict, took: Duration) {
    let result = match verdict {
        Verdict::Well => "success",
        Verdict::Ill(failure) => failure.as_str(),
        Verdict::Unknown => "not_asked",
    };
    upstream.metrics().health_checks.with_label_values(&["regular", result]).inc();
    upstream.metrics().health_check_seconds.observe(took.as_secs_f64());
}

fn log_change(worker: &Worker, change: StatusChange, failure: Option<&'static str>) {
    let (from, to) = (change.from.as_str(), change.to.as_str());
    if change.to == Status::Ready {
        tracing::info!(worker = %worker.id, url = %worker.spec.url, from, to, "worker is ready");
    } else {
        tracing::warn!(worker = %worker.id, url = %worker.spec.url, from, to, failure, "worker is not ready");
    }
}
