//! The journal's own thread: a disk may take its time, and the mesh must not wait for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Duration,
};

use prometheus::IntCounter;
use smg_mesh_proto::{Batch, Record};
use smg_runtime::metrics::Registrar;
use tokio::{
    sync::{oneshot, watch},
    time::timeout,
};

use crate::{Error, JournalError};

/// Keeps what must survive the process. Its functions may block; they are called on a thread of their own.
pub trait Journal: Send + 'static {
    /// What is kept, as records that make it when they are applied in order.
    fn load(&mut self) -> Result<Vec<Record>, JournalError>;

    /// Keeps `batch`, all of it or nothing. It is on the disk when this returns.
    fn append(&mut self, batch: &Batch) -> Result<(), JournalError>;
}

/// Batches that wait for the disk; more are joined into one.
const WAITING_MAX: usize = 64;

/// Pause before a batch that could not be written is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// How long the end of the process waits for the disk.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// The side of the thread's owner.
pub(crate) struct Writer {
    batches: Option<SyncSender<Batch>>,
    /// What found no room, as one batch.
    backlog: Option<Batch>,
    written: watch::Receiver<u64>,
    /// Only without a journal: what is given counts as written.
    at_once: Option<watch::Sender<u64>>,
    /// The last sequence that was reported.
    reported: u64,
    stop: Arc<AtomicBool>,
}

