//! The parts of the overhead benchmark, from the order of its stages down to the bytes it sends.

pub(crate) mod answer;
pub(crate) mod chart;
pub(crate) mod children;
pub(crate) mod control;
pub(crate) mod failure;
pub(crate) mod generator;
pub(crate) mod held;
pub(crate) mod options;
pub(crate) mod procfs;
pub(crate) mod request;
pub(crate) mod series;
pub(crate) mod stages;
pub(crate) mod table;
pub(crate) mod verdict;

use failure::Failure;
pub(crate) use options::Options;
use stages::Bench;

/// First argument of the process that makes requests as fast as they are answered.
pub(crate) const GENERATE: &str = "generate-load";
/// First argument of the process that holds streams open.
pub(crate) const HOLD: &str = "hold-streams";

/// Runs the chosen stages in order, prints their tables, and writes the chart.
pub(crate) fn run(options: Options) -> Result<(), Failure> {
    let mut bench = Bench::prepare(options)?;
    bench.introduce();
    bench.run()?;
    bench.conclude()
}
