//! Many streams at once: held open by slow readers, and dropped in one stroke.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::super::children::{Canned, Role, Server};
use super::super::failure::Failure;
use super::super::held::{Job, Status};
use super::super::options::Contender;
use super::super::series::percentile;
use super::super::table::{Table, figure};
use super::super::verdict::Side::AtMost;
use super::super::{HOLD, control, request};
use super::Bench;

/// Streams that go on for longer than anybody listens; twice as many bytes come as a slow reader takes.
const ENDLESS: Canned = Canned {
    body_bytes: 1024,
    events: 4000,
    event_bytes: 256,
    event_interval: Duration::from_millis(500),
    framing: "chunk",
};
/// Processes that share the streams, since one may have 20 000 descriptors.
const HOLDERS: u64 = 2;
/// Streams opened per second.
const OPENED_PER_SECOND: f64 = 800.0;
const OPENED_WITHIN: Duration = Duration::from_secs(60);
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// How soon an engine must have noticed that a client has gone, were it the only one.
const ABORTED_WITHIN_MS: f64 = 100.0;

impl Bench {
    /// Memory of a stream whose reader is slow; nobody may starve.
    pub(super) fn open_streams(&mut self) -> Result<(), Failure> {
        let streams = self.options.streams() as u64;
        let held = Duration::from_secs(if self.options.quick { 2 } else { 15 });
        let mut table = Table::new(&[
            "contender",
            "",
            "open",
            "failed",
            "starved",
            "RSS before MB",
            "RSS opened MB",
            "RSS held MB",
            "KiB/stream",
            "KB/s read",
        ]);
        for contender in self.proxies() {
            let engine = self.programs.engine(ENDLESS)?;
            let Some(proxy) = self.start(contender, &engine)? else { continue };
            let before = proxy.usage().resident_bytes;
            let mut holders = Holders::start(&proxy, streams, Reading::Slow)?;
            holders.wait_until_open()?;
            let opened = holders.status;
            let open = proxy.usage().resident_bytes;
            let status = holders.watch(held)?;
            let after = proxy.usage().resident_bytes;
            let per_stream = after.saturating_sub(before) as f64 / 1024.0 / streams as f64;
            table.row([
                contender.to_string(),
                String::new(),
                status.opened.to_string(),
                status.failed.to_string(),
                status.starved.to_string(),
                figure(Some(before as f64 / 1e6)),
                figure(Some(open as f64 / 1e6)),
                figure(Some(after as f64 / 1e6)),
                figure(Some(per_stream)),
                figure(Some((status.bytes - opened.bytes) as f64 / held.as_secs_f64() / 1000.0)),
            ]);
            if contender == Contender::Smg {
                self.verdicts.judge("memory of an open stream", Some(per_stream), AtMost, 40.0, "KiB");
                let lost = status.starved + status.failed;
                self.verdicts.judge("streams starved or lost", Some(lost as f64), AtMost, 0.0, "");
            }
            holders.end()?;
        }
        table.print(&format!("Open streams: {streams} with slow readers, an event each half second"));
        Ok(())
    }

    /// Every stream that a client drops must end at the engine, soon, and leave nothing in the gateway.
    pub(super) fn storm(&mut self) -> Result<(), Failure> {
        let streams = self.options.storm() as u64;
        let mut table = Table::new(&[
            "contender",
            "",
            "dropped",
            "aborted",
            "p50 ms",
            "last ms",
            "descriptors left",
            "tasks left",
            "gauges left",
        ]);
        for contender in self.proxies() {
            let engine = self.programs.engine(ENDLESS)?;
            let Some(proxy) = self.start(contender, &engine)? else { continue };
            let before = Left::of(&proxy)?;
            let mut holders = Holders::start(&proxy, streams, Reading::Steady)?;
            holders.wait_until_open()?;
            let dropped_at = unix_ms();
            holders.end()?;
            let mut late = wait_for_aborts(&engine, streams, dropped_at)?;
            late.sort_unstable();
            let left = settle(&proxy, &before)?;
            let last = percentile(&late, 1.0) as f64 / 1000.0;
            table.row([
                contender.to_string(),
                String::new(),
                streams.to_string(),
                late.len().to_string(),
                figure(Some(percentile(&late, 0.5) as f64 / 1000.0)),
                figure(Some(last)),
                left.descriptors.to_string(),
                left.tasks.to_string(),
                if left.gauges.is_empty() { "none".to_owned() } else { left.gauges.join(" ") },
            ]);
            if contender == Contender::Smg {
                // A storm shares two cores: each thousand streams may take as long as one stream may alone.
                let bound = ABORTED_WITHIN_MS * (1.0 + streams as f64 / 1000.0);
                let missing = streams.saturating_sub(late.len() as u64);
                self.verdicts.judge("dropped streams not aborted", Some(missing as f64), AtMost, 0.0, "");
                self.verdicts.judge("last abort after the drop", Some(last), AtMost, bound, "ms");
                self.verdicts.judge("tasks left after a storm", Some(left.tasks as f64), AtMost, 0.0, "");
                self.verdicts.judge("gauges not back to zero", Some(left.gauges.len() as f64), AtMost, 0.0, "");
            }
        }
        table.print(&format!("Disconnect storm: {streams} streams dropped at once"));
        Ok(())
    }
}

