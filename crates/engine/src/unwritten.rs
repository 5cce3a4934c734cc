//! Outcomes that the record does not have because it could not be written to, a full disk mostly. Whoever waited was told
//! that; the record gets the outcome, and what belongs to it, as soon as it can, so that nothing seems to run that has
//! ended.

use crate::{core::Core, sync::lock};
use offshoot_store::{Store, StoreError, Tx};
use offshoot_types::OperationKind;
use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::Notify;

/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(1);

/// All that is to be in the record of how an operation ended.
pub(crate) type Write = Arc<dyn Fn(&Tx<'_>) -> Result<(), StoreError> + Send + Sync>;

pub(crate) async fn write_once(store: &Store, write: Write) -> Result<(), StoreError> {
    store.transaction(move |tx| write(tx)).await
}

#[derive(Default)]
pub(crate) struct Unwritten {
    writes: Mutex<Vec<Write>>,
    more: Notify,
}

impl fmt::Debug for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwritten").field("writes", &lock(&self.writes).len()).finish_non_exhaustive()
    }
}

impl Unwritten {
    /// A change of a VM stays unfinished: what is left of it is for the next daemon to complete or undo.
    pub fn add(&self, kind: OperationKind, write: Write) {
        use OperationKind::{Context, Exec, RemoveSnapshot, WriteFiles};
        if matches!(kind, Exec | Context | WriteFiles | RemoveSnapshot) {
            self.wait(write);
        }
    }

    fn wait(&self, write: Write) {
        lock(&self.writes).push(write);
        self.more.notify_one();
    }

    /// Returns when it is time to write what there is. Cancel-safe.
    pub async fn due(&self) {
        while lock(&self.writes).is_empty() {
            self.more.notified().await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Core {
    pub async fn write_outcomes(&self) {
        let writes = std::mem::take(&mut *lock(&self.unwritten.writes));
        for write in writes {
            match write_once(&self.store, write.clone()).await {
                Ok(()) => {}
                // The record knows an end of it already, or its VM is gone: the next start settles what is left.
                Err(StoreError::OperationEnded { .. } | StoreError::NotFound { .. }) => {}
                // The next daemon finds the operation unfinished and settles it.
                Err(StoreError::Closed) => return,
                Err(_still) => self.unwritten.wait(write),
            }
        }
    }
}
