//! A thread that writes lines, and the bounded queue in front of it.

use std::{
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::fmt::MakeWriter;

use crate::error::Error;

/// Lines that may wait to be written.
const CAPACITY: usize = 4_096;

/// How long a flush may take before it is given up.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes whole lines. When the queue is full a line is dropped and counted: logging never waits.
#[derive(Clone, Debug)]
pub(crate) struct Sink {
    name: &'static str,
    queue: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Flush(SyncSender<()>),
}

impl Sink {
    /// Starts a thread that writes to `output`, and ends with the last clone of this.
    pub(crate) fn new(name: &'static str, output: impl Write + Send + 'static) -> Result<Self, Error> {
        let (queue, messages) = sync_channel(CAPACITY);
        let dropped = Arc::new(AtomicU64::new(0));
        let lost = Arc::clone(&dropped);
        thread::Builder::new()
            .name(format!("log-{name}"))
            .spawn(move || write_all(&messages, output, &lost))
            .map_err(|source| Error::Thread { purpose: "logs", source })?;
        Ok(Self { name, queue, dropped })
    }

    /// What the sink is called in metrics.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// How many lines were dropped, or could not be written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until every line taken so far is written, within reason.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let (done, is_done) = sync_channel(1);
        let mut message = Message::Flush(done);
        while let Err(TrySendError::Full(unsent)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = unsent;
            thread::park_timeout(Duration::from_millis(5));
        }
        // Too late, or the thread is gone: there is nobody left to tell.
        let _ = is_done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

fn write_all(messages: &Receiver<Message>, output: impl Write, lost: &AtomicU64) {
    let mut output = BufWriter::with_capacity(64 * 1024, output);
    while let Ok(message) = messages.recv() {
        let mut next = Some(message);
        // Lines are written together as long as more wait, so a burst costs few system calls.
        while let Some(message) = next {
            write(&mut output, message, lost);
            next = messages.try_recv().ok();
        }
        if output.flush().is_err() {
            lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn write(output: &mut impl Write, message: Message, lost: &AtomicU64) {
    match message {
        Message::Line(line) => {
            if output.write_all(&line).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
        Message::Flush(done) => {
            if output.flush().is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
            // Whoever asked may have given up.
            let _ = done.try_send(());
        }
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// Takes one line, which the formatter writes in one piece.
pub(crate) struct Line<'a>(&'a Sink);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.queue.try_send(Message::Line(line.to_vec())).is_err() {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use parking_lot::{Mutex, MutexGuard};

    use super::*;

    /// An output that keeps what it is given, and can be held up.
    #[derive(Clone, Default)]
    pub(crate) struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Kept {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).expect("text")
        }

        pub(crate) fn hold(&self) -> MutexGuard<'_, Vec<u8>> {
            self.0.lock()
        }
    }

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_are_written_in_order() {
        let kept = Kept::default();
        let sink = Sink::new("test", kept.clone()).expect("a thread");
        for number in 0..1_000 {
            sink.make_writer().write_all(format!("{number}\n").as_bytes()).expect("taken");
        }
        sink.flush();
        let text = kept.text();
        assert!(text.lines().map(|line| line.parse::<u32>().expect("a number")).eq(0..1_000));
        assert_eq!(sink.dropped(), 0);
    }

    #[test]
    fn an_output_that_stalls_costs_lines_and_no_time() {
        let kept = Kept::default();
        let sink = Sink::new("test", kept.clone()).expect("a thread");
        let line = vec![b'x'; 1_024];
        let held = kept.hold();
        let sent = 3 * CAPACITY;
        for _ in 0..sent {
            sink.make_writer().write_all(&line).expect("taken or dropped");
        }
        assert!(sink.dropped() > 0, "a full queue drops");
        drop(held);
        sink.flush();
        assert_eq!(kept.text().len() / line.len() + usize::try_from(sink.dropped()).expect("few"), sent);
    }

    #[test]
    fn an_output_that_fails_is_counted() {
        struct Broken;
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::new("test", Broken).expect("a thread");
        sink.make_writer().write_all(b"lost\n").expect("taken");
        sink.flush();
        assert!(sink.dropped() > 0);
    }
}
