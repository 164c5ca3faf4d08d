//! `cargo xtask test`: every test there is, from the fastest to the ones with real clients.

use std::fs;
use std::path::Path;

use clap::Args;

use crate::docs;
use crate::error::Error;
use crate::process::{Step, Tested, root, target};
use crate::report::{self, Counts, Runner};
use crate::tools;

/// Tests with real `smg` processes: the integration target of the root package.
const PROCESS_TESTS: &str = "package(smg) and kind(test)";
/// How long the simulator looks for a seed that breaks the mesh, in seconds; with `--quick`, the second.
const SIMULATED_FOR: [&str; 2] = ["60", "10"];
const SDK_FOLDER: &str = "cluster-tests/sdk";

#[derive(Args)]
pub(crate) struct Options {
    /// Leave out the tests with real processes and the SDKs
    #[arg(long)]
    quick: bool,
}

/// Runs every suite, also after one failed, and closes with each runner's own result line.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    tools::nextest()?;
    let mut outcome = Outcome::default();
    outcome.tested("crates", nextest(&format!("not ({PROCESS_TESTS})"))?);
    outcome.tested("simulator", simulator(SIMULATED_FOR[usize::from(options.quick)])?);
    if !options.quick {
        tools::faketime();
        outcome.tested("processes", processes()?);
        outcome.tested("documents", documents()?);
        match tools::python("python.txt") {
            Ok(python) => outcome.tested("sdk", sdk(&python)?),
            Err(error) => outcome.skipped("sdk", &error, sdk_scenarios()),
        }
    }
    outcome.close()
}

/// Scenarios write a line to a file when the machine lacks what they need; to nextest they have passed.
fn processes() -> Result<Tested, Error> {
    let path = target().join("skipped-tests");
    let failed = |source| Error::File { path: path.clone(), source };
    fs::write(&path, "").map_err(failed)?;
    let mut tested = nextest_with(PROCESS_TESTS, &[("SMG_TEST_SKIPS", &path)])?;
    let skipped = fs::read_to_string(&path).map_err(failed)?;
    for line in skipped.lines() {
        report::line(format!("skipped: {line}"));
    }
    let count = skipped.lines().count() as u64;
    tested.counts.passed = tested.counts.passed.saturating_sub(count);
    tested.counts.skipped += count;
    if count > 0 {
        tested.closing_line = format!("{}, of which {count} lacked something and were skipped", tested.closing_line);
    }
    Ok(tested)
}

fn nextest(filter: &str) -> Result<Tested, Error> {
    nextest_with(filter, &[])
}

fn nextest_with(filter: &str, variables: &[(&str, &Path)]) -> Result<Tested, Error> {
    report::step(format!("cargo nextest run --workspace -E '{filter}'"));
    let mut step = Step::cargo().args(["nextest", "run", "--workspace", "--no-tests=pass", "-E", filter]);
    for (name, value) in variables {
        step = step.env(name, value);
    }
    let step = step.env("CARGO_TERM_COLOR", "never").env("NEXTEST_HIDE_PROGRESS_BAR", "1");
    let step = if std::env::var_os("CI").is_some() { step.env("NEXTEST_PROFILE", "ci") } else { step };
    step.run_tests(Runner::Nextest)
}

/// Whole clusters in virtual time, with faults drawn from a seed: as many seeds as the time allows, those that once failed first.
fn simulator(seconds: &str) -> Result<Tested, Error> {
    report::step(format!("smg simulate mesh check --seconds {seconds}"));
    let step = Step::cargo().args(["run", "--quiet", "--bin", "smg", "--", "simulate", "mesh", "check"]);
    let tested = step.args(["--seconds", seconds]).run_tests(Runner::Simulator)?;
    // How many seeds there were depends on the machine; all of them together are one test.
    let failed = u64::from(!tested.succeeded);
    Ok(Tested { counts: Counts { passed: 1 - failed, failed, skipped: 0 }, ..tested })
}

fn documents() -> Result<Tested, Error> {
    report::step("cargo xtask docs --check");
    let stale = docs::stale()?;
    let failed = stale.len() as u64;
    let counts = Counts { passed: docs::COUNT as u64 - failed, failed, skipped: 0 };
    for path in &stale {
        report::problem(format!("{path} is out of date: run `cargo xtask docs`"));
    }
    Ok(Tested { succeeded: stale.is_empty(), counts, closing_line: counts.to_string() })
}

/// The OpenAI and Anthropic SDKs against the binary that the process tests built.
fn sdk(python: &Path) -> Result<Tested, Error> {
    if sdk_scenarios() == 0 {
        return Ok(Tested { succeeded: true, ..Tested::default() });
    }
    report::step(format!("pytest {SDK_FOLDER}"));
    Step::cargo().args(["build", "--quiet", "--bin", "smg"]).run()?;
    let step = Step::new(python).args(["-m", "pytest", "--quiet", "--color=no", "-p", "no:cacheprovider", SDK_FOLDER]);
    step.env("SMG_BIN", target().join("debug/smg")).env("PYTHONDONTWRITEBYTECODE", "1").run_tests(Runner::Pytest)
}

/// How many scenarios there are, counted in the text, for they must be countable where Python is missing.
fn sdk_scenarios() -> u64 {
    let Ok(entries) = fs::read_dir(root().join(SDK_FOLDER)) else { return 0 };
    let texts = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path()).ok());
    let starts = |line: &str| line.trim_start().trim_start_matches("async ").starts_with("def test_");
    texts.map(|text| text.lines().filter(|line| starts(line)).count() as u64).sum()
}

#[derive(Default)]
struct Outcome {
    total: Counts,
    closing_lines: Vec<String>,
    failures: usize,
}

impl Outcome {
    fn tested(&mut self, suite: &str, tested: Tested) {
        self.total.add(tested.counts);
        self.failures += usize::from(!tested.succeeded);
        let verdict = if tested.succeeded { "" } else { " FAILED" };
        self.closing_lines.push(format!("{suite:<10} {}{verdict}", tested.closing_line));
    }

    fn skipped(&mut self, suite: &str, why: &Error, count: u64) {
        self.total.skipped += count;
        self.closing_lines.push(format!("{suite:<10} {count} skipped: {why}"));
    }

    fn close(self) -> Result<(), Error> {
        report::step("results");
        self.closing_lines.iter().for_each(report::line);
        // A suite that died without a closing line has failed all the same.
        let failed = self.total.failed.max(self.failures as u64);
        report::line(Counts { failed, ..self.total });
        if self.failures == 0 { Ok(()) } else { Err(Error::Steps(self.failures)) }
    }
}
