//! The configuration of a node: flags over environment over file over defaults, with one definition each.
//!
//! [`sections`] defines the settings; everything else here walks over that definition. `load` puts the sources on
//! top of each other and remembers which one gave what; `check` looks for values that contradict each other; `show`,
//! `schema` and `reference` print. All problems are found before anything is started, and all are told at once.
//!
//! Nothing here starts anything: [`Config::load`] may be called again while the node runs, and
//! [`Config::reloadable_changes`] then says what a running node can take over.

mod check;
mod file;
mod limits_file;
mod load;
mod problem;
mod reference;
mod reload;
mod schema;
mod secrets;
pub mod sections;
mod setting;
mod show;
#[cfg(test)]
mod tests;
pub mod value;

use std::{collections::BTreeMap, path::PathBuf};

use smg_base::ModelId;
use smg_fleet::{Origin, WorkerSpec};

pub use limits_file::Allowances;
pub use load::{Flags, Inputs};
pub use problem::{ConfigErrors, Fault, Place, Problem};
pub use reference::reference;
pub use reload::{Change, Changes};
pub use schema::schema;
pub use secrets::resolve_secret;
pub use sections::Sections;
pub use setting::flags;
pub use smg_base::Secret;

/// A configuration without contradictions.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings, by section.
    pub sections: Sections,
    /// The workers of `--worker-urls` and of the file's `[[workers]]`. A URL in both is there once, as in the file.
    pub workers: Vec<(WorkerSpec, Origin)>,
    /// The file's `[[models]]`.
    pub models: Vec<ModelSettings>,
    /// Client-facing names and the models they stand for, from `--model-alias` and `[[models]]`.
    pub aliases: BTreeMap<ModelId, ModelId>,
    /// What callers may use and what it costs, from `limits_file`.
    pub allowances: Allowances,
    /// The file that was read, if any.
    pub file: Option<PathBuf>,
    /// What the operator should know though it stops nothing.
    pub warnings: Vec<Problem>,
    entries: Vec<Entry>,
}

/// What holds for one model: the settings of the node with the model's own on top.
#[derive(Clone, Debug)]
pub struct ModelSettings {
    /// The model.
    pub id: ModelId,
    /// Further names for it.
    pub aliases: Vec<ModelId>,
    /// How its workers are chosen.
    pub routing: sections::Routing,
    /// When its requests are tried again.
    pub retries: sections::Retries,
    /// How long its workers may take.
    pub timeouts: sections::Timeouts,
    overrides: Vec<Entry>,
}

/// One setting, what it is, and who said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key in the file, with the section.
    pub key: String,
    /// Where the value comes from.
    pub source: Source,
    value: Given,
}

/// The value of a setting as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Given {
    Nothing,
    Plain(Vec<String>),
    Hidden(Secret),
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag.
    Flag,
    /// An environment variable.
    Variable,
    /// A line of the file.
    File {
        /// The line, counted from one.
        line: usize,
    },
    /// Nobody said anything.
    Default,
}

impl Config {
    /// Every setting with its value and source, in the order of definition.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What holds for `model`: its own entry, if it has one.
    pub fn model(&self, model: &ModelId) -> Option<&ModelSettings> {
        self.models.iter().find(|one| one.id == *model)
    }
}
