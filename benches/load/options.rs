//! What to measure, and how long.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// What a proxy costs, beside a direct connection and nginx.
#[derive(Debug, Parser)]
#[command(name = "overhead", max_term_width = 100)]
pub(crate) struct Options {
    /// A few seconds for everything: shows that it works, not how fast it is
    #[arg(long)]
    pub(crate) quick: bool,
    /// What to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Stage::ALL)]
    pub(crate) stages: Vec<Stage>,
    /// Whom to compare
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Contender::ALL)]
    pub(crate) contenders: Vec<Contender>,
    /// Connections that ask at the same time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 256])]
    pub(crate) concurrency: Vec<usize>,
    /// Bytes of a request's body
    #[arg(long, value_delimiter = ',', value_parser = bytes, default_values = ["1k", "32k", "1m"])]
    pub(crate) bodies: Vec<usize>,
    /// How answers come
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Shape::ALL)]
    pub(crate) shapes: Vec<Shape>,
    /// Rounds in which the contenders take turns
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Seconds of one measurement
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
    /// Streams that slow readers hold open
    #[arg(long, default_value_t = 8000)]
    pub(crate) streams: usize,
    /// Streams that are dropped at once
    #[arg(long, default_value_t = 2000)]
    pub(crate) storm: usize,
    /// Nodes of the meshes whose own traffic is measured
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 16])]
    pub(crate) nodes: Vec<usize>,
    /// The nginx to compare with
    #[arg(long, default_value = "nginx")]
    pub(crate) nginx: PathBuf,
    /// The smg to measure; by default cargo builds it
    #[arg(long)]
    pub(crate) smg: Option<PathBuf>,
    /// Which profile cargo builds smg with
    #[arg(long, default_value = "release")]
    pub(crate) profile: String,
    /// The program that plays the engine; by default smg
    #[arg(long)]
    pub(crate) engine: Option<PathBuf>,
    /// Where to write the chart
    #[arg(long, default_value = "target/bench/overhead.svg")]
    pub(crate) chart: PathBuf,
    /// Passed by cargo; means nothing here
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// Time that is measured.
    pub(crate) fn measured(&self) -> Duration {
        Duration::from_secs_f64(self.seconds.unwrap_or(if self.quick { 0.3 } else { 2.0 }))
    }

    /// Time before that, for connections and caches.
    pub(crate) fn warm_up(&self) -> Duration {
        self.measured() / 5 + Duration::from_millis(100)
    }

    /// How often the contenders take turns.
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// Connections of the throughput stage.
    pub(crate) fn concurrency(&self) -> Vec<usize> {
        if self.quick {
            self.concurrency.iter().copied().filter(|count| [1, 64].contains(count)).collect()
        } else {
            self.concurrency.clone()
        }
    }

    /// Sizes of the throughput stage.
    pub(crate) fn bodies(&self) -> Vec<usize> {
        if self.quick {
            self.bodies.iter().copied().filter(|bytes| *bytes < 1 << 20).collect()
        } else {
            self.bodies.clone()
        }
    }

    /// Streams that slow readers hold open.
    pub(crate) fn streams(&self) -> usize {
        if self.quick { self.streams.min(400) } else { self.streams }
    }

    /// Nodes of the meshes whose own traffic is measured.
    pub(crate) fn nodes(&self) -> Vec<usize> {
        if self.quick { self.nodes.iter().copied().filter(|nodes| *nodes < 8).collect() } else { self.nodes.clone() }
    }

    /// How long a mesh is left to itself while its traffic is counted.
    pub(crate) fn at_rest(&self) -> Duration {
        Duration::from_secs(if self.quick { 5 } else { 30 })
    }

    /// Streams that are dropped at once.
    pub(crate) fn storm(&self) -> usize {
        if self.quick { self.storm.min(200) } else { self.storm }
    }
}

/// One part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Stage {
    /// From start to the first answer, and memory at rest
    Startup,
    /// Requests per second, latency, CPU
    Throughput,
    /// Events relayed per second, and CPU of each
    Events,
    /// cache_aware against round_robin
    Policies,
    /// Many open streams with slow readers
    Streams,
    /// Many streams dropped at once
    Storm,
    /// Requests that a peer passes on, and what the mesh itself sends
    Mesh,
}

impl Stage {
    const ALL: [Stage; 7] =
        [Stage::Startup, Stage::Throughput, Stage::Events, Stage::Policies, Stage::Streams, Stage::Storm, Stage::Mesh];
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Startup => "startup",
            Stage::Throughput => "throughput",
            Stage::Events => "events",
            Stage::Policies => "policies",
            Stage::Streams => "streams",
            Stage::Storm => "storm",
            Stage::Mesh => "mesh",
        })
    }
}

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Contender {
    /// No proxy
    Direct,
    /// Debian's nginx with keep-alive upstream
    Nginx,
    /// This gateway
    Smg,
}

impl Contender {
    const ALL: [Contender; 3] = [Contender::Direct, Contender::Nginx, Contender::Smg];
}

impl std::fmt::Display for Contender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Contender::Direct => "direct",
            Contender::Nginx => "nginx",
            Contender::Smg => "smg",
        })
    }
}

/// How an answer comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Shape {
    /// One JSON object
    Plain,
    /// Server-sent events
    Streamed,
}

impl Shape {
    const ALL: [Shape; 2] = [Shape::Plain, Shape::Streamed];
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Shape::Plain => "plain",
            Shape::Streamed => "streamed",
        })
    }
}

fn bytes(text: &str) -> Result<usize, std::num::ParseIntError> {
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 1 << 10),
        Some(b'm') => (&lower[..lower.len() - 1], 1 << 20),
        _ => (lower.as_str(), 1),
    };
    Ok(digits.parse::<usize>()? * unit)
}
