//! A span of changes to one VM that is kept or undone as a whole.
//!
//! ```text
//!          begin: snapshot             commit: kept, `undo` goes back to the snapshot
//!   VM ------o------[ exec, files, ... ]------o------------------------------>
//!            ^            |                   '-- rollback: asked for, a failure, its deadline, a denial in it, a crash
//!            '------------+----------------------- of the guest, the death of this daemon
//! ```
//! While one is open it owns its VM: other calls that change the VM are refused with its id and deadline, unless they
//! are made [within](crate::Engine::within) it; reads pass. Savepoints nest: one begins in the innermost, and what ends
//! a transaction ends all within it. A VM in a transaction is not destroyed but by a call within it, or once its
//! rollback has failed: then a destroy is the exit.

mod begin;
mod end;
mod openings;
mod owner;
mod policy;
mod recover;
pub(super) mod state;
mod watch;

pub(super) use begin::{Beginning, LONGEST};
pub(crate) use openings::{Opening, Openings};
pub(crate) use owner::{Access, Claimant, Ownership, Purpose};

use crate::{Engine, core::Authority, error, manager::VmHandle, tasks::TaskKind};
use jiff::Timestamp;
use offshoot_policy::{Authorized, Denial};
use offshoot_store::TransactionRecord;
use offshoot_types::{
    Command, Failure, Owner, RollbackCause, SnapshotId, TransactionEnd, TransactionId, TransactionState,
    VmId, VmName,
};
use std::collections::HashMap;

/// One transaction as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionView {
    pub id: TransactionId,
    pub vm: VmId,
    pub vm_name: VmName,
    /// The transaction this is a savepoint of.
    pub parent: Option<TransactionId>,
    pub state: TransactionState,
    /// What a rollback goes back to.
    pub snapshot: SnapshotId,
    /// When it is rolled back by itself.
    pub deadline: Timestamp,
    pub begun: Timestamp,
    pub ended: Option<Timestamp>,
    pub end: Option<TransactionEnd>,
}

impl TransactionView {
    fn of(record: TransactionRecord, vm_name: VmName) -> Self {
        let TransactionRecord { id, vm, parent, state, snapshot, deadline, begun, ended, end, .. } = record;
        Self { id, vm, vm_name, parent, state, snapshot, deadline, begun, ended, end }
    }
}

impl Engine {
    /// Opens a transaction, or a savepoint in the one that is open ([`Command::Begin`]). Returns once its snapshot has
    /// been taken: nothing that is done in it is older.
    pub async fn begin_transaction(&self, permit: Authorized<Command>) -> Result<TransactionView, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Begin { vm, parent, deadline } = &command else {
            return Err(error::wrong_permit("begin_transaction", command.action()));
        };
        let handle = self.core().manager.find(vm, &grant.actor().owner())?;
        // Said from within a transaction, it is a savepoint of that one.
        let parent = parent.or(self.transaction());
        let (deadline, reason) = (*deadline, "a transaction was begun".into());
        let beginning =
            Beginning { authority: Authority::Granted(Box::new(grant)), parent, deadline, reason };
        let core = self.core().clone();
        self.core()
            .detached(TaskKind::Acceptor, async move {
                core.open_transaction(&handle, beginning).await.map(|(transaction, _)| transaction)
            })
            .await
    }

    /// Keeps what was done in it and in its savepoints ([`Command::Commit`]); `undo` can still take it back.
    pub async fn commit_transaction(&self, permit: Authorized<Command>) -> Result<TransactionView, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Commit { vm, transaction } = &command else {
            return Err(error::wrong_permit("commit_transaction", command.action()));
        };
        let (handle, id) = (self.core().manager.find(vm, &grant.actor().owner())?, *transaction);
        let core = self.core().clone();
        self.core()
            .detached(TaskKind::Acceptor, async move { core.commit_transaction(&handle, id).await })
            .await
    }

    /// Takes back what was done in it and in its savepoints ([`Command::RollbackTransaction`]). If that fails the VM
    /// stays as it is and owned, and it is tried again.
    pub async fn rollback_transaction(
        &self,
        permit: Authorized<Command>,
    ) -> Result<TransactionView, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::RollbackTransaction { vm, transaction } = &command else {
            return Err(error::wrong_permit("rollback_transaction", command.action()));
        };
        let (handle, id) = (self.core().manager.find(vm, &grant.actor().owner())?, *transaction);
        let (core, authority) = (self.core().clone(), Authority::Granted(Box::new(grant)));
        self.core()
            .detached(TaskKind::Acceptor, async move {
                core.undo_transaction(&handle, id, RollbackCause::Asked, authority).await
            })
            .await
    }

    /// Open transactions of the VM named, or of all ([`Command::Inspect`]), outermost first.
    pub async fn transactions(&self, permit: Authorized<Command>) -> Result<Vec<TransactionView>, Failure> {
        let owner = permit.grant().actor().owner();
        let core = self.core();
        let one = match permit.get() {
            Command::Inspect { vm: Some(vm) } => Some(core.manager.find(vm, &owner)?),
            Command::Inspect { vm: None } => None,
            other => return Err(error::wrong_permit("transactions", other.action())),
        };
        let vm = one.as_ref().map(|handle| handle.id);
        let records = core
            .store
            .read(move |view| match vm {
                Some(vm) => view.open_transactions(vm),
                None => view.all_open_transactions(),
            })
            .await?;
        let names = self.names_of(&owner);
        let sees = core.keys.sees(permit.grant().actor());
        let own = records.into_iter().filter(|record| record.owner == owner);
        let views = own.filter_map(|record| {
            let name = names.get(&record.vm).filter(|name| sees.name(name))?.clone();
            Some(TransactionView::of(record, name))
        });
        Ok(views.collect())
    }

    /// A VM destroyed in this moment is not among them, and its transactions are over.
    fn names_of(&self, owner: &Owner) -> HashMap<VmId, VmName> {
        let all = self.core().manager.all().into_iter().filter(|handle| handle.owner == *owner);
        all.map(|handle| (handle.id, handle.name)).collect()
    }

    /// A denial of something that was to be done in a transaction rolls that back: whoever acts in it may not go on as
    /// if it had been done. Only a denial of the one who began it counts, so that no stranger can undo another's work.
    pub(crate) async fn denied_within(&self, denial: &Denial) {
        let Some(id) = self.transaction() else { return };
        let core = self.core().clone();
        let owning = |handle: &VmHandle| {
            let levels = handle.shared.ownership.levels();
            levels.iter().any(|level| level.id == id && level.actor == denial.actor)
        };
        let Some(handle) = core.manager.all().into_iter().find(owning) else { return };
        let rolled_back = self
            .core()
            .detached(TaskKind::Acceptor, async move {
                core.undo_transaction(&handle, id, RollbackCause::Denied, Authority::Daemon).await
            })
            .await;
        // The denial is the caller's answer; a rollback that failed is tried again by whoever watches it.
        drop(rolled_back);
    }
}
