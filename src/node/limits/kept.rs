//! What a node without others remembers of durable counters: a journal of its own, in the folder that the operator names.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use smg_base::{Clock, hash, map::StableMap};
use smg_limits::{CounterId, Limiter};
use smg_mesh_proto::Kind;
use smg_store::{Journal, Row};

/// How often counters are written down, if that takes little time; otherwise so many times as long as it takes.
const EVERY: Duration = Duration::from_millis(500);
const TIMES: u32 = 20;
/// Whose lane it is in the journal: this node has no other.
const WRITER: u128 = 0;
/// Removed rows that gather before they are dropped.
const TOMBSTONES_MAX: u64 = 10_000;

/// The journal, and what it holds.
pub(super) struct Kept {
    journal: Journal,
    limiter: Arc<Limiter>,
    clock: Arc<dyn Clock>,
    /// What was written last of each counter, as a hash.
    written: StableMap<CounterId, u64>,
    version: u64,
    tombstones: u64,
}

impl Kept {
    /// Opens the journal in `folder` and gives the limiter back what it held.
    pub(super) fn open(folder: &Path, limiter: Arc<Limiter>, clock: Arc<dyn Clock>) -> Result<Self, smg_store::Error> {
        let mut journal = Journal::open(folder)?;
        let rows = journal.load()?;
        let mut kept =
            Self { journal, limiter, clock, written: StableMap::default(), version: 0, tombstones: TOMBSTONES_MAX };
        let now = kept.clock.now();
        let mut has_lane = false;
        for row in rows {
            match row {
                Row::Lane { version, .. } => {
                    has_lane = true;
                    kept.version = kept.version.max(version);
                }
                Row::Entry { key, version, value, .. } => {
                    kept.version = kept.version.max(version);
                    let counter = <[u8; 8]>::try_from(&*key).map(|key| CounterId(u64::from_le_bytes(key)));
                    if let (Ok(counter), Some(value)) = (counter, value) {
                        match kept.limiter.restore(counter, &value, 0, now) {
                            Ok(()) => drop(kept.written.insert(counter, hash::stable64(&value))),
                            Err(error) => tracing::warn!(%error, "what was kept of a limit makes no sense"),
                        }
                    }
                }
                _ => {}
            }
        }
        if !has_lane {
            let kind = Kind::Budgets as u8;
            kept.journal.append(&[Row::Lane { writer: WRITER, kind, epoch: 1, collected: 0, version: 0 }])?;
        }
        Ok(kept)
    }

    /// Writes down what has changed.
    pub(super) fn keep(&mut self) -> Result<(), smg_store::Error> {
        let kind = Kind::Budgets as u8;
        let now = self.clock.now();
        let mut rows = Vec::new();
        let mut gone = std::mem::take(&mut self.written);
        let (written, version) = (&mut self.written, &mut self.version);
        let mut entry = |counter: CounterId, value: Option<&[u8]>| {
            *version += 1;
            let key = Bytes::copy_from_slice(&counter.0.to_le_bytes());
            let value = value.map(Bytes::copy_from_slice);
            Row::Entry { writer: WRITER, kind, key, version: *version, value }
        };
        self.limiter.snapshot(now, &mut |counter, bytes| {
            let print = hash::stable64(bytes);
            if gone.remove(&counter) != Some(print) {
                rows.push(entry(counter, Some(bytes)));
            }
            written.insert(counter, print);
        });
        self.tombstones += gone.len() as u64;
        rows.extend(gone.keys().map(|counter| entry(*counter, None)));
        if self.tombstones >= TOMBSTONES_MAX {
            self.tombstones = 0;
            rows.push(Row::Collect { writer: WRITER, kind, collected: self.version });
        }
        if rows.is_empty() {
            return Ok(());
        }
        let outcome = self.journal.append(&rows);
        if outcome.is_err() {
            // It is written again, as a whole.
            self.written.clear();
        }
        outcome
    }
}

/// Where a node without others keeps them: in the folder that the operator names. Without one they are kept in memory, for two
/// gateways on one machine must not write to one file.
pub(super) fn folder(data_dir: Option<&Path>, name: &str) -> Option<PathBuf> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_' | '.');
    let name: String = name.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect();
    data_dir.map(|folder| folder.join(format!("limits-{name}")))
}

/// The journal, for the task that writes in it and for who writes last.
pub(super) type Shelf = Arc<Mutex<Option<Kept>>>;

/// Keeps counters until the process stops.
pub(super) async fn run(shelf: Shelf) {
    let mut wait = EVERY;
    loop {
        tokio::time::sleep(wait).await;
        let begun = Instant::now();
        keep(shelf.clone()).await;
        wait = EVERY.max(begun.elapsed() * TIMES);
    }
}

/// Writes down what has changed, if there is a journal.
pub(super) async fn keep(shelf: Shelf) {
    let kept = tokio::task::spawn_blocking(move || shelf.lock().as_mut().map_or(Ok(()), Kept::keep));
    if let Ok(Err(error)) = kept.await {
        tracing::warn!(%error, "what limits count cannot be written down");
    }
}

#[cfg(test)]
mod tests {
    use smg_base::ManualClock;
    use smg_limits::{Demand, Dimension, LimiterConfig, Rule, Rules, Scope, Subject, Window};

    use super::*;

    const SUBJECT: Subject<'static> = Subject { tenant: "acme", key: None, model: "m" };

    fn limiter() -> Arc<Limiter> {
        let limiter = Limiter::new(LimiterConfig { unix_ms_at_origin: 1_700_000_000_000, ..LimiterConfig::default() });
        let rules = [
            Rule::new("budget", Scope::Tenant, Dimension::Money, 1_000).per(Window::Day),
            Rule::new("rate", Scope::Tenant, Dimension::Requests, 1_000).per(Window::Second),
        ];
        limiter.reconfigure(Arc::new(Rules::new(rules.to_vec()).expect("the rules are right")));
        Arc::new(limiter)
    }

    #[test]
    fn who_dies_without_a_word_refills_no_budget() {
        let folder = tempfile::tempdir().expect("there is room for a folder");
        let clock = Arc::new(ManualClock::default());
        clock.advance(Duration::from_secs(5));
        let open = |limiter: &Arc<Limiter>| {
            Kept::open(folder.path(), Arc::clone(limiter), clock.clone()).expect("the folder is ours")
        };
        let spend = |limiter: &Arc<Limiter>, money| {
            let demand = Demand { requests: 1, money, ..Demand::default() };
            limiter.reserve(&SUBJECT, &demand, clock.now()).map(|taken| limiter.settle(taken, &demand, clock.now()))
        };
        let first = limiter();
        let mut kept = open(&first);
        spend(&first, 700).expect("there is room");
        kept.keep().expect("the disk takes it");
        spend(&first, 100).expect("there is room");
        kept.keep().expect("the disk takes it");
        kept.keep().expect("nothing has changed");
        drop(kept);
        let second = limiter();
        let mut kept = open(&second);
        assert!(spend(&second, 300).is_err(), "800 are spent");
        spend(&second, 200).expect("200 are left");
        clock.advance(Duration::from_secs(25 * 60 * 60));
        kept.keep().expect("the disk takes it");
        drop(kept);
        let third = limiter();
        let _kept = open(&third);
        spend(&third, 1_000).expect("the day has passed");
    }
}
