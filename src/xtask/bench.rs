//! `cargo xtask bench`: the benchmarks, with the rivals they need.

use clap::Args;

use crate::error::Error;
use crate::process::Step;
use crate::{report, tools};

#[derive(Args)]
pub(crate) struct Options {
    /// Run one benchmark only: routing, prefix, tokens, limits, mesh or overhead
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
    match options.only.as_deref() {
        None => {
            bench("routing", options)?;
            prefix(options)?;
            bench("tokens", options)?;
            bench("limits", options)?;
            mesh(options)?;
            bench("overhead", options)
        }
        Some("prefix") => prefix(options),
        Some("mesh") => {
            mesh(options)?;
            // Among all benchmarks this stage is one of the overhead's own.
            bench_with("overhead", &["--stages", "mesh"], options)
        }
        Some(only) => bench(only, options),
    }
}

/// The prefix index alone, then in one run with those that others publish: a package of its own, for what they need is not what
/// we build on.
fn prefix(options: &Options) -> Result<(), Error> {
    bench("prefix", options)?;
    report::step("cargo run --manifest-path benches/rivals/Cargo.toml");
    let step = Step::cargo().args(["run", "--quiet", "--release", "--manifest-path", "benches/rivals/Cargo.toml"]);
    step.args(["--target-dir", "target/rivals"]).run()
}

/// What the mesh computes and sends, then how fast many simulated nodes notice and agree.
fn mesh(options: &Options) -> Result<(), Error> {
    bench("mesh", options)?;
    report::step("smg simulate mesh tables");
    let step = Step::cargo().args(["run", "--quiet", "--release", "--bin", "smg", "--", "simulate", "mesh", "tables"]);
    if options.quick { step.arg("--quick").run() } else { step.run() }
}

fn bench(name: &str, options: &Options) -> Result<(), Error> {
    bench_with(name, &[], options)
}

fn bench_with(name: &str, arguments: &[&str], options: &Options) -> Result<(), Error> {
    report::step(format!("cargo bench --bench {name} {}", arguments.join(" ")));
    let mut step = Step::cargo().args(["bench", "--package", "smg-benches", "--bench", name, "--"]).args(arguments);
    if options.quick {
        step = step.arg("--quick");
    }
    if name == "overhead" {
        match tools::nginx() {
            Some(nginx) => step = step.arg("--nginx").arg(nginx),
            None => report::line("nginx could not be had: the comparison goes without it"),
        }
    }
    step.args(&options.rest).run()
}
