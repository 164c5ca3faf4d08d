//! The `smg` program.

mod cli;
#[cfg(test)]
mod tidy;

fn main() -> std::process::ExitCode {
    cli::run()
}
