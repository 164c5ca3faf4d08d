//! The execution ledger: what the worker was asked, what it did, and when.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};

/// The requests a worker has seen, oldest first. Clones share it.
#[derive(Clone, Debug)]
pub struct Ledger(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    pages: Mutex<Pages>,
    changed: Notify,
    entries_max: usize,
    started: Instant,
    started_unix: Duration,
}

#[derive(Debug)]
struct Pages {
    entries: VecDeque<Entry>,
    /// The id of the first entry; ids are consecutive.
    first_id: u64,
    /// Whether somebody waits, so that requests need not wake nobody.
    waiters: usize,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Counted from 1 in order of arrival.
    pub id: u64,
    /// The connection it came on, counted from 1.
    pub connection: u64,
    /// Where that connection comes from; none if it broke before that was known.
    pub caller: Option<SocketAddr>,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// Its header `x-request-id`.
    pub request_id: Option<String>,
    /// The model it names.
    pub model: Option<String>,
    /// Whether it asks for a stream.
    pub stream: bool,
    /// When its head had been read.
    pub received: Instant,
    /// When the first bytes of the body of the answer left.
    pub first_token: Option<Instant>,
    /// When it was over, in whatever way.
    pub finished: Option<Instant>,
    /// How it ended.
    pub outcome: Outcome,
    /// The status that was sent.
    pub status: Option<u16>,
    /// The fault that befell it, as text.
    pub fault: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the prompt that the prefix cache had.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// Events sent.
    pub events: u64,
    /// Bytes of its body.
    pub request_bytes: u64,
    /// Bytes of the answer's body that were sent.
    pub response_bytes: u64,
    /// Its header fields, as they came.
    pub fields: Vec<(String, String)>,
    /// The start of its body.
    pub body: Bytes,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Not yet.
    Running,
    /// The answer was sent in full.
    Completed,
    /// The caller went away first.
    Aborted,
    /// A fault closed the connection first.
    Faulted,
    /// The worker was stopped first.
    Stopped,
}

/// The time allowed was over before the condition held.
#[derive(Debug, thiserror::Error)]
#[error("the ledger did not come to the awaited state within {allowed:?}: {entries:#?}")]
pub struct Waited {
    /// The time allowed.
    pub allowed: Duration,
    /// What the ledger held at the end.
    pub entries: Vec<Entry>,
}

impl Entry {
    /// The first header field called `name`.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// From the head being read to the first byte of the answer's body.
    pub fn time_to_first_token(&self) -> Option<Duration> {
        self.first_token.map(|at| at.duration_since(self.received))
    }
}

impl Ledger {
    pub(crate) fn new(entries_max: usize) -> Self {
        Self(Arc::new(Shared {
            pages: Mutex::new(Pages { entries: VecDeque::new(), first_id: 1, waiters: 0 }),
            changed: Notify::new(),
            entries_max: entries_max.max(1),
            started: Instant::now(),
            started_unix: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
        }))
    }

    /// A copy of every entry.
    pub fn entries(&self) -> Vec<Entry> {
        self.select(|_| true)
    }

    /// A copy of the entries that fit.
    pub fn select(&self, fits: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        self.0.pages.lock().entries.iter().filter(|entry| fits(entry)).cloned().collect()
    }

    /// How many entries fit.
    pub fn count(&self, fits: impl Fn(&Entry) -> bool) -> usize {
        self.0.pages.lock().entries.iter().filter(|entry| fits(entry)).count()
    }

    /// Forgets every entry. Ids go on from where they were.
    pub fn clear(&self) {
        {
            let mut pages = self.0.pages.lock();
            pages.first_id += pages.entries.len() as u64;
            pages.entries.clear();
        }
        self.0.changed.notify_waiters();
    }

