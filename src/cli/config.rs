//! `smg config`: what the configuration is, without starting anything.

use clap::{Subcommand, ValueEnum};
use smg_node::config::{Inputs, reference, schema};

use super::{Failure, load, output};

/// The commands of `smg config`.
#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Name everything that is wrong. Takes the flags of `smg launch`.
    Validate,
    /// Print every setting with its value and where that comes from. Takes the flags of `smg launch`.
    Show {
        /// How to print.
        #[arg(long, value_enum, default_value = "toml")]
        output: Form,
    },
    /// Print the JSON Schema of smg.toml.
    Schema,
    /// Print the reference page of all settings, in Markdown.
    Reference,
}

/// How a configuration is printed.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub(super) enum Form {
    /// As smg.toml, with sources as comments.
    Toml,
    /// As JSON.
    Json,
}

pub(super) fn run(verb: &Verb, inputs: &Inputs) -> Result<(), Failure> {
    match verb {
        Verb::Validate => {
            let config = load(inputs)?;
            let file = config.file.as_ref().map_or_else(|| "no file".to_owned(), |file| file.display().to_string());
            let (workers, models) = (config.workers.len(), config.models.len());
            output::print(&format!("valid: {file}, {workers} workers, {models} models with settings of their own\n"))
        }
        Verb::Show { output: Form::Toml } => output::print(&load(inputs)?.to_toml()),
        Verb::Show { output: Form::Json } => output::print_json(&load(inputs)?.to_json()),
        Verb::Schema => output::print_json(&schema()),
        Verb::Reference => output::print(&reference()),
    }
}
