//! `cargo xtask deny`: what `deny.toml` says, checked.

use clap::Args;

use crate::error::Error;
use crate::process::Step;
use crate::{report, tools};

#[derive(Args)]
pub(crate) struct Options {
    /// Look up known vulnerabilities too, which downloads their database
    #[arg(long)]
    advisories: bool,
}

/// Checks bans, licences and sources.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    tools::deny()?;
    report::step("cargo deny");
    // A door in deny.toml may be for a crate that another feature brings: not an error.
    let step = Step::cargo().args(["deny", "check", "--allow", "unused-wrapper", "bans", "licenses", "sources"]);
    if options.advisories { step.arg("advisories").run() } else { step.run() }
}
