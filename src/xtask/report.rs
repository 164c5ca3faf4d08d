//! The only place that prints: one line per step, and the closing lines of the runners.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool talks to its caller")]

use std::fmt::Display;

/// Says what runs now.
pub(crate) fn step(what: impl Display) {
    println!("── {what}");
}

/// Passes on a line.
pub(crate) fn line(text: impl Display) {
    println!("{text}");
}

/// Says what failed.
pub(crate) fn problem(error: impl Display) {
    eprintln!("error: {error}");
}

/// Whose closing line is read. What a failed test printed may hold the closing lines of others.
#[derive(Clone, Copy)]
pub(crate) enum Runner {
    Nextest,
    Pytest,
    Simulator,
}

impl Runner {
    fn closes(self, line: &str) -> bool {
        match self {
            Runner::Nextest => line.starts_with("Summary ["),
            Runner::Simulator => line.starts_with("Simulated: "),
            Runner::Pytest => line.starts_with("==") || line.starts_with(|c: char| c.is_ascii_digit()),
        }
    }

    /// What the runner's closing line counts; none for any other line.
    pub(crate) fn counts(self, line: &str) -> Option<Counts> {
        let line = line.trim();
        let words: Vec<&str> = line.split([' ', ',', '=']).filter(|word| !word.is_empty()).collect();
        let before = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        let (passed, failed) = (before("passed"), before("failed"));
        let errors = before("error").or(before("errors")).or(before("timed"));
        if !self.closes(line) || passed.or(failed).or(errors).is_none() {
            return None;
        }
        let failed = failed.unwrap_or(0) + errors.unwrap_or(0);
        Some(Counts { passed: passed.unwrap_or(0), failed, skipped: before("skipped").unwrap_or(0) })
    }
}

/// What a runner's closing line counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Adds what another runner counted.
    pub(crate) fn add(&mut self, other: Counts) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_read() {
        let check = |runner: Runner, line: &str, expected: Option<(u64, u64, u64)>| {
            let expected = expected.map(|(passed, failed, skipped)| Counts { passed, failed, skipped });
            assert_eq!(runner.counts(line), expected, "{line}");
        };
        let nextest = |line, expected| check(Runner::Nextest, line, expected);
        nextest("     Summary [   0.5s] 12 tests run: 11 passed (1 slow), 1 failed, 3 skipped", Some((11, 1, 3)));
        nextest("     Summary [   9.1s] 5 tests run: 3 passed, 1 failed, 1 timed out, 0 skipped", Some((3, 2, 0)));
        nextest("test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 25 filtered out", None);
        nextest("        PASS [   0.005s] smg-base size::tests::reads", None);
        let pytest = |line, expected| check(Runner::Pytest, line, expected);
        pytest("================= 7 passed, 1 skipped in 3.20s =================", Some((7, 0, 1)));
        pytest("======== 1 failed, 7 passed, 2 errors in 3.20s ========", Some((7, 3, 0)));
        pytest("1 error in 0.20s", Some((0, 1, 0)));
        pytest("7 passed, 1 skipped in 3.20s", Some((7, 0, 1)));
        pytest("no tests ran in 0.01s", None);
        pytest("a test passed", None);
        let simulator = |line, expected| check(Runner::Simulator, line, expected);
        simulator("Simulated: 512 passed, 1 failed, 0 skipped", Some((512, 1, 0)));
        simulator("seed 7 failed: 1 passed before it", None);
    }
}
