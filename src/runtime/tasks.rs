//! Tasks with an owner, a kind and a name.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, task::AbortHandle, time::Instant};

use crate::{
    metrics::{Registrar, catch_up},
    shutdown::{Phase, Shutdown},
};

/// What a task is for, and with it what its end, its panic and its cancellation mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TaskKind {
    /// Accepts connections. Its unforeseen end shuts the node down.
    Listener,
    /// Serves one client connection. Waited for.
    Connection,
    /// Probes workers' health. Without it the fleet is a memory, so its unforeseen end shuts the node down.
    Prober,
    /// Finds out what one worker is. Ends by itself.
    Detector,
    /// Polls workers' load.
    LoadMonitor,
    /// Removes what is out of date.
    Sweeper,
    /// Follows changes of the configuration file.
    ConfigWatcher,
    /// Serves metrics, to the very end.
    MetricsServer,
    /// Hears the operating system's signals. Its unforeseen end shuts the node down.
    Signals,
    /// Tells the service supervisor that the process lives, and measures whether it does.
    Watchdog,
    /// A fake engine of the laboratory.
    FakeEngine,
    /// Keeps this node in its mesh. Without it the node goes on alone, with the workers it reaches itself.
    Mesh,
    /// Serves one request that a peer passed on. Waited for.
    Relay,
    /// Work that must be finished before the process ends, such as a write.
    Job,
    /// Anything else that may be cut off at any await.
    Background,
}

/// What the unforeseen end of a task leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFault {
    /// The node shuts down in order, for it cannot do its work without the task.
    ShutDown,
    /// A line in the log; everything the task fed is bounded and goes stale visibly.
    Log,
    /// Nothing: such tasks end by themselves.
    Ignore,
}

/// What the end of the process means for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnCancel {
    /// It is waited for until the deadline.
    Wait,
    /// It is aborted once all those waited for have ended.
    Abort,
}

impl TaskKind {
    /// Every kind.
    pub const ALL: [Self; KINDS] = [
        Self::Listener,
        Self::Connection,
        Self::Prober,
        Self::Detector,
        Self::LoadMonitor,
        Self::Sweeper,
        Self::ConfigWatcher,
        Self::MetricsServer,
        Self::Signals,
        Self::Watchdog,
        Self::FakeEngine,
        Self::Mesh,
        Self::Relay,
        Self::Job,
        Self::Background,
    ];

    /// The kind as metrics and logs name it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::Connection => "connection",
            Self::Prober => "prober",
            Self::Detector => "detector",
            Self::LoadMonitor => "load_monitor",
            Self::Sweeper => "sweeper",
            Self::ConfigWatcher => "config_watcher",
            Self::MetricsServer => "metrics_server",
            Self::Signals => "signals",
            Self::Watchdog => "watchdog",
            Self::FakeEngine => "fake_engine",
            Self::Mesh => "mesh",
            Self::Relay => "relay",
            Self::Job => "job",
            Self::Background => "background",
        }
    }

    /// What a panic leads to.
    pub const fn on_panic(self) -> OnFault {
        match self {
            Self::Listener | Self::Prober | Self::Signals => OnFault::ShutDown,
            _ => OnFault::Log,
        }
    }

    /// What an end while the node is running leads to.
    pub const fn on_end(self) -> OnFault {
        match self {
            Self::Listener | Self::Prober | Self::Signals => OnFault::ShutDown,
            Self::Connection | Self::Detector | Self::Relay | Self::Job | Self::Background => OnFault::Ignore,
            _ => OnFault::Log,
        }
    }

    /// What the end of the process means.
    pub const fn on_cancel(self) -> OnCancel {
        match self {
            Self::Listener | Self::Connection | Self::Relay | Self::Job => OnCancel::Wait,
            _ => OnCancel::Abort,
        }
    }
}

const KINDS: usize = 15;

