//! From a permitted command to a journaled operation in the hands of a driver.
//!
//! ```text
//! find VM / choose provider --> operation + audit (and the new row) on disk --> ticket --> driver's queue
//! ```
//! Everything from the journal on runs detached from the caller: a caller that goes away cuts nothing off.

use crate::{
    admission::RequestKind,
    core::{Authority, Core},
    driver::{Beginning, Driver, reason_for},
    error, layers,
    link::GuestLink,
    machine::Machine,
    manager::VmHandle,
    placement,
    request::{ChangeRequest, GuestRequest, Request},
    saga::Input,
    tasks::TaskKind,
    trace::Scope,
};
use offshoot_policy::Grant;
use offshoot_provider::Capabilities;
use offshoot_store::{Begun, Idempotency, NewVm, VmRecord};
use offshoot_types::{
    Command, ErrorCode, Failure, IsolationClass, LayerId, Operation, OperationId, OperationKind,
    OperationOutcome, OperationState, Owner, ProviderKind, TransactionId, VmId, VmSpec,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

/// An operation is opened by whoever wrote it into the record; one that is not by then was left by a daemon before.
const OPENING: Duration = Duration::from_secs(1);

/// One permitted change of an existing VM.
#[derive(Debug)]
pub(crate) struct Asked {
    pub kind: OperationKind,
    pub request: RequestKind,
    pub authority: Authority,
    pub command: Option<Command>,
    /// The transaction it is part of.
    pub within: Option<TransactionId>,
    pub grace: Duration,
    pub key: Option<Idempotency>,
    pub input: Input,
    pub reason: String,
}

impl Core {
    /// Journals a change and hands it to the VM's driver.
    pub async fn change(&self, handle: &VmHandle, asked: Asked) -> Result<Operation, Failure> {
        let Asked { kind, request, authority, command, within, grace, key, input, reason } = asked;
        let vm = Some((handle.id, &handle.name));
        let mut new = self.new_operation(&authority, kind, vm, &handle.owner, reason);
        new.idempotency = key;
        let operation = match self.store.begin_operation(new).await? {
            Begun::Repeated(operation) => return Ok(operation),
            Begun::New(operation) => operation,
        };
        let ticket = self.opened(operation.clone());
        let change = ChangeRequest { kind: request, ticket, authority, command, within, grace, input };
        match handle.send(Request::Change(Box::new(change))).await {
            Ok(()) => Ok(operation),
            // Its driver has just ended: nobody else will answer.
            Err(request) => match *request {
                Request::Change(change) => {
                    let failure = error::vm_gone(&handle.name);
                    Ok(self.close(change.ticket, OperationOutcome::Failed { failure }).await)
                }
                Request::UseGuest(_) | Request::Refresh(_) => Ok(operation),
            },
        }
    }

    /// Chooses where a new VM runs, journals it with its operation, and starts its driver.
    pub async fn create(
        self: &Arc<Self>,
        spec: VmSpec,
        grant: Grant,
        key: Option<Idempotency>,
    ) -> Result<Operation, Failure> {
        self.manager.check_open()?;
        let preferred = self.options.provider;
        let placed =
            placement::choose(&self.capabilities().await, preferred, spec.provider, spec.min_isolation)?;
        let (id, owner, actor) = (VmId::new(), grant.actor().owner(), grant.actor().clone());
        let authority = Authority::Granted(Box::new(grant));
        let made =
            self.create_as(id, spec.clone(), placed, authority.clone(), owner.clone(), key.clone()).await;
        match made {
            Err(refused) if !self.is_used_up(&actor).await && self.made_room(&refused, &owner).await => {
                self.create_as(id, spec, placed, authority, owner, key).await
            }
            made => made,
        }
    }

    /// Journals a new VM with its operation and starts its driver.
    pub async fn create_as(
        self: &Arc<Self>,
        id: VmId,
        spec: VmSpec,
        (provider, isolation): (ProviderKind, IsolationClass),
        authority: Authority,
        owner: Owner,
        key: Option<Idempotency>,
    ) -> Result<Operation, Failure> {
        let kind = OperationKind::Create;
        let mut new = self.new_operation(&authority, kind, Some((id, &spec.name)), &owner, reason_for(kind));
        new.idempotency = key;
        let node = self.options.node.clone();
        // The first layer of a VM's disk is called as the VM.
        let layer = LayerId::from_uuid(*id.as_uuid());
        let layer = layers::new_layer(layer, &owner, &node, &spec, None, new.id);
        let vm = NewVm { id, owner, node, spec, provider, isolation, memory: None, position: None };
        let begun = self
            .store
            .transaction(move |tx| {
                let begun = tx.create_vm(&new, &vm)?;
                if let Begun::New(_) = begun {
                    tx.add_layer(&layer)?;
                    tx.set_vm_layer(id, layer.id)?;
                }
                Ok((begun, tx.vm(id)?))
            })
            .await?;
        let (operation, row) = match begun {
            (Begun::Repeated(operation), _) => return Ok(operation),
            (Begun::New(operation), Some(row)) => (operation, row),
            (Begun::New(_), None) => {
                return Err(Failure::new(ErrorCode::Internal, "a VM that was just written cannot be read"));
            }
        };
        let ticket = self.opened(operation.clone());
        self.drive(row, Vec::new(), Beginning::Create(ticket));
        Ok(operation)
    }

    /// Starts the driver of a VM and makes the VM known.
    pub fn drive(
        self: &Arc<Self>,
        row: VmRecord,
        instances: Vec<offshoot_provider::InstanceRecord>,
        beginning: Beginning,
    ) {
        let (id, owner) = (row.id, row.owner.clone());
        let (machine, view) = Machine::new(self.clone(), row, instances);
        let (handle, inbox) = VmHandle::new(owner, view, machine.shared.clone());
        self.manager.insert(handle);
        self.count();
        let driver = Driver::new(machine, inbox);
        let scope = Scope { vm: Some(id), ..Scope::default() };
        self.tasks.spawn(TaskKind::Driver, scope, driver.run(beginning));
    }

    /// As [`change`](Self::change); returns with the outcome, a failed one as its failure.
    pub async fn change_and_wait(&self, handle: &VmHandle, asked: Asked) -> Result<Operation, Failure> {
        let operation = self.change(handle, asked).await?;
        let operation = self.wait(operation.id, None).await?;
        match &operation.state {
            OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => Err(failure.clone()),
            OperationState::Ended { .. } => Ok(operation),
            // The engine ends before it does.
            _ => Err(error::shutting_down()),
        }
    }

    /// Destroys a VM for the daemon itself; returns with the outcome.
    pub async fn destroy(&self, vm: VmId, reason: &str) -> Result<Operation, Failure> {
        let Some(handle) = self.manager.get(vm) else {
            return Err(Failure::new(ErrorCode::NotFound, "the VM has been destroyed already"));
        };
        let asked = Asked {
            kind: OperationKind::Destroy,
            request: RequestKind::Destroy,
            authority: Authority::Daemon,
            command: None,
            within: None,
            grace: Duration::ZERO,
            key: None,
            input: Input::None,
            reason: reason.into(),
        };
        let operation = self.change(&handle, asked).await?;
        self.wait(operation.id, None).await
    }

    /// The operation once it has ended, or as it is after `limit`.
    pub async fn wait(&self, id: OperationId, limit: Option<Duration>) -> Result<Operation, Failure> {
        let opening = limit.map_or(OPENING, |limit| limit.min(OPENING));
        let Some(mut operation) = self.under_way(id, Instant::now() + opening).await? else {
            return self.store.operation(id).await?.ok_or_else(|| error::operation_not_found(id));
        };
        let ended = operation.wait_for(|operation| matches!(operation.state, OperationState::Ended { .. }));
        let found = match limit {
            None => ended.await.ok().map(|operation| operation.clone()),
            Some(limit) => match tokio::time::timeout(limit, ended).await {
                Ok(found) => found.ok().map(|operation| operation.clone()),
                Err(_elapsed) => None,
            },
        };
        Ok(found.unwrap_or_else(|| operation.borrow().clone()))
    }

    /// `None` if nobody carries it out: the record has its end, if it has the operation at all.
    async fn under_way(
        &self,
        id: OperationId,
        until: Instant,
    ) -> Result<Option<watch::Receiver<Operation>>, Failure> {
        loop {
            // Others are opened all the time: that one was is not that this one will be.
            let late = Instant::now() >= until;
            let opened = self.operations.next_opened();
            if let Some(live) = self.operations.watch(id) {
                return Ok(Some(live));
            }
            match self.store.operation(id).await? {
                Some(operation) if !matches!(operation.state, OperationState::Ended { .. }) => {}
                _ => return Ok(None),
            }
            // It was written and will be opened, or was opened since it was looked for.
            if self.operations.watch(id).is_none() && (late || timeout_at(until, opened).await.is_err()) {
                return Ok(None);
            }
        }
    }

    /// Admission to a running guest by its VM's driver.
    pub async fn borrow_guest(
        &self,
        handle: &VmHandle,
        authority: Authority,
        command: Option<Command>,
        within: Option<TransactionId>,
    ) -> Result<GuestLink, Failure> {
        self.manager.check_open()?;
        let (reply, answer) = oneshot::channel();
        let request = Request::UseGuest(GuestRequest { authority, command, within, reply });
        handle.send(request).await.map_err(|_| error::vm_gone(&handle.name))?;
        answer.await.unwrap_or_else(|_| Err(error::shutting_down()))
    }

    /// What every provider proved on this host.
    pub async fn capabilities(&self) -> Vec<Capabilities> {
        let probes = self.options.providers.iter().map(|provider| provider.capabilities());
        futures::future::join_all(probes).await
    }
}
