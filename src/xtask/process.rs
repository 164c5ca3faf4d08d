//! Starts other programs in the repository's root and reads what they say.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::Error;
use crate::report::{self, Counts, Runner};
use crate::tools;

/// The repository's root, where every step runs.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("xtask lies two folders below the root")
}

/// The build folder of this invocation.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |path| root().join(path))
}

/// One program to run.
pub(crate) struct Step {
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
}

impl Step {
    /// A step that runs `program`, found on the path or among our own tools.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Step {
        Step { program: program.as_ref().to_owned(), arguments: Vec::new(), variables: Vec::new() }
    }

    /// The cargo that started us.
    pub(crate) fn cargo() -> Step {
        Step::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// Adds one argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Step {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds several arguments.
    pub(crate) fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Step {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Step {
        self.variables.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs to the end; its output is ours.
    pub(crate) fn run(&self) -> Result<(), Error> {
        let status = self.command().status().map_err(|source| self.cannot_start(source))?;
        if status.success() { Ok(()) } else { Err(Error::Failed { command: self.line(), status }) }
    }

    /// Runs to the end without a word; true if it succeeded. For questions such as "is it there?".
    pub(crate) fn succeeds(&self) -> bool {
        let quiet = self.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        quiet.is_ok_and(|status| status.success())
    }

    /// Runs to the end and gives what it printed.
    pub(crate) fn output(&self) -> Result<String, Error> {
        let output = self.command().stderr(Stdio::inherit()).output().map_err(|source| self.cannot_start(source))?;
        if !output.status.success() {
            return Err(Error::Failed { command: self.line(), status: output.status });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs a test runner, passes on what it prints, and reads its last closing line.
    pub(crate) fn run_tests(&self, runner: Runner) -> Result<Tested, Error> {
        // Both streams in one pipe keep their order; a shell joins them, since the standard library can't.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 2>&1", "sh"]).arg(&self.program).args(&self.arguments);
        self.prepare(&mut command);
        let mut child = command.stdout(Stdio::piped()).spawn().map_err(|source| self.cannot_start(source))?;
        let output = child.stdout.take().expect("the output was piped above");
        let mut tested = Tested::default();
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            report::line(&line);
            if let Some(counts) = runner.counts(&line) {
                tested.counts = counts;
                tested.closing_line = line.trim().to_owned();
            }
        }
        let status = child.wait().map_err(|source| self.cannot_start(source))?;
        tested.succeeded = status.success();
        Ok(tested)
    }

    /// Starts without waiting.
    pub(crate) fn spawn(&self) -> Result<Child, Error> {
        self.command().spawn().map_err(|source| self.cannot_start(source))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments);
        self.prepare(&mut command);
        command
    }

    fn prepare(&self, command: &mut Command) {
        command.current_dir(root()).env("PATH", tools::search_path());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn cannot_start(&self, source: std::io::Error) -> Error {
        Error::Start { command: self.line(), source }
    }
}

/// How a test runner ended.
#[derive(Default)]
pub(crate) struct Tested {
    pub(crate) succeeded: bool,
    pub(crate) counts: Counts,
    /// The runner's own last word, passed on in the closing report.
    pub(crate) closing_line: String,
}
