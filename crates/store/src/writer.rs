//! The one thread that writes.
//!
//! ```text
//! first job waits --> take every job queued meanwhile (up to GROUP) --> BEGIN, a savepoint each, COMMIT
//!        ^                                                                |            |
//!        |               answer each with its own result  <---- fsynced --+            | the group failed
//!        +--------------------------------------------------- each job alone <---------+
//! ```
//! While one group is being fsynced the next one queues up, so the groups grow with the load and nobody waits for a
//! timer. A job that fails takes back only its own writes. If the group fails as a whole (a full disk can make
//! SQLite roll back everything), its jobs run again one by one: only those that cannot be kept are refused.
//!
//! A failed fsync is final: the kernel may have dropped the pages it could not write, so what is on disk is unknown
//! until it is read afresh. Every later write is refused.

use crate::{Clock, Limits, StoreError, Tx, View, tx::fault};
use jiff::Timestamp;
use offshoot_types::EventId;
use rusqlite::Connection;
use std::{path::PathBuf, sync::Arc};
use tokio::sync::{mpsc, oneshot, watch};

/// Jobs that may wait; beyond, callers wait to be queued.
pub(crate) const QUEUE: usize = 256;
/// Jobs that share one commit.
const GROUP: usize = 64;

pub(crate) enum Message {
    Job(Box<dyn Job>),
    /// Finish what is queued, close the database, then answer.
    Close(oneshot::Sender<()>),
}

/// A transaction to be run, perhaps more than once, and answered exactly once.
pub(crate) trait Job: Send {
    /// Runs it and tells whether its writes are to be kept.
    fn run(&mut self, tx: &Tx<'_>) -> bool;
    /// Its outcome is durable: tell the caller.
    fn answer(self: Box<Self>);
    /// It was not kept, for a reason of the store's.
    fn refuse(self: Box<Self>, error: StoreError);
}

/// A closure and the caller who waits for its result.
pub(crate) struct Request<T, F> {
    work: F,
    result: Option<Result<T, StoreError>>,
    caller: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Request<T, F> {
    pub const fn new(work: F, caller: oneshot::Sender<Result<T, StoreError>>) -> Self {
        Self { work, result: None, caller }
    }
}

impl<T, F> Job for Request<T, F>
where
    T: Send,
    F: Fn(&Tx<'_>) -> Result<T, StoreError> + Send,
{
    fn run(&mut self, tx: &Tx<'_>) -> bool {
        self.result.insert((self.work)(tx)).is_ok()
    }
    fn answer(self: Box<Self>) {
        // A caller that stopped waiting misses the answer, not the write.
        let _ = self.caller.send(self.result.unwrap_or(Err(StoreError::Closed)));
    }
    fn refuse(self: Box<Self>, error: StoreError) {
        let _ = self.caller.send(Err(error));
    }
}

pub(crate) struct Writer {
    pub connection: Connection,
    pub path: PathBuf,
    pub clock: Arc<dyn Clock>,
    pub limits: Limits,
    pub last_event: watch::Sender<EventId>,
    /// Set by a failed fsync.
    pub failed: bool,
}

impl Writer {
    /// Runs until told to close, or until every handle is gone.
    pub fn run(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut closing = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut group = Vec::with_capacity(GROUP);
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Job(job) => group.push(job),
                    Message::Close(caller) => {
                        queue.close();
                        closing.push(caller);
                    }
                }
                next = if group.len() < GROUP { queue.try_recv().ok() } else { None };
            }
            self.commit(group);
        }
        if let Err((_, error)) = self.connection.close() {
            tracing::warn!(path = %self.path.display(), %error, "the record was not closed cleanly");
        }
        for caller in closing {
            let _ = caller.send(());
        }
    }

    fn commit(&mut self, mut group: Vec<Box<dyn Job>>) {
        match self.try_commit(&mut group) {
            Ok(()) => group.into_iter().for_each(Job::answer),
            Err(_) if group.len() > 1 && !self.failed => {
                for job in group {
                    self.commit(vec![job]);
                }
            }
            // At most one job is left, unless the disk failed; then each is told so.
            Err(error) => {
                let mut error = Some(error);
                for job in group {
                    let path = self.path.clone();
                    job.refuse(error.take().unwrap_or(StoreError::WriterFailed { path }));
                }
            }
        }
    }

    fn try_commit(&mut self, group: &mut [Box<dyn Job>]) -> Result<(), StoreError> {
        if group.is_empty() {
            return Ok(());
        }
        if self.failed {
            return Err(StoreError::WriterFailed { path: self.path.clone() });
        }
        let attempt = self.attempt(group);
        if attempt.is_err() && !self.connection.is_autocommit() {
            // Its own failure adds nothing: the next BEGIN would fail and say so.
            let _ = self.connection.execute_batch("ROLLBACK");
        }
        let last_event = attempt.map_err(|error| {
            self.failed |= is_sync_failure(&error);
            fault(&self.path, "commit", error)
        })?;
        if let Some(id) = last_event {
            self.last_event.send_replace(id);
        }
        Ok(())
    }

    /// One transaction around the whole group; returns the newest event in it.
    fn attempt(&self, group: &mut [Box<dyn Job>]) -> Result<Option<EventId>, rusqlite::Error> {
        let connection = &self.connection;
        let statement = |sql| connection.prepare_cached(sql)?.execute([]);
        let mut last_event = None;
        statement("BEGIN IMMEDIATE")?;
        for job in group.iter_mut() {
            statement("SAVEPOINT job")?;
            let tx = Tx::new(View { connection, path: &self.path }, self.now(), &self.limits);
            let keep = job.run(&tx);
            if connection.is_autocommit() {
                // SQLite rolled everything back under the job, which failed for that reason and has the error.
                let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
                return Err(rusqlite::Error::SqliteFailure(
                    full,
                    Some("the transaction was rolled back".into()),
                ));
            }
            if keep {
                last_event = tx.last_event().or(last_event);
            } else {
                statement("ROLLBACK TO job")?;
            }
            statement("RELEASE job")?;
        }
        statement("COMMIT")?;
        Ok(last_event)
    }

    /// As it will be read back: whole microseconds.
    fn now(&self) -> Timestamp {
        let now = self.clock.now();
        Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
    }
}

fn is_sync_failure(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(rusqlite::ffi::SQLITE_IOERR_FSYNC | rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC))
}
