//! What a starting daemon does with transactions that an earlier one left open: it rolls them back, in the VM's driver,
//! before that takes requests.

use super::{Claimant, Purpose, watch::Watch};
use crate::{
    ask::{RollbackAsk, Target},
    core::Authority,
    driver::Driver,
    saga::{Input, rollback::ROLLBACK},
    tasks::TaskKind,
    trace::{Scope, TraceEvent},
};
use offshoot_store::{StoreError, TransactionRecord};
use offshoot_types::{
    Actor, Failure, Operation, OperationKind, OperationOutcome, RollbackCause, TransactionEnd,
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

impl Driver {
    /// Rolls back what is open, all of it by going to the beginning of the outermost. If that fails the VM stays owned,
    /// and it is tried again.
    pub async fn recover_transactions(&mut self) {
        let vm = self.machine.id();
        let open = match self.core.store.read(move |view| view.open_transactions(vm)).await {
            Ok(open) => open,
            // The next start finds them again. Nothing is admitted that the store would not record either.
            Err(error) => return self.core.store_failed("read open transactions", &error),
        };
        let Some(outermost) = open.first() else { return };
        if let Err(failure) = self.roll_back_for_good(outermost).await {
            let error = &failure.message;
            TraceEvent::RollbackRetry { attempt: 0, error, next: Duration::ZERO }
                .emit(&self.machine.own_scope());
            self.adopt_transaction(outermost);
        }
    }

    async fn roll_back_for_good(&mut self, outermost: &TransactionRecord) -> Result<(), Failure> {
        let (id, snapshot) = (outermost.id, outermost.snapshot);
        let cause = RollbackCause::DaemonDied;
        let reason = format!("transaction {id} is rolled back: {cause}");
        let vm = Some((self.machine.id(), self.machine.name()));
        let owner = &self.machine.row.owner;
        let new = self.core.new_operation(&Authority::Daemon, OperationKind::Rollback, vm, owner, reason);
        let begun = self.core.store.transaction(move |tx| {
            tx.transaction_rolling_back(id)?;
            tx.begin_operation(&new)
        });
        let ticket = self.core.opened(begun.await?.into_operation());
        let ask = Arc::new(RollbackAsk::new(Target::Snapshot(snapshot), true));
        let change = self.change(ticket.operation(), Duration::ZERO, Input::Rollback(ask));
        let ended = self.run_saga(&ROLLBACK, None, &change).await;
        let failed = ended.as_ref().err().map(|unwound| unwound.failure.clone());
        self.conclude(ticket, ended, &change, OperationOutcome::Done).await;
        match failed {
            Some(failure) => Err(failure),
            None => {
                let end = TransactionEnd::RolledBack { cause };
                Ok(self.core.store.transaction(move |tx| tx.end_transaction(id, &end)).await?)
            }
        }
    }

    /// The VM belongs to it until its rollback has succeeded.
    fn adopt_transaction(&self, record: &TransactionRecord) {
        let claimant = Claimant {
            id: record.id,
            parent: None,
            purpose: Purpose::Transaction,
            actor: Actor::Daemon,
            deadline: record.deadline,
        };
        let Some(handle) = self.core.manager.get(self.machine.id()) else { return };
        let watched = handle.shared.ownership.adopt(claimant, record.snapshot);
        let watch = Watch { core: self.core.clone(), handle, id: record.id, until: Instant::now(), watched };
        let scope = Scope { vm: Some(self.machine.id()), op: None, actor: Some(Actor::Daemon) };
        self.core.tasks.spawn(TaskKind::Transaction, scope, watch.run());
    }

    /// Closes the operation of a transaction of an earlier daemon, when those that were open have been rolled back.
    pub async fn recover_transaction_operation(&mut self, operation: Operation) {
        let (vm, id) = (self.machine.id(), operation.id);
        let committed = self.core.store.read(move |view| {
            let all = view.transactions(vm)?;
            let of = all.iter().find(|transaction| transaction.operation == id);
            Ok::<_, StoreError>(of.is_some_and(|of| of.end == Some(TransactionEnd::Committed)))
        });
        let outcome = match committed.await {
            Ok(true) => OperationOutcome::Done,
            // Rolled back, or never begun.
            Ok(false) => OperationOutcome::Interrupted { undone: true },
            Err(error) => OperationOutcome::Failed { failure: error.into() },
        };
        let ticket = self.core.opened(operation);
        self.core.close(ticket, outcome).await;
    }
}
