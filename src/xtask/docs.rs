//! `cargo xtask docs`: the documents that programs write.

use std::fs;

use clap::Args;

use crate::error::Error;
use crate::process::{Step, root};
use crate::{dashboard, report};

#[derive(Args)]
pub(crate) struct Options {
    /// Write nothing; fail if a document differs from what it should be
    #[arg(long)]
    check: bool,
}

/// Where a document comes from.
enum Source {
    /// What smg prints, told to do so.
    Smg(&'static [&'static str]),
    /// The panels of `dashboard.rs`.
    Dashboard,
}

const GENERATED: &[(&str, Source)] = &[
    ("docs/configuration.md", Source::Smg(&["config", "reference"])),
    ("docs/metrics.md", Source::Smg(&["metrics", "reference"])),
    ("deploy/grafana/smg.json", Source::Dashboard),
];

/// How many documents are generated.
pub(crate) const COUNT: usize = GENERATED.len();

/// Writes the generated documents, or checks them.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    if !options.check {
        return GENERATED.iter().try_for_each(|(path, source)| write(path, &source.text()?));
    }
    let stale = stale()?;
    if stale.is_empty() { Ok(()) } else { Err(Error::Stale(stale)) }
}

/// The documents that differ from what they should be.
pub(crate) fn stale() -> Result<Vec<&'static str>, Error> {
    let mut stale = Vec::new();
    for (path, source) in GENERATED {
        if fs::read_to_string(root().join(path)).unwrap_or_default() != source.text()? {
            stale.push(*path);
        }
    }
    Ok(stale)
}

impl Source {
    fn text(&self) -> Result<String, Error> {
        match self {
            Source::Smg(arguments) => {
                Step::cargo().args(["run", "--quiet", "--bin", "smg", "--"]).args(*arguments).output()
            }
            Source::Dashboard => Ok(dashboard::json()),
        }
    }
}

fn write(path: &str, text: &str) -> Result<(), Error> {
    report::step(path);
    let path = root().join(path);
    fs::write(&path, text).map_err(|source| Error::File { path, source })
}
