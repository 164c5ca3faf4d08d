//! What operators did: lines of JSON at the end of a file, each with the hash of all before it, so that a line which was taken
//! out or changed later is found.

use std::{
    collections::VecDeque,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smg_runtime::{Receiver, Sender, channel, metrics::Registrar};
use tokio::{fs::File, io::AsyncWriteExt};

/// Entries that wait to be written. Further ones are dropped and counted: a log that stalls must not stop operators.
const WAITING_MAX: usize = 1_024;

/// Newest entries that are kept in memory to be read.
const KEPT_MAX: usize = 1_000;

/// Longest text of one field; values before and after a change may be longer.
const TEXT_BYTES_MAX: usize = 512;
const VALUE_BYTES_MAX: usize = 8 << 10;

/// How much of an existing file is read to go on where it ended.
const TAIL_BYTES_MAX: u64 = 4 << 20;

/// One thing that was done or tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Milliseconds since the Unix epoch.
    pub at: u64,
    /// Who did it.
    pub who: String,
    /// How it is known who did it: by a key, the shared key, a token, or not at all. Lines of versions that did not say have none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub via: String,
    /// Where it came in.
    pub door: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub target: String,
    /// What was there before; null if that is not known, or nothing.
    pub before: Value,
    /// What is there now.
    pub after: Value,
    /// How it ended.
    pub outcome: String,
    /// The id of the request.
    pub request_id: String,
    /// The address it came from.
    pub address: String,
}

/// A line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Line {
    #[serde(flatten)]
    entry: AuditEntry,
    /// The hash of the line before and of this one without it.
    hash: String,
}

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
#[error("the audit log {}: {source}", path.display())]
pub struct AuditError {
    path: PathBuf,
    source: io::Error,
}

/// Takes entries.
pub struct AuditLog {
    waiting: Sender<AuditEntry>,
    newest: Arc<Mutex<VecDeque<AuditEntry>>>,
}

/// Writes them down.
pub struct AuditWriter {
    waiting: Receiver<AuditEntry>,
    file: File,
    hash: String,
}

impl AuditLog {
    /// Opens the file, or makes it. Nothing is written before the writer runs.
    pub async fn open(path: &Path, registrar: &Registrar) -> Result<(Arc<Self>, AuditWriter), AuditError> {
        let failed = |source| AuditError { path: path.to_owned(), source };
        let mut options = tokio::fs::OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let mut file = options.open(path).await.map_err(failed)?;
        let lines = tail(&mut file).await.map_err(failed)?;
        let hash = lines.back().map(|line| line.hash.clone()).unwrap_or_default();
        let newest: VecDeque<AuditEntry> = lines.into_iter().map(|line| line.entry).collect();
        let (sender, waiting) = channel("audit log", WAITING_MAX, registrar);
        let log = Self { waiting: sender, newest: Arc::new(Mutex::new(newest)) };
        Ok((Arc::new(log), AuditWriter { waiting, file, hash }))
    }

    /// Takes an entry down. It is on disk soon.
    pub fn record(&self, entry: AuditEntry) {
        let entry = entry.bounded();
        if self.waiting.try_send(entry.clone()).is_err() {
            tracing::error!(action = entry.action, who = entry.who, "the audit log is behind, an entry is lost");
        }
        let mut newest = self.newest.lock();
        if newest.len() >= KEPT_MAX {
            newest.pop_front();
        }
        newest.push_back(entry);
    }

    /// The newest entries, the newest first.
    pub fn newest(&self, limit: usize) -> Vec<AuditEntry> {
        self.newest.lock().iter().rev().take(limit).cloned().collect()
    }
}

impl AuditEntry {
    fn bounded(mut self) -> Self {
        for text in [&mut self.who, &mut self.door, &mut self.action, &mut self.target, &mut self.outcome] {
            if text.len() > TEXT_BYTES_MAX {
                *text = text.chars().take(TEXT_BYTES_MAX / 4).collect();
            }
        }
        for value in [&mut self.before, &mut self.after] {
            if value.to_string().len() > VALUE_BYTES_MAX {
                *value = "too long to be shown".into();
            }
        }
        self
    }
}

