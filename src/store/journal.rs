//! The journal: one SQLite file, write-ahead logged, synced at every commit.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior, config::DbConfig,
    params,
};
use smg_base::hash;

use crate::{Error, Row};

/// Name of the file in the data folder. SQLite keeps its log beside it, under this name and `-wal`.
const FILE: &str = "journal.db";
/// Locked while a process uses the folder.
const LOCK: &str = "lock";
/// Only the node's own user reads what it knows.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// Tells our files from other databases: "smgj".
const APPLICATION: i64 = 0x736d_676a;
/// The schema that this version writes.
const SCHEMA: i64 = 1;
const PAGE_BYTES: u64 = 4_096;

// Numbers are stored as SQLite's signed integers with the same bits. `sum` is over all other columns of its row. Values may be
// long, and a table without row ids would put every one above a kilobyte on pages of its own.
const TABLES: &str = "
    CREATE TABLE number (name TEXT PRIMARY KEY, value INTEGER NOT NULL, sum INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE lane (
        writer BLOB NOT NULL, kind INTEGER NOT NULL, epoch INTEGER NOT NULL, collected INTEGER NOT NULL,
        version INTEGER NOT NULL, sum INTEGER NOT NULL, PRIMARY KEY (writer, kind)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE entry (
        writer BLOB NOT NULL, kind INTEGER NOT NULL, key BLOB NOT NULL, version INTEGER NOT NULL, value BLOB,
        sum INTEGER NOT NULL, PRIMARY KEY (writer, kind, key)
    ) STRICT;
";

/// A commit is on disk when it returns; the log is cut back when it has been written into the database.
const LOG: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA fullfsync = ON;
    PRAGMA checkpoint_fullfsync = ON;
    PRAGMA journal_size_limit = 4194304;
";

/// How large a journal may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of the database file. The log beside it stays within the largest batch and a few MiB.
    pub bytes_max: u64,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { bytes_max: 1 << 30 }
    }
}

/// The open journal of one node. Its folder is locked until it is dropped.
#[derive(Debug)]
pub struct Journal {
    database: Connection,
    file: PathBuf,
    bounds: Bounds,
    // Dropped last: the lock is given back when the database is closed.
    _lock: File,
}

impl Journal {
    /// Opens the journal in `folder`, which is made if it is not there.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        Self::open_within(folder, Bounds::default())
    }

    /// Opens the journal in `folder` with bounds of the caller's choice.
    pub fn open_within(folder: &Path, bounds: Bounds) -> Result<Self, Error> {
        let lock = lock(folder)?;
        let file = folder.join(FILE);
        create(folder, &file)?;
        let database = connect(&file, bounds).map_err(|error| at(&file, bounds, error))?;
        let mut journal = Self { database, file, bounds, _lock: lock };
        let schema = journal.check()?;
        // Nothing is written before the file is known to be ours.
        journal.begin(schema).map_err(|error| journal.explain(error))?;
        Ok(journal)
    }

    /// Everything it holds, as rows that, applied in order, make it: the boot number, then each lane and its entries by version.
    pub fn load(&mut self) -> Result<Vec<Row>, Error> {
        let read = read(&self.database).map_err(|error| self.explain(error))?;
        read.map_err(|what| Error::Corrupt { path: self.file.clone(), what: what.to_owned() })
    }

    /// Applies rows, in order, all or none. They are on disk when this returns.
    pub fn append(&mut self, rows: &[Row]) -> Result<(), Error> {
        write(&mut self.database, rows).map_err(|error| match error {
            Unwritten::UnknownLane { kind } => Error::UnknownLane { kind },
            Unwritten::Database(error) => at(&self.file, self.bounds, error),
        })
    }

    /// Whether the file is empty or a journal that this version can use.
    fn check(&self) -> Result<Schema, Error> {
        let found = schema(&self.database).map_err(|error| self.explain(error))?;
        let path = self.file.clone();
        match found {
            Schema::Foreign => Err(Error::Foreign { path }),
            Schema::Ours(found) if found > SCHEMA => Err(Error::Newer { path, found, known: SCHEMA }),
            Schema::Ours(found) if found < SCHEMA => {
                Err(Error::Corrupt { path, what: format!("there is no schema {found}") })
            }
            Schema::Ours(_) => self.check_pages().map(|()| found),
            Schema::None => Ok(found),
        }
    }

    fn begin(&mut self, schema: Schema) -> Result<(), rusqlite::Error> {
        self.database.execute_batch(LOG)?;
        match schema {
            Schema::None => make(&mut self.database),
            Schema::Ours(_) | Schema::Foreign => Ok(()),
        }
    }

    fn check_pages(&self) -> Result<(), Error> {
        // The thorough one: it also finds a row that is missing from a table and not from its index.
        let check = "PRAGMA integrity_check(1)";
        let verdict: String =
            self.database.query_row(check, [], |row| row.get(0)).map_err(|error| self.explain(error))?;
        if verdict == "ok" { Ok(()) } else { Err(Error::Corrupt { path: self.file.clone(), what: verdict }) }
    }

    fn explain(&self, error: rusqlite::Error) -> Error {
        at(&self.file, self.bounds, error)
    }
}