#[derive(Clone, Copy)]
enum Reading {
    /// Less than comes.
    Slow,
    /// Whatever comes.
    Steady,
}

/// The processes that hold the streams.
struct Holders {
    roles: Vec<Role>,
    streams: u64,
    status: Status,
}

impl Holders {
    fn start(proxy: &Server, streams: u64, reading: Reading) -> Result<Holders, Failure> {
        let (read_bytes, read_interval) = match reading {
            Reading::Slow => (256, Duration::from_secs(1)),
            Reading::Steady => (4096, Duration::from_millis(100)),
        };
        let mut roles = Vec::new();
        for holder in 0..HOLDERS {
            let share = (streams + holder) / HOLDERS;
            let job = Job {
                address: proxy.address,
                streams: share,
                opened_within: Duration::from_secs_f64(streams as f64 / OPENED_PER_SECOND),
                body_bytes: 1024,
                read_bytes,
                read_interval,
                receive_buffer_bytes: 4096,
            };
            roles.push(Role::start(HOLD, &job)?);
        }
        Ok(Holders { roles, streams, status: Status::default() })
    }

    /// Hears the next second of all of them.
    fn hear(&mut self) -> Result<Status, Failure> {
        let mut sum = Status::default();
        for role in &mut self.roles {
            let status: Status = role.report()?;
            sum.opened += status.opened;
            sum.failed += status.failed;
            sum.starved += status.starved;
            sum.bytes += status.bytes;
        }
        self.status = sum;
        Ok(sum)
    }

    fn wait_until_open(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + OPENED_WITHIN;
        while Instant::now() < deadline {
            let status = self.hear()?;
            if status.opened >= self.streams {
                return Ok(());
            }
            if status.failed > 0 {
                let said = format!("{status:?}");
                return Err(Failure::Child { child: "opening streams".to_owned(), said });
            }
        }
        Err(Failure::Late(format!("opening {} streams, at last {:?},", self.streams, self.status)))
    }

    /// Keeps them for a while; the most that starved at any time counts.
    fn watch(&mut self, held: Duration) -> Result<Status, Failure> {
        let until = Instant::now() + held;
        let mut starved = 0;
        while Instant::now() < until {
            starved = starved.max(self.hear()?.starved);
        }
        Ok(Status { starved, ..self.status })
    }

    fn end(self) -> Result<(), Failure> {
        self.roles.into_iter().try_for_each(Role::end)
    }
}

/// The engine's account of what it ran.
#[derive(Deserialize)]
struct Ledger {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    finished_unix_ms: Option<f64>,
}

/// Microseconds from the drop until the engine ended each stream.
fn wait_for_aborts(engine: &Server, streams: u64, dropped_at_ms: f64) -> Result<Vec<u64>, Failure> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let path = format!("/mock/ledger?path={}&outcome=aborted", request::PATH);
        let (_, body) = control::call(engine.address, "GET", &path, "")?;
        let ledger: Ledger = serde_json::from_str(&body)?;
        let finished = ledger.entries.iter().filter_map(|entry| entry.finished_unix_ms);
        let late: Vec<u64> = finished.map(|at| ((at - dropped_at_ms).max(0.0) * 1000.0) as u64).collect();
        if late.len() as u64 >= streams || Instant::now() > deadline {
            return Ok(late);
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// What a proxy holds.
struct Left {
    descriptors: u64,
    /// Tasks of its runtime; only smg tells.
    tasks: u64,
    /// Gauges of things that are going on.
    gauges: Vec<String>,
}

impl Left {
    fn of(proxy: &Server) -> Result<Left, Failure> {
        let metrics = match proxy.metrics {
            Some(metrics) => control::call(metrics, "GET", "/metrics", "")?.1,
            None => String::new(),
        };
        let samples = metrics.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
        let samples: Vec<(&str, f64)> =
            samples.map(|(name, value)| (name, value.parse().unwrap_or_default())).collect();
        let tasks = samples.iter().filter(|(name, _)| *name == "smg_tokio_alive_tasks").map(|(_, value)| *value as u64);
        let left = samples.iter().filter(|(name, value)| *value > 0.0 && is_going_on(name));
        Ok(Left {
            descriptors: proxy.usage().descriptors,
            tasks: tasks.sum(),
            gauges: left.map(|(name, value)| format!("{name}={value}")).collect(),
        })
    }
}

fn is_going_on(sample: &str) -> bool {
    let name = sample.split('{').next().unwrap_or(sample);
    let ends =
        ["in_flight", "requests_active", "connections_active", "streams_open", "pending_tokens", "routing_keys_active"];
    ends.iter().any(|end| name.ends_with(end))
}

/// Waits until a proxy holds no more than before, or tells what it holds beyond that.
fn settle(proxy: &Server, before: &Left) -> Result<Left, Failure> {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let now = Left::of(proxy)?;
        // A connection to the engine that is kept is no leak, but none of a dropped stream can be kept.
        let left = Left {
            descriptors: now.descriptors.saturating_sub(before.descriptors),
            tasks: now.tasks.saturating_sub(before.tasks),
            gauges: now.gauges,
        };
        if (left.descriptors == 0 && left.tasks == 0 && left.gauges.is_empty()) || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

fn unix_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64() * 1000.0)
}
