//! The one thread that writes.
//!
//! ```text
//! first job waits --> take every job queued meanwhile (up to GROUP) --> BEGIN, a savepoint each, COMMIT
//!        ^                                                                |            |
//!        |        early jobs are told that they are committed <-- the log has it       | the group failed
//!        |                                                                |            |
//!        |               answer each with its own result  <---- fsynced --+            |
//!        +--------------------------------------------------- each job alone <---------+
//! ```
//! SQLite commits to its log without waiting for the disk (`synchronous=NORMAL`, where only checkpoints do), and the log is
//! synced here: what is committed outlives this process at once, and a crash of the host from then on.
//!
//! While one group is being fsynced the next one queues up, so the groups grow with the load and nobody waits for a
//! timer, but for patient jobs: those that nobody waits for, as the end of a process whose caller has its status already. Alone
//! they wait a moment for company, so that what the caller asks next is not behind a commit of theirs. A job that fails takes back only its own writes. If the group fails as a whole (a full disk can make
//! SQLite roll back everything), its jobs run again one by one: only those that cannot be kept are refused.
//!
//! A failed fsync is final: the kernel may have dropped the pages it could not write, so what is on disk is unknown
//! until it is read afresh. Every later write is refused.

use crate::{Clock, Limits, StoreError, Tx, View, tx::fault};
use jiff::Timestamp;
use offshoot_types::EventId;
use rusqlite::Connection;
use std::{
    fs::File,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::{Duration, Instant},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Jobs that may wait; beyond, callers wait to be queued.
pub(crate) const QUEUE: usize = 256;
/// Jobs that share one commit.
const GROUP: usize = 64;
/// How long patient jobs wait for others: a caller that asks at once for more has done so by then.
const COMPANY: Duration = Duration::from_millis(3);

pub(crate) enum Message {
    Job(Box<dyn Job>),
    /// Nobody waits for it.
    Patient(Box<dyn Job>),
    /// Finish what is queued, close the database, then answer.
    Close(oneshot::Sender<()>),
    /// A fault on purpose: every sync of the log fails from now on, those of what is queued before included.
    FailSyncs(oneshot::Sender<()>),
}

/// A transaction to be run, perhaps more than once, and answered exactly once.
pub(crate) trait Job: Send {
    /// Runs it and tells whether its writes are to be kept.
    fn run(&mut self, tx: &Tx<'_>) -> bool;
    /// Its outcome is committed: this process may die now, the host may not.
    fn committed(&mut self) {}
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
    /// What SQLite has committed and not moved into the database yet. There as long as the connection.
    pub log: File,
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
            let mut patience = Some(Instant::now() + COMPANY);
            while let Some(message) = next {
                match message {
                    Message::Patient(job) => group.push(job),
                    Message::Job(job) => {
                        group.push(job);
                        patience = None;
                    }
                    Message::FailSyncs(caller) => {
                        if let Ok((pipe, _)) = std::io::pipe() {
                            // A pipe cannot be synced.
                            self.log = File::from(OwnedFd::from(pipe));
                        }
                        let _ = caller.send(());
                    }
                    Message::Close(caller) => {
                        queue.close();
                        closing.push(caller);
                        patience = None;
                    }
                }
                next = match patience {
                    _ if group.len() == GROUP => None,
                    None => queue.try_recv().ok(),
                    Some(until) => receive_until(&mut queue, until),
                };
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
        group.iter_mut().for_each(|job| job.committed());
        if let Err(error) = self.log.sync_data() {
            tracing::error!(path = %self.path.display(), %error, "the log of the record could not be synced");
            self.failed = true;
            return Err(StoreError::WriterFailed { path: self.path.clone() });
        }
        if let Some(id) = last_event {
            self.last_event.send_replace(id);
        }
        Ok(())
    }

    /// One transaction around the whole group; returns the newest event in it.
    fn attempt(&self, group: &mut [Box<dyn Job>]) -> Result<Option<EventId>, rusqlite::Error> {
        let connection = &self.connection;
        let statement = |sql| connection.prepare_cached(sql)?.execute([]);
        let alone = group.len() == 1;
        let mut last_event = None;
        statement("BEGIN IMMEDIATE")?;
        for job in group.iter_mut() {
            statement("SAVEPOINT job")?;
            let tx = Tx::new(View { connection, path: &self.path }, self.now(), &self.limits);
            let keep = job.run(&tx);
            if connection.is_autocommit() {
                // SQLite rolled everything back under the job, as it may when the disk is full.
                return if alone && !keep { Ok(None) } else { Err(rolled_back()) };
            }
            if keep {
                last_event = tx.newest_written_event().or(last_event);
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

/// The next message if it comes by then; `None` also once nobody can send one.
fn receive_until(queue: &mut mpsc::Receiver<Message>, until: Instant) -> Option<Message> {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(message) = queue.poll_recv(&mut context) {
            return message;
        }
        let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        thread::park_timeout(left);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

fn rolled_back() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK);
    rusqlite::Error::SqliteFailure(code, Some("the whole transaction was rolled back".into()))
}

fn is_sync_failure(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    matches!(code, Some(rusqlite::ffi::SQLITE_IOERR_FSYNC | rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        NewEvent, SystemClock, database,
        early::{Durable, EarlyRequest},
    };
    use offshoot_types::{Actor, ErrorCode, EventKind, Owner};
    use std::sync::Mutex;

    type Log = Arc<Mutex<Vec<String>>>;

    fn warning(bytes: usize) -> NewEvent {
        let kind = EventKind::Warning { message: "x".repeat(bytes) };
        NewEvent { owner: Owner::default(), vm: None, operation: None, actor: Actor::Daemon, kind }
    }

    fn writer(folder: &tempfile::TempDir) -> (Writer, watch::Receiver<EventId>) {
        let path = folder.path().join("offshoot.db");
        let (last_event, receiver) = watch::channel(EventId(0));
        let connection = database::open_writer(&path).unwrap();
        let log = database::open_log(&path).unwrap();
        let (clock, limits) = (Arc::new(SystemClock), Limits::UNBOUNDED);
        (Writer { connection, log, path, clock, limits, last_event, failed: false }, receiver)
    }

    /// A job that logs when it ran and how it was answered.
    struct Logged<F> {
        name: &'static str,
        log: Log,
        work: F,
    }
    impl<F: Fn(&Tx<'_>) -> Result<(), StoreError> + Send> Job for Logged<F> {
        fn run(&mut self, tx: &Tx<'_>) -> bool {
            self.log.lock().unwrap().push(format!("run {}", self.name));
            (self.work)(tx).is_ok()
        }
        fn answer(self: Box<Self>) {
            self.log.lock().unwrap().push(format!("answer {}", self.name));
        }
        fn refuse(self: Box<Self>, error: StoreError) {
            self.log.lock().unwrap().push(format!("refuse {}: {}", self.name, error.code()));
        }
    }

    fn job(
        name: &'static str,
        log: &Log,
        work: impl Fn(&Tx<'_>) -> Result<(), StoreError> + Send + 'static,
    ) -> Message {
        Message::Job(Box::new(Logged { name, log: log.clone(), work }))
    }

    fn run_all(writer: Writer, messages: Vec<Message>) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        for message in messages {
            queue.try_send(message).ok().unwrap();
        }
        drop(queue);
        writer.run(receiver);
    }

    fn messages_kept(folder: &tempfile::TempDir) -> Vec<usize> {
        let path = folder.path().join("offshoot.db");
        let connection = database::open_writer(&path).unwrap();
        let page = View { connection: &connection, path: &path }.events(EventId(0), 1000).unwrap();
        let length = |event: &offshoot_types::Event| match &event.kind {
            EventKind::Warning { message } => message.len(),
            other => panic!("{other:?}"),
        };
        page.events.iter().map(length).collect()
    }

    #[test]
    fn queued_jobs_share_a_commit_are_answered_after_it_and_a_failing_one_fails_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, last) = writer(&folder);
        let log = Log::default();
        let fail = |tx: &Tx<'_>| {
            tx.emit(&warning(99))?;
            Err(StoreError::Invalid { what: "test", detail: String::new() })
        };
        let messages = vec![
            job("one", &log, |tx| tx.emit(&warning(1)).map(drop)),
            job("bad", &log, fail),
            job("two", &log, |tx| tx.emit(&warning(2)).map(drop)),
        ];
        run_all(writer, messages);
        let expected = ["run one", "run bad", "run two", "answer one", "answer bad", "answer two"];
        assert_eq!(*log.lock().unwrap(), expected, "every run before every answer: one commit");
        assert_eq!(messages_kept(&folder), [1, 2]);
        assert_eq!(*last.borrow(), EventId(2));
    }

    #[test]
    fn a_patient_job_waits_for_company_and_not_for_ever() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, _last) = writer(&folder);
        let log = Log::default();
        let patient = |name| match job(name, &log, |tx| tx.emit(&warning(1)).map(drop)) {
            Message::Job(job) => Message::Patient(job),
            other => other,
        };
        let messages = vec![patient("one"), patient("two"), job("three", &log, |_| Ok(())), patient("four")];
        run_all(writer, messages);
        let together = ["run one", "run two", "run three", "run four"];
        assert_eq!(log.lock().unwrap()[..4], together, "{log:?}");
        assert_eq!(messages_kept(&folder), [1, 1, 1]);

        let (queue, mut receiver) = mpsc::channel(1);
        assert!(receive_until(&mut receiver, Instant::now()).is_none(), "nobody came");
        let (caller, _closed) = oneshot::channel();
        let late = thread::spawn(move || {
            // Sent to one that waits already, or is about to.
            thread::yield_now();
            queue.blocking_send(Message::Close(caller)).ok().unwrap();
        });
        let far = Instant::now() + Duration::from_secs(60);
        assert!(matches!(receive_until(&mut receiver, far), Some(Message::Close(_))));
        late.join().unwrap();
        assert!(receive_until(&mut receiver, far).is_none(), "nobody can come");
    }

    #[test]
    fn a_job_sees_what_earlier_jobs_of_its_group_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, _last) = writer(&folder);
        let log = Log::default();
        let seen = Arc::new(Mutex::new(None));
        let note = seen.clone();
        let look = move |tx: &Tx<'_>| {
            *note.lock().unwrap() = Some(tx.events(EventId(0), 9)?.events.len());
            Ok(())
        };
        run_all(
            writer,
            vec![job("write", &log, |tx| tx.emit(&warning(1)).map(drop)), job("look", &log, look)],
        );
        assert_eq!(*seen.lock().unwrap(), Some(1));
    }

    #[test]
    fn a_full_disk_refuses_the_job_that_does_not_fit_and_keeps_the_others() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, _last) = writer(&folder);
        let log = Log::default();
        let limit = |tx: &Tx<'_>| tx.limit_pages(Some(tx.page_count()? + 4));
        let outcome = Arc::new(Mutex::new(None));
        let note = outcome.clone();
        let too_big = move |tx: &Tx<'_>| {
            let result = tx.emit(&warning(1 << 20)).map(drop);
            *note.lock().unwrap() = result.as_ref().err().map(StoreError::code);
            result
        };
        let messages = vec![
            job("limit", &log, limit),
            job("one", &log, |tx| tx.emit(&warning(1)).map(drop)),
            job("big", &log, too_big),
            job("two", &log, |tx| tx.emit(&warning(2)).map(drop)),
        ];
        run_all(writer, messages);
        assert_eq!(*outcome.lock().unwrap(), Some(offshoot_types::ErrorCode::NoResource));
        let log = log.lock().unwrap();
        for name in ["limit", "one", "big", "two"] {
            assert_eq!(log.iter().filter(|line| **line == format!("answer {name}")).count(), 1, "{log:?}");
        }
        assert_eq!(messages_kept(&folder), [1, 2]);
    }

    #[test]
    fn a_group_that_sqlite_rolls_back_as_a_whole_runs_again_one_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, last) = writer(&folder);
        let log = Log::default();
        // What SQLite may do to the transaction under a statement that ran out of disk.
        let lost = |tx: &Tx<'_>| {
            tx.connection.execute_batch("ROLLBACK").map_err(|error| tx.fault("roll back", error))?;
            Err(StoreError::Full { operation: "test", path: tx.path.into() })
        };
        let swallows =
            |tx: &Tx<'_>| tx.connection.execute_batch("ROLLBACK").map_err(|e| tx.fault("roll back", e));
        let messages = vec![
            job("one", &log, |tx| tx.emit(&warning(1)).map(drop)),
            job("lost", &log, lost),
            job("swallows", &log, swallows),
            job("two", &log, |tx| tx.emit(&warning(2)).map(drop)),
        ];
        run_all(writer, messages);
        let log = log.lock().unwrap();
        let answers: Vec<_> = log.iter().filter(|line| !line.starts_with("run")).collect();
        assert_eq!(answers, ["answer one", "answer lost", "refuse swallows: internal", "answer two"]);
        assert_eq!(messages_kept(&folder), [1, 2]);
        assert_eq!(*last.borrow(), EventId(2));
    }

    #[test]
    fn after_a_failed_fsync_every_write_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, _last) = writer(&folder);
        writer.failed = true;
        let log = Log::default();
        run_all(writer, vec![job("a", &log, |_| Ok(())), job("b", &log, |_| Ok(()))]);
        assert_eq!(*log.lock().unwrap(), ["refuse a: unavailable", "refuse b: unavailable"]);
        let sync = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR_FSYNC);
        assert!(is_sync_failure(&rusqlite::Error::SqliteFailure(sync, None)));
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        assert!(!is_sync_failure(&rusqlite::Error::SqliteFailure(full, None)));
    }

    #[test]
    fn an_early_job_is_told_when_it_is_committed_and_again_when_that_is_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let (mut writer, _last) = writer(&folder);
        let early = |bytes| {
            let (caller, answer) = oneshot::channel();
            let work = move |tx: &Tx<'_>| tx.emit(&warning(bytes));
            (Box::new(EarlyRequest::new(work, caller)) as Box<dyn Job>, answer)
        };
        let wait = |durable: Durable| {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(durable.wait()).map_err(|error| error.code())
        };
        let (first, mut answer) = early(1);
        writer.commit(vec![first]);
        let (_, durable) = answer.try_recv().unwrap().unwrap();
        assert_eq!(wait(durable), Ok(()));

        // A pipe cannot be synced: whoever was told that it is committed learns that it may not be on disk.
        writer.log = File::from(OwnedFd::from(std::io::pipe().unwrap().0));
        let log = Log::default();
        let Message::Job(waits) = job("waits", &log, |_| Ok(())) else { panic!("a job") };
        let (second, mut answer) = early(2);
        writer.commit(vec![second, waits]);
        let (_, durable) = answer.try_recv().unwrap().unwrap();
        assert_eq!(wait(durable), Err(ErrorCode::Unavailable));
        assert_eq!(*log.lock().unwrap(), ["run waits", "refuse waits: unavailable"]);
        let (third, mut answer) = early(3);
        writer.commit(vec![third]);
        assert_eq!(answer.try_recv().unwrap().unwrap_err().code(), ErrorCode::Unavailable);
        drop(writer);
        assert_eq!(messages_kept(&folder), [1, 2], "the host lived on");
    }

    #[test]
    fn what_was_queued_before_closing_is_written_before_it_closes() {
        let folder = tempfile::tempdir().unwrap();
        let (writer, _last) = writer(&folder);
        let log = Log::default();
        let (caller, mut closed) = oneshot::channel();
        let messages = vec![Message::Close(caller), job("late", &log, |tx| tx.emit(&warning(3)).map(drop))];
        run_all(writer, messages);
        assert_eq!(closed.try_recv(), Ok(()));
        assert_eq!(messages_kept(&folder), [3]);
    }
}
