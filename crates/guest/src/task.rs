//! The only place of the agent that starts tasks.

use std::future::Future;
use tokio::task::{AbortHandle, JoinHandle};

/// A task that lives as long as the runtime. Its name is for readers of the code.
#[expect(clippy::disallowed_methods, reason = "this module is the fence")]
pub fn forever(_name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
    tokio::spawn(future)
}

/// A task that is aborted when this guard is dropped.
#[derive(Debug)]
pub struct OwnedTask(AbortHandle);

impl OwnedTask {
    pub fn spawn(name: &'static str, future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(forever(name, future).abort_handle())
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.0.abort();
    }
}
