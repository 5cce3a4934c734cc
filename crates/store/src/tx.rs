//! [`View`] reads, [`Tx`] reads and writes; both see one consistent state.

use crate::{Limits, StoreError};
use jiff::Timestamp;
use offshoot_types::EventId;
use rusqlite::{Connection, ErrorCode, Params, Row};
use std::{cell::Cell, ops::Deref, path::Path};

/// One consistent state of the record.
#[derive(Debug, Clone, Copy)]
pub struct View<'c> {
    pub(crate) connection: &'c Connection,
    pub(crate) path: &'c Path,
}

/// A transaction in the making; what it wrote so far it also reads. Kept if its closure returns `Ok`.
#[derive(Debug)]
pub struct Tx<'c> {
    view: View<'c>,
    now: Timestamp,
    limits: &'c Limits,
    last_event: Cell<Option<EventId>>,
}

impl<'c> Deref for Tx<'c> {
    type Target = View<'c>;
    fn deref(&self) -> &View<'c> {
        &self.view
    }
}

impl<'c> Tx<'c> {
    pub(crate) fn new(view: View<'c>, now: Timestamp, limits: &'c Limits) -> Self {
        Self { view, now, limits, last_event: Cell::new(None) }
    }
    /// The time of every row this transaction writes, in whole microseconds as stored.
    pub const fn now(&self) -> Timestamp {
        self.now
    }
    pub(crate) fn now_micros(&self) -> i64 {
        self.now.as_microsecond()
    }
    pub(crate) const fn limits(&self) -> &Limits {
        self.limits
    }
    pub(crate) fn wrote_event(&self, id: EventId) {
        self.last_event.set(Some(id));
    }
    pub(crate) fn newest_written_event(&self) -> Option<EventId> {
        self.last_event.get()
    }
    /// Runs a statement and tells how many rows it touched.
    pub(crate) fn execute(
        &self,
        operation: &'static str,
        sql: &str,
        params: impl Params,
    ) -> Result<usize, StoreError> {
        let run = || self.connection.prepare_cached(sql)?.execute(params);
        run().map_err(|error| self.fault(operation, error))
    }
}

impl View<'_> {
    pub(crate) fn fault(&self, operation: &'static str, error: rusqlite::Error) -> StoreError {
        fault(self.path, operation, error)
    }

    /// The first row, if there is one.
    pub(crate) fn one<T>(
        &self,
        operation: &'static str,
        sql: &str,
        params: impl Params,
        from_row: impl FnOnce(&Row<'_>) -> Result<T, rusqlite::Error>,
    ) -> Result<Option<T>, StoreError> {
        let run = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(params)?;
            rows.next()?.map(from_row).transpose()
        };
        run().map_err(|error| self.fault(operation, error))
    }

    pub(crate) fn many<T>(
        &self,
        operation: &'static str,
        sql: &str,
        params: impl Params,
        from_row: impl FnMut(&Row<'_>) -> Result<T, rusqlite::Error>,
    ) -> Result<Vec<T>, StoreError> {
        let run =
            || self.connection.prepare_cached(sql)?.query_map(params, from_row)?.collect::<Result<_, _>>();
        run().map_err(|error| self.fault(operation, error))
    }
}

/// Sorts an SQLite failure by what the caller can do about it.
pub(crate) fn fault(path: &Path, operation: &'static str, error: rusqlite::Error) -> StoreError {
    let path = path.to_owned();
    match error.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => StoreError::Full { operation, path },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Corrupt { operation, path, source: Box::new(error) }
        }
        _ => StoreError::Database { operation, path, source: Box::new(error) },
    }
}

impl View<'_> {
    pub(crate) fn page_count(&self) -> Result<u32, StoreError> {
        self.connection
            .pragma_query_value(None, "page_count", |row| row.get(0))
            .map_err(|error| self.fault("count pages", error))
    }
}

impl Tx<'_> {
    pub(crate) fn limit_pages(&self, pages: Option<u32>) -> Result<(), StoreError> {
        /// The most SQLite ever allows.
        const ALL: u32 = 0xFFFF_FFFE;
        self.connection
            .pragma_update_and_check(None, "max_page_count", pages.unwrap_or(ALL), |_| Ok(()))
            .map_err(|error| self.fault("limit pages", error))
    }
}
