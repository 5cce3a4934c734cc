//! Where this crate's background tasks begin. Each has a name and an end that is written down.

use std::{future::Future, io};
use tokio::{sync::oneshot, task::JoinHandle};

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

/// Runs `work` on a thread of its own: a probe's processes live exactly as long as the thread that started them.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new().name(name.into()).spawn(move || {
        // Who asked may have gone.
        let _nobody = answer.send(work());
    })?;
    answered.await.map_err(|_gone| io::Error::other("the probe broke off"))
}