/// What rusqlite's error means for the operator.
fn at(file: &Path, bounds: Bounds, error: rusqlite::Error) -> Error {
    let path = file.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            Error::InUse { path: file.parent().unwrap_or(file).to_owned() }
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Error::ReadOnly { path },
        Some(ErrorCode::DiskFull) => Error::Full { path, bytes_max: bounds.bytes_max },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Error::Corrupt { path, what: error.to_string() },
        _ => match error {
            // A column of another type or a text that is none: only damage makes these, for we wrote the tables.
            rusqlite::Error::FromSqlConversionFailure(..)
            | rusqlite::Error::IntegralValueOutOfRange(..)
            | rusqlite::Error::Utf8Error(..)
            | rusqlite::Error::InvalidColumnType(..) => Error::Corrupt { path, what: error.to_string() },
            source => Error::Failed { path, source },
        },
    }
}

fn lock(folder: &Path) -> Result<File, Error> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        |source| Error::Folder { path, source }
    };
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder).map_err(failed(folder))?;
    let path = folder.join(LOCK);
    let mut options = OpenOptions::new();
    let lock = options.create(true).write(true).truncate(false).mode(FILE_MODE).open(&path).map_err(failed(&path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(Error::InUse { path: folder.to_owned() }),
        Err(TryLockError::Error(source)) => Err(Error::Folder { path, source }),
    }
}

/// Makes the file before SQLite does, so that nobody else can ever read it; SQLite gives its log the same mode.
fn create(folder: &Path, file: &Path) -> Result<(), Error> {
    let made = OpenOptions::new().create_new(true).write(true).mode(FILE_MODE).open(file);
    let done = match made {
        // The name itself must outlive a power cut too.
        Ok(_) => File::open(folder).and_then(|folder| folder.sync_all()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => narrow(file),
        Err(error) => Err(error),
    };
    done.map_err(|source| Error::Folder { path: file.to_owned(), source })
}

/// Takes everybody else's rights away from a file that was copied here with them.
fn narrow(file: &Path) -> io::Result<()> {
    let mode = fs::metadata(file)?.permissions().mode();
    if mode & 0o077 == 0 { Ok(()) } else { fs::set_permissions(file, Permissions::from_mode(mode & 0o700)) }
}

fn connect(file: &Path, bounds: Bounds) -> Result<Connection, rusqlite::Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let database = Connection::open_with_flags(file, flags)?;
    // What a damaged or foreign file says about itself is not to be acted on.
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    let pages_max = bounds.bytes_max / PAGE_BYTES;
    // An exclusive lock needs no shared memory beside the file, and no second process gets in even without our lock file.
    database.execute_batch(&format!(
        "PRAGMA page_size = {PAGE_BYTES};
         PRAGMA cell_size_check = ON;
         PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA max_page_count = {pages_max};"
    ))?;
    Ok(database)
}

/// What kind of file it is.
enum Schema {
    /// An empty one.
    None,
    /// A journal with this schema.
    Ours(i64),
    /// Something else's.
    Foreign,
}

fn schema(database: &Connection) -> Result<Schema, rusqlite::Error> {
    let number = |pragma: &str| database.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let tables: i64 = database.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (application, version) = (number("application_id")?, number("user_version")?);
    Ok(match (application, tables) {
        (APPLICATION, _) => Schema::Ours(version),
        (0, 0) if version == 0 => Schema::None,
        _ => Schema::Foreign,
    })
}

fn make(database: &mut Connection) -> Result<(), rusqlite::Error> {
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION)?;
    transaction.pragma_update(None, "user_version", SCHEMA)?;
    transaction.commit()
}

/// Why rows were not written.
enum Unwritten {
    UnknownLane { kind: u8 },
    Database(rusqlite::Error),
}

impl From<rusqlite::Error> for Unwritten {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error)
    }
}

