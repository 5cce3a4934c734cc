//! Keeping a VM's state, and what is kept: list, show, remove, verify.

use super::{SnapshotView, Verification};
use crate::{
    Engine,
    accept::Asked,
    admission::RequestKind,
    ask::{SnapshotAsk, Taken},
    core::{Authority, Core},
    error,
    manager::VmHandle,
    saga::Input,
    tasks::TaskKind,
};
use offshoot_policy::Authorized;
use offshoot_store::{SnapshotRecord, VmRecord};
use offshoot_types::{
    Command, ErrorCode, Failure, OperationId, OperationKind, OperationOutcome, Owner, SnapshotId,
    SnapshotOrigin, SnapshotRef, TransactionId, VmId,
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

impl Engine {
    /// Keeps a VM's present state ([`Command::Snapshot`]). Returns once it is durable.
    pub async fn snapshot(&self, permit: Authorized<Command>) -> Result<SnapshotView, Failure> {
        self.core().manager.check_open()?;
        let (command, grant) = permit.into_parts();
        let Command::Snapshot { vm, name, kind, note } = &command else {
            return Err(error::wrong_permit("snapshot", command.action()));
        };
        let handle = self.core().manager.find(vm, &grant.actor().owner())?;
        let ask = SnapshotAsk::new(name.clone(), *kind, SnapshotOrigin::Manual, note.clone(), false);
        let (authority, core, within) =
            (Authority::Granted(Box::new(grant)), self.core().clone(), self.transaction());
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let (operation, taken) =
                    core.take_snapshot(&handle, authority, Some(command), within, ask).await?;
                let (snapshot, vm) = core.snapshot_record(taken.snapshot).await?;
                Ok(view(&snapshot, vm.as_ref(), taken.paused, Some(operation)))
            })
            .await
    }

    /// Snapshots of the VM named, or of all ([`Command::Inspect`]), parents before children.
    pub async fn snapshots(&self, permit: Authorized<Command>) -> Result<Vec<SnapshotView>, Failure> {
        let sees = self.core().keys.sees(permit.grant().actor());
        let owner = permit.grant().actor().owner();
        let vm = match permit.get() {
            Command::Inspect { vm: None } => None,
            Command::Inspect { vm: Some(vm) } => Some(self.core().manager.find(vm, &owner)?.id),
            other => return Err(error::wrong_permit("snapshots", other.action())),
        };
        let (snapshots, vms) = self
            .core()
            .store
            .read(move |view| {
                let snapshots = view.snapshots(vm)?;
                let mut vms: HashMap<VmId, VmRecord> = HashMap::new();
                for id in snapshots.iter().map(|snapshot| snapshot.vm).collect::<HashSet<_>>() {
                    vms.extend(view.vm(id)?.map(|vm| (id, vm)));
                }
                Ok((snapshots, vms))
            })
            .await?;
        let own = snapshots.iter().filter(|snapshot| snapshot.owner == owner);
        let own = own.filter(|snapshot| vms.get(&snapshot.vm).is_none_or(|vm| sees.name(&vm.name)));
        Ok(own.map(|snapshot| view(snapshot, vms.get(&snapshot.vm), None, None)).collect())
    }

    /// One snapshot ([`Command::InspectSnapshot`]).
    pub async fn snapshot_view(&self, permit: Authorized<Command>) -> Result<SnapshotView, Failure> {
        let snapshot = match permit.get() {
            Command::InspectSnapshot { snapshot } => snapshot.clone(),
            other => return Err(error::wrong_permit("snapshot_view", other.action())),
        };
        let found = self.core().find_snapshot(&snapshot, &permit.grant().actor().owner()).await?;
        let vm = self.core().store.vm(found.vm).await?;
        Ok(view(&found, vm.as_ref(), None, None))
    }

    /// Removes a snapshot nobody needs or, to prune, one that others differ from, which are merged with it first
    /// ([`Command::RemoveSnapshot`]). Returns those removed.
    pub async fn remove_snapshot(&self, permit: Authorized<Command>) -> Result<Vec<SnapshotId>, Failure> {
        self.core().manager.check_open()?;
        let (command, grant) = permit.into_parts();
        let Command::RemoveSnapshot { snapshot, prune } = command else {
            return Err(error::wrong_permit("remove_snapshot", command.action()));
        };
        let core = self.core().clone();
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let found = core.find_snapshot(&snapshot, &grant.actor().owner()).await?;
                let actor = grant.actor().clone();
                let authority = Authority::Granted(Box::new(grant));
                let kind = OperationKind::RemoveSnapshot;
                // An operation is of a VM that exists.
                let vm = core.manager.get(found.vm).map(|handle| (handle.id, handle.name));
                let vm = vm.as_ref().map(|(id, name)| (*id, name));
                let reason = format!("removing snapshot {} was asked for", found.id);
                let new = core.new_operation(&authority, kind, vm, &found.owner, reason);
                let ticket = core.opened(core.store.begin_operation(new).await?.into_operation());
                let removed = match prune {
                    true => core.prune_snapshot(found.id, ticket.id(), &actor).await.map(drop),
                    false => core.remove_snapshot(found.id, false, ticket.id(), &actor).await,
                };
                let outcome = match &removed {
                    Ok(()) => OperationOutcome::Done,
                    Err(failure) => OperationOutcome::Failed { failure: failure.clone() },
                };
                core.close(ticket, outcome).await;
                core.collect_layers().await;
                core.snapshots.grown.add(found.vm);
                removed.map(|()| vec![found.id])
            })
            .await
    }

    /// Reads every byte of a snapshot and compares ([`Command::VerifySnapshot`]).
    pub async fn verify_snapshot(&self, permit: Authorized<Command>) -> Result<Verification, Failure> {
        let snapshot = match permit.get() {
            Command::VerifySnapshot { snapshot } => snapshot.clone(),
            other => return Err(error::wrong_permit("verify_snapshot", other.action())),
        };
        let found = self.core().find_snapshot(&snapshot, &permit.grant().actor().owner()).await?;
        self.core().verify(&found).await
    }
}

