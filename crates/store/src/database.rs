//! Opening the file: made whole or not at all, refused by name if it is not ours, newer or damaged, and never
//! emptied.
//!
//! ```text
//! no file   --> build NAME.new, migrate, fsync --> link as NAME      (a crash before the link leaves no NAME)
//! a file    --> header: ours? not newer? --> every page sound? --> migrate
//! ```
//! Because a new file appears only complete, an empty one under the real name is damage, not a fresh start.

use crate::{OpenError, migrations};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use std::{
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// "OSht", in the header of every file of ours.
pub(crate) const APPLICATION_ID: u32 = 0x4F53_6874;

/// Another connection holds a lock for at most a checkpoint; longer means something is stuck.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the record for writing, making it first if it does not exist.
pub(crate) fn open_writer(path: &Path) -> Result<Connection, OpenError> {
    if !path.try_exists().map_err(|error| io_error("look for", path, error))? {
        create(path)?;
    }
    check_header(path)?;
    let open = |error| sql_error("open", path, error);
    let has_log = size(&with_suffix(path, "-wal"))? > 0;
    let mut connection = connect(path).map_err(open)?;
    // A refused file is not even tidied: closing would otherwise move its log into it.
    let keep_log = |keep: bool| connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, keep);
    keep_log(has_log).map_err(open)?;
    check_pages(&connection, path)?;
    keep_log(false).map_err(open)?;
    use_log(&connection).map_err(open)?;
    migrations::migrate(&mut connection).map_err(|error| sql_error("migrate", path, error))?;
    // From here on whoever commits syncs the log, see `writer`.
    connection.pragma_update(None, "synchronous", "NORMAL").map_err(open)?;
    // Left by a crash between the link and here.
    remove_half_made(&with_suffix(path, ".new"))?;
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

/// 0 for a file that does not exist.
fn size(path: &Path) -> Result<u64, OpenError> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(io_error("look at", path, error)),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

fn create(path: &Path) -> Result<(), OpenError> {
    // SQLite would replay a log or journal that outlived its database into the new one.
    for suffix in ["-wal", "-journal"] {
        let log = with_suffix(path, suffix);
        if size(&log)? > 0 {
            let detail = format!("the file is gone, but its log {} is there", log.display());
            return Err(OpenError::Corrupt { path: path.into(), detail });
        }
    }
    let new = with_suffix(path, ".new");
    remove_half_made(&new)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|error| io_error("create", &new, error))?;
    // Without a log beside it, so that the file alone is everything once the last migration is committed.
    let build = || {
        let mut connection = connect(&new)?;
        connection.pragma_update(None, "application_id", APPLICATION_ID)?;
        migrations::migrate(&mut connection)?;
        connection.close().map_err(|(_, error)| error)
    };
    build().map_err(|error| sql_error("create", &new, error))?;
    // A link never replaces a file that appeared meanwhile; where there are no links, the caller's lock must do.
    match std::fs::hard_link(&new, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => std::fs::rename(&new, path),
        linked => linked,
    }
    .map_err(|error| io_error("create", path, error))?;
    sync_folder(path)
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

/// Reads what decides whether the file is ours straight from its header, before SQLite may touch it.
fn check_header(path: &Path) -> Result<(), OpenError> {
    const MAGIC: &[u8] = b"SQLite format 3\0";
    const USER_VERSION: usize = 60;
    const APPLICATION: usize = 68;
    let corrupt = |detail: &str| OpenError::Corrupt { path: path.into(), detail: detail.into() };
    let mut header = [0; 100];
    let mut file = File::open(path).map_err(|error| io_error("open", path, error))?;
    match file.read_exact(&mut header) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(corrupt("it is shorter than a database header"));
        }
        Err(error) => return Err(io_error("read", path, error)),
    }
    if !header.starts_with(MAGIC) {
        return Err(corrupt("it does not begin as a database does"));
    }
    let number = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if number(APPLICATION) != APPLICATION_ID {
        return Err(OpenError::Foreign { path: path.into() });
    }
    refuse_newer(path, number(USER_VERSION))
}

fn refuse_newer(path: &Path, found: u32) -> Result<(), OpenError> {
    let known = migrations::LATEST;
    if found > known { Err(OpenError::NewerVersion { path: path.into(), found, known }) } else { Ok(()) }
}

/// Checks every page, and the version again: a newer one may still be in the log only.
fn check_pages(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| sql_error("check", path, error);
    refuse_newer(path, migrations::schema_version(connection).map_err(failed)?)?;
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if verdict == "ok" { Ok(()) } else { Err(OpenError::Corrupt { path: path.into(), detail: verdict }) }
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    // Without CREATE: a file that vanished between two looks must not come back empty.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    configure(&connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    Ok(connection)
}

/// The log beside an open record, to be synced after each commit: SQLite does that no more.
pub(crate) fn open_log(path: &Path) -> Result<File, OpenError> {
    let log = with_suffix(path, "-wal");
    File::open(&log).map_err(|error| io_error("open the log", &log, error))
}

