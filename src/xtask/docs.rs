//! `cargo xtask docs`: the documents that the program itself writes.

use std::fs;

use clap::Args;

use crate::error::Error;
use crate::process::{Step, root};
use crate::report;

#[derive(Args)]
pub(crate) struct Options {
    /// Write nothing; fail if a document differs from what the program says
    #[arg(long)]
    check: bool,
}

/// Each document and the command that prints it.
pub(crate) const GENERATED: &[(&str, &[&str])] =
    &[("docs/configuration.md", &["config", "reference"]), ("docs/metrics.md", &["metrics", "reference"])];

/// Writes the generated documents, or checks them.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    if !options.check {
        return GENERATED.iter().try_for_each(|(path, command)| write(path, &print(command)?));
    }
    let stale = stale()?;
    if stale.is_empty() { Ok(()) } else { Err(Error::Stale(stale)) }
}

/// The documents that differ from what the program says.
pub(crate) fn stale() -> Result<Vec<&'static str>, Error> {
    let mut stale = Vec::new();
    for (path, command) in GENERATED {
        let said = print(command)?;
        if fs::read_to_string(root().join(path)).unwrap_or_default() != said {
            stale.push(*path);
        }
    }
    Ok(stale)
}

fn print(command: &[&str]) -> Result<String, Error> {
    Step::cargo().args(["run", "--quiet", "--bin", "smg", "--"]).args(command).output()
}

fn write(path: &str, text: &str) -> Result<(), Error> {
    report::step(path);
    let path = root().join(path);
    fs::write(&path, text).map_err(|source| Error::File { path, source })
}
