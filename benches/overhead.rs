//! What a proxy in front of an engine costs: a direct connection, nginx and smg against one fake engine, in one run.
//!
//! Every party is a process of its own: the engine (`smg mock-worker --bench`), the proxies, and the load, which is this
//! program started again (`load/generator.rs`, `load/held.rs`). The contenders take turns in rounds, so that a change in the machine's mood
//! meets all of them; medians and ratios are told, never a best case. Every answer is compared byte for byte with the one the engine gives
//! directly. The bench knows nothing of the gateway but its command line, its metrics and `/proc`.
//!
//! ```sh
//! cargo xtask bench --only overhead              # fetches nginx if it is missing
//! cargo bench -p smg-benches --bench overhead -- --quick --stages throughput,events
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its figures")]

mod load;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some(load::GENERATE) => load::generator::main(),
        Some(load::HOLD) => load::held::main(),
        _ => load::run(load::Options::parse()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}
