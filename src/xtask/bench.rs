//! `cargo xtask bench`: the benchmarks, with the rivals they need.

use clap::Args;

use crate::error::Error;
use crate::process::Step;
use crate::{report, tools};

#[derive(Args)]
pub(crate) struct Options {
    /// Run one benchmark only: routing or overhead
    #[arg(long)]
    only: Option<String>,
    /// A few seconds each, to see that they work
    #[arg(long)]
    quick: bool,
    /// Passed on to the benchmark, after `--`
    #[arg(last = true)]
    rest: Vec<String>,
}

/// Runs one benchmark, or all.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let benches = options.only.as_deref().map_or_else(|| vec!["routing", "overhead"], |only| vec![only]);
    for bench in benches {
        report::step(format!("cargo bench --bench {bench}"));
        let mut step = Step::cargo().args(["bench", "--package", "smg-benches", "--bench", bench, "--"]);
        if options.quick {
            step = step.arg("--quick");
        }
        if bench == "overhead" {
            match tools::nginx() {
                Some(nginx) => step = step.arg("--nginx").arg(nginx),
                None => report::line("nginx could not be had: the comparison goes without it"),
            }
        }
        step.args(&options.rest).run()?;
    }
    Ok(())
}
