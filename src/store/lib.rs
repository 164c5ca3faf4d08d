//! What survives a restart: the journal of the mesh's durable lanes, in SQLite.
//!
//! One file per node, [`Journal`], in the data folder, with one writer and one process at a time. A batch of [`Row`]s is on disk
//! when [`Journal::append`] returns, all of it or nothing. Every stored row carries a checksum: one that was damaged on disk would
//! otherwise spread to every node as the newest word of its writer.
//!
//! What it deliberately does not know: what lanes mean, what a version is compared with, the mesh, async code. It blocks; whoever
//! uses it gives it a thread. It is the only crate that knows SQL.

mod error;
mod journal;
mod row;

pub use error::Error;
pub use journal::{Bounds, Journal};
pub use row::Row;