fn write(database: &mut Connection, rows: &[Row]) -> Result<(), Unwritten> {
    let transaction = database.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for row in rows {
        apply(&transaction, row)?;
    }
    transaction.commit()?;
    Ok(())
}

fn apply(on: &Transaction<'_>, row: &Row) -> Result<(), Unwritten> {
    match row {
        Row::Boot(boot) => {
            let sql = "INSERT OR REPLACE INTO number (name, value, sum) VALUES ('boot', ?1, ?2)";
            on.prepare_cached(sql)?.execute(params![boot.cast_signed(), sum_of_boot(*boot)])?;
        }
        Row::Lane { writer, kind, epoch, collected, version } => {
            let lane = Lane { writer: *writer, kind: *kind, epoch: *epoch, collected: *collected, version: *version };
            drop_entries(on, *writer, *kind)?;
            set_lane(on, &lane)?;
        }
        Row::Entry { writer, kind, key, version, value } => {
            if find_lane(on, *writer, *kind)?.is_none() {
                return Err(Unwritten::UnknownLane { kind: *kind });
            }
            let entry = Entry { writer: *writer, kind: *kind, key, version: *version, value: value.as_deref() };
            let sql =
                "INSERT OR REPLACE INTO entry (writer, kind, key, version, value, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let columns = params![id(*writer), kind, entry.key, version.cast_signed(), entry.value, entry.sum()];
            on.prepare_cached(sql)?.execute(columns)?;
        }
        Row::Collect { writer, kind, collected } => {
            let Some(lane) = find_lane(on, *writer, *kind)? else { return Ok(()) };
            drop_tombstones(on, *writer, *kind, *collected)?;
            set_lane(on, &Lane { collected: *collected, ..lane })?;
        }
        Row::Drop { writer, kind } => {
            drop_entries(on, *writer, *kind)?;
            on.prepare_cached("DELETE FROM lane WHERE writer = ?1 AND kind = ?2")?
                .execute(params![id(*writer), kind])?;
        }
    }
    Ok(())
}

/// A lane's row.
struct Lane {
    writer: u128,
    kind: u8,
    epoch: u64,
    collected: u64,
    version: u64,
}

impl Lane {
    fn sum(&self) -> i64 {
        let mut bytes = id(self.writer).to_vec();
        bytes.push(self.kind);
        for number in [self.epoch, self.collected, self.version] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        hash::stable64(&bytes).cast_signed()
    }
}

/// An entry's row.
struct Entry<'a> {
    writer: u128,
    kind: u8,
    key: &'a [u8],
    version: u64,
    value: Option<&'a [u8]>,
}

impl Entry<'_> {
    fn sum(&self) -> i64 {
        let mut bytes = id(self.writer).to_vec();
        bytes.push(self.kind);
        bytes.extend_from_slice(&self.version.to_le_bytes());
        bytes.extend_from_slice(&(self.key.len() as u64).to_le_bytes());
        bytes.extend_from_slice(self.key);
        bytes.push(u8::from(self.value.is_some()));
        bytes.extend_from_slice(self.value.unwrap_or_default());
        hash::stable64(&bytes).cast_signed()
    }
}

fn sum_of_boot(boot: u64) -> i64 {
    hash::mix(boot, 0x626f_6f74).cast_signed()
}

/// A writer as it is stored: the bytes in the order in which its name is printed.
fn id(writer: u128) -> [u8; 16] {
    writer.to_be_bytes()
}

fn find_lane(on: &Connection, writer: u128, kind: u8) -> Result<Option<Lane>, rusqlite::Error> {
    let sql = "SELECT epoch, collected, version FROM lane WHERE writer = ?1 AND kind = ?2";
    let mut statement = on.prepare_cached(sql)?;
    let found = statement.query_row(params![id(writer), kind], |row| {
        Ok(Lane { writer, kind, epoch: unsigned(row, 0)?, collected: unsigned(row, 1)?, version: unsigned(row, 2)? })
    });
    found.optional()
}

fn set_lane(on: &Connection, lane: &Lane) -> Result<(), rusqlite::Error> {
    let sql =
        "INSERT OR REPLACE INTO lane (writer, kind, epoch, collected, version, sum) VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let (epoch, collected) = (lane.epoch.cast_signed(), lane.collected.cast_signed());
    let columns = params![id(lane.writer), lane.kind, epoch, collected, lane.version.cast_signed(), lane.sum()];
    on.prepare_cached(sql)?.execute(columns).map(drop)
}

