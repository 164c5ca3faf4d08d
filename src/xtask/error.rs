//! What can go wrong while running other programs.

use std::io;
use std::path::PathBuf;

/// Why a command of `cargo xtask` failed. Nothing is undone: each step can be run again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A program could not be started at all.
    #[error("cannot start `{command}`: {source}")]
    Start {
        /// The command line.
        command: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program ended with a failure.
    #[error("`{command}` failed ({status})")]
    Failed {
        /// The command line.
        command: String,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Tests failed; their runners have said which.
    #[error("{0} of the steps above failed")]
    Steps(usize),
    /// A tool is missing and could not be fetched.
    #[error("{tool} is missing: {remedy}")]
    Missing {
        /// What is missing.
        tool: &'static str,
        /// What to type.
        remedy: &'static str,
    },
    /// Generated documents differ from what the program says.
    #[error("out of date: {}; run `cargo xtask docs`", .0.join(", "))]
    Stale(Vec<&'static str>),
    /// Something did not happen in time.
    #[error("{0} did not happen in time")]
    Late(&'static str),
}