impl Core {
    /// Has a VM's driver take a snapshot. Returns when it is durable or, if the ask says so, usable by this daemon: then
    /// the caller has it written, with [`Core::persist_later`].
    pub async fn take_snapshot(
        &self,
        handle: &VmHandle,
        authority: Authority,
        command: Option<Command>,
        within: Option<TransactionId>,
        ask: SnapshotAsk,
    ) -> Result<(OperationId, Taken), Failure> {
        let ask = Arc::new(ask);
        let reason = match &ask.name {
            Some(name) => format!("{} snapshot `{name}`", ask.origin),
            None => format!("{} snapshot", ask.origin),
        };
        let asked = Asked {
            kind: OperationKind::Snapshot,
            request: RequestKind::Snapshot,
            authority,
            command,
            within,
            grace: Duration::ZERO,
            key: None,
            input: Input::Snapshot(ask.clone()),
            reason,
        };
        let operation = self.change_and_wait(handle, asked).await?;
        let taken = ask.taken().ok_or_else(|| {
            Failure::new(ErrorCode::Internal, "a snapshot was taken that nobody knows the id of")
        })?;
        Ok((operation.id, taken))
    }

    /// A snapshot as a caller of `owner` names it.
    pub async fn find_snapshot(
        &self,
        snapshot: &SnapshotRef,
        owner: &Owner,
    ) -> Result<SnapshotRecord, Failure> {
        let (wanted, whose) = (snapshot.clone(), owner.clone());
        let found = self.store.read(move |view| view.find_snapshot(&wanted, &whose)).await?;
        found.filter(|found| found.owner == *owner).ok_or_else(|| {
            Failure::new(ErrorCode::NotFound, format!("there is no snapshot `{snapshot}`"))
                .hint("`offshoot snapshot list` shows the snapshots there are")
        })
    }

    pub async fn snapshot_record(
        &self,
        id: SnapshotId,
    ) -> Result<(SnapshotRecord, Option<VmRecord>), Failure> {
        let read = self.store.read(move |view| {
            let snapshot = view.snapshot(id)?;
            let vm = match &snapshot {
                Some(snapshot) => view.vm(snapshot.vm)?,
                None => None,
            };
            Ok((snapshot, vm))
        });
        let (snapshot, vm) = read.await?;
        Ok((snapshot.ok_or_else(|| crate::snapshots::not_found(id))?, vm))
    }
}

pub(super) fn view(
    snapshot: &SnapshotRecord,
    vm: Option<&VmRecord>,
    paused: Option<Duration>,
    operation: Option<OperationId>,
) -> SnapshotView {
    SnapshotView {
        id: snapshot.id,
        vm: snapshot.vm,
        vm_name: snapshot.vm_name.clone(),
        name: snapshot.name.clone(),
        origin: snapshot.origin,
        kind: snapshot.kind,
        state: snapshot.state,
        parent: snapshot.parent,
        note: snapshot.note.clone(),
        size: snapshot.size,
        created: snapshot.created,
        quiesced: snapshot.quiesced,
        memory: vm.map_or(offshoot_types::MemMib::MIN, |vm| vm.spec.memory),
        current: vm.is_some_and(|vm| vm.position == Some(snapshot.id)),
        paused,
        operation: operation.or(Some(snapshot.operation)),
    }
}
