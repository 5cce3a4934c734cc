//! PID 1's duty: every child that ends is reaped, ours and the orphans of others.
//!
//! ```text
//! SIGCHLD --> sweep --+-- pid we started --> its `Exit` receiver
//!                     `-- orphan ----------> gone; `passes` tells whoever waits for a tree to empty
//! ```
//! A child is started under the same lock the sweep takes, so it cannot be reaped before its receiver exists.

use crate::sys;
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// The reaper reaps every child of the test's process: tests with children run one at a time.
#[cfg(test)]
pub static CHILDREN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// How one of our children ended, and when it was reaped.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    pub reaped: sys::Reaped,
    pub at: Instant,
}

#[derive(Debug)]
pub struct Reaper {
    expected: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    passes: watch::Sender<u64>,
}

impl Reaper {
    /// Starts reaping every child of this process, for as long as the runtime lives.
    pub fn start() -> io::Result<Arc<Self>> {
        let mut children = signal(SignalKind::child())?;
        let reaper = Arc::new(Self { expected: Mutex::default(), passes: watch::Sender::new(0) });
        let sweeping = Arc::clone(&reaper);
        crate::task::forever("reaper", async move {
            loop {
                sweeping.sweep();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Runs `start`, which answers the pid of a new child if it is to be expected.
    pub fn expecting<T>(
        &self,
        start: impl FnOnce() -> io::Result<(i32, T)>,
    ) -> io::Result<(oneshot::Receiver<Exit>, i32, T)> {
        let mut expected = self.lock();
        let (pid, value) = start()?;
        let (sender, receiver) = oneshot::channel();
        expected.insert(pid, sender);
        Ok((receiver, pid, value))
    }

    /// Changes whenever children were reaped.
    pub fn passes(&self) -> watch::Receiver<u64> {
        self.passes.subscribe()
    }

    fn sweep(&self) {
        let mut expected = self.lock();
        let mut reaped_any = false;
        // An error other than "no children" cannot be acted on: the next SIGCHLD sweeps again.
        while let Ok(Some(reaped)) = sys::reap_any() {
            reaped_any = true;
            if let Some(waiter) = expected.remove(&reaped.pid) {
                // A waiter that is gone does not want to know.
                let _gone = waiter.send(Exit { reaped, at: Instant::now() });
            }
        }
        drop(expected);
        if reaped_any {
            self.passes.send_modify(|passes| *passes += 1);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.expected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
