//! Settings seen as data: the walk over the clap definition from which flags, variables, file keys, JSON Schema and
//! reference page all follow.

use std::{any::TypeId, ffi::OsStr, path::PathBuf, time::Duration};

use clap::{
    Arg, ArgAction, Args as _, Command,
    builder::{BoolishValueParser, PossibleValue, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};
use smg_base::{ByteSize, Secret};

use super::{
    sections::Sections,
    value::{Limit, Timeout},
};

/// The prefix of every environment variable.
pub(super) const VARIABLE_PREFIX: &str = "SMG_";

/// The sections whose settings a `[[models]]` entry may override.
pub(super) const PER_MODEL: [&str; 3] = ["routing", "retries", "timeouts"];

/// The settings there that are about the node all the same.
const NOT_PER_MODEL: [&str; 1] = ["eviction_interval"];

/// One setting.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    arg: Arg,
    section: String,
}

/// What kind of value a setting takes; decides what a file may hold and what the schema says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bool,
    Integer,
    Float,
    Duration,
    Timeout,
    Size,
    Limit,
    Path,
    Secret,
    Text,
}

impl Kind {
    /// The kinds whose Rust type tells them apart; everything else is text.
    fn of(parser: &clap::builder::ValueParser) -> Self {
        let id = parser.type_id();
        let is = |types: &[TypeId]| types.iter().any(|one| id == *one);
        let integers = [
            TypeId::of::<u16>(),
            TypeId::of::<u32>(),
            TypeId::of::<u64>(),
            TypeId::of::<usize>(),
            TypeId::of::<std::num::NonZeroU16>(),
            TypeId::of::<std::num::NonZeroU32>(),
            TypeId::of::<std::num::NonZeroUsize>(),
        ];
        match () {
            () if is(&[TypeId::of::<bool>()]) => Self::Bool,
            () if is(&integers) => Self::Integer,
            () if is(&[TypeId::of::<f64>()]) => Self::Float,
            () if is(&[TypeId::of::<Duration>()]) => Self::Duration,
            () if is(&[TypeId::of::<Timeout>()]) => Self::Timeout,
            () if is(&[TypeId::of::<ByteSize>()]) => Self::Size,
            () if is(&[TypeId::of::<Limit>()]) => Self::Limit,
            () if is(&[TypeId::of::<PathBuf>()]) => Self::Path,
            () if is(&[TypeId::of::<Secret>()]) => Self::Secret,
            () => Self::Text,
        }
    }

    /// As help texts and messages call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bool => "true or false",
            Self::Integer => "an integer",
            Self::Float => "a number",
            Self::Duration => "a duration",
            Self::Timeout => "a duration or off",
            Self::Size => "a size",
            Self::Limit => "a count or -1",
            Self::Path => "a path",
            Self::Secret => "a secret",
            Self::Text => "a string",
        }
    }

    fn placeholder(self) -> Option<&'static str> {
        match self {
            Self::Bool => Some("BOOL"),
            Self::Integer | Self::Float => Some("NUMBER"),
            Self::Duration | Self::Timeout => Some("DURATION"),
            Self::Size => Some("SIZE"),
            Self::Limit => Some("COUNT"),
            Self::Path => Some("FILE"),
            Self::Secret => Some("SECRET"),
            Self::Text => None,
        }
    }
}

impl Setting {
    /// Every setting, in the order of its definition.
    pub(super) fn all() -> Vec<Self> {
        let section_of = |arg: &Arg| arg.get_help_heading().unwrap_or_default().to_lowercase().replace(' ', "_");
        typed().get_arguments().map(|arg| Self { section: section_of(arg), arg: arg.clone() }).collect()
    }

    /// The name of its field.
    pub(super) fn id(&self) -> &str {
        self.arg.get_id().as_str()
    }

    /// The section of the file it belongs to.
    pub(super) fn section(&self) -> &str {
        &self.section
    }

    /// Its heading in help texts.
    pub(super) fn heading(&self) -> &str {
        self.arg.get_help_heading().unwrap_or_default()
    }

    /// Its key in the file, with the section.
    pub(super) fn key(&self) -> String {
        format!("{}.{}", self.section, self.id())
    }

    /// Its flag, dashes included.
    pub(super) fn flag(&self) -> String {
        format!("--{}", self.arg.get_long().unwrap_or_default())
    }

    /// Its environment variable.
    pub(super) fn variable(&self) -> String {
        variable(self.id())
    }

    /// What it takes.
    pub(super) fn kind(&self) -> Kind {
        Kind::of(self.arg.get_value_parser())
    }

