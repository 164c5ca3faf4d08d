//! The process that holds streams open and reads them slowly.
//!
//! It opens its streams over a while, then reads a little from each at an interval. Once a second it prints a [`Status`]. When
//! its input ends it exits at once, which drops every connection in one stroke, as a crashed client does.

use std::io::{BufRead as _, Read as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::failure::{Failure, Tried as _};
use super::generator::say;
use super::options::Shape;
use super::request::request;

/// A stream that has said nothing for so long is starved: events come far more often.
const STARVED_AFTER: Duration = Duration::from_secs(5);

/// What to hold.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Whom to ask.
    pub(crate) address: SocketAddr,
    /// How many streams.
    pub(crate) streams: u64,
    /// Time over which they are opened.
    pub(crate) opened_within: Duration,
    /// Bytes of a request's body.
    pub(crate) body_bytes: usize,
    /// Most bytes of one read.
    pub(crate) read_bytes: usize,
    /// Time between two reads of a stream.
    pub(crate) read_interval: Duration,
    /// The system's buffer for what was not read.
    pub(crate) receive_buffer_bytes: u32,
}

/// How the streams do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// Streams whose answer began with status 200.
    pub(crate) opened: u64,
    /// Streams that were refused or ended.
    pub(crate) failed: u64,
    /// Open streams that said nothing for five seconds.
    pub(crate) starved: u64,
    /// Bytes read from all.
    pub(crate) bytes: u64,
}

/// Runs the job that stands on the first line of the input, until the input ends.
pub(crate) fn main() -> Result<(), Failure> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).tried("reading the job")?;
    let job: Job = serde_json::from_str(&line)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().tried("starting tokio")?;
    runtime.block_on(run(job))
}

async fn run(job: Job) -> Result<(), Failure> {
    let mut ended = tokio::task::spawn_blocking(|| std::io::stdin().lock().read_to_end(&mut Vec::new()));
    let shared = Arc::new(Shared::new(job));
    let mut streams = JoinSet::new();
    for number in 0..shared.job.streams {
        let shared = Arc::clone(&shared);
        streams.spawn(async move { shared.hold(number).await });
    }
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = &mut ended => return Ok(()),
            _ = second.tick() => say(&serde_json::to_string(&shared.status())?)?,
        }
    }
}

struct Shared {
    job: Job,
    request: Vec<u8>,
    start: Instant,
    opened: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    /// For each stream, when it last said something, in milliseconds after `start`; [`NOT_OPEN`] while it isn't.
    heard: Vec<AtomicU64>,
}

const NOT_OPEN: u64 = u64::MAX;

impl Shared {
    fn new(job: Job) -> Shared {
        Shared {
            request: request(Shape::Streamed, job.body_bytes, 0),
            start: Instant::now(),
            opened: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            heard: (0..job.streams).map(|_| AtomicU64::new(NOT_OPEN)).collect(),
            job,
        }
    }

    fn status(&self) -> Status {
        let now = self.now_ms();
        let starved_before = now.saturating_sub(STARVED_AFTER.as_millis() as u64);
        Status {
            opened: self.opened.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            starved: self.heard.iter().filter(|heard| heard.load(Ordering::Relaxed) < starved_before).count() as u64,
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    async fn hold(&self, number: u64) {
        let turn = self.job.opened_within.mul_f64(number as f64 / self.job.streams as f64);
        tokio::time::sleep_until((self.start + turn).into()).await;
        let heard = &self.heard[number as usize];
        let ended = self.read(heard).await;
        heard.store(NOT_OPEN, Ordering::Relaxed);
        if ended.is_err() {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads for ever; whatever ends it is an error.
    async fn read(&self, heard: &AtomicU64) -> std::io::Result<()> {
        let mut stream = self.connect().await?;
        stream.write_all(&self.request).await?;
        let mut buffer = vec![0; self.job.read_bytes];
        let mut status = [0; 12];
        stream.read_exact(&mut status).await?;
        if &status != b"HTTP/1.1 200" {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        self.opened.fetch_add(1, Ordering::Relaxed);
        loop {
            heard.store(self.now_ms(), Ordering::Relaxed);
            tokio::time::sleep(self.job.read_interval).await;
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            self.bytes.fetch_add(count as u64, Ordering::Relaxed);
        }
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(self.job.receive_buffer_bytes)?;
        socket.connect(self.job.address).await
    }
}
