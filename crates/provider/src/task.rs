//! Where this crate's background tasks begin. Each has a name and an end that is written down.

use std::future::Future;
use tokio::task::JoinHandle;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Task {
    /// Ends when the VMM closes its console.
    Console,
    /// Ends when the VMM closes its standard error.
    VmmStderr,
    /// Ends when the VMM closes its control connection.
    Qmp,
    /// Ends when the VMM has ended and its exit is published.
    VmmExit,
    /// Ends when the VMM has, or has outlived every rung.
    StopLadder,
    /// Ends when the state is taken, or the VM is as before.
    Checkpoint,
    /// Ends with the peer, or with the keeper.
    KeeperConnection,
    /// Ends when the keeper closes the connection.
    KeeperClient,
    /// Ends with either side's connection, or when another takes its place.
    Relay,
    /// Ends when the keeper process has ended.
    KeeperReaper,
    /// Ends when the host closes the channel or the guest is gone.
    FakeGuest,
}

pub(crate) fn spawn<F>(task: Task, future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    tracing::trace!(?task, "task spawned");
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    tokio::spawn(future)
}
