//! The only place of this crate that starts tasks: each has an owner, and ends when its owner is dropped.

use std::future::Future;
use tokio::task::AbortHandle;

/// A task that is aborted when this guard is dropped.
#[derive(Debug)]
pub(crate) struct OwnedTask(AbortHandle);

impl OwnedTask {
    #[expect(
        clippy::disallowed_methods,
        reason = "this module is the fence: the guard returned owns the task"
    )]
    pub(crate) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future).abort_handle())
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
