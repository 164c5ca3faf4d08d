//! What can be wrong with a configuration, and where.

use std::{fmt, path::PathBuf};

/// Everything that is wrong with a configuration. Nothing was started and nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<Problem>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a problem:")?,
            count => write!(f, "the configuration has {count} problems:")?,
        }
        for problem in &self.0 {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was found.
    pub place: Place,
    /// What it is.
    pub fault: Fault,
}

impl Problem {
    pub(super) fn new(place: Place, fault: Fault) -> Self {
        Self { place, fault }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.fault)
    }
}

/// Where a problem is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A flag, dashes included.
    Flag(String),
    /// An environment variable.
    Variable(String),
    /// A line of the file, and the key there, if it got that far.
    File {
        /// The file.
        path: PathBuf,
        /// The line, counted from one.
        line: Option<usize>,
        /// The key with its section.
        key: Option<String>,
    },
    /// The values taken together, wherever they came from: the keys of those that do not go together.
    Together(Vec<String>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) | Self::Variable(name) => f.write_str(name),
            Self::File { path, line, key } => {
                write!(f, "{}", path.display())?;
                if let Some(line) = line {
                    write!(f, ":{line}")?;
                }
                if let Some(key) = key {
                    write!(f, ": {key}")?;
                }
                Ok(())
            }
            Self::Together(keys) => f.write_str(&keys.join(" and ")),
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No setting has this name.
    #[error("there is no such setting{}", hint(.suggestion.as_deref()))]
    Unknown {
        /// The nearest name there is.
        suggestion: Option<String>,
    },
    /// The setting is one that a file cannot set.
    #[error("this can only be set by flag or variable")]
    NotInFiles,
    /// The value has another type than the setting.
    #[error("expected {expected}, found {found}")]
    WrongType {
        /// What the setting takes.
        expected: String,
        /// What it got.
        found: String,
    },
    /// The value is refused by the setting's parser, which says why.
    #[error("{0}")]
    Invalid(String),
    /// A secret is given by a reference to a variable that is not set.
    #[error("refers to the variable {0}, which is not set")]
    MissingVariable(String),
    /// A secret is given by a reference to a file that cannot be read.
    #[error("refers to the file {path}, which cannot be read: {reason}")]
    UnreadableSecret {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The file itself cannot be read.
    #[error("cannot be read: {0}")]
    UnreadableFile(String),
    /// Two values contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
    /// A name or address is given twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// The value is accepted and does nothing.
    #[error("has no effect: {0}")]
    NoEffect(String),
}

fn hint(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}