impl Writer {
    /// One that keeps nothing.
    pub(crate) fn none() -> Self {
        let (sender, written) = watch::channel(0);
        Self {
            batches: None,
            backlog: None,
            written,
            at_once: Some(sender),
            reported: 0,
            stop: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Starts the thread, and gives what the journal holds.
    pub(crate) async fn start(journal: Box<dyn Journal>, registrar: &Registrar) -> Result<Opened, Error> {
        let failures = failures(registrar);
        let (batches, receiver) = sync_channel(WAITING_MAX);
        let (loaded, records) = oneshot::channel();
        let (sender, written) = watch::channel(0);
        let stop = Arc::new(AtomicBool::new(false));
        let thread = Thread { journal, receiver, written: sender, stop: Arc::clone(&stop), failures };
        let started = thread::Builder::new().name("mesh-journal".to_owned()).spawn(move || thread.run(loaded));
        started.map_err(|error| Error::Journal(JournalError(Box::new(error))))?;
        let records = records.await.map_err(|gone| Error::Journal(JournalError(Box::new(gone))))?;
        let records = records.map_err(Error::Journal)?;
        let writer = Self { batches: Some(batches), backlog: None, written, at_once: None, reported: 0, stop };
        Ok(Opened { writer, records })
    }

    /// Hands `batch` to the thread. Never waits.
    pub(crate) fn persist(&mut self, batch: Batch) {
        if let Some(at_once) = &self.at_once {
            at_once.send_replace(batch.sequence);
            return;
        }
        match &mut self.backlog {
            Some(backlog) => {
                backlog.sequence = batch.sequence;
                backlog.records.extend(batch.records);
            }
            None => self.backlog = Some(batch),
        }
        self.push();
    }

    /// Waits until more is written, and gives the sequences that now are. Safe to cancel.
    pub(crate) async fn written(&mut self) -> std::ops::RangeInclusive<u64> {
        if self.written.changed().await.is_err() {
            // The thread is gone: nothing will be written any more, and nobody is to be told that it was.
            std::future::pending::<()>().await;
        }
        let newest = *self.written.borrow_and_update();
        let from = self.reported + 1;
        self.reported = newest;
        self.push();
        from..=newest
    }

    /// Lets the thread write what it has, and waits for its end.
    pub(crate) async fn finish(mut self) {
        self.push();
        if let (Some(batch), Some(batches)) = (self.backlog.take(), &self.batches) {
            tracing::warn!(
                records = batch.records.len(),
                "the disk is too slow, the last changes are lost on this node"
            );
            drop(batches.try_send(batch));
        }
        self.batches = None;
        self.stop.store(true, Ordering::Release);
        let gone = async { while self.written.changed().await.is_ok() {} };
        if self.at_once.is_none() && timeout(FINISH_MAX, gone).await.is_err() {
            tracing::warn!("the mesh's journal is still being written, not waiting any longer");
        }
    }

    fn push(&mut self) {
        let (Some(batch), Some(batches)) = (self.backlog.take(), &self.batches) else { return };
        if let Err(TrySendError::Full(batch)) = batches.try_send(batch) {
            self.backlog = Some(batch);
        }
    }
}

/// Counts what could not be written.
pub(crate) fn failures(registrar: &Registrar) -> IntCounter {
    registrar.counter("smg_mesh_journal_failures_total", "Batches of the mesh that could not be written to disk.")
}

/// A journal that was opened.
pub(crate) struct Opened {
    pub(crate) writer: Writer,
    pub(crate) records: Vec<Record>,
}

struct Thread {
    journal: Box<dyn Journal>,
    receiver: Receiver<Batch>,
    written: watch::Sender<u64>,
    stop: Arc<AtomicBool>,
    failures: IntCounter,
}

impl Thread {
    fn run(mut self, loaded: oneshot::Sender<Result<Vec<Record>, JournalError>>) {
        // Whoever started this may have given up meanwhile; then there are no batches either.
        let _ = loaded.send(self.journal.load());
        while let Ok(batch) = self.receiver.recv() {
            while let Err(error) = self.journal.append(&batch) {
                self.failures.inc();
                tracing::error!(%error, "the mesh's journal cannot be written, trying again");
                if self.stop.load(Ordering::Acquire) {
                    return;
                }
                thread::park_timeout(RETRY_PAUSE);
            }
            self.written.send_replace(batch.sequence);
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Disk {
        kept: Arc<Mutex<Vec<Batch>>>,
        failures_left: Arc<Mutex<usize>>,
    }

    impl Journal for Disk {
        fn load(&mut self) -> Result<Vec<Record>, JournalError> {
            Ok(self.kept.lock().iter().flat_map(|batch| batch.records.clone()).collect())
        }

        fn append(&mut self, batch: &Batch) -> Result<(), JournalError> {
            let mut left = self.failures_left.lock();
            if *left > 0 {
                *left -= 1;
                return Err(JournalError("the disk is full".into()));
            }
            self.kept.lock().push(batch.clone());
            Ok(())
        }
    }

    fn batch(sequence: u64) -> Batch {
        Batch { sequence, records: vec![Record::Boot(sequence)] }
    }

    #[tokio::test]
    async fn batches_are_written_in_order_and_reported_each_once() {
        let disk = Disk::default();
        let opened = Writer::start(Box::new(disk.clone()), &Registrar::new()).await.expect("it opens");
        let mut writer = opened.writer;
        let last = 3 * WAITING_MAX as u64;
        (1..=last).for_each(|sequence| writer.persist(batch(sequence)));
        let mut reported = Vec::new();
        while reported.last() != Some(&last) {
            reported.extend(writer.written().await);
        }
        assert_eq!(reported, (1..=last).collect::<Vec<_>>());
        writer.finish().await;
        let records: Vec<_> = disk.kept.lock().iter().flat_map(|batch| batch.records.clone()).collect();
        assert_eq!(records, (1..=last).map(Record::Boot).collect::<Vec<_>>());
        let again = Writer::start(Box::new(disk), &Registrar::new()).await.expect("it opens again");
        assert_eq!(again.records, records);
    }

    #[tokio::test]
    async fn a_batch_that_could_not_be_written_is_tried_again() {
        let disk = Disk::default();
        *disk.failures_left.lock() = 1;
        let registrar = Registrar::new();
        let mut writer = Writer::start(Box::new(disk.clone()), &registrar).await.expect("it opens").writer;
        writer.persist(batch(1));
        assert_eq!(writer.written().await, 1..=1);
        assert!(registrar.encode().contains("smg_mesh_journal_failures_total 1"));
    }

    #[tokio::test]
    async fn without_a_journal_everything_counts_as_written() {
        let mut writer = Writer::none();
        writer.persist(batch(1));
        writer.persist(batch(2));
        assert_eq!(writer.written().await, 1..=2);
        writer.finish().await;
    }
}
