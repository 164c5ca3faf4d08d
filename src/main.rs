//! The `smg` program.

mod cli;
#[cfg(test)]
mod tidy;

/// Holds less and returns it sooner than the system's allocator under many small, short-lived streams.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::run()
}
