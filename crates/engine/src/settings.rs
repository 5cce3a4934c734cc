//! How a VM behaves without being asked each time: when snapshots of it are taken, when it rests, when its time is up.

use crate::{
    Engine, branch::transactions::Access, error, manager::VmHandle, request::Request, tasks::TaskKind,
};
use jiff::Timestamp;
use offshoot_policy::{Authorized, Grant};
use offshoot_store::{AuditDecision, AuditEntry, StoreError, Tx};
use offshoot_types::{Command, Failure, Life, SnapshotPolicy};
use tokio::sync::oneshot;

impl Engine {
    /// Changes when snapshots of a VM are taken without being asked for ([`Command::SetPolicy`]), and returns how that
    /// is from now on. It holds for what begins from then on.
    pub async fn set_policy(&self, permit: Authorized<Command>) -> Result<SnapshotPolicy, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::SetPolicy { vm, policy } = &command else {
            return Err(error::wrong_permit("set_policy", command.action()));
        };
        let handle = self.core().manager.find(vm, &grant.actor().owner())?;
        let owned = handle.shared.ownership.admit(self.transaction(), Access::Change);
        owned.map_err(|refused| refused.failure(&handle.name))?;
        let (id, change) = (handle.id, *policy);
        let write = move |tx: &Tx<'_>| {
            let policy = tx.change_vm_policy(id, change)?;
            let SnapshotPolicy { auto, rollback_on_failure } = policy;
            Ok((policy, format!("snapshots: {auto}, rollback on failure: {rollback_on_failure}")))
        };
        self.set(handle, &grant, "set-policy", write).await
    }

    /// Changes when a VM rests by itself and how long it may run ([`Command::SetLife`]); a new limit of one that runs
    /// counts from now. Returns how that is from now on, and when its time is up. Passes also while a transaction owns the
    /// VM: it is no part of its state.
    pub async fn set_life(&self, permit: Authorized<Command>) -> Result<(Life, Option<Timestamp>), Failure> {
        let (command, grant) = permit.into_parts();
        let Command::SetLife { vm, life } = &command else {
            return Err(error::wrong_permit("set_life", command.action()));
        };
        let handle = self.core().manager.find(vm, &grant.actor().owner())?;
        let (id, change) = (handle.id, *life);
        let write = move |tx: &Tx<'_>| {
            let (life, deadline) = tx.change_vm_life(id, change)?;
            let Life { idle_suspend, wake, timeout, on_timeout } = life;
            let words = format!(
                "suspended when idle for {idle_suspend:?}, woken: {wake}, time {timeout:?}, then: {on_timeout}"
            );
            Ok(((life, deadline), words))
        };
        self.set(handle, &grant, "set-life", write).await
    }

    /// Changes what a VM is found by and what its processes find in their environment ([`Command::Describe`]); processes
    /// that run keep theirs. Passes also while a transaction owns the VM: it is no part of its state.
    pub async fn describe(&self, permit: Authorized<Command>) -> Result<(), Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Describe { vm, labels, env } = command else {
            return Err(error::wrong_permit("describe", command.action()));
        };
        let handle = self.core().manager.find(&vm, &grant.actor().owner())?;
        let id = handle.id;
        let write = move |tx: &Tx<'_>| {
            tx.describe_vm(id, labels.clone(), env.clone())?;
            // The values may be secrets.
            let names: Option<Vec<&String>> = env.as_ref().map(|env| env.keys().collect());
            Ok(((), format!("labels: {labels:?}, names in its environment: {names:?}")))
        };
        self.set(handle, &grant, "describe", write).await
    }

    /// Writes a setting, with the words of its audit, and has the VM's driver go by it before this returns.
    async fn set<T: Send + 'static>(
        &self,
        handle: VmHandle,
        grant: &Grant,
        action: &'static str,
        write: impl Fn(&Tx<'_>) -> Result<(T, String), StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let core = self.core().clone();
        core.manager.check_open()?;
        let entry = AuditEntry {
            actor: grant.actor().clone(),
            action: action.into(),
            target: handle.id.to_string(),
            decision: AuditDecision::Permit,
            rules: grant.rules().iter().map(ToString::to_string).collect(),
            revision: grant.revision().to_string(),
            detail: String::new(),
        };
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let name = handle.name.clone();
                let written = core.store.transaction(move |tx| {
                    let (set, words) = write(tx)?;
                    tx.audit_entry(&AuditEntry { detail: format!("`{name}`: {words}"), ..entry.clone() })?;
                    Ok(set)
                });
                let set = written.await?;
                let (done, read) = oneshot::channel();
                // A VM that was destroyed meanwhile has no settings any more.
                handle.send(Request::Refresh(done)).await.map_err(|_| error::vm_gone(&handle.name))?;
                read.await.map_err(|_| error::shutting_down())?;
                Ok(set)
            })
            .await
    }
}
