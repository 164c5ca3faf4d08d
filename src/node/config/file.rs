//! Reading `smg.toml`: sections with settings, and the tables `[[workers]]` and `[[models]]`.
//!
//! Everything that can be told without the rest of the configuration is told here, with its line: syntax, unknown
//! names, wrong TOML types. What the settings' own parsers think of the values is asked later.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use smg_fleet::WorkerSpec;
use toml::{
    Spanned, Value,
    de::{DeString, DeTable, DeValue, ValueDeserializer},
};

use super::{
    problem::{Fault, Place, Problem},
    secrets::Secrets,
    setting::{Kind, Setting, nearest},
};

/// What a file says.
#[derive(Debug, Default)]
pub(super) struct FileValues {
    /// The settings it gives, by id.
    pub(super) settings: BTreeMap<String, Given>,
    /// Its `[[workers]]`.
    pub(super) workers: Vec<(WorkerSpec, usize)>,
    /// Its `[[models]]`.
    pub(super) models: Vec<ModelTable>,
}

/// The values a file gives to one setting, and the line where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) values: Vec<String>,
    pub(super) line: usize,
}

/// One entry of `[[models]]`, unresolved.
#[derive(Debug, Default)]
pub(super) struct ModelTable {
    pub(super) id: String,
    pub(super) aliases: Vec<String>,
    /// The settings it overrides, by id.
    pub(super) overrides: BTreeMap<String, Given>,
}

const WORKERS: &str = "workers";
const MODELS: &str = "models";

/// Reads the text of a file. What is wrong goes to `problems`; the rest is in the answer.
pub(super) fn read(
    path: &Path,
    text: &str,
    settings: &[Setting],
    secrets: &Secrets<'_>,
    problems: &mut Vec<Problem>,
) -> FileValues {
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { path, text, settings, secrets, problems };
    for error in errors {
        let line = error.span().map(|span| reader.line(span.start));
        reader.report(line, None, Fault::Invalid(error.message().to_owned()));
    }
    reader.root(root.into_inner())
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    settings: &'a [Setting],
    secrets: &'a Secrets<'a>,
    problems: &'a mut Vec<Problem>,
}

type Entry<'i> = (Spanned<DeString<'i>>, Spanned<DeValue<'i>>);

