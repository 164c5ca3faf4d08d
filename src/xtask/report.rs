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

/// What a runner's closing line counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Counts {
    /// Reads the closing line of nextest, cargo test, pytest, or one in our own form; none for any other line.
    pub(crate) fn of_closing_line(line: &str) -> Option<Counts> {
        let line = line.trim();
        let closes = ["Summary [", "test result:", "=="].iter().any(|start| line.starts_with(start))
            || line.starts_with(|c: char| c.is_ascii_digit());
        let words: Vec<&str> = line.split([' ', ',', ';', '=']).filter(|word| !word.is_empty()).collect();
        let before = |name: &str| {
            let at = words.iter().position(|word| *word == name)?;
            words.get(at.checked_sub(1)?)?.parse::<u64>().ok()
        };
        let (passed, failed) = (before("passed"), before("failed"));
        if !closes || (passed.is_none() && failed.is_none()) {
            return None;
        }
        let errors = before("error").or(before("errors")).or(before("timed")).unwrap_or(0);
        Some(Counts {
            passed: passed.unwrap_or(0),
            failed: failed.unwrap_or(0) + errors,
            skipped: before("skipped").or(before("ignored")).unwrap_or(0),
        })
    }

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
        let check = |line: &str, expected: Option<(u64, u64, u64)>| {
            let expected = expected.map(|(passed, failed, skipped)| Counts { passed, failed, skipped });
            assert_eq!(Counts::of_closing_line(line), expected, "{line}");
        };
        check("     Summary [   0.512s] 12 tests run: 11 passed (1 slow), 1 failed, 3 skipped", Some((11, 1, 3)));
        check("     Summary [   9.1s] 5 tests run: 3 passed, 1 failed, 1 timed out, 0 skipped", Some((3, 2, 0)));
        check("test result: ok. 4 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out", Some((4, 0, 2)));
        check("================= 7 passed, 1 skipped in 3.20s =================", Some((7, 0, 1)));
        check("======== 1 failed, 7 passed, 2 errors in 3.20s ========", Some((7, 3, 0)));
        check("7 passed, 1 skipped in 3.20s", Some((7, 0, 1)));
        check("2 passed, 0 failed", Some((2, 0, 0)));
        check("no tests ran in 0.01s", None);
        check("a test passed", None);
        check("        PASS [   0.005s] smg-base size::tests::reads", None);
    }
}
