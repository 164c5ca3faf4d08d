//! `cargo xtask fuzz`: the fuzz tests of every decoder, with more inputs or another seed.

use clap::Args;

use crate::error::Error;
use crate::process::{Step, target};
use crate::{report, tools};

#[derive(Args)]
pub(crate) struct Options {
    /// Inputs for each decoder
    #[arg(long, default_value_t = 1_000_000)]
    inputs: u64,
    /// Seed of the inputs; the same seed gives the same inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs every test with `mutated` in its name, optimised, since nearly all the time is ours.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    tools::nextest()?;
    report::step(format!("fuzzing with {} inputs for each decoder, seed {}", options.inputs, options.seed));
    let step =
        Step::cargo().args(["nextest", "run", "--workspace", "--release", "--profile", "fuzz", "-E", "test(mutated)"]);
    let step = step.env("SMG_FUZZ_INPUTS", options.inputs.to_string()).env("SMG_FUZZ_SEED", options.seed.to_string());
    // A folder of its own: release code with assertions is neither of the usual two builds.
    let step = step.env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    step.env("CARGO_TARGET_DIR", target().join("fuzz")).run()
}
