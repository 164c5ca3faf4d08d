//! Metrics, logs, reload, admin, command line: what operators use.

mod command_line;
mod explain;
mod keys;
mod logs;
mod metrics;
mod openapi;
mod reload;
mod supervisor;
mod traces;

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::harness::{Ask, Stream, on};

const CHAT: &str = "/v1/chat/completions";

/// A good request.
fn chat() -> Ask {
    on(CHAT, "demo", Stream::No)
}

/// Runs `smg` in `folder` to its end, while this process goes on serving.
async fn smg_in(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smg"));
    command.args(arguments).current_dir(folder);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("SMG_")) {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied());
    tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap()
}

/// What a program said on standard output.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a program complained about.
fn complained(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
