//! The first thing a driver does for a VM of the store: bring record and world together.
//!
//! ```text
//! what the record says          what is found             what becomes of it
//! Running, Paused               Running, Paused           adopted as found, undisturbed
//! Running, Paused               ended                     Stopped if the guest powered off, else Failed{exit}
//! Starting, Stopping            anything                  reclaimed, Stopped
//! Creating                      -                         Failed, to be destroyed
//! Stopped, Failed, Suspended    anything                  reclaimed: such a VM has no process
//! Suspending                    Running, Paused           goes on as it was, by undoing the suspend
//! any                           cannot be told            tried again, then Failed{why}
//!
//! ... and with a change that was cut off            OnCrash::Undo       OnCrash::Complete
//!   never begun                                     nothing to undo     carried out now
//!   begun                                           undone              completed
//!   at its end                                      completed           completed
//! ```
//! Such an operation ends as `Interrupted{undone}`: whoever was told "accepted" can look up what became of it.

use crate::{
    admission::{self, Admission},
    capture::snapshot_id,
    driver::{Driver, saga_of},
    exec,
    machine::{Found, StepDetail, Verdict},
    saga::{Input, OnCrash, Unwound, rollback, start},
    trace::TraceEvent,
};
use offshoot_store::Step;
use offshoot_types::{
    FailureReason, Operation, OperationKind, OperationOutcome, OperationState, SnapshotState, VmState,
    VmStateName,
};
use serde::Deserialize;
use std::time::Duration;

/// The provider has its own patience; once more, for what passes by itself.
const ADOPTION_ATTEMPTS: u32 = 2;
const ADOPTION_PAUSE: Duration = Duration::from_millis(100);
/// For a guest whose stop is completed: what the caller granted is not in the journal.
const RECOVERY_GRACE: Duration = Duration::from_secs(10);

/// An operation without an outcome, with its journal.
#[derive(Debug)]
pub(crate) struct Unfinished {
    pub operation: Operation,
    pub steps: Vec<Step>,
}

impl Unfinished {
    /// Whether it is a change that had begun to act on the VM. A create has by writing the row.
    fn acts(&self) -> bool {
        let begun = !self.steps.is_empty() || self.operation.kind == OperationKind::Create;
        saga_of(self.operation.kind).is_some() && begun
    }
}

impl Driver {
    /// Returns with the VM's state known; what remains to be completed or undone is handed back.
    pub async fn reconcile(&mut self, unfinished: Vec<Unfinished>) -> Vec<Unfinished> {
        let found = self.find_process().await;
        let mut reached = false;
        for one in &unfinished {
            reached |= self.reached(one).await;
        }
        let cut_off = unfinished.iter().find(|u| u.acts()).map(|u| u.operation.kind);
        let settled = match cut_off {
            // The recovery of these knows better what to make of a process or its absence.
            _ if reached => self.compare(found).await,
            Some(
                OperationKind::Create
                | OperationKind::Start
                | OperationKind::Stop
                | OperationKind::Restart
                | OperationKind::Destroy
                | OperationKind::Snapshot
                | OperationKind::Rollback
                | OperationKind::Rebase
                | OperationKind::Suspend,
            ) => Ok(()),
            _ => self.compare(found).await,
        };
        if let Err(failure) = settled {
            TraceEvent::AdoptionFailed { error: &failure.message }.emit(&self.machine.own_scope());
        }
        unfinished
    }

    async fn find_process(&mut self) -> Found {
        for _ in 1..ADOPTION_ATTEMPTS {
            match self.machine.find_process().await {
                Found::Unknown(failure) => {
                    TraceEvent::AdoptionFailed { error: &failure.message }.emit(&self.machine.own_scope());
                    tokio::time::sleep(ADOPTION_PAUSE).await;
                }
                found => return found,
            }
        }
        self.machine.find_process().await
    }

