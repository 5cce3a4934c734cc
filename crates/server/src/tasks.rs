//! The tasks of this crate; nothing is spawned outside this file.

use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Each kind ends by itself, or with the shutdown it watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// Serves one connection. Its panic closes that connection.
    Connection,
    /// Answers one request of a connection of HTTP/2. Its panic breaks that request.
    Stream,
    /// Does what a caller asked for in several steps, whether the caller stays or not. Its panic leaves it half done.
    Request,
    /// Carries bytes between a caller and a program in a VM. Its panic breaks that connection.
    Port,
    /// Turns signals into a shutdown. Its panic leaves `daemon stop` as the way to end.
    Signals,
    /// Reads what a caller still sends after it was refused. Its panic breaks that connection.
    Drain,
    /// Writes an exported snapshot. Its panic breaks that response.
    Export,
    /// Reads the body of an import. Its panic breaks that body off.
    Import,
    /// Queues what happens in a directory of a VM. Its panic leaves that watcher without events.
    Watcher,
    /// Ends a session of MCP with its API key. Its panic leaves that session until it is idle.
    KeyWatch,
    /// Ends an idle daemon. Its panic leaves the daemon running.
    Idle,
}

/// Cheap to clone; clones track together.
#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// Nobody serves any more.
    over: CancellationToken,
}

impl Tasks {
    pub fn spawn(&self, kind: TaskKind, task: impl Future<Output = ()> + Send + 'static) {
        use tracing::Instrument;
        let task = task.instrument(tracing::debug_span!("task", ?kind));
        if kind == TaskKind::Request {
            // No connection ends it, so the daemon does.
            let over = self.over.clone();
            self.tracker.spawn(async move { over.run_until_cancelled(task).await });
        } else {
            self.tracker.spawn(task);
        }
    }

    /// Ends what no connection ends once it is dropped.
    pub fn while_serving(&self) -> DropGuard {
        self.over.clone().drop_guard()
    }
}