/// How long tasks that were aborted may take to let go of what they hold.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Why the node began to shut down by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The task's kind.
    pub kind: TaskKind,
    /// The task's name.
    pub name: String,
    /// How it ended.
    pub end: End,
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its future completed.
    Completed,
    /// Its future panicked.
    Panicked,
    /// It was aborted.
    Aborted,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "ended unexpectedly",
            Self::Panicked => "panicked",
            Self::Aborted => "was aborted",
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} ({}) {}", self.name, self.kind.label(), self.end)
    }
}

/// Spawns tasks and knows which are alive; clones share them.
#[derive(Clone)]
pub struct Tasks {
    inner: Arc<Inner>,
}

struct Inner {
    shutdown: Shutdown,
    table: Mutex<BTreeMap<u64, Entry>>,
    next: AtomicU64,
    alive: [AtomicUsize; KINDS],
    panics: [AtomicU64; KINDS],
    fault: Mutex<Option<Fault>>,
    ended: Notify,
}

struct Entry {
    kind: TaskKind,
    name: Cow<'static, str>,
    /// Absent for the moment between the entry's making and the spawn.
    abort: Option<AbortHandle>,
}

impl Tasks {
    /// No tasks yet. Faults advance `shutdown`.
    pub fn new(shutdown: Shutdown) -> Self {
        let inner = Inner {
            shutdown,
            table: Mutex::default(),
            next: AtomicU64::new(0),
            alive: Default::default(),
            panics: Default::default(),
            fault: Mutex::default(),
            ended: Notify::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// The phase these tasks follow.
    pub fn shutdown(&self) -> &Shutdown {
        &self.inner.shutdown
    }

    /// Runs `future` on the current tokio runtime. Once the process has stopped, it is dropped at once instead.
    pub fn spawn<F>(&self, kind: TaskKind, name: impl Into<Cow<'static, str>>, future: F) -> AbortHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let entry = Entry { kind, name: name.into(), abort: None };
        self.inner.table.lock().insert(id, entry);
        self.inner.alive[kind as usize].fetch_add(1, Ordering::Relaxed);
        let vigil = Vigil { inner: Arc::clone(&self.inner), id, completed: false };
        let task = tokio::spawn(async move {
            let mut vigil = vigil;
            future.await;
            vigil.completed = true;
        });
        let abort = task.abort_handle();
        if let Some(entry) = self.inner.table.lock().get_mut(&id) {
            entry.abort = Some(abort.clone());
        }
        // Read after the handle is in the table: either `finish` finds it there, or it is seen here that it is over.
        if self.inner.shutdown.phase() == Phase::Stopped {
            abort.abort();
        }
        abort
    }

    /// How many tasks of each kind are alive.
    pub fn alive(&self) -> BTreeMap<TaskKind, usize> {
        let count = |kind: TaskKind| self.inner.alive[kind as usize].load(Ordering::Relaxed);
        TaskKind::ALL.into_iter().map(|kind| (kind, count(kind))).collect()
    }

    /// The task whose unforeseen end began the shutdown, if one did.
    pub fn fault(&self) -> Option<Fault> {
        self.inner.fault.lock().clone()
    }

    /// Shows the counts as `smg_tasks_alive{kind}` and `smg_task_panics_total{kind}`.
    pub fn observe(&self, registrar: &Registrar) {
        let alive = registrar.gauge_vec("smg_tasks_alive", "Tasks alive.", &["kind"]);
        let panics = registrar.counter_vec("smg_task_panics_total", "Tasks that panicked.", &["kind"]);
        let inner = Arc::downgrade(&self.inner);
        registrar.on_gather(move || {
            let Some(inner) = inner.upgrade() else { return };
            for kind in TaskKind::ALL {
                let count = inner.alive[kind as usize].load(Ordering::Relaxed);
                alive.with_label_values(&[kind.label()]).set(i64::try_from(count).unwrap_or(i64::MAX));
                let total = inner.panics[kind as usize].load(Ordering::Relaxed);
                catch_up(&panics.with_label_values(&[kind.label()]), total);
            }
        });
    }

    /// Advances to [`Phase::Closing`] and waits until `deadline` for the tasks that are to be waited for.
    pub async fn settle(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.inner.shutdown.advance(Phase::Closing);
        self.wait_until(until, |inner| inner.waited_for() == 0).await;
    }

    /// Ends the process's work: [settles](Self::settle), advances to [`Phase::Stopped`], and aborts everything left.
    ///
    /// Gives the names of those that should have ended by themselves and did not, with how many bore each name.
    pub async fn finish(&self, deadline: Duration) -> Vec<String> {
        self.settle(deadline).await;
        let stragglers = self.inner.stragglers();
        self.inner.shutdown.advance(Phase::Stopped);
        self.inner.abort_all();
        self.wait_until(Instant::now() + ABORT_GRACE, |inner| inner.table.lock().is_empty()).await;
        stragglers
    }

    async fn wait_until(&self, until: Instant, is_reached: impl Fn(&Inner) -> bool) {
        loop {
            // Armed before the check, so an end between the two is not missed.
            let mut ended = std::pin::pin!(self.inner.ended.notified());
            ended.as_mut().enable();
            if is_reached(&self.inner) || tokio::time::timeout_at(until, ended).await.is_err() {
                return;
            }
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("alive", &self.alive()).finish_non_exhaustive()
    }
}

impl Inner {
    fn waited_for(&self) -> usize {
        let waited = TaskKind::ALL.into_iter().filter(|kind| kind.on_cancel() == OnCancel::Wait);
        waited.map(|kind| self.alive[kind as usize].load(Ordering::Acquire)).sum()
    }

    fn stragglers(&self) -> Vec<String> {
        let mut names: BTreeMap<String, usize> = BTreeMap::new();
        for entry in self.table.lock().values().filter(|entry| entry.kind.on_cancel() == OnCancel::Wait) {
            *names.entry(entry.name.clone().into_owned()).or_default() += 1;
        }
        let named = |(name, count)| if count == 1 { name } else { format!("{name} (×{count})") };
        names.into_iter().map(named).collect()
    }

    fn abort_all(&self) {
        // Collected first: dropping a task that never ran drops its vigil here, which takes the same lock.
        let handles: Vec<_> = self.table.lock().values().filter_map(|entry| entry.abort.clone()).collect();
        for handle in handles {
            handle.abort();
        }
    }

    fn ended(&self, id: u64, end: End) {
        let Some(entry) = self.table.lock().remove(&id) else { return };
        if end == End::Panicked {
            self.panics[entry.kind as usize].fetch_add(1, Ordering::Relaxed);
        }
        self.judge(&entry, end);
        self.alive[entry.kind as usize].fetch_sub(1, Ordering::Release);
        self.ended.notify_waiters();
    }

    fn judge(&self, entry: &Entry, end: End) {
        let verdict = match end {
            End::Panicked => entry.kind.on_panic(),
            End::Completed if self.shutdown.phase() == Phase::Running => entry.kind.on_end(),
            End::Completed | End::Aborted => OnFault::Ignore,
        };
        if verdict == OnFault::Ignore {
            return;
        }
        let fault = Fault { kind: entry.kind, name: entry.name.clone().into_owned(), end };
        tracing::error!(task = %fault.name, kind = fault.kind.label(), ?end, "task ended unexpectedly");
        if verdict == OnFault::ShutDown {
            self.fault.lock().get_or_insert(fault);
            self.shutdown.advance(Phase::Draining);
        }
    }
}

/// Lives as long as a task's future, and tells how that ended.
struct Vigil {
    inner: Arc<Inner>,
    id: u64,
    completed: bool,
}

impl Drop for Vigil {
    fn drop(&mut self) {
        let end = if self.completed {
            End::Completed
        } else if thread::panicking() {
            End::Panicked
        } else {
            End::Aborted
        };
        self.inner.ended(self.id, end);
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn tasks() -> Tasks {
        Tasks::new(Shutdown::new())
    }

    async fn until_idle(tasks: &Tasks) {
        tasks.wait_until(Instant::now() + Duration::from_secs(5), |inner| inner.table.lock().is_empty()).await;
        assert!(tasks.inner.table.lock().is_empty());
    }

    #[test]
    fn every_kind_is_listed_at_its_own_place() {
        for (place, kind) in TaskKind::ALL.into_iter().enumerate() {
            assert_eq!(place, kind as usize, "{}", kind.label());
        }
    }

    #[tokio::test]
    async fn ends_and_panics_mean_what_the_kind_says() {
        let check = async |kind: TaskKind, panics: bool, expected: Phase| {
            let tasks = tasks();
            tasks.spawn(kind, "one", async move { assert!(!panics, "on purpose") });
            until_idle(&tasks).await;
            assert_eq!(tasks.shutdown().phase(), expected, "{} panics={panics}", kind.label());
            assert_eq!(tasks.fault().is_some(), expected == Phase::Draining);
            assert_eq!(tasks.inner.panics[kind as usize].load(Ordering::Relaxed), u64::from(panics));
        };
        check(TaskKind::Listener, false, Phase::Draining).await;
        check(TaskKind::Listener, true, Phase::Draining).await;
        check(TaskKind::Connection, false, Phase::Running).await;
        check(TaskKind::Connection, true, Phase::Running).await;
        check(TaskKind::Sweeper, false, Phase::Running).await;
        check(TaskKind::Prober, true, Phase::Draining).await;
    }

    #[tokio::test]
    async fn a_fault_is_told_by_name() {
        let tasks = tasks();
        tasks.spawn(TaskKind::Listener, "traffic", async {});
        until_idle(&tasks).await;
        let fault = tasks.fault().expect("a listener's end is a fault");
        assert_eq!(fault.to_string(), "task traffic (listener) ended unexpectedly");
    }

    #[tokio::test(start_paused = true)]
    async fn finish_waits_for_those_that_end_and_names_those_that_do_not() {
        let tasks = tasks();
        let shutdown = tasks.shutdown().clone();
        tasks.spawn(TaskKind::Listener, "traffic", async move { shutdown.reached(Phase::Closing).await });
        tasks.spawn(TaskKind::Connection, "quick", tokio::time::sleep(Duration::from_secs(3)));
        for _ in 0..3 {
            tasks.spawn(TaskKind::Connection, "stuck", pending());
        }
        tasks.spawn(TaskKind::Sweeper, "sweeper", pending());
        let start = Instant::now();
        let stragglers = tasks.finish(Duration::from_secs(10)).await;
        assert_eq!(stragglers, ["stuck (×3)"]);
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        assert_eq!(tasks.alive().values().sum::<usize>(), 0);
        assert_eq!(tasks.shutdown().phase(), Phase::Stopped);
        assert_eq!(tasks.fault(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn finish_is_early_when_nothing_is_left_to_wait_for() {
        let tasks = tasks();
        tasks.spawn(TaskKind::Job, "write", tokio::time::sleep(Duration::from_secs(2)));
        tasks.spawn(TaskKind::MetricsServer, "metrics", pending());
        let start = Instant::now();
        assert!(tasks.finish(Duration::from_secs(60)).await.is_empty());
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        tasks.spawn(TaskKind::Job, "late", pending());
        until_idle(&tasks).await;
    }

    #[tokio::test]
    async fn counts_are_metrics() {
        let registrar = Registrar::new();
        let tasks = tasks();
        tasks.observe(&registrar);
        let task = tasks.spawn(TaskKind::Background, "idle", pending());
        assert!(registrar.encode().contains("smg_tasks_alive{kind=\"background\"} 1"));
        task.abort();
        tasks.spawn(TaskKind::Detector, "bad", async { panic!("on purpose") });
        until_idle(&tasks).await;
        let text = registrar.encode();
        assert!(text.contains("smg_tasks_alive{kind=\"background\"} 0"), "{text}");
        assert!(text.contains("smg_task_panics_total{kind=\"detector\"} 1"), "{text}");
    }
}