    /// Waits until `holds` is true of the entries, for at most `allowed`. `holds` must not use the ledger, which is
    /// locked meanwhile.
    pub async fn wait_for(&self, mut holds: impl FnMut(&[Entry]) -> bool, allowed: Duration) -> Result<(), Waited> {
        let _waiter = Waiter::new(&self.0);
        let watch = async {
            loop {
                let changed = self.0.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if holds(self.0.pages.lock().entries.make_contiguous()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(allowed, watch).await.map_err(|_| Waited { allowed, entries: self.entries() })
    }

    /// The entries that fit, as `GET /mock/ledger` shows them.
    pub(crate) fn to_json(&self, fits: impl Fn(&Entry) -> bool) -> Value {
        self.select(fits).iter().map(|entry| self.entry_json(entry)).collect()
    }

    fn entry_json(&self, entry: &Entry) -> Value {
        let unix_ms = |at: Instant| (self.0.started_unix + at.duration_since(self.0.started)).as_secs_f64() * 1e3;
        json!({
            "id": entry.id,
            "connection": entry.connection,
            "caller": entry.caller,
            "method": entry.method,
            "path": entry.path,
            "request_id": entry.request_id,
            "model": entry.model,
            "stream": entry.stream,
            "received_unix_ms": unix_ms(entry.received),
            "first_token_unix_ms": entry.first_token.map(unix_ms),
            "finished_unix_ms": entry.finished.map(unix_ms),
            "outcome": entry.outcome,
            "status": entry.status,
            "fault": entry.fault,
            "prompt_tokens": entry.prompt_tokens,
            "cached_tokens": entry.cached_tokens,
            "output_tokens": entry.output_tokens,
            "events": entry.events,
            "request_bytes": entry.request_bytes,
            "response_bytes": entry.response_bytes,
            "headers": entry.fields,
            "body": String::from_utf8_lossy(&entry.body),
        })
    }

    /// Enters a request that has just been received.
    pub(crate) fn enter(
        &self,
        connection: u64,
        caller: Option<SocketAddr>,
        describe: impl FnOnce(&mut Entry),
    ) -> Record {
        let mut entry = Entry::received(connection, caller);
        describe(&mut entry);
        let mut pages = self.0.pages.lock();
        if pages.entries.len() >= self.0.entries_max {
            pages.entries.pop_front();
            pages.first_id += 1;
        }
        entry.id = pages.first_id + pages.entries.len() as u64;
        let id = entry.id;
        pages.entries.push_back(entry);
        let has_waiters = pages.waiters > 0;
        drop(pages);
        if has_waiters {
            self.0.changed.notify_waiters();
        }
        Record { ledger: self.clone(), id, is_open: true }
    }
}

impl Ledger {
    /// A record that no entry belongs to.
    pub(crate) fn unlisted(&self) -> Record {
        Record { ledger: self.clone(), id: 0, is_open: false }
    }
}

impl Entry {
    fn received(connection: u64, caller: Option<SocketAddr>) -> Self {
        Self {
            id: 0,
            connection,
            caller,
            method: String::new(),
            path: String::new(),
            request_id: None,
            model: None,
            stream: false,
            received: Instant::now(),
            first_token: None,
            finished: None,
            outcome: Outcome::Running,
            status: None,
            fault: None,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            events: 0,
            request_bytes: 0,
            response_bytes: 0,
            fields: Vec::new(),
            body: Bytes::new(),
        }
    }
}

/// Writes one entry. Dropping it unfinished means that the worker was stopped.
#[derive(Debug)]
pub(crate) struct Record {
    ledger: Ledger,
    id: u64,
    is_open: bool,
}

impl Record {
    /// Changes the entry, unless it has been forgotten.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Entry)) {
        let mut pages = self.ledger.0.pages.lock();
        let place = self.id.checked_sub(pages.first_id).and_then(|place| usize::try_from(place).ok());
        if let Some(entry) = place.and_then(|place| pages.entries.get_mut(place)) {
            change(entry);
        }
        let has_waiters = pages.waiters > 0;
        drop(pages);
        if has_waiters {
            self.ledger.0.changed.notify_waiters();
        }
    }

    /// Closes the entry.
    pub(crate) fn finish(mut self, outcome: Outcome, change: impl FnOnce(&mut Entry)) {
        self.close(outcome, change);
    }

    fn close(&mut self, outcome: Outcome, change: impl FnOnce(&mut Entry)) {
        self.is_open = false;
        self.note(|entry| {
            change(entry);
            entry.outcome = outcome;
            entry.finished = Some(Instant::now());
        });
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if self.is_open {
            self.close(Outcome::Stopped, |_| ());
        }
    }
}

/// Counts itself among those who want to hear of changes.
struct Waiter<'a>(&'a Shared);

impl<'a> Waiter<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.pages.lock().waiters += 1;
        Self(shared)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.pages.lock().waiters -= 1;
    }
}
