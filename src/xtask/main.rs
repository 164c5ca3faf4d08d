//! `cargo xtask`: the repository's own commands, so that a machine with Rust and a C compiler needs nothing else.
//!
//! Each command is a list of steps in the order they run. Tools that are not there are fetched into `target/tools` or, as
//! root on Debian, installed; what can't be had is named, and what is skipped for it is counted. This crate knows nothing of
//! the gateway: it starts programs and reads their closing lines.

mod bench;
mod cold;
mod dashboard;
mod deny;
mod docs;
mod error;
mod fuzz;
mod process;
mod report;
mod test;
mod tools;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The repository's own commands", max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run every test: crates, real processes, generated documents, Python SDKs
    Test(test::Options),
    /// Run what continuous integration runs: format, lints, licences, then every test
    Ci,
    /// Check licences, banned packages and sources of all dependencies
    Deny(deny::Options),
    /// Write the generated documents, or check that they are up to date
    Docs(docs::Options),
    /// Run every fuzz test with more inputs than the test suite does
    Fuzz(fuzz::Options),
    /// Run the benchmarks
    Bench(bench::Options),
    /// Measure both commands of the README from an empty build folder
    Cold(cold::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Test(options) => test::run(&options),
        Command::Ci => process::Step::new("bash").arg(".ci/run").run(),
        Command::Deny(options) => deny::run(&options),
        Command::Docs(options) => docs::run(&options),
        Command::Fuzz(options) => fuzz::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Cold(options) => cold::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report::problem(&error);
            ExitCode::FAILURE
        }
    }
}
