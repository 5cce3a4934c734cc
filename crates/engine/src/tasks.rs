//! Every task of the engine has a kind: a name, and what its panic means. Nothing is spawned outside this file.
//!
//! ```text
//! spawn(kind, future) --> runs --> ends | panics (logged with its kind) | aborted
//! drain(limit)            waits for all to end by themselves
//! abort()                 drops every task at its next await, as a SIGKILL would
//! ```

use crate::trace::{Scope, TraceEvent};
use futures::FutureExt;
use std::{any::Any, future::Future, panic::AssertUnwindSafe, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TaskKind {
    /// Owns one VM. Its panic closes the VM's queue: callers are answered `internal`, the VM runs on, and the
    /// next start of the daemon adopts it.
    Driver,
    /// Keeps the connection to one guest. Its panic leaves that VM's guest unreachable until a restart.
    GuestLink,
    /// Moves the streams of one exec. Its panic ends that session; the process is attachable by its id.
    ExecPump,
    /// Moves the events of one piece of code. Its panic ends that session and interrupts the code.
    CodePump,
    /// Watches one open transaction. Its panic leaves a rollback to the caller, or to the next start.
    Transaction,
    /// Carries out one exec that can be undone. Its panic leaves its transaction to the deadline.
    Try,
    /// Carries out one race. Its panic has the racers destroyed; the VM stays owned until the next start.
    Race,
    /// Takes one request from its permit to its driver. Its panic is answered as an ending daemon.
    Acceptor,
    /// Writes one outcome to the store after its caller was answered or went away.
    Recorder,
    /// Writes one snapshot. Its panic leaves the snapshot to the next start, which takes it back.
    Persister,
    /// Writes what one program says to a file. Its panic leaves that file as it is.
    Spiller,
    /// Forgets old records. Its panic leaves them until the next start.
    Housekeeper,
    /// Merges layers of disks. Its panic leaves disks as deep as they are until the next start.
    Merger,
    /// Keeps templates and warm instances. Its panic leaves starts to boot; the next start ends what it had.
    Pool,
    /// Destroys what nobody wants any more. Its panic leaves that to the next start.
    Reaper,
}

impl TaskKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::GuestLink => "guest-link",
            Self::ExecPump => "exec-pump",
            Self::CodePump => "code-pump",
            Self::Transaction => "transaction",
            Self::Try => "try",
            Self::Race => "race",
            Self::Acceptor => "acceptor",
            Self::Recorder => "recorder",
            Self::Persister => "persister",
            Self::Spiller => "spiller",
            Self::Housekeeper => "housekeeper",
            Self::Merger => "merger",
            Self::Pool => "pool",
            Self::Reaper => "reaper",
        }
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Tasks {
    tracker: TaskTracker,
    abort: CancellationToken,
}

impl Tasks {
    pub fn spawn(&self, kind: TaskKind, scope: Scope, future: impl Future<Output = ()> + Send + 'static) {
        let abort = self.abort.clone();
        self.tracker.spawn(async move {
            // The future is dropped by `select` when the abort wins; nothing in it may rely on running on.
            tokio::select! {
                biased;
                () = abort.cancelled() => {}
                ended = AssertUnwindSafe(future).catch_unwind() => {
                    if let Err(panic) = ended {
                        let message = panic_message(&*panic);
                        TraceEvent::TaskPanicked { task: kind.name(), message }.emit(&scope);
                    }
                }
            }
        });
    }

    /// Waits for every task to end by itself; `false` if some had not when `limit` passed.
    pub async fn drain(&self, limit: Duration) -> bool {
        self.tracker.close();
        tokio::time::timeout(limit, self.tracker.wait()).await.is_ok()
    }

    /// Drops every task where it stands, and waits until each is gone.
    pub async fn abort(&self) {
        self.abort.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    /// As [`abort`](Self::abort) without waiting, for `Drop`.
    pub fn abort_soon(&self) {
        self.abort.cancel();
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        text
    } else {
        panic.downcast_ref::<String>().map_or("a value that is not text", String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_task_only_and_an_abort_drops_the_rest() {
        let tasks = Tasks::default();
        tasks.spawn(TaskKind::Recorder, Scope::default(), async { panic!("on purpose") });
        let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
        tasks.spawn(TaskKind::Recorder, Scope::default(), async move {
            let _held = sender;
            std::future::pending().await
        });
        assert!(!tasks.drain(Duration::from_millis(20)).await);
        tasks.abort().await;
        assert!(receiver.await.is_err(), "the task was dropped with what it held");
    }
}