fn drop_entries(on: &Connection, writer: u128, kind: u8) -> Result<(), rusqlite::Error> {
    let sql = "DELETE FROM entry WHERE writer = ?1 AND kind = ?2";
    on.prepare_cached(sql)?.execute(params![id(writer), kind]).map(drop)
}

fn drop_tombstones(on: &Connection, writer: u128, kind: u8, up_to: u64) -> Result<(), rusqlite::Error> {
    let up_to = up_to.cast_signed();
    // Numbers from 2^63 on are stored as negative ones, and come after all others.
    let older = if up_to >= 0 { "version BETWEEN 0 AND ?3" } else { "(version >= 0 OR version <= ?3)" };
    let sql = format!("DELETE FROM entry WHERE writer = ?1 AND kind = ?2 AND value IS NULL AND {older}");
    on.prepare_cached(&sql)?.execute(params![id(writer), kind, up_to]).map(drop)
}

/// All rows; or, inside, what is wrong with one of them.
fn read(database: &Connection) -> Result<Result<Vec<Row>, &'static str>, rusqlite::Error> {
    let mut rows = Vec::new();
    let mut statement = database.prepare("SELECT name, value, sum FROM number")?;
    let mut numbers = statement.query([])?;
    while let Some(row) = numbers.next()? {
        let boot = unsigned(row, 1)?;
        // A name that is not known is that of the boot number, damaged: this schema has no other.
        if row.get_ref(0)?.as_bytes().ok() != Some(b"boot") || row.get::<_, i64>(2)? != sum_of_boot(boot) {
            return Ok(Err("the boot number does not match its checksum"));
        }
        rows.push(Row::Boot(boot));
    }
    let mut entries = match read_entries(database)? {
        Ok(entries) => entries.into_iter().peekable(),
        Err(what) => return Ok(Err(what)),
    };
    let mut statement =
        database.prepare("SELECT writer, kind, epoch, collected, version, sum FROM lane ORDER BY writer, kind")?;
    let mut lanes = statement.query([])?;
    while let Some(row) = lanes.next()? {
        let (writer, kind) = (u128::from_be_bytes(row.get(0)?), row.get(1)?);
        let lane =
            Lane { writer, kind, epoch: unsigned(row, 2)?, collected: unsigned(row, 3)?, version: unsigned(row, 4)? };
        if row.get::<_, i64>(5)? != lane.sum() {
            return Ok(Err("a lane does not match its checksum"));
        }
        let mut own = Vec::new();
        while let Some(entry) = entries.next_if(|entry| (entry.writer, entry.kind) == (writer, kind)) {
            own.push(entry);
        }
        own.sort_by_key(|entry| entry.version);
        // Entries move a lane on without its own row being written again.
        let newest = own.last().map_or(0, |entry| entry.version);
        let Lane { epoch, collected, version, .. } = lane;
        rows.push(Row::Lane { writer, kind, epoch, collected, version: version.max(collected).max(newest) });
        rows.extend(own.into_iter().map(Stored::into_row));
    }
    Ok(if entries.next().is_none() { Ok(rows) } else { Err("an entry has no lane") })
}

/// An entry as it came from disk.
struct Stored {
    writer: u128,
    kind: u8,
    key: Vec<u8>,
    version: u64,
    value: Option<Vec<u8>>,
}

impl Stored {
    fn into_row(self) -> Row {
        let Self { writer, kind, key, version, value } = self;
        Row::Entry { writer, kind, key: key.into(), version, value: value.map(Bytes::from) }
    }
}

fn read_entries(database: &Connection) -> Result<Result<Vec<Stored>, &'static str>, rusqlite::Error> {
    let sql = "SELECT writer, kind, key, version, value, sum FROM entry ORDER BY writer, kind";
    let mut statement = database.prepare(sql)?;
    let mut rows = statement.query([])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let (writer, kind) = (u128::from_be_bytes(row.get(0)?), row.get(1)?);
        let stored = Stored { writer, kind, key: row.get(2)?, version: unsigned(row, 3)?, value: row.get(4)? };
        let entry = Entry { writer, kind, key: &stored.key, version: stored.version, value: stored.value.as_deref() };
        if row.get::<_, i64>(5)? != entry.sum() {
            return Ok(Err("an entry does not match its checksum"));
        }
        found.push(stored);
    }
    Ok(Ok(found))
}

fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> Result<u64, rusqlite::Error> {
    row.get::<_, i64>(column).map(i64::cast_unsigned)
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
