//! What can be chosen.

use std::{env, fmt, io::IsTerminal, path::PathBuf, str::FromStr};

use crate::error::Error;

/// What logs look like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// For people; with colour on a terminal unless `NO_COLOR` is set.
    Human,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err(Error::Format(text.to_owned())),
        }
    }
}

/// What the process says, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `off`, `error`, `warn`, `info`, `debug` or `trace` for our own crates; or directives as in
    /// `warn,smg_gateway=debug`. `SMG_LOG`, which takes the same, comes before it, and so does `RUST_LOG`, in which a
    /// bare level means every crate; of the two, `SMG_LOG` wins.
    pub level: String,
    /// What logs look like.
    pub format: LogFormat,
    /// Where daily files `smg.<date>` (UTC) are written besides; made if absent.
    pub log_dir: Option<PathBuf>,
    /// Where spans are sent: `host:port` or a URL. Empty means what `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` say, or else `http://localhost:4317`. `None` switches traces off.
    pub otlp_endpoint: Option<String>,
    /// `service.name` of the spans, unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` say otherwise.
    pub service_name: String,
    /// `service.instance.id` of the spans; left out if empty.
    pub node_name: String,
}

impl Default for Config {
    /// Logs at `info` on standard output, and nothing else.
    fn default() -> Self {
        Self {
            level: "info".to_owned(),
            format: LogFormat::Auto,
            log_dir: None,
            otlp_endpoint: None,
            service_name: "smg".to_owned(),
            node_name: String::new(),
        }
    }
}

/// What the environment has to say about logs.
#[derive(Debug, Default)]
pub(crate) struct Environment {
    pub(crate) smg_log: Option<String>,
    pub(crate) rust_log: Option<String>,
    pub(crate) is_terminal: bool,
    pub(crate) no_color: bool,
}

impl Environment {
    pub(crate) fn read() -> Self {
        let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            smg_log: variable("SMG_LOG"),
            rust_log: variable("RUST_LOG"),
            is_terminal: std::io::stdout().is_terminal(),
            // https://no-color.org: set and not empty, whatever the value; `dumb` terminals know no colour.
            no_color: variable("NO_COLOR").is_some() || variable("TERM").as_deref() == Some("dumb"),
        }
    }
}
