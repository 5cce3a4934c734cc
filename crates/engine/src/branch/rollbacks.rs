//! Going back, and taking that back.

use super::RollbackReport;
use crate::{
    Engine,
    accept::Asked,
    admission::RequestKind,
    ask::{RollbackAsk, Target},
    core::{Authority, Core},
    error,
    manager::VmHandle,
    saga::Input,
    tasks::TaskKind,
};
use offshoot_policy::Authorized;
use offshoot_types::{
    Command, ErrorCode, Failure, OperationId, OperationKind, RollbackTo, TransactionId, VmStateName,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

impl Engine {
    /// The VM continues from an earlier state ([`Command::Rollback`], [`Command::Undo`]). If that fails it runs on as
    /// it was.
    pub async fn rollback(&self, permit: Authorized<Command>) -> Result<RollbackReport, Failure> {
        self.core().manager.check_open()?;
        let (command, grant) = permit.into_parts();
        let owner = grant.actor().owner();
        let (vm, to) = match &command {
            Command::Undo { vm } => (vm, Target::Undo),
            Command::Rollback { vm, to: RollbackTo::Newest } => (vm, Target::Newest),
            Command::Rollback { vm, to: RollbackTo::LastGood } => (vm, Target::LastGood),
            Command::Rollback { vm, to: RollbackTo::Snapshot(snapshot) } => {
                (vm, Target::Snapshot(self.core().find_snapshot(snapshot, &owner).await?.id))
            }
            other => return Err(error::wrong_permit("rollback", other.action())),
        };
        let handle = self.core().manager.find(vm, &owner)?;
        let (authority, core, within) =
            (Authority::Granted(Box::new(grant)), self.core().clone(), self.transaction());
        self.core()
            .detached(TaskKind::Acceptor, async move {
                core.roll_back(&handle, authority, Some(command), within, to).await
            })
            .await
    }
}

impl Engine {
    /// Operations of the VM named ([`Command::Inspect`]) that its present state does not hold, each with the one that
    /// took it back.
    pub async fn undone(
        &self,
        permit: Authorized<Command>,
    ) -> Result<BTreeMap<OperationId, OperationId>, Failure> {
        let vm = match permit.get() {
            Command::Inspect { vm: Some(vm) } => {
                self.core().manager.find(vm, &permit.grant().actor().owner())?.id
            }
            other => return Err(error::wrong_permit("undone", other.action())),
        };
        Ok(self.core().store.read(move |view| view.undone(vm)).await?)
    }
}

impl Core {
    /// Has a VM's driver take it back, as `command` asks or, without one, as was promised to whoever owns the VM; and starts it if it has a memory to continue from.
    pub async fn roll_back(
        &self,
        handle: &VmHandle,
        authority: Authority,
        command: Option<Command>,
        within: Option<TransactionId>,
        to: Target,
    ) -> Result<RollbackReport, Failure> {
        let ask = Arc::new(RollbackAsk::new(to, command.is_none()));
        let reason = match to {
            Target::Newest => "back to the newest snapshot".into(),
            Target::LastGood => "back to before the last failed exec".into(),
            Target::Undo => "taking back the last rollback, commit or race".into(),
            Target::Snapshot(id) => format!("back to snapshot {id}"),
        };
        let asked = Asked {
            kind: OperationKind::Rollback,
            request: RequestKind::Rollback,
            authority: authority.clone(),
            command: command.clone(),
            within,
            grace: Duration::ZERO,
            key: None,
            input: Input::Rollback(ask.clone()),
            reason,
        };
        let operation = self.change_and_wait(handle, asked).await?;
        let went = ask.went().ok_or_else(|| {
            Failure::new(ErrorCode::Internal, "a rollback has ended that nobody knows the end of")
        })?;
        let mut report = RollbackReport {
            operation: operation.id,
            vm: handle.id,
            to: went.to,
            undo: went.undo,
            generation: went.generation,
            undone: went.undone,
            attestations: went.attestations,
            warning: went.warning,
        };
        if handle.view.borrow().state.name() == VmStateName::Suspended {
            self.start(handle, authority, command, within).await?;
            let view = handle.view.borrow();
            report.generation = view.generation;
            report.attestations.clone_from(&view.attestations);
        }
        Ok(report)
    }

    /// Starts a VM as part of something else that was permitted.
    async fn start(
        &self,
        handle: &VmHandle,
        authority: Authority,
        command: Option<Command>,
        within: Option<TransactionId>,
    ) -> Result<(), Failure> {
        let asked = Asked {
            kind: OperationKind::Start,
            request: RequestKind::Start,
            authority,
            command,
            within,
            grace: Duration::ZERO,
            key: None,
            input: Input::None,
            reason: "it continues from the snapshot it was taken back to".into(),
        };
        self.change_and_wait(handle, asked).await.map(drop)
    }
}
