//! A configuration as its operator reads it.

use std::{collections::BTreeMap, fmt::Write};

use serde_json::{Value, json};
use smg_base::Secret;
use smg_fleet::WorkerSpec;

use super::{
    Config, Entry, Given, Source,
    setting::{Kind, Setting},
};

impl Entry {
    /// The value on one line, as it could stand in the file; secrets are not shown.
    pub fn shown(&self) -> String {
        match &self.value {
            Given::Nothing => "none".to_owned(),
            Given::Hidden(_) => Secret::REDACTED.to_owned(),
            Given::Plain(values) => values.join(", "),
        }
    }
}

impl Source {
    /// In words, for the setting with this flag and variable.
    fn words(&self, setting: &Setting) -> String {
        match self {
            Self::Flag => format!("flag {}", setting.flag()),
            Self::Variable => format!("variable {}", setting.variable()),
            Self::File { line } => format!("file, line {line}"),
            Self::Default => "default".to_owned(),
        }
    }
}

impl Config {
    /// The whole configuration in the form of `smg.toml`, each value with its source; secrets are not shown.
    pub fn to_toml(&self) -> String {
        let settings = Setting::all();
        let mut text = String::new();
        let mut section = "";
        for (setting, entry) in settings.iter().zip(&self.entries).filter(|(one, _)| one.is_in_files()) {
            if setting.is_hidden() && entry.source == Source::Default {
                continue;
            }
            if setting.section() != section {
                section = setting.section();
                let gap = if text.is_empty() { "" } else { "\n" };
                put(&mut text, format_args!("{gap}[{section}]\n"));
            }
            let line = match literal(setting, entry) {
                Some(value) => format!("{} = {value}", setting.id()),
                None => format!("# {} is not set", setting.id()),
            };
            put(&mut text, format_args!("{line:<60} # {}\n", entry.source.words(setting)));
        }
        self.put_tables(&mut text);
        text
    }

    fn put_tables(&self, text: &mut String) {
        let of_file = self.workers.iter().filter(|(_, origin)| *origin == smg_fleet::Origin::File);
        let workers: Vec<&WorkerSpec> = of_file.map(|(spec, _)| spec).collect();
        if !workers.is_empty() {
            match toml::to_string(&BTreeMap::from([("workers", workers)])) {
                Ok(tables) => put(text, format_args!("\n{tables}")),
                Err(error) => put(text, format_args!("\n# the workers cannot be shown: {error}\n")),
            }
        }
        let settings = Setting::all();
        for model in &self.models {
            put(text, format_args!("\n[[models]]\nid = {}\n", quoted(model.id.as_str())));
            if !model.aliases.is_empty() {
                let aliases: Vec<String> = model.aliases.iter().map(|alias| quoted(alias.as_str())).collect();
                put(text, format_args!("aliases = [{}]\n", aliases.join(", ")));
            }
            for entry in &model.overrides {
                let setting = settings.iter().find(|one| one.id() == entry.key);
                if let Some(value) = setting.and_then(|setting| literal(setting, entry)) {
                    put(text, format_args!("{} = {value}\n", entry.key));
                }
            }
        }
    }

    /// The whole configuration as JSON, each value with its source; secrets are not shown.
    pub fn to_json(&self) -> Value {
        let settings = Setting::all();
        let shown = settings.iter().zip(&self.entries).filter(|(one, _)| one.is_in_files());
        let entries = shown.map(|(setting, entry)| {
            let source = match &entry.source {
                Source::Flag => json!({"kind": "flag", "name": setting.flag()}),
                Source::Variable => json!({"kind": "variable", "name": setting.variable()}),
                Source::File { line } => json!({"kind": "file", "line": line}),
                Source::Default => json!({"kind": "default"}),
            };
            json!({"key": entry.key, "value": value(setting, entry), "source": source})
        });
        let workers: Vec<Value> = self.workers.iter().map(|(spec, _)| json!(spec)).collect();
        let models = self.models.iter().map(|model| {
            let overrides = model.overrides.iter().filter_map(|entry| {
                let setting = settings.iter().find(|one| one.id() == entry.key)?;
                Some((entry.key.clone(), value(setting, entry)))
            });
            let overrides: serde_json::Map<String, Value> = overrides.collect();
            json!({"id": model.id, "aliases": model.aliases, "overrides": overrides})
        });
        json!({
            "file": self.file,
            "settings": entries.collect::<Vec<_>>(),
            "workers": workers,
            "models": models.collect::<Vec<_>>(),
        })
    }
}

/// Writing to a string cannot fail.
fn put(text: &mut String, words: std::fmt::Arguments<'_>) {
    text.write_fmt(words).expect("a string takes all text");
}

/// The value as TOML.
fn literal(setting: &Setting, entry: &Entry) -> Option<String> {
    let values = match &entry.value {
        Given::Nothing if setting.is_list() => return Some("[]".to_owned()),
        Given::Nothing => return None,
        Given::Hidden(_) => return Some(quoted(Secret::REDACTED)),
        Given::Plain(values) => values,
    };
    let one = |value: &String| {
        let is_number = value.parse::<f64>().is_ok();
        match setting.kind() {
            Kind::Bool => truth(value).to_string(),
            Kind::Path | Kind::Secret | Kind::Text => quoted(value),
            _ if is_number => value.clone(),
            _ => quoted(value),
        }
    };
    let literals: Vec<String> = values.iter().map(one).collect();
    if setting.is_list() { Some(format!("[{}]", literals.join(", "))) } else { literals.into_iter().next() }
}

/// The value as JSON.
fn value(setting: &Setting, entry: &Entry) -> Value {
    let one = |text: &String| match setting.kind() {
        Kind::Bool => Value::Bool(truth(text)),
        Kind::Path | Kind::Secret | Kind::Text => Value::String(text.clone()),
        _ => serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.clone())),
    };
    match &entry.value {
        Given::Nothing if setting.is_list() => json!([]),
        Given::Nothing => Value::Null,
        Given::Hidden(_) => Value::String(Secret::REDACTED.to_owned()),
        Given::Plain(values) if setting.is_list() => values.iter().map(one).collect(),
        Given::Plain(values) => values.first().map_or(Value::Null, one),
    }
}

fn truth(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "true" | "t" | "yes" | "y" | "on" | "1")
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
