//! Why the fleet refused a change.

use smg_base::{ModelId, WorkerId};

/// The caller asked for something the fleet does not do. In every case the fleet is unchanged, and asking again
/// gives the same answer until the caller or the fleet has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FleetError {
    /// A field of the specification holds a value that cannot be used.
    #[error("{field}: {reason}")]
    InvalidSpec {
        /// The field's name on the wire.
        field: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The table is full.
    #[error("there are already {workers_max} workers, the most this gateway keeps")]
    TooManyWorkers {
        /// The limit.
        workers_max: usize,
    },
    /// No worker has this id.
    #[error("no worker has the id {0}")]
    UnknownWorker(WorkerId),
    /// A worker has this URL already.
    #[error("a worker with this url exists already, under the id {0}")]
    AlreadyExists(WorkerId),
    /// The same worker was given twice in one list.
    #[error("the worker {0} is listed twice")]
    ListedTwice(WorkerId),
    /// An alias that is the model it stands for.
    #[error("the alias {0} is the name of the model itself")]
    AliasIsModel(ModelId),
    /// An alias of an alias.
    #[error("the alias {alias} points to {target}, which is itself an alias")]
    AliasOfAlias {
        /// The alias.
        alias: ModelId,
        /// What it points to.
        target: ModelId,
    },
    /// One alias for two models.
    #[error("the alias {alias} would stand for both {taken_by} and {wanted_by}")]
    AliasTaken {
        /// The alias.
        alias: ModelId,
        /// The model it stands for now.
        taken_by: ModelId,
        /// The model that claims it.
        wanted_by: ModelId,
    },
}