fn use_log(connection: &Connection) -> Result<(), rusqlite::Error> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "WAL", |row| row.get(0))?;
    if mode.eq_ignore_ascii_case("wal") {
        return Ok(());
    }
    // On a network filesystem, say: without the log readers would wait for writers.
    let error = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
    Err(rusqlite::Error::SqliteFailure(error, Some(format!("journal mode `{mode}` instead of WAL"))))
}

fn configure(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    // For what takes back a statement that fails half way; else that is a file in `/var/tmp` at every create of a VM.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.set_prepared_statement_cache_capacity(128);
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

#[cfg(test)]
mod tests {
    use crate::{Limits, OpenError, Options, Store};
    use rusqlite::Connection;
    use std::{
        fs,
        os::unix::fs::PermissionsExt,
        path::{Path, PathBuf},
    };

    fn open(path: &Path) -> Result<Store, OpenError> {
        Store::open(Options::new(path, Limits::UNBOUNDED))
    }

    async fn made(folder: &tempfile::TempDir) -> PathBuf {
        let path = folder.path().join("offshoot.db");
        open(&path).unwrap().close().await;
        path
    }

    /// Refused with the file named, and every byte in the folder as before. SQLite's index of the log (`-shm`) is not
    /// content: it is made anew by whoever opens the file first.
    fn refused(path: &Path) -> OpenError {
        let listing = || {
            let files = fs::read_dir(path.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
            let mut files: Vec<_> = files
                .filter(|file| file.extension().is_none_or(|e| e != "db-shm"))
                .map(|file| (file.clone(), blake3::hash(&fs::read(file).unwrap())))
                .collect();
            files.sort_by(|(a, _), (b, _)| a.cmp(b));
            files
        };
        let before = listing();
        let error = open(path).unwrap_err();
        assert_eq!(listing(), before, "a refused record is left as it was");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        error
    }

    #[tokio::test]
    async fn a_new_record_is_private_and_leaves_nothing_beside_it_once_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder).await;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let files: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(files, ["offshoot.db"]);
    }

    #[tokio::test]
    async fn a_record_half_made_by_a_crash_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offshoot.db");
        fs::write(folder.path().join("offshoot.db.new"), b"half").unwrap();
        open(&path).unwrap().close().await;
        assert!(!folder.path().join("offshoot.db.new").exists());
    }

    #[tokio::test]
    async fn a_record_of_a_newer_version_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder).await;
        Connection::open(&path).unwrap().pragma_update(None, "user_version", 4711).unwrap();
        assert!(matches!(refused(&path), OpenError::NewerVersion { found: 4711, .. }));
    }

    #[tokio::test]
    async fn a_newer_version_that_is_only_in_the_log_is_refused_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder).await;
        let other = Connection::open(&path).unwrap();
        other.pragma_update(None, "journal_mode", "WAL").unwrap();
        other.pragma_update(None, "user_version", 4711).unwrap();
        // As a crash would leave it: the log copied while it was still needed.
        let crashed = tempfile::tempdir().unwrap();
        let copy = crashed.path().join("offshoot.db");
        fs::copy(&path, &copy).unwrap();
        fs::copy(folder.path().join("offshoot.db-wal"), crashed.path().join("offshoot.db-wal")).unwrap();
        assert!(matches!(refused(&copy), OpenError::NewerVersion { found: 4711, .. }));
    }

    #[tokio::test]
    async fn one_damaged_page_is_refused_by_name_even_if_opening_would_not_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offshoot.db");
        let store = open(&path).unwrap();
        for _ in 0..100 {
            store.audit_entry(crate::fixture::entry("fills some pages")).await.unwrap();
        }
        store.close().await;
        let whole = fs::read(&path).unwrap();
        let page = usize::from(u16::from_be_bytes([whole[16], whole[17]]));
        assert!(whole.len() / page > 4);
        // The last page is a leaf of the audit; the second one is read for the schema.
        for at in [whole.len() - page, page] {
            let mut bytes = whole.clone();
            bytes[at..at + 64].fill(0xA5);
            fs::write(&path, &bytes).unwrap();
            assert!(matches!(refused(&path), OpenError::Corrupt { .. }), "byte {at}");
        }
    }

    #[tokio::test]
    async fn an_emptied_cut_or_overwritten_file_is_refused_and_never_started_afresh() {
        let folder = tempfile::tempdir().unwrap();
        let path = made(&folder).await;
        let whole = fs::read(&path).unwrap();
        for damaged in
            [&whole[..0], &whole[..50], &whole[..whole.len() / 2], b"not a database at all".as_slice()]
        {
            fs::write(&path, damaged).unwrap();
            assert!(matches!(refused(&path), OpenError::Corrupt { .. }), "{} bytes", damaged.len());
        }
    }

    #[tokio::test]
    async fn a_log_without_its_record_is_refused_rather_than_replayed_into_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offshoot.db");
        fs::write(folder.path().join("offshoot.db-wal"), b"log").unwrap();
        assert!(matches!(refused(&path), OpenError::Corrupt { .. }));
        assert!(!path.exists());
    }

    #[test]
    fn a_database_of_another_program_is_refused_untouched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("offshoot.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
        assert!(matches!(refused(&path), OpenError::Foreign { .. }));
    }
}
