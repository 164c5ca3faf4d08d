//! The load process: so many connections, each asking again as soon as it is answered.
//!
//! It reads a [`Job`] from its input, prints [`BEGIN`] and [`END`] when the measured time begins and ends (so that its parent can read the
//! clocks of the other processes), and then a [`Report`].

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::answer::{Compare, Reader, Wrong};
use super::failure::{Failure, Tried as _};
use super::options::Shape;
use super::request::request;
use super::series::percentile;

/// Said when the measured time begins.
pub(crate) const BEGIN: &str = "begin";
/// Said when it ends.
pub(crate) const END: &str = "end";
/// Answers that differ are told one by one up to this many.
const TOLD_MAX: usize = 5;

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Whom to ask.
    pub(crate) address: SocketAddr,
    /// The engine, asked once for the answer that all answers must equal.
    pub(crate) engine: SocketAddr,
    /// How many ask at the same time.
    pub(crate) connections: usize,
    /// Whether answers are streams.
    pub(crate) is_streamed: bool,
    /// Bytes of a request's body.
    pub(crate) body_bytes: usize,
    /// How many different conversations there are.
    pub(crate) conversations: usize,
    /// Time before the measured time.
    pub(crate) warm_up: Duration,
    /// The measured time.
    pub(crate) measured: Duration,
}

/// What came of it. Times in nanoseconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// Answers that ended within the measured time.
    pub(crate) answers: u64,
    /// Events in them.
    pub(crate) events: u64,
    /// The measured time.
    pub(crate) seconds: f64,
    /// From the request's first byte to the answer's last.
    pub(crate) whole_p50: u64,
    /// The same, for the slowest of a hundred.
    pub(crate) whole_p99: u64,
    /// From the request's first byte to the first of the answer's body.
    pub(crate) first_p50: u64,
    /// The same, for the slowest of a hundred.
    pub(crate) first_p99: u64,
    /// Answers that were wrong.
    pub(crate) wrong: u64,
    /// The first of them.
    pub(crate) told: Vec<String>,
}

/// Runs the job that stands on the input.
pub(crate) fn main() -> Result<(), Failure> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).tried("reading the job")?;
    let job: Job = serde_json::from_str(&line)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().tried("starting tokio")?;
    let report = runtime.block_on(run(job))?;
    say(&serde_json::to_string(&report)?)
}

/// What every connection shares.
struct Plan {
    job: Job,
    requests: Vec<Vec<u8>>,
    expected: Vec<u8>,
    events: u64,
    begin: Instant,
    end: Instant,
}

async fn run(job: Job) -> Result<Report, Failure> {
    let shape = if job.is_streamed { Shape::Streamed } else { Shape::Plain };
    let requests: Vec<_> = (0..job.conversations).map(|number| request(shape, job.body_bytes, number)).collect();
    let expected = ask_once(job.engine, &requests[0]).await.map_err(|wrong| told(&wrong))?;
    let events = expected.windows(2).filter(|window| window == b"\n\n").count() as u64;
    let begin = Instant::now() + job.warm_up;
    let end = begin + job.measured;
    let plan = Arc::new(Plan { job, requests, expected, events, begin, end });

    let mut connections = JoinSet::new();
    for number in 0..plan.job.connections {
        let plan = Arc::clone(&plan);
        connections.spawn(async move { connection(&plan, number).await });
    }
    tokio::time::sleep_until(begin.into()).await;
    say(BEGIN)?;
    tokio::time::sleep_until(end.into()).await;
    say(END)?;
    let mut tally = Tally::default();
    while let Some(finished) = connections.join_next().await {
        tally.add(finished.unwrap_or_default());
    }
    Ok(tally.report(&plan))
}

async fn ask_once(engine: SocketAddr, request: &[u8]) -> Result<Vec<u8>, Wrong> {
    let mut stream = TcpStream::connect(engine).await?;
    stream.write_all(request).await?;
    let mut body = Vec::new();
    Reader::new().answer(&mut stream, &mut body).await?;
    Ok(body)
}

#[derive(Default)]
struct Tally {
    answers: u64,
    /// Of answers that also began within the measured time.
    whole: Vec<u64>,
    first: Vec<u64>,
    wrong: u64,
    told: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.answers += other.answers;
        self.whole.extend(other.whole);
        self.first.extend(other.first);
        self.wrong += other.wrong;
        self.told.extend(other.told);
        self.told.truncate(TOLD_MAX);
    }

    fn miss(&mut self, wrong: &Wrong) {
        self.wrong += 1;
        if self.told.len() < TOLD_MAX {
            self.told.push(wrong.to_string());
        }
    }

    fn report(mut self, plan: &Plan) -> Report {
        self.whole.sort_unstable();
        self.first.sort_unstable();
        Report {
            answers: self.answers,
            events: self.answers * plan.events,
            seconds: plan.job.measured.as_secs_f64(),
            whole_p50: percentile(&self.whole, 0.5),
            whole_p99: percentile(&self.whole, 0.99),
            first_p50: percentile(&self.first, 0.5),
            first_p99: percentile(&self.first, 0.99),
            wrong: self.wrong,
            told: self.told,
        }
    }
}

/// Asks until the measured time is over. A wrong answer costs its connection.
async fn connection(plan: &Plan, number: usize) -> Tally {
    let mut tally = Tally::default();
    let mut asked = number;
    while Instant::now() < plan.end {
        if let Err(wrong) = ask_on_one_connection(plan, &mut asked, &mut tally).await {
            tally.miss(&wrong);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    tally
}

async fn ask_on_one_connection(plan: &Plan, asked: &mut usize, tally: &mut Tally) -> Result<(), Wrong> {
    let mut stream = TcpStream::connect(plan.job.address).await?;
    stream.set_nodelay(true)?;
    let mut reader = Reader::new();
    loop {
        let request = &plan.requests[*asked % plan.requests.len()];
        *asked += plan.job.connections;
        let started = Instant::now();
        stream.write_all(request).await?;
        let mut compare = Compare { expected: &plan.expected, at: 0 };
        let first = reader.answer(&mut stream, &mut compare).await?;
        let ended = Instant::now();
        if compare.at != plan.expected.len() {
            return Err(Wrong::Different(compare.at));
        }
        if ended >= plan.end {
            return Ok(());
        }
        tally.answers += u64::from(ended >= plan.begin);
        if started >= plan.begin {
            tally.whole.push((ended - started).as_nanos() as u64);
            tally.first.push((first - started).as_nanos() as u64);
        }
    }
}

fn told(wrong: &Wrong) -> Failure {
    Failure::Wrong { contender: "the engine".to_owned(), what: wrong.to_string() }
}

/// Tells the parent something.
pub(crate) fn say(line: &str) -> Result<(), Failure> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}").and_then(|()| output.flush()).tried("telling the parent")
}