impl Reader<'_> {
    fn root(&mut self, root: DeTable<'_>) -> FileValues {
        let mut read = FileValues::default();
        for (name, value) in root {
            let line = self.line(name.span().start);
            match (&**name.get_ref(), value.into_inner()) {
                (WORKERS, DeValue::Array(items)) => {
                    read.workers = items.into_iter().filter_map(|item| self.worker(item)).collect();
                }
                (MODELS, DeValue::Array(items)) => {
                    read.models = items.into_iter().filter_map(|item| self.model(item)).collect();
                }
                (name @ (WORKERS | MODELS), value) => {
                    let expected = format!("tables, written [[{name}]]");
                    self.report(Some(line), Some(name), wrong_type(expected, value.type_str()));
                }
                (section, DeValue::Table(table)) if self.settings.iter().any(|one| one.section() == section) => {
                    for entry in table {
                        self.setting(section, entry, &mut read.settings);
                    }
                }
                (name, _) => {
                    let fault = Fault::Unknown { suggestion: self.suggest_at_root(name) };
                    self.report(Some(line), Some(name), fault);
                }
            }
        }
        read
    }

    /// One `key = value` of a section.
    fn setting(&mut self, section: &str, (name, value): Entry<'_>, into: &mut BTreeMap<String, Given>) {
        let line = self.line(name.span().start);
        let name = &**name.get_ref();
        let key = format!("{section}.{name}");
        let found = self.settings.iter().find(|one| one.id() == name && one.section() == section);
        let Some(setting) = found else {
            let suggestion = self.suggest(name, |one| one.is_in_files());
            return self.report(Some(line), Some(&key), Fault::Unknown { suggestion });
        };
        if !setting.is_in_files() {
            return self.report(Some(line), Some(&key), Fault::NotInFiles);
        }
        match texts(setting, value) {
            Ok(values) => {
                into.insert(name.to_owned(), Given { values, line });
            }
            Err(fault) => self.report(Some(line), Some(&key), fault),
        }
    }

    fn worker(&mut self, mut item: Spanned<DeValue<'_>>) -> Option<(WorkerSpec, usize)> {
        let line = self.line(item.span().start);
        if let DeValue::Table(table) = item.get_mut()
            && let Some(key) = table.get_mut("api_key")
            && let Some(raw) = key.get_ref().as_str()
        {
            match self.secrets.resolve(raw) {
                Ok(secret) => *key.get_mut() = DeValue::String(secret.into()),
                Err(fault) => {
                    let line = self.line(key.span().start);
                    self.report(Some(line), Some("workers.api_key"), fault);
                }
            }
        }
        match WorkerSpec::deserialize(ValueDeserializer::from(item)) {
            Ok(spec) => Some((spec, line)),
            Err(error) => {
                let line = error.span().map_or(line, |span| self.line(span.start));
                self.report(Some(line), Some(WORKERS), Fault::Invalid(error.message().to_owned()));
                None
            }
        }
    }

    fn model(&mut self, item: Spanned<DeValue<'_>>) -> Option<ModelTable> {
        let line = self.line(item.span().start);
        let DeValue::Table(table) = item.into_inner() else {
            self.report(Some(line), Some(MODELS), wrong_type("a table".to_owned(), "another value"));
            return None;
        };
        let mut model = ModelTable::default();
        for (name, value) in table {
            match &**name.get_ref() {
                "id" => match plain(value) {
                    Ok(Value::String(id)) if !id.is_empty() => model.id = id,
                    _ => self.report(Some(line), Some("models.id"), wrong_type("a name".to_owned(), "another value")),
                },
                "aliases" => match plain(value).map(Value::try_into::<Vec<String>>) {
                    Ok(Ok(aliases)) => model.aliases = aliases,
                    _ => {
                        let fault = wrong_type("an array of names".to_owned(), "another value");
                        self.report(Some(line), Some("models.aliases"), fault);
                    }
                },
                _ => self.model_setting((name, value), &mut model.overrides),
            }
        }
        if model.id.is_empty() {
            self.report(Some(line), Some(MODELS), Fault::Invalid("a model needs an id".to_owned()));
            return None;
        }
        Some(model)
    }

    fn model_setting(&mut self, entry: Entry<'_>, into: &mut BTreeMap<String, Given>) {
        let name = (**entry.0.get_ref()).to_owned();
        let per_model = |one: &&Setting| one.id() == name && one.is_per_model();
        if let Some(setting) = self.settings.iter().find(per_model) {
            let section = setting.section().to_owned();
            return self.setting(&section, entry, into);
        }
        let line = self.line(entry.0.span().start);
        let names = self.settings.iter().filter(|one| one.is_per_model()).map(Setting::id);
        let suggestion = nearest(&name, names.chain(["id", "aliases"])).map(str::to_owned);
        self.report(Some(line), Some(&format!("{MODELS}.{name}")), Fault::Unknown { suggestion });
    }

    fn suggest_at_root(&self, name: &str) -> Option<String> {
        if let Some(setting) = self.settings.iter().find(|one| one.id() == name && one.is_in_files()) {
            return Some(setting.key());
        }
        let sections = self.settings.iter().map(Setting::section).chain([WORKERS, MODELS]);
        nearest(name, sections).map(|section| format!("[{section}]")).or_else(|| self.suggest(name, |_| true))
    }

    fn suggest(&self, name: &str, which: impl Fn(&Setting) -> bool) -> Option<String> {
        let name = name.replace('-', "_");
        let candidates = || self.settings.iter().filter(|one| which(one));
        let id = nearest(&name, candidates().map(Setting::id))?;
        candidates().find(|one| one.id() == id).map(Setting::key)
    }

    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().get(..offset).unwrap_or(self.text.as_bytes());
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn report(&mut self, line: Option<usize>, key: Option<&str>, fault: Fault) {
        let place = Place::File { path: PathBuf::from(self.path), line, key: key.map(str::to_owned) };
        self.problems.push(Problem::new(place, fault));
    }
}

/// The values of a setting as text, if their TOML type fits the setting.
fn texts(setting: &Setting, value: Spanned<DeValue<'_>>) -> Result<Vec<String>, Fault> {
    let kind = setting.kind();
    match (plain(value)?, setting.is_list()) {
        (Value::Array(items), true) => {
            items.iter().map(|item| text(kind, item).ok_or_else(|| misfit(setting, item))).collect()
        }
        (value, true) => Err(misfit(setting, &value)),
        (value, false) => text(kind, &value).map(|text| vec![text]).ok_or_else(|| misfit(setting, &value)),
    }
}

fn text(kind: Kind, value: &Value) -> Option<String> {
    let takes_integers =
        matches!(kind, Kind::Integer | Kind::Float | Kind::Duration | Kind::Timeout | Kind::Size | Kind::Limit);
    let takes_floats = matches!(kind, Kind::Float | Kind::Duration | Kind::Timeout);
    let takes_strings = !matches!(kind, Kind::Bool | Kind::Integer | Kind::Float);
    match value {
        Value::Boolean(on) if kind == Kind::Bool => Some(on.to_string()),
        Value::Integer(number) if takes_integers => Some(number.to_string()),
        Value::Float(number) if takes_floats => Some(number.to_string()),
        Value::String(text) if takes_strings => Some(text.clone()),
        _ => None,
    }
}

fn misfit(setting: &Setting, value: &Value) -> Fault {
    let kind = setting.kind().name();
    let expected = if setting.is_list() { format!("an array, each element {kind}") } else { kind.to_owned() };
    wrong_type(expected, value.type_str())
}

fn wrong_type(expected: String, found: &str) -> Fault {
    Fault::WrongType { expected, found: found.to_owned() }
}

fn plain(value: Spanned<DeValue<'_>>) -> Result<Value, Fault> {
    Value::deserialize(ValueDeserializer::from(value)).map_err(|error| Fault::Invalid(error.message().to_owned()))
}
