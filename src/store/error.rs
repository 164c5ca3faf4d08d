//! Why the journal could not do what was asked.

use std::{io, path::PathBuf};

/// In every case what the journal held before is what it holds now.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or a file in it cannot be made or opened. The operator's to mend.
    #[error("cannot use the data folder {}: {source}", path.display())]
    Folder {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has the journal open. Trying again helps once that one has ended.
    #[error("the data folder {} is in use by another process; every node needs its own --data-dir", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The file may not be written. The operator's to mend.
    #[error("the journal {} is read-only", path.display())]
    ReadOnly {
        /// The file.
        path: PathBuf,
    },
    /// The disk is full, or the journal as large as it may become. Trying again helps once there is room.
    #[error("no room for the journal {}: the disk is full, or it has reached its {bytes_max} bytes", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// The most it may take.
        bytes_max: u64,
    },
    /// The file is damaged. Trying again does not help.
    #[error(
        "the journal {} is damaged ({what}); move it away and start again: what other nodes hold comes back from them",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file is a database, but not a journal of ours.
    #[error("{} is not a journal of smg", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// A later version of the program has written the file. Only that version or a later one can read it.
    #[error("the journal {} has schema {found}, and this version of smg knows up to {known}: use a newer one", path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// The newest schema known here.
        known: i64,
    },
    /// An entry belongs to a lane that the journal does not hold: a defect of the caller.
    #[error("an entry of a lane of kind {kind} that the journal does not hold")]
    UnknownLane {
        /// The lane's kind.
        kind: u8,
    },
    /// Anything else that went wrong below.
    #[error("the journal {} failed: {source}", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// What SQLite said.
        source: rusqlite::Error,
    },
}
