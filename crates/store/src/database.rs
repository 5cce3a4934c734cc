//! Opening the file: made whole or not at all, refused by name if it is not ours, newer or damaged, and never
//! emptied.
//!
//! ```text
//! no file   --> build NAME.new, migrate, fsync --> link as NAME      (a crash before the link leaves no NAME)
//! a file    --> header? ours? not newer? pages sound? --> migrate
//! ```
//! Because a new file appears only complete, an empty one under the real name is damage, not a fresh start.

use crate::{OpenError, migrations};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// "OSht", in the header of every file of ours.
const APPLICATION_ID: i32 = 0x4F53_6874;

/// Another connection holds a lock for at most a checkpoint; longer means something is stuck.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the record for writing, making it first if it does not exist.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    if !path.try_exists().map_err(|error| io_error("look for", path, error))? {
        create(path)?;
    }
    refuse_empty(path)?;
    let mut connection = connect(path)?;
    check(&connection, path)?;
    migrations::migrate(&mut connection).map_err(|error| sql_error("migrate", path, error))?;
    Ok(connection)
}

/// Opens another connection to a record that [`open_writer`] found sound.
pub(crate) fn open_reader(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        configure(&connection)?;
        Ok(connection)
    };
    open().map_err(|error| sql_error("open", path, error))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn create(path: &Path) -> Result<(), OpenError> {
    // SQLite would replay a log that outlived its database into the new one.
    let log = with_suffix(path, "-wal");
    if log.try_exists().map_err(|error| io_error("look for", &log, error))? {
        let detail = format!("the file is gone, but its log {} is there", log.display());
        return Err(OpenError::Corrupt { path: path.into(), detail });
    }
    let new = with_suffix(path, ".new");
    remove_half_made(&new)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|error| io_error("create", &new, error))?;
    let build = || {
        let mut connection = connect_unchecked(&new)?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        migrations::migrate(&mut connection)?;
        // Closing the only connection moves the log into the file, fsyncs it and removes the log.
        connection.close().map_err(|(_, error)| error)
    };
    build().map_err(|error| sql_error("create", &new, error))?;
    // A link, not a rename: it never replaces a file that appeared meanwhile.
    std::fs::hard_link(&new, path).map_err(|error| io_error("create", path, error))?;
    sync_folder(path)?;
    remove_half_made(&new)
}

/// Nothing in it was ever acknowledged to anyone.
fn remove_half_made(new: &Path) -> Result<(), OpenError> {
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let file = with_suffix(new, suffix);
        match std::fs::remove_file(&file) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("remove the half-made", &file, error)),
        }
    }
    Ok(())
}

fn sync_folder(path: &Path) -> Result<(), OpenError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|f| f.sync_all()).map_err(|error| io_error("sync", folder, error))
}

fn refuse_empty(path: &Path) -> Result<(), OpenError> {
    let size = std::fs::metadata(path).map_err(|error| io_error("look at", path, error))?.len();
    if size == 0 {
        return Err(OpenError::Corrupt { path: path.into(), detail: "the file is empty".into() });
    }
    Ok(())
}

fn connect(path: &Path) -> Result<Connection, OpenError> {
    connect_unchecked(path).map_err(|error| sql_error("open", path, error))
}

fn connect_unchecked(path: &Path) -> Result<Connection, rusqlite::Error> {
    // Without CREATE: a file that vanished between two looks must not come back empty.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    configure(&connection)?;
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if !mode.eq_ignore_ascii_case("wal") {
        // A network filesystem, say: without WAL readers would wait for writers.
        let message = format!("journal mode `{mode}` instead of WAL");
        let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        return Err(rusqlite::Error::SqliteFailure(error, Some(message)));
    }
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.set_prepared_statement_cache_capacity(128);
    Ok(())
}

fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| sql_error("check", path, error);
    let application: i32 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0)).map_err(failed)?;
    if application != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.into() });
    }
    let found = migrations::schema_version(connection).map_err(failed)?;
    if found > migrations::LATEST {
        return Err(OpenError::NewerVersion { path: path.into(), found, known: migrations::LATEST });
    }
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict != "ok" {
        return Err(OpenError::Corrupt { path: path.into(), detail: verdict });
    }
    Ok(())
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> OpenError {
    OpenError::Io { operation, path: path.into(), source: Box::new(source) }
}

fn sql_error(operation: &'static str, path: &Path, error: rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            OpenError::Corrupt { path: path.into(), detail: error.to_string() }
        }
        _ => OpenError::Io { operation, path: path.into(), source: Box::new(error) },
    }
}
