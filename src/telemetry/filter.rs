//! Which lines are written.

use tracing_subscriber::{EnvFilter, Registry, filter::Filtered, layer::Layer, reload};

use crate::{
    config::{Config, Environment},
    error::Error,
};

/// The part of a filter through which its level can be changed.
pub(crate) type Handle = reload::Handle<EnvFilter, Registry>;

/// A layer behind a filter whose level can be changed.
pub(crate) type Reloadable<L> = Filtered<L, reload::Layer<EnvFilter, Registry>, Registry>;

/// Puts `layer` behind a filter that passes what `directives` say.
pub(crate) fn filtered<L: Layer<Registry>>(layer: L, directives: &str) -> Result<(Reloadable<L>, Handle), Error> {
    let (filter, handle) = reload::Layer::new(parse(directives)?);
    Ok((layer.with_filter(filter), handle))
}

/// The directives that the environment, or else the configuration, asks for.
pub(crate) fn chosen(config: &Config, environment: &Environment) -> String {
    match (&environment.smg_log, &environment.rust_log) {
        (Some(level), _) => directives(level),
        // A bare level in RUST_LOG means every crate, as everywhere.
        (None, Some(rust_log)) => rust_log.clone(),
        (None, None) => directives(&config.level),
    }
}

/// A level for our own crates, with dependencies at `warn` unless that is louder; directives stay as they are.
pub(crate) fn directives(level: &str) -> String {
    let level = level.trim();
    match level.to_ascii_lowercase().as_str() {
        "off" | "error" => level.to_owned(),
        _ if level.contains([',', '=', '[']) => level.to_owned(),
        // A directive is for all targets that begin as it does: smg and smg_gateway alike.
        _ => format!("warn,smg={level}"),
    }
}

pub(crate) fn parse(directives: &str) -> Result<EnvFilter, Error> {
    EnvFilter::builder().parse(directives).map_err(|source| Error::Level { level: directives.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_for_our_own_crates() {
        let check = |level: &str, expected: &str| {
            assert_eq!(directives(level), expected);
            assert!(parse(&directives(level)).is_ok(), "{level}");
        };
        check("info", "warn,smg=info");
        check(" DEBUG ", "warn,smg=DEBUG");
        check("warn", "warn,smg=warn");
        check("error", "error");
        check("off", "off");
        check("info,smg_gateway=trace", "info,smg_gateway=trace");
        assert!(parse(&directives("loud")).is_err());
        assert!(parse(&directives("smg=loud")).is_err());
    }

    #[test]
    fn the_environment_comes_first() {
        let check = |smg_log: Option<&str>, rust_log: Option<&str>, expected: &str| {
            let environment = Environment {
                smg_log: smg_log.map(str::to_owned),
                rust_log: rust_log.map(str::to_owned),
                ..Environment::default()
            };
            assert_eq!(chosen(&Config::default(), &environment), expected);
        };
        check(None, None, "warn,smg=info");
        check(None, Some("debug"), "debug");
        check(Some("trace"), Some("debug"), "warn,smg=trace");
    }
}
