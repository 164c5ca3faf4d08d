//! What can go wrong.

use std::{io, path::PathBuf};

use opentelemetry_otlp::ExporterBuildError;
use tracing_subscriber::{filter::ParseError, reload, util::TryInitError};

/// Telemetry could not be set up or changed. The operator's settings are at fault, except for [`Error::Twice`];
/// nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not the name of a log format.
    #[error("unknown log format {0:?}: auto, human or json")]
    Format(String),
    /// Neither a level nor directives.
    #[error("invalid log level {level:?}")]
    Level {
        /// What was given.
        level: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// The level cannot be changed any more.
    #[error("cannot change the log level")]
    Reload(#[from] reload::Error),
    /// Log files cannot be written.
    #[error("cannot write logs to {}", dir.display())]
    LogDir {
        /// The folder.
        dir: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for {purpose}")]
    Thread {
        /// What for.
        purpose: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file named by the environment cannot be read.
    #[error("cannot read the certificate named by {variable}")]
    Certificate {
        /// The variable.
        variable: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The exporter of spans cannot be made.
    #[error("cannot export spans")]
    Otlp(#[from] ExporterBuildError),
    /// The process already has a subscriber.
    #[error("logs are already set up")]
    Twice(#[from] TryInitError),
}
