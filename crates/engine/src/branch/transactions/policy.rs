//! What a VM's snapshot policy makes of one exec.
//!
//! ```text
//!                 before           after a failure      with rollback_on_failure
//! never           -                -                    as before-exec: what is asked for needs a snapshot
//! before-exec     snapshot         -                    the exec is a transaction
//! on-failure      -                snapshot             the exec is a transaction; its undo snapshot is what failed
//! before-risky    if it looks so   -                    if it looks so: the exec is a transaction
//! ```
//! Code in a live context is treated as an exec, but never rolled back by itself.
//!
//! A snapshot before is strictly before: if it cannot be taken the exec does not run. What a failure goes back to is the
//! snapshot that was taken for that very exec, so it is never the state that failed.

use super::state::{self, Keeping};
use crate::{
    ExecSession, ExecState, OnDrop,
    branch::try_exec::{Outlet, Undoable, inner},
    core::{Authority, Core},
    exec::exec_id,
    manager::VmHandle,
    session,
    tasks::TaskKind,
};
use offshoot_code::risk;
use offshoot_types::{
    AutoSnapshot, Command, ContextCode, ExecSpec, Failure, OperationId, SnapshotPolicy, TransactionId,
    TrySpec,
};
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    Plain,
    Before,
    AfterFailure,
    Undoable,
}

/// `risky` is asked only where it matters.
fn plan(policy: SnapshotPolicy, risky: impl FnOnce() -> bool) -> Plan {
    let SnapshotPolicy { auto, rollback_on_failure } = policy;
    match (auto, rollback_on_failure) {
        (AutoSnapshot::Never, false) => Plan::Plain,
        (AutoSnapshot::BeforeExec, false) => Plan::Before,
        (AutoSnapshot::OnFailure, false) => Plan::AfterFailure,
        (AutoSnapshot::BeforeRisky, _) if !risky() => Plan::Plain,
        (AutoSnapshot::BeforeRisky, false) => Plan::Before,
        (
            AutoSnapshot::Never
            | AutoSnapshot::BeforeExec
            | AutoSnapshot::OnFailure
            | AutoSnapshot::BeforeRisky,
            true,
        ) => Plan::Undoable,
    }
}

impl Core {
    /// Takes the snapshot a VM's policy wants before code in a live context. What fails there is not rolled back by
    /// itself: an error in an interpreter is often the next question, not the end.
    pub async fn keep_before_code(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: &Authority,
        code: &ContextCode,
        within: Option<TransactionId>,
    ) -> Result<(), Failure> {
        let policy = handle.view.borrow().policy;
        let risky = || risk::of_code(Some(code.language.unwrap_or_default().into()), &code.code).is_some();
        match plan(policy, risky) {
            Plan::Plain | Plan::AfterFailure => Ok(()),
            Plan::Before | Plan::Undoable => {
                state::keep(self, handle, authority.clone(), within, Keeping::BEFORE_EXEC).await.map(drop)
            }
        }
    }

    /// Runs a process as its VM's snapshot policy says.
    pub async fn exec_by_policy(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: Authority,
        command: Command,
        spec: ExecSpec,
        within: Option<TransactionId>,
    ) -> Result<ExecSession, Failure> {
        let policy = handle.view.borrow().policy;
        match plan(policy, || risk::of_exec(&spec.argv).is_some()) {
            Plan::Plain => self.exec(handle, authority, command, spec, within).await,
            Plan::Before => {
                state::keep(self, handle, authority.clone(), within, Keeping::BEFORE_EXEC).await?;
                self.exec(handle, authority, command, spec, within).await
            }
            Plan::AfterFailure => {
                let session = self.exec(handle, authority.clone(), command, spec, within).await?;
                let (core, handle, operation) = (self.clone(), handle.clone(), session.operation);
                let scope = crate::trace::Scope { vm: Some(handle.id), op: Some(operation), actor: None };
                self.tasks.spawn(TaskKind::Try, scope, async move {
                    core.keep_what_failed(&handle, authority, operation, within).await;
                });
                Ok(session)
            }
            Plan::Undoable => self.exec_undoable(handle, authority, spec, within).await,
        }
    }

    /// The exec is a transaction; to its caller it is an exec, whose last event comes once the VM is in order.
    async fn exec_undoable(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: Authority,
        exec: ExecSpec,
        within: Option<TransactionId>,
    ) -> Result<ExecSession, Failure> {
        let spec = TrySpec { exec, check: None, timeout: None };
        let run = Undoable::begin(self.clone(), handle.clone(), authority, spec, within).await?;
        let (input, inner) = inner();
        let (run, inner) = run.start_first(inner).await?;
        let (_, events, sink) = session::channels(OnDrop::Kill);
        let operation = inner.operation();
        let session = ExecSession::of(handle.id, exec_id(operation), operation, input, events);
        run.spawn(inner.into(), Outlet::Exec { events: sink.events, on_drop: sink.on_drop });
        Ok(session)
    }

    /// After an exec that failed: what it left, to look at.
    async fn keep_what_failed(
        self: &Arc<Self>,
        handle: &VmHandle,
        authority: Authority,
        operation: OperationId,
        within: Option<TransactionId>,
    ) {
        if self.wait(operation, None).await.is_err() {
            return;
        }
        let state = handle.shared.execs.get(exec_id(operation)).map(|(view, _)| view.state);
        let failed = match state {
            Some(ExecState::Ended(status)) => !status.success(),
            Some(ExecState::Failed(_)) => true,
            Some(ExecState::Running | ExecState::Interrupted) | None => false,
        };
        if failed {
            // Nobody waits for it: its own operation says whether it was taken.
            drop(state::keep(self, handle, authority, within, Keeping::AFTER_FAILURE).await);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_has_a_plan_and_a_rollback_always_has_a_snapshot_before() {
        let planned =
            |auto, rollback_on_failure, risky| plan(SnapshotPolicy { auto, rollback_on_failure }, || risky);
        for risky in [false, true] {
            assert_eq!(planned(AutoSnapshot::Never, false, risky), Plan::Plain);
            assert_eq!(planned(AutoSnapshot::BeforeExec, false, risky), Plan::Before);
            assert_eq!(planned(AutoSnapshot::OnFailure, false, risky), Plan::AfterFailure);
            for auto in [AutoSnapshot::Never, AutoSnapshot::BeforeExec, AutoSnapshot::OnFailure] {
                assert_eq!(planned(auto, true, risky), Plan::Undoable, "{auto:?}");
            }
        }
        assert_eq!(planned(AutoSnapshot::BeforeRisky, true, false), Plan::Plain);
        assert_eq!(planned(AutoSnapshot::BeforeRisky, false, true), Plan::Before);
        assert_eq!(planned(AutoSnapshot::BeforeRisky, true, true), Plan::Undoable);
    }
}
