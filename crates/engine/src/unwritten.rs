//! Outcomes that the record does not have because it could not be written to, a full disk mostly. Whoever waited was told
//! that; the record gets the outcome as soon as it can, so that nothing seems to run that has ended.

use crate::{core::Core, sync::lock};
use offshoot_store::StoreError;
use offshoot_types::{OperationId, OperationKind, OperationOutcome};
use std::{sync::Mutex, time::Duration};
use tokio::sync::Notify;

/// Between two attempts.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(crate) struct Unwritten {
    outcomes: Mutex<Vec<(OperationId, OperationOutcome)>>,
    more: Notify,
}

impl Unwritten {
    /// A change of a VM stays unfinished: what is left of it is for the next daemon to complete or undo.
    pub fn add(&self, kind: OperationKind, operation: OperationId, outcome: OperationOutcome) {
        use OperationKind::{Context, Exec, RemoveSnapshot, WriteFiles};
        if matches!(kind, Exec | Context | WriteFiles | RemoveSnapshot) {
            self.wait(operation, outcome);
        }
    }

    fn wait(&self, operation: OperationId, outcome: OperationOutcome) {
        lock(&self.outcomes).push((operation, outcome));
        self.more.notify_one();
    }

    /// Returns when it is time to write what there is. Cancel-safe.
    pub async fn due(&self) {
        while lock(&self.outcomes).is_empty() {
            self.more.notified().await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

impl Core {
    pub async fn write_outcomes(&self) {
        let outcomes = std::mem::take(&mut *lock(&self.unwritten.outcomes));
        for (id, outcome) in outcomes {
            let written = self.store.end_operation(id, outcome.clone()).await;
            match written {
                // The last two: the record knows an end of it already, or nothing of it any more.
                Ok(()) | Err(StoreError::OperationEnded { .. } | StoreError::NotFound { .. }) => {}
                // The next daemon finds the operation unfinished and settles it.
                Err(StoreError::Closed) => return,
                Err(_still) => self.unwritten.wait(id, outcome),
            }
        }
    }
}