    /// Whether it takes several values.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.arg.get_action(), ArgAction::Append)
    }

    /// Whether a file may set it: all but the one that names the file.
    pub(super) fn is_in_files(&self) -> bool {
        self.id() != "config"
    }

    /// Whether a `[[models]]` entry may override it.
    pub(super) fn is_per_model(&self) -> bool {
        PER_MODEL.contains(&self.section()) && !NOT_PER_MODEL.contains(&self.id())
    }

    /// Whether it is left out of help and reference.
    pub(super) fn is_hidden(&self) -> bool {
        self.arg.is_hide_set()
    }

    /// The manual: its doc comment.
    pub(super) fn manual(&self) -> String {
        let text = self.arg.get_long_help().or_else(|| self.arg.get_help());
        text.map(|text| text.to_string().split_whitespace().collect::<Vec<_>>().join(" ")).unwrap_or_default()
    }

    /// The values there are, if they are few.
    pub(super) fn choices(&self) -> Vec<String> {
        if self.kind() == Kind::Bool {
            return Vec::new();
        }
        self.arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect()
    }

    /// The values it has when nothing sets it.
    pub(super) fn defaults(&self) -> Vec<String> {
        self.arg.get_default_values().iter().map(|value| value.to_string_lossy().into_owned()).collect()
    }

    /// What its parser says to one value.
    pub(super) fn check(&self, raw: &str) -> Result<(), String> {
        let alone = Command::new("smg").no_binary_name(true).arg(self.arg.clone());
        match alone.try_get_matches_from([self.argument(raw)]) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.explain(raw, &error)),
        }
    }

    /// One value as a command line argument.
    pub(super) fn argument(&self, raw: &str) -> String {
        format!("{}={raw}", self.flag())
    }

    fn explain(&self, raw: &str, error: &clap::Error) -> String {
        let quoted = if self.kind() == Kind::Secret { String::new() } else { format!("\"{raw}\" ") };
        if raw.is_empty() {
            return format!("the value is empty; expected {}", self.kind().name());
        }
        if let Some(ContextValue::Strings(valid)) = error.get(ContextKind::ValidValue) {
            let hint = nearest(raw, valid.iter().map(String::as_str));
            let hint = hint.map_or_else(String::new, |name| format!("; did you mean {name}?"));
            return format!("{quoted}is not one of {}{hint}", valid.join(", "));
        }
        match std::error::Error::source(error) {
            Some(reason) => format!("{quoted}is refused: {reason}"),
            None => format!("{quoted}is not {}", self.kind().name()),
        }
    }
}

/// The environment variable of the setting with this id.
pub(super) fn variable(id: &str) -> String {
    format!("{VARIABLE_PREFIX}{}", id.to_uppercase())
}

/// The name that was probably meant.
pub(super) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = names.into_iter().map(|candidate| (strsim::jaro_winkler(name, candidate), candidate));
    scored.filter(|(score, _)| *score > 0.8).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// The command whose matches fill [`Sections`]. It reads nothing but its arguments.
pub(super) fn typed() -> Command {
    Sections::augment_args(Command::new("smg")).about(None).long_about(None).mut_args(complete)
}

/// Adds every setting to `command`, for parsing a command line: values are not looked at, so that all that is wrong
/// with them can be told at once, together with what is wrong in the environment and the file.
pub fn flags(command: Command) -> Command {
    let lenient = |arg: Arg| {
        let variable = variable(arg.get_id().as_str());
        let any = AnyText(arg.get_possible_values());
        arg.value_parser(any).env(variable).hide_env_values(true)
    };
    let args: Vec<Arg> = typed().get_arguments().cloned().map(lenient).collect();
    command.args(args)
}

/// What the type of a setting says about its flag beyond what clap derives from it.
fn complete(arg: Arg) -> Arg {
    let kind = Kind::of(arg.get_value_parser());
    let has_name = arg.get_value_names().is_some_and(|names| names.iter().any(|name| name.as_str() == "FILE"));
    let arg = match kind.placeholder() {
        Some(name) if !has_name => arg.value_name(name),
        _ => arg,
    };
    match arg.get_action() {
        ArgAction::Append => arg.num_args(1..).value_delimiter(','),
        ArgAction::SetTrue => {
            let is_on = arg.get_default_values().first().is_some_and(|value| value == "true");
            arg.action(ArgAction::Set)
                .value_parser(BoolishValueParser::new())
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .default_value(if is_on { "true" } else { "false" })
                .hide_possible_values(true)
        }
        _ => arg,
    }
}

/// Accepts any text, and knows which ones help texts and completions should offer.
#[derive(Clone)]
struct AnyText(Vec<PossibleValue>);

impl TypedValueParser for AnyText {
    type Value = String;

    fn parse_ref(&self, command: &Command, _: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        let text = value.to_str().ok_or_else(|| clap::Error::new(ErrorKind::InvalidUtf8).with_cmd(command))?;
        Ok(text.to_owned())
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        (!self.0.is_empty()).then(|| Box::new(self.0.iter().cloned()) as Box<dyn Iterator<Item = PossibleValue>>)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_definition_is_sound() {
        flags(Command::new("smg")).debug_assert();
        let all = Setting::all();
        let ids: BTreeSet<_> = all.iter().map(Setting::id).collect();
        assert_eq!(ids.len(), all.len());
        for setting in &all {
            let key = setting.key();
            assert_eq!(setting.flag(), format!("--{}", setting.id().replace('_', "-")));
            assert!(setting.manual().len() > 15, "{key} has no manual");
            assert!(!setting.section().is_empty(), "{key} has no section");
            for value in setting.defaults() {
                assert_eq!(setting.check(&value), Ok(()), "{key}");
            }
        }
    }

    #[test]
    fn a_refused_value_is_explained() {
        let all = Setting::all();
        let check = |id: &str, raw: &str, expected: &str| {
            let setting = all.iter().find(|setting| setting.id() == id).expect(id);
            assert_eq!(setting.check(raw), Err(expected.to_owned()), "{id}");
        };
        check("log_format", "jsn", "\"jsn\" is not one of auto, human, json; did you mean json?");
        check("port", "http", "\"http\" is refused: invalid digit found in string");
        check("port", "", "the value is empty; expected an integer");
        check("retry_jitter_factor", "2", "\"2\" is refused: must be a number from 0 to 1");
    }

    #[test]
    fn the_nearest_name_is_near() {
        assert_eq!(nearest("quue_size", ["queue_size", "port"]), Some("queue_size"));
        assert_eq!(nearest("zzz", ["queue_size", "port"]), None);
    }
}