impl AuditWriter {
    /// Writes until nobody can take anything down any more.
    pub async fn run(mut self) {
        while let Some(entry) = self.waiting.recv().await {
            if let Err(error) = self.write(entry).await {
                tracing::error!(%error, "the audit log cannot be written");
            }
        }
    }

    async fn write(&mut self, entry: AuditEntry) -> io::Result<()> {
        let hash = chained(&self.hash, &entry);
        let mut text = serde_json::to_vec(&Line { entry, hash: hash.clone() })?;
        text.push(b'\n');
        self.file.write_all(&text).await?;
        self.file.sync_data().await?;
        self.hash = hash;
        Ok(())
    }
}

/// The line of a file, counted from one, at which it is not as it was written.
pub fn broken_line(text: &str) -> Option<usize> {
    let mut before = String::new();
    for (index, line) in text.lines().enumerate() {
        let line = serde_json::from_str::<Line>(line).ok().filter(|line| line.hash == chained(&before, &line.entry));
        match line {
            Some(line) => before = line.hash,
            None => return Some(index + 1),
        }
    }
    None
}

fn chained(before: &str, entry: &AuditEntry) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(before.as_bytes());
    // As it is read back, so that what is checked is what was hashed.
    context.update(serde_json::to_string(entry).unwrap_or_default().as_bytes());
    context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The last lines of a file.
async fn tail(file: &mut File) -> io::Result<VecDeque<Line>> {
    use tokio::io::{AsyncReadExt, AsyncSeekExt};

    let length = file.metadata().await?.len();
    let skipped = length.saturating_sub(TAIL_BYTES_MAX);
    file.seek(io::SeekFrom::Start(skipped)).await?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes).await?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: VecDeque<Line> =
        text.lines().rev().take(KEPT_MAX).filter_map(|line| serde_json::from_str(line).ok()).collect();
    lines.make_contiguous().reverse();
    if !bytes.is_empty() && !bytes.ends_with(b"\n") {
        // The machine stopped in the middle of a line; what follows must not become part of it.
        file.write_all(b"\n").await?;
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(action: &str) -> AuditEntry {
        AuditEntry {
            at: 1,
            who: "ops".to_owned(),
            via: String::new(),
            door: "admin".to_owned(),
            action: action.to_owned(),
            target: "w1".to_owned(),
            before: Value::Null,
            after: serde_json::json!({ "b": 1, "a": [1, "x"] }),
            outcome: "done".to_owned(),
            request_id: "r".to_owned(),
            address: "127.0.0.1".to_owned(),
        }
    }

    #[tokio::test]
    async fn lines_follow_each_other_and_a_changed_one_is_found() {
        let path = std::env::temp_dir().join(format!("smg-audit-{}", std::process::id()));
        let _absent = std::fs::remove_file(&path);
        for run in 0..2 {
            let (log, writer) = AuditLog::open(&path, &Registrar::new()).await.expect("there is room");
            assert_eq!(log.newest(10).len(), 2 * run, "what was written is read again");
            log.record(entry("POST /keys"));
            // The one line says how, the other is as those of versions that did not.
            log.record(AuditEntry { via: "token".to_owned(), ..entry("DELETE /keys/a") });
            assert_eq!(log.newest(1)[0].action, "DELETE /keys/a");
            drop(log);
            writer.run().await;
        }
        let text = std::fs::read_to_string(&path).expect("it was written");
        assert_eq!((text.lines().count(), broken_line(&text)), (4, None));
        assert_eq!(broken_line(&text.replacen("ops", "eve", 1)), Some(1));
        assert_eq!(broken_line(&text.replacen("token", "key", 1)), Some(2));
        let without_second: Vec<&str> =
            text.lines().enumerate().filter(|(index, _)| *index != 1).map(|(_, line)| line).collect();
        assert_eq!(broken_line(&without_second.join("\n")), Some(2));
        std::fs::remove_file(&path).expect("it is there");
    }

    #[tokio::test]
    async fn what_is_too_long_is_cut() {
        let long = AuditEntry { who: "x".repeat(10_000), after: "y".repeat(20_000).into(), ..entry("a") };
        let bounded = long.bounded();
        assert!(bounded.who.len() <= TEXT_BYTES_MAX && bounded.after.to_string().len() < 100);
    }
}
