//! `smg completions`: scripts that complete commands, flags and their values.

use super::{Failure, output};

/// Arguments of `smg completions`.
#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// The shell.
    shell: clap_complete::Shell,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command(), "smg", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
