//! The subscriber and what keeps it running.

use std::{fmt, io, sync::Arc};

use prometheus::IntCounterVec;
use smg_runtime::{
    SystemClock,
    metrics::{Registrar, catch_up},
};
use tracing::Dispatch;
use tracing_subscriber::{Registry, layer::Layer, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    config::{Config, Environment},
    error::Error,
    filter, logs,
    logs::{DailyFile, Sink, Style},
    panics,
    traces::{TraceHooks, Traces},
};

/// Sets up logs and traces for the whole process, and logs panics from now on.
///
/// What is returned must live as long as something may be said; the end of `main` is a good time to drop it.
pub fn init(config: &Config) -> Result<Telemetry, Error> {
    let (dispatch, telemetry) = build(config, &Environment::read(), io::stdout())?;
    dispatch.try_init()?;
    panics::log();
    Ok(telemetry)
}

/// The running telemetry. Dropping it exports the last spans and writes the last lines.
pub struct Telemetry {
    /// Dropped first: it may still have something to log.
    traces: Option<Traces>,
    level: LevelHandle,
    sinks: Vec<Sink>,
}

/// Changes the level of logs while the process runs; clones change the same.
#[derive(Clone)]
pub struct LevelHandle {
    filters: Vec<filter::Handle>,
}

impl LevelHandle {
    /// Changes the level, in the words of [`Config::level`]. If that fails, it is what it was.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        let directives = filter::directives(level);
        let filters = self.filters.iter().map(|_| filter::parse(&directives)).collect::<Result<Vec<_>, _>>()?;
        for (handle, filter) in self.filters.iter().zip(filters) {
            handle.reload(filter)?;
        }
        Ok(())
    }
}

impl fmt::Debug for LevelHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LevelHandle")
    }
}

impl Telemetry {
    /// Changes the level of logs, in the words of [`Config::level`]. If that fails, it is what it was.
    pub fn set_level(&self, level: &str) -> Result<(), Error> {
        self.level.set_level(level)
    }

    /// What changes the level from elsewhere, and keeps nothing alive.
    pub fn handle(&self) -> LevelHandle {
        self.level.clone()
    }

    /// How requests' spans meet those of callers and workers.
    pub fn trace_hooks(&self) -> TraceHooks {
        if self.traces.is_some() { TraceHooks::ON } else { TraceHooks::OFF }
    }

    /// Shows `smg_log_lines_dropped_total{sink}`.
    pub fn observe(&self, registrar: &Registrar) {
        let dropped = dropped_lines(registrar);
        let sinks = self.sinks.clone();
        registrar.on_gather(move || {
            for sink in &sinks {
                catch_up(&dropped.with_label_values(&[sink.name()]), sink.dropped());
            }
        });
    }

    /// Exports the last spans and writes the last lines, which may take seconds if their outputs stall. The level
    /// cannot be changed any more, but lines go on being written.
    pub fn shutdown(self) {
        drop(self);
    }
}

/// Registers the count of log lines that were lost.
pub fn dropped_lines(registrar: &Registrar) -> IntCounterVec {
    let help = "Log lines that were dropped because their output was too slow, or could not be written.";
    registrar.counter_vec("smg_log_lines_dropped_total", help, &["sink"])
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        drop(self.traces.take());
        for sink in &self.sinks {
            sink.flush();
        }
    }
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry")
            .field("sinks", &self.sinks)
            .field("traces", &self.traces.is_some())
            .finish_non_exhaustive()
    }
}

/// A subscriber that is not yet anybody's.
pub(crate) fn build(
    config: &Config,
    environment: &Environment,
    stdout: impl io::Write + Send + 'static,
) -> Result<(Dispatch, Telemetry), Error> {
    let directives = filter::chosen(config, environment);
    let mut layers: Vec<Box<dyn Layer<Registry> + Send + Sync>> = Vec::new();
    let mut telemetry = Telemetry { traces: None, level: LevelHandle { filters: Vec::new() }, sinks: Vec::new() };

    let mut outputs = vec![(Style::on_stdout(config.format, environment), Sink::new("stdout", stdout)?)];
    if let Some(dir) = &config.log_dir {
        let file = DailyFile::open(dir.clone(), Arc::new(SystemClock::new()))
            .map_err(|source| Error::LogDir { dir: dir.clone(), source })?;
        outputs.push((Style::in_files(config.format), Sink::new("file", file)?));
    }
    for (style, sink) in outputs {
        let (layer, handle) = filter::filtered(logs::layer(style, sink.clone()), &directives)?;
        layers.push(layer.boxed());
        telemetry.level.filters.push(handle);
        telemetry.sinks.push(sink);
    }
    if let Some(endpoint) = &config.otlp_endpoint {
        let traces = Traces::new(config, endpoint)?;
        layers.push(traces.layer());
        telemetry.traces = Some(traces);
    }
    Ok((Dispatch::new(Registry::default().with(layers)), telemetry))
}

#[cfg(test)]
#[path = "telemetry_tests.rs"]
mod tests;