    async fn compare(&mut self, found: Found) -> Result<(), offshoot_types::Failure> {
        use VmStateName::{
            Creating, Destroyed, Failed, Migrating, Paused, Running, Starting, Stopped, Stopping, Suspended,
            Suspending,
        };
        let machine = &mut self.machine;
        match (machine.state(), found) {
            (Running, Found::Running) | (Paused, Found::Paused) => Ok(()),
            (Paused, Found::Running) => {
                machine.observe(VmState::Running, "found running when the daemon started").await
            }
            (Running, Found::Paused) => {
                machine.observe(VmState::Paused, "found paused when the daemon started").await
            }
            (Running | Paused, Found::Ended(exit)) => machine.observe_exit(exit).await,
            (Running | Paused, Found::NeverStarted | Found::Nothing) => machine.observe_exit(None).await,
            (Running | Paused | Suspending | Migrating | Starting | Stopping, Found::Unknown(failure)) => {
                let reason = FailureReason { reason: failure.message.clone(), step: "observed/adopt".into() };
                machine.observe(VmState::Failed(reason), failure.message).await
            }
            (Starting | Stopping, _) => {
                machine.reclaim_instances().await?;
                machine.observe(VmState::Stopped, "the daemon ended while its state was changing").await
            }
            (Creating, _) => {
                let reason = "the daemon ended while it was being created";
                let step = "observed/half-created".into();
                let failed = VmState::Failed(FailureReason { reason: reason.into(), step });
                machine.observe(failed, reason).await
            }
            (Suspending | Migrating, _) => {
                machine.reclaim_instances().await?;
                let reason = "the daemon ended while its state was changing";
                let step = "observed/cut-off".into();
                let failed = VmState::Failed(FailureReason { reason: reason.into(), step });
                machine.observe(failed, reason).await
            }
            (Stopped | Failed | Suspended | Destroyed, Found::Nothing) => Ok(()),
            (Stopped | Failed | Suspended | Destroyed, _) => machine.reclaim_instances().await,
        }
    }

    /// Completes or undoes what an earlier daemon left unfinished, and closes the operation.
    pub async fn recover(&mut self, unfinished: Unfinished) {
        let Unfinished { operation, steps } = unfinished;
        let kind = operation.kind;
        let step = steps.last().map_or("", |step| step.name.as_str());
        TraceEvent::RecoveryStarted { kind, step }.emit(&crate::core::scope(&operation));
        match kind {
            OperationKind::Exec => self.recover_exec(operation, steps).await,
            // Its VMs belong to it until all of them were renewed; they are destroyed with it.
            OperationKind::Fork | OperationKind::Race | OperationKind::Import => {
                let ticket = self.core.opened(operation);
                self.core.close(ticket, OperationOutcome::Interrupted { undone: true }).await;
            }
            OperationKind::Transaction => self.recover_transaction_operation(operation).await,
            OperationKind::RemoveSnapshot => {
                let undone = !self.core.has_removed(operation.id).await;
                let ticket = self.core.opened(operation);
                self.core.close(ticket, OperationOutcome::Interrupted { undone }).await;
            }
            OperationKind::Reconcile => {
                let ticket = self.core.opened(operation);
                self.core.close(ticket, OperationOutcome::Interrupted { undone: false }).await;
                // As long as it was unfinished what it made was needed.
                self.core.collect_layers().await;
            }
            OperationKind::WriteFiles | OperationKind::Context => {
                let ticket = self.core.opened(operation);
                self.core.close(ticket, OperationOutcome::Interrupted { undone: false }).await;
            }
            OperationKind::Create
            | OperationKind::Start
            | OperationKind::Stop
            | OperationKind::Restart
            | OperationKind::Pause
            | OperationKind::Resume
            | OperationKind::Snapshot
            | OperationKind::Rollback
            | OperationKind::Rebase
            | OperationKind::Suspend
            | OperationKind::Destroy => self.recover_change(operation, steps).await,
        }
    }

    async fn recover_exec(&mut self, operation: Operation, steps: Vec<Step>) {
        let detail = steps.into_iter().find(|step| step.name == exec::STEP).map(|step| step.detail);
        let link = self.machine.live.as_ref().map(|live| live.link.lent(&self.machine.shared.work));
        let handle = self.core.manager.get(self.machine.id());
        let ticket = self.core.opened(operation);
        match (link, handle, detail) {
            (Some(link), Some(handle), Some(detail)) => {
                self.core.take_up_exec(&handle, link, ticket, detail).await;
            }
            // Its VM has no process any more: nobody can tell how it ended.
            _ => drop(self.core.close(ticket, OperationOutcome::Interrupted { undone: false }).await),
        }
    }

