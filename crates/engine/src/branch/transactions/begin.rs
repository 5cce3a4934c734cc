//! How a transaction begins: whose the VM is comes first, then the snapshot, then what is done in it.
//!
//! ```text
//! claim (others are refused) --> nothing half begun --> operation on disk --> snapshot --> row --> open
//!    | any failure, or a caller that is cut off: the VM is given back, nothing was done in it
//! ```

use super::{
    Claimant, Purpose, TransactionView,
    state::{self, Keeping},
    watch::Watch,
};
use crate::{
    core::{Authority, Core},
    error,
    manager::VmHandle,
    tasks::TaskKind,
};
use offshoot_store::NewTransaction;
use offshoot_types::{ErrorCode, Failure, OperationKind, OperationOutcome, TransactionId};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long what was accepted before may take to begin in the guest.
const SETTLE: Duration = Duration::from_secs(5);
/// The longest a transaction may stay open: its snapshot and its VM are kept for it.
pub(in crate::branch) const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What is to be begun.
#[derive(Debug)]
pub(in crate::branch) struct Beginning {
    pub authority: Authority,
    /// The innermost open transaction, for a savepoint in it.
    pub parent: Option<TransactionId>,
    pub deadline: Duration,
    pub reason: String,
}

impl Core {
    /// Opens a transaction. Once this returns its snapshot is on disk, and so is the transaction: whatever happens to this
    /// daemon from now on, the next one can roll it back. The token is cancelled once it has ended.
    pub(in crate::branch) async fn open_transaction(
        self: &Arc<Self>,
        handle: &VmHandle,
        beginning: Beginning,
    ) -> Result<(TransactionView, CancellationToken), Failure> {
        let Beginning { authority, parent, deadline, reason } = beginning;
        self.manager.check_open()?;
        if deadline.is_zero() || deadline > LONGEST {
            let problem = format!("a transaction stays open for more than nothing and at most {LONGEST:?}");
            return Err(Failure::new(ErrorCode::InvalidArgument, problem));
        }
        let ownership = &handle.shared.ownership;
        let _turn = ownership.turn.lock().await;
        let until = Instant::now() + deadline;
        let limit = jiff::SignedDuration::try_from(deadline).unwrap_or(jiff::SignedDuration::MAX);
        // In whole microseconds, as it is recorded.
        let at = self.now().saturating_add(limit).unwrap_or(jiff::Timestamp::MAX).as_microsecond();
        let at = jiff::Timestamp::from_microsecond(at).unwrap_or(jiff::Timestamp::MAX);
        let (id, actor) = (TransactionId::new(), authority.actor());
        let claimant = Claimant { id, parent, purpose: Purpose::Transaction, actor, deadline: at };
        let claim = ownership.claim(claimant).map_err(|refused| refused.failure(&handle.name))?;
        self.settled(handle).await?;
        let vm = Some((handle.id, &handle.name));
        let new = self.new_operation(&authority, OperationKind::Transaction, vm, &handle.owner, reason);
        let ticket = self.opened(self.store.begin_operation(new).await?.into_operation());
        let begun = async {
            let snapshot = state::keep(self, handle, authority, Some(id), Keeping::BEGINNING).await?;
            let new = NewTransaction {
                id,
                owner: handle.owner.clone(),
                node: self.options.node.clone(),
                vm: handle.id,
                parent,
                operation: ticket.id(),
                snapshot,
                deadline: at,
            };
            let record = self.store.transaction(move |tx| {
                tx.begin_transaction(&new)?;
                tx.transaction(new.id)
            });
            let record = record.await?.ok_or_else(|| {
                Failure::new(ErrorCode::Internal, "a transaction that was just written cannot be read")
            })?;
            Ok::<_, Failure>((snapshot, record))
        };
        match begun.await {
            Ok((snapshot, record)) => {
                let scope = crate::core::scope(ticket.operation());
                let watched = match claim.open(Some(snapshot), Some(ticket)) {
                    Ok(watched) => watched,
                    Err(ticket) => {
                        let failure = error::vm_gone(&handle.name);
                        self.close_all(
                            ticket.map(|ticket| *ticket),
                            &OperationOutcome::Failed { failure: failure.clone() },
                        )
                        .await;
                        return Err(failure);
                    }
                };
                let ended = watched.ended.clone();
                let watch = Watch { core: self.clone(), handle: handle.clone(), id, until, watched };
                self.tasks.spawn(TaskKind::Transaction, scope, watch.run());
                Ok((TransactionView::of(record, handle.name.clone()), ended))
            }
            Err(failure) => {
                drop(claim);
                self.close(ticket, OperationOutcome::Failed { failure: failure.clone() }).await;
                Err(failure)
            }
        }
    }

    /// Waits until everything that was accepted before has begun in the guest or never will.
    pub(in crate::branch) async fn settled(&self, handle: &VmHandle) -> Result<(), Failure> {
        tokio::time::timeout(SETTLE, handle.shared.openings.settled()).await.map_err(|_elapsed| {
            let message =
                format!("something in VM `{}` was accepted and has not begun after {SETTLE:?}", handle.name);
            Failure::new(ErrorCode::Busy, message).hint("try again once it has begun or failed")
        })
    }
}
