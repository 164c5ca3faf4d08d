//! The command line: what can be asked of `smg`, and who answers.
//!
//! Without a subcommand, and with `launch`, a gateway is started; the other commands either look at its configuration
//! or talk to a running one over its admin API. Exit codes: 0 for success, 1 for a failure, 2 for a command line or
//! configuration that is wrong.

mod client;
mod completions;
mod config;
#[cfg(feature = "lab")]
mod demo;
mod explain;
mod keys;
mod launch;
mod limits;
mod mesh;
mod metrics;
#[cfg(feature = "lab")]
mod mock_worker;
mod output;
#[cfg(feature = "lab")]
mod replay;
#[cfg(feature = "lab")]
mod simulate;
#[cfg(feature = "lab")]
mod simulate_limits;
#[cfg(test)]
mod tests;
mod usage;
mod workers;

use std::process::ExitCode;

use clap::{ArgMatches, Command, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use http::StatusCode;
use smg_node::{
    config::{Config, ConfigErrors, Flags, Inputs, flags},
    keys::KeyError,
};

/// An engine-agnostic LLM gateway.
///
/// Without a command, `smg` starts a gateway, as `smg launch` does. Every flag is also an environment variable and a
/// key in smg.toml; flags win over variables, variables over the file.
#[derive(Parser, Debug)]
#[command(name = "smg", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Start a gateway.
    #[command(visible_alias = "start")]
    Launch,
    /// Look at the configuration without starting anything.
    #[command(subcommand)]
    Config(config::Verb),
    /// List, add, drain and remove the workers of a running gateway.
    #[command(subcommand)]
    Workers(workers::Verb),
    /// Look at the mesh of a running gateway, make a secret for a new one, take a node out.
    #[command(subcommand)]
    Mesh(mesh::Verb),
    /// Make, list, change and revoke the keys of callers and operators.
    #[command(subcommand)]
    Keys(keys::Verb),
    /// Tell why a request went where it went.
    Explain(explain::Args),
    /// Show the limits in force, and how they stand for somebody.
    Limits(limits::Args),
    /// Show what tenants used.
    Usage(usage::Args),
    /// Say what a gateway measures.
    #[command(subcommand)]
    Metrics(metrics::Verb),
    /// Print a completion script for a shell.
    Completions(completions::Args),
    /// Run a fake engine.
    #[cfg(feature = "lab")]
    MockWorker(mock_worker::Args),
    /// Start a gateway together with fake engines, to try it out.
    #[cfg(feature = "lab")]
    Demo(demo::Args),
    /// Simulate clusters of nodes, and fleets of engines.
    #[cfg(feature = "lab")]
    Simulate(simulate::Args),
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The configuration is wrong; nothing was started.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// A word of the command line is wrong in a way only the command itself can see.
    #[error("{0}")]
    Usage(String),
    /// The gateway could not be asked, or refused.
    #[error(transparent)]
    Client(#[from] client::Error),
    /// A key cannot be made or hashed here.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// A worker was waited for long enough. It goes on with its requests.
    #[error("the worker still has {requests} requests; they go on")]
    Unfinished {
        /// How many.
        requests: u64,
    },
    /// The system refused something.
    #[error("cannot {action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The gateway could not start, or ended because of a fault.
    #[error("{0}")]
    Launch(Box<dyn std::error::Error + Send + Sync>),
}

impl Failure {
    fn system(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::System { action, source }
    }

    /// Whether the gateway knows nothing of what it was asked for.
    fn is_not_found(&self) -> bool {
        matches!(self, Self::Client(client::Error::Refused { status: StatusCode::NOT_FOUND, .. }))
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Keys(KeyError::File { .. } | KeyError::NoRandomness(_) | KeyError::Entry(_)) => ExitCode::FAILURE,
            Self::Config(_) | Self::Usage(_) | Self::Keys(_) => ExitCode::from(2),
            Self::Client(_) | Self::Unfinished { .. } | Self::System { .. } | Self::Launch(_) => ExitCode::FAILURE,
        }
    }
}

/// Does what the command line of this process says.
pub(crate) fn run() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // A reader that went away wants no message about it.
            let _gone = error.print();
            return if is_answer { ExitCode::SUCCESS } else { ExitCode::from(2) };
        }
    };
    match dispatch(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::note(&format!("error: {failure}"));
            failure.exit_code()
        }
    }
}

/// The whole command line, settings included.
fn command() -> Command {
    let command = flags(CommandLine::command())
        .mut_subcommand("launch", flags)
        .mut_subcommand("config", |config| config.mut_subcommand("validate", flags).mut_subcommand("show", flags));
    if cfg!(feature = "lab") { command.mut_subcommand("demo", flags) } else { command }
}

fn dispatch(matches: &ArgMatches) -> Result<(), Failure> {
    let line = CommandLine::from_arg_matches(matches).map_err(|error| Failure::Usage(error.to_string()))?;
    // Settings belong to the innermost command.
    let mut innermost = matches;
    while let Some((_, deeper)) = innermost.subcommand() {
        innermost = deeper;
    }
    let inputs = || Inputs::of_process(Flags::of(innermost));
    match line.verb {
        None | Some(Verb::Launch) => {
            let inputs = inputs();
            launch::launch(Config::load(&inputs)?, inputs)
        }
        Some(Verb::Config(verb)) => config::run(&verb, &inputs()),
        Some(Verb::Workers(verb)) => workers::run(verb),
        Some(Verb::Mesh(verb)) => mesh::run(&verb),
        Some(Verb::Keys(verb)) => keys::run(&verb),
        Some(Verb::Explain(args)) => explain::run(&args),
        Some(Verb::Limits(args)) => limits::run(&args),
        Some(Verb::Usage(args)) => usage::run(&args),
        Some(Verb::Metrics(verb)) => metrics::run(&verb),
        Some(Verb::Completions(args)) => completions::run(&args),
        #[cfg(feature = "lab")]
        Some(Verb::MockWorker(args)) => mock_worker::run(args),
        #[cfg(feature = "lab")]
        Some(Verb::Demo(args)) => demo::run(&args, inputs()),
        #[cfg(feature = "lab")]
        Some(Verb::Simulate(args)) => simulate::run(&args),
    }
}

/// Loads the configuration, and tells its warnings. (A gateway that starts logs them instead.)
fn load(inputs: &Inputs) -> Result<Config, Failure> {
    let config = Config::load(inputs)?;
    for warning in &config.warnings {
        output::note(&format!("warning: {warning}"));
    }
    Ok(config)
}
