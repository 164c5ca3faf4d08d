//! What a log line looks like.

use std::fmt;

use tracing_subscriber::{
    Registry,
    field::RecordFields,
    fmt::{
        FormatFields,
        format::{DefaultFields, Writer},
    },
    layer::Layer,
};

use super::Sink;
use crate::config::{Environment, LogFormat};

/// The format of one sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// For people, with colour.
    Coloured,
    /// For people.
    Plain,
    Json,
}

impl Style {
    /// The style on standard output.
    pub(crate) fn on_stdout(format: LogFormat, environment: &Environment) -> Self {
        let for_people = if environment.is_terminal && !environment.no_color { Self::Coloured } else { Self::Plain };
        match format {
            LogFormat::Auto if environment.is_terminal => for_people,
            LogFormat::Human => for_people,
            LogFormat::Auto | LogFormat::Json => Self::Json,
        }
    }

    /// The style in files, which are no terminals.
    pub(crate) fn in_files(format: LogFormat) -> Self {
        match format {
            LogFormat::Human => Self::Plain,
            LogFormat::Auto | LogFormat::Json => Self::Json,
        }
    }
}

/// Writes lines of `style` to `sink`. Times are UTC.
pub(crate) fn layer(style: Style, sink: Sink) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(sink).with_ansi(style == Style::Coloured);
    match style {
        Style::Coloured => Box::new(layer.compact()),
        Style::Plain => Box::new(layer.compact().fmt_fields(PlainFields(DefaultFields::new()))),
        Style::Json => Box::new(layer.json().flatten_event(true).with_current_span(true).with_span_list(false)),
    }
}

/// The usual fields under a type of their own: a span's fields are formatted once for each such type, so without it a
/// file would get what was coloured for the terminal.
struct PlainFields(DefaultFields);

impl<'writer> FormatFields<'writer> for PlainFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        self.0.format_fields(writer, fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_met_on_terminals() {
        let check = |format: LogFormat, is_terminal: bool, no_color: bool, expected: Style| {
            let environment = Environment { is_terminal, no_color, ..Environment::default() };
            assert_eq!(Style::on_stdout(format, &environment), expected, "{format} {environment:?}");
        };
        check(LogFormat::Auto, true, false, Style::Coloured);
        check(LogFormat::Auto, true, true, Style::Plain);
        check(LogFormat::Auto, false, false, Style::Json);
        check(LogFormat::Human, false, false, Style::Plain);
        check(LogFormat::Human, true, false, Style::Coloured);
        check(LogFormat::Json, true, false, Style::Json);
    }
}