    async fn recover_change(&mut self, operation: Operation, steps: Vec<Step>) {
        let Some(saga) = saga_of(operation.kind) else { return };
        let change = self.change(&operation, RECOVERY_GRACE, Input::None);
        if self.reached(&Unfinished { operation: operation.clone(), steps: steps.clone() }).await {
            let ticket = self.core.opened(operation);
            self.core.close(ticket, OperationOutcome::Interrupted { undone: false }).await;
            return;
        }
        let begun = !steps.is_empty() || matches!(operation.state, OperationState::Running { .. });
        let step = self.machine.resume_journal(operation.id, steps);
        let ticket = self.core.opened(operation);
        let completed = OperationOutcome::Interrupted { undone: false };
        match saga.on_crash {
            OnCrash::Undo => {
                let report = if begun || change.kind == OperationKind::Create {
                    saga.undo_from(step.as_deref(), &mut self.machine, &change).await
                } else {
                    offshoot_provider::UndoReport::default()
                };
                let undone = report.failed.is_empty();
                let verdict = if undone {
                    Verdict::AtRest
                } else {
                    Verdict::failed(&change, "undo", report.failed.join(", "))
                };
                if let Err(failure) = self.machine.settle(verdict, &change).await {
                    self.unsettled(&failure);
                }
                if matches!(
                    change.kind,
                    OperationKind::Snapshot
                        | OperationKind::Rollback
                        | OperationKind::Rebase
                        | OperationKind::Suspend
                ) {
                    // Its process may have ended meanwhile, or have been left in another state than the record's.
                    let found = self.find_process().await;
                    if let Err(failure) = self.compare(found).await {
                        TraceEvent::AdoptionFailed { error: &failure.message }
                            .emit(&self.machine.own_scope());
                    }
                }
                self.core.close(ticket, OperationOutcome::Interrupted { undone }).await;
                // As long as it was unfinished the layers it made were needed.
                self.core.collect_layers().await;
            }
            OnCrash::Complete => {
                let outcome = if begun {
                    self.run_saga(saga, Some(step), &change).await
                } else {
                    self.carry_out_late(saga, &change).await
                };
                self.conclude(ticket, outcome, &change, completed).await;
            }
        }
    }

    /// Whether the VM is already where this change was to bring it: only its outcome was not written.
    async fn reached(&self, unfinished: &Unfinished) -> bool {
        let state = self.machine.state();
        match unfinished.operation.kind {
            OperationKind::Create => state != VmStateName::Creating,
            OperationKind::Start | OperationKind::Restart => {
                let begun = unfinished.steps.iter().any(|step| step.name == start::FIRST);
                begun && state == VmStateName::Running
            }
            OperationKind::Suspend => state == VmStateName::Suspended,
            OperationKind::Rollback | OperationKind::Rebase => unfinished.steps.iter().any(|step| {
                let before = StepDetail::deserialize(&step.detail).ok();
                step.name == rollback::SWITCH
                    && before.is_some_and(|before| self.machine.row.generation > before.generation)
            }),
            // A durable one is complete; those that were not are gone by now. The VM need not stand on it: on a base that
            // it goes on over nothing does.
            OperationKind::Snapshot => {
                let id = snapshot_id(unfinished.operation.id);
                let found = self.core.store.read(move |view| view.snapshot(id)).await;
                matches!(found, Ok(Some(found)) if found.state == SnapshotState::Durable)
            }
            _ => false,
        }
    }

    /// A change that was accepted and never begun is judged like any other whose turn has come.
    async fn carry_out_late(
        &mut self,
        saga: &'static crate::saga::Saga,
        change: &crate::saga::Change,
    ) -> Result<(), Unwound> {
        let Some(request) = admission::request_of(change.kind) else { return Ok(()) };
        match admission::judge(self.machine.state(), request) {
            Admission::AlreadySatisfied => Ok(()),
            Admission::Run => self.run_saga(saga, None, change).await,
            Admission::Denied(reason) => Err(Unwound {
                step: "admission",
                failure: reason.failure(self.machine.name()),
                undo: offshoot_provider::UndoReport::default(),
            }),
        }
    }
}
