//! How a transaction ends: kept, or undone with all within it.
//!
//! ```text
//! commit     ending --> rows and the snapshot's new origin in one write --> ended     (not written: it stays open)
//! rollback   ending --> RollingBack on disk --> the VM goes back --> rows --> ended
//!                            | anything fails: the VM is as it was and still owned; tried again until it succeeds,
//!                            |                 also by the next daemon
//! ```
//! Whoever asks second finds it ended already: only one end can win.

use super::{TransactionView, state};
use crate::{
    core::{Authority, Core},
    error,
    manager::VmHandle,
    operations::Ticket,
};
use offshoot_types::{
    ErrorCode, Failure, OperationOutcome, RollbackCause, SnapshotId, SnapshotOrigin, TransactionEnd,
    TransactionId,
};
use std::sync::Arc;

impl Core {
    /// Keeps what was done in a transaction and in all savepoints within it.
    pub(in crate::branch) async fn commit_transaction(
        self: &Arc<Self>,
        handle: &VmHandle,
        id: TransactionId,
    ) -> Result<TransactionView, Failure> {
        let ownership = &handle.shared.ownership;
        let _turn = ownership.turn.lock().await;
        let levels = match ownership.committing(id) {
            Ok(levels) => levels,
            Err(refused) => return Err(self.why_not(handle, id, refused.failure(&handle.name)).await),
        };
        let outermost = ownership.levels().first().map(|level| level.id) == Some(id);
        // What the VM was at its beginning can be gone back to by `undo`.
        let undo = levels.first().and_then(|level| level.snapshot).filter(|_| outermost);
        if let Err(failure) = self.write_end(id, TransactionEnd::Committed, undo).await {
            ownership.stays_open(id);
            return Err(failure);
        }
        self.close_all(ownership.ended(id), &OperationOutcome::Done).await;
        self.transaction_view(handle, id).await
    }

    /// Undoes what was done in a transaction and in all savepoints within it. If that fails the VM stays as it is and
    /// owned, and it is tried again.
    pub(in crate::branch) async fn undo_transaction(
        self: &Arc<Self>,
        handle: &VmHandle,
        id: TransactionId,
        cause: RollbackCause,
        authority: Authority,
    ) -> Result<TransactionView, Failure> {
        let ownership = &handle.shared.ownership;
        let _turn = ownership.turn.lock().await;
        let levels = match ownership.rolling_back(id) {
            Ok(levels) => levels,
            Err(refused) => return Err(self.why_not(handle, id, refused.failure(&handle.name)).await),
        };
        let snapshot = levels.first().and_then(|level| level.snapshot);
        match self.go_back(handle, id, snapshot, &cause, authority).await {
            Ok(()) => {
                self.close_all(ownership.ended(id), &outcome_of(&cause, handle)).await;
                self.transaction_view(handle, id).await
            }
            Err(failure) => {
                ownership.stays_rolling_back(id, cause);
                let name = &handle.name;
                let message =
                    format!("transaction {id} of VM `{name}` is not rolled back yet: {}", failure.message);
                Err(Failure { message, ..failure }
                    .hint("the VM is as it was and nobody can change it; the rollback is tried again"))
            }
        }
    }

    async fn go_back(
        self: &Arc<Self>,
        handle: &VmHandle,
        id: TransactionId,
        snapshot: Option<SnapshotId>,
        cause: &RollbackCause,
        authority: Authority,
    ) -> Result<(), Failure> {
        let Some(snapshot) = snapshot else {
            return Err(Failure::new(ErrorCode::Internal, "a transaction was opened without a snapshot"));
        };
        // From now on it can only be rolled back, whatever happens to this daemon.
        self.store.transaction(move |tx| tx.transaction_rolling_back(id)).await?;
        state::go_back(self, handle, authority, id, snapshot).await?;
        self.write_end(id, TransactionEnd::RolledBack { cause: cause.clone() }, None).await
    }

    /// The end of a transaction and of all within it, in one write.
    async fn write_end(
        &self,
        id: TransactionId,
        end: TransactionEnd,
        undo: Option<SnapshotId>,
    ) -> Result<(), Failure> {
        let written = self.store.transaction(move |tx| {
            tx.end_transaction(id, &end)?;
            match undo {
                Some(snapshot) => tx.set_snapshot_origin(snapshot, SnapshotOrigin::Undo),
                None => Ok(()),
            }
        });
        Ok(written.await?)
    }

    pub(super) async fn close_all(
        &self,
        tickets: impl IntoIterator<Item = Ticket>,
        outcome: &OperationOutcome,
    ) {
        for ticket in tickets {
            self.close(ticket, outcome.clone()).await;
        }
    }

    /// A transaction that has ended says how.
    async fn why_not(&self, handle: &VmHandle, id: TransactionId, refused: Failure) -> Failure {
        match self.store.read(move |view| view.transaction(id)).await {
            Ok(Some(record)) if record.vm == handle.id => match record.end {
                Some(TransactionEnd::Committed) => {
                    Failure { message: format!("transaction {id} has been committed already"), ..refused }
                        .hint(format!("`offshoot undo {}` goes back to where it began", handle.name))
                }
                Some(TransactionEnd::RolledBack { cause }) => {
                    Failure { message: format!("transaction {id} has been rolled back: {cause}"), ..refused }
                        .hint("nothing of it is left; begin a new one")
                }
                None => refused,
            },
            Ok(_) => error::transaction_not_found(&handle.name, id),
            Err(error) => error.into(),
        }
    }

    pub(in crate::branch) async fn transaction_view(
        &self,
        handle: &VmHandle,
        id: TransactionId,
    ) -> Result<TransactionView, Failure> {
        let record = self.store.read(move |view| view.transaction(id)).await?;
        let record = record.ok_or_else(|| error::transaction_not_found(&handle.name, id))?;
        Ok(TransactionView::of(record, handle.name.clone()))
    }
}

/// What the transaction's operation came to: one that did what it is for is done.
fn outcome_of(cause: &RollbackCause, handle: &VmHandle) -> OperationOutcome {
    let code = match cause {
        RollbackCause::Asked | RollbackCause::Failed { .. } | RollbackCause::CheckFailed { .. } => {
            return OperationOutcome::Done;
        }
        RollbackCause::DaemonDied => return OperationOutcome::Interrupted { undone: true },
        RollbackCause::Deadline => ErrorCode::Timeout,
        RollbackCause::Denied => ErrorCode::Denied,
        RollbackCause::GuestCrashed => ErrorCode::Guest,
        RollbackCause::CallerLeft => ErrorCode::Interrupted,
    };
    let message = format!("the transaction on VM `{}` was rolled back: {cause}", handle.name);
    OperationOutcome::Failed { failure: Failure::new(code, message) }
}
