//! New VMs that continue from a snapshot, or from a VM as it is now.
//!
//! ```text
//! source (a snapshot, or one taken now)
//!   --> files --> one transaction: N rows, layers   (each belongs to the request until all are ready)
//!   --> N starts at once: restore, thaw under a new identity
//!   --> all ready: one transaction keeps them all, and ends the operation
//!   --> one failed: all are destroyed
//! ```
//! A daemon that dies on the way leaves VMs that belong to a request: its next start destroys them.

use super::{ForkReport, ForkedVm};
use crate::{
    Engine,
    accept::Asked,
    admission::RequestKind,
    ask::{ForkAsk, SnapshotAsk},
    core::{Authority, Core},
    driver::Beginning,
    error, layers,
    manager::VmHandle,
    operations::Ticket,
    request::Request,
    saga::{Input, create, thaw::Identity},
    snapshots::Source,
    state_dir::Layout,
    tasks::TaskKind,
    trace::{Scope, TraceEvent},
};
use offshoot_policy::{Authorized, Grant};
use offshoot_provider::Durability;
use offshoot_store::{Move, NewVm, StoreError, Tx, VmRecord};
use offshoot_types::{
    Actor, Command, Environment, ErrorCode, Failure, ForkSource, Labels, LayerId, LifeChange, Lifetime,
    OperationId, OperationKind, OperationOutcome, Owner, SnapshotId, SnapshotKind, SnapshotOrigin,
    TransactionId, VmId, VmName, VmRef, VmState, VmStateName,
};
use std::{fs::File, io, path::Path, sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// More at once are refused: a typing error must not take the host down.
const MOST: u32 = 1000;

/// What forks are made from, once it is found or taken.
struct Origin {
    source: Arc<Source>,
    paused: Option<Duration>,
    /// Taken for them, and not written yet.
    fresh: bool,
    /// The VM they are forks of, as recorded.
    vm: VmRecord,
}

/// How many forks, and what they are called.
#[derive(Clone)]
pub(crate) struct Order {
    pub name: Option<VmName>,
    pub count: u32,
    /// Whether they are kept once they are ready, or belong to who asked for them.
    pub lifetime: Lifetime,
    /// Who they are to be.
    pub identity: Identity,
    pub settings: ForkSettings,
}

/// What forks have of their own from their first moment; what is not named is as it is of the VM they are forks of.
#[derive(Debug, Clone, Default)]
pub struct ForkSettings {
    pub labels: Option<Labels>,
    pub env: Option<Environment>,
    /// A time limit counts from the moment a fork runs.
    pub life: LifeChange,
}

impl Engine {
    /// Makes forks ([`Command::Fork`]): all of them, each thawed under an identity of its own, or none.
    pub async fn fork(&self, permit: Authorized<Command>) -> Result<ForkReport, Failure> {
        self.fork_as(permit, ForkSettings::default()).await
    }

    /// As [`fork`](Self::fork), with settings that are written down with the forks: whoever goes away, and whenever the
    /// daemon dies, there is never one without them.
    pub async fn fork_as(
        &self,
        permit: Authorized<Command>,
        settings: ForkSettings,
    ) -> Result<ForkReport, Failure> {
        self.fork_with(permit, Lifetime::Kept, settings, |_, report| Ok(report)).await
    }

    /// `and_then` is done with the forks before anybody can go away in the middle.
    pub(crate) async fn fork_with<T: Send + 'static>(
        &self,
        permit: Authorized<Command>,
        lifetime: Lifetime,
        settings: ForkSettings,
        and_then: impl FnOnce(&Core, ForkReport) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        self.core().manager.check_open()?;
        let (command, grant) = permit.into_parts();
        let Command::Fork { source, name, count } = command else {
            return Err(error::wrong_permit("fork", command.action()));
        };
        let order = Order { name, count, lifetime, identity: Identity::New, settings };
        let (core, within) = (self.core().clone(), self.transaction());
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let report = core.fork(source, order, grant, within).await?;
                and_then(&core, report)
            })
            .await
    }
}

impl Core {
    pub async fn fork(
        self: &Arc<Self>,
        source: ForkSource,
        order: Order,
        grant: Grant,
        within: Option<TransactionId>,
    ) -> Result<ForkReport, Failure> {
        if order.count == 0 || order.count > MOST {
            let message = format!("{} forks were asked for: it must be 1 to {MOST}", order.count);
            return Err(Failure::new(ErrorCode::InvalidArgument, message));
        }
        let owner = grant.actor().owner();
        let (vm, name) = match &source {
            ForkSource::Vm(vm) => {
                let handle = self.manager.find(vm, &owner)?;
                (handle.id, handle.name)
            }
            ForkSource::Snapshot(snapshot) => {
                let found = self.find_snapshot(snapshot, &owner).await?;
                (found.vm, found.vm_name)
            }
        };
        let (actor, authority) = (grant.actor().clone(), Authority::Granted(Box::new(grant)));
        let reason = format!("{} forks were asked for", order.count);
        // The VM a snapshot is of may have been destroyed since.
        let vm = self.manager.get(vm).map(|handle| (handle.id, &name));
        let new = self.new_operation(&authority, OperationKind::Fork, vm, &owner, reason);
        let ticket = self.opened(self.store.begin_operation(new).await?.into_operation());
        let origin = match self.origin(&source, order.count, &authority, within, &owner).await {
            Ok(origin) => origin,
            Err(failure) => return Err(self.fail(ticket, failure).await),
        };
        let (snapshot, fresh) = (origin.source.snapshot.id, origin.fresh);
        let made = self.make_forks(&origin, &order, ticket.id(), &actor, &authority).await;
        let paused = origin.paused;
        // Its files may move now.
        drop(origin);
        if fresh {
            self.persist_later(snapshot);
        }
        match made {
            Ok(forks) => {
                let operation = ticket.id();
                self.closed(ticket, OperationOutcome::Done);
                Ok(ForkReport { operation, snapshot, paused, forks })
            }
            Err(failure) => Err(self.fail(ticket, failure).await),
        }
    }

    async fn fail(&self, ticket: Ticket, failure: Failure) -> Failure {
        self.close(ticket, OperationOutcome::Failed { failure: failure.clone() }).await;
        // As long as it was under way its layers were needed.
        self.collect_layers().await;
        failure
    }

    /// The snapshot that forks continue from; taken now if they are forks of a VM as it is.
    async fn origin(
        self: &Arc<Self>,
        source: &ForkSource,
        count: u32,
        authority: &Authority,
        within: Option<TransactionId>,
        owner: &Owner,
    ) -> Result<Origin, Failure> {
        let (id, paused, fresh) = match source {
            ForkSource::Snapshot(snapshot) => (self.find_snapshot(snapshot, owner).await?.id, None, false),
            ForkSource::Vm(vm) => {
                let handle = self.manager.find(vm, owner)?;
                let suspended = handle.view.borrow().suspended_to;
                if let Some(memory) = suspended {
                    (memory, None, false)
                } else {
                    let ask = SnapshotAsk::new(None, SnapshotKind::Full, SnapshotOrigin::Fork, None, true);
                    let (_, taken) =
                        self.take_snapshot(&handle, authority.clone(), None, within, ask).await?;
                    (taken.snapshot, taken.paused, true)
                }
            }
        };
        let found = self.usable(id, count).await;
        if found.is_err() && fresh {
            self.discard(id).await;
        }
        let (source, vm) = found?;
        Ok(Origin { source: source.into(), paused, fresh, vm })
    }

    async fn usable(&self, id: SnapshotId, count: u32) -> Result<(Source, VmRecord), Failure> {
        let source = self.source(id, count as usize).await?;
        let snapshot = &source.snapshot;
        if !snapshot.quiesced && snapshot.kind == SnapshotKind::Full {
            let message =
                format!("snapshot {id} was taken while the guest's processes ran on, and cannot be forked");
            return Err(Failure::new(ErrorCode::Snapshot, message).hint(
                "a copy of a running process would share its random state and clock with the original; a VM that is \
                 running and answers can be forked, and a rollback to this snapshot is possible",
            ));
        }
        let vm = self.store.vm(snapshot.vm).await?;
        let vm =
            vm.ok_or_else(|| Failure::new(ErrorCode::Internal, "a snapshot's VM is not in the record"))?;
        Ok((source, vm))
    }

    async fn make_forks(
        self: &Arc<Self>,
        origin: &Origin,
        order: &Order,
        operation: OperationId,
        actor: &Actor,
        authority: &Authority,
    ) -> Result<Vec<ForkedVm>, Failure> {
        let recorded = self.record_forks(origin, order, operation, actor, authority).await;
        let rows = match recorded {
            Err(refused)
                if !self.is_used_up(actor).await && self.made_room(&refused, &origin.vm.owner).await =>
            {
                self.record_forks(origin, order, operation, actor, authority).await?
            }
            recorded => recorded?,
        };
        let ids: Vec<VmId> = rows.iter().map(|row| row.id).collect();
        for row in rows {
            self.drive(row, Vec::new(), Beginning::AtRest);
        }
        let made = match self.start_forks(&ids, &origin.source, order, authority).await {
            Ok(forks) if order.lifetime == Lifetime::Kept => {
                let kept = self.keep_forks(&ids, operation, actor).await;
                if kept.is_ok() {
                    self.flush_later(&ids);
                }
                kept.map(|()| forks)
            }
            Ok(forks) => {
                let ended = self.store.end_operation(operation, OperationOutcome::Done).await;
                ended.map(|()| forks).map_err(Failure::from)
            }
            Err(failure) => Err(failure),
        };
        if made.is_err() {
            let reason = "not all forks of its request could be made";
            let destroyed = ids.iter().map(|id| self.destroy(*id, reason));
            for (id, destroyed) in ids.iter().zip(futures::future::join_all(destroyed).await) {
                if destroyed.is_err_and(|failure| failure.code != ErrorCode::NotFound) {
                    // A closed reaper means that the engine ends; the next start finds it by its lifetime.
                    let _ = self.reaper.send(crate::reaper::Reap { vm: *id, reason });
                }
            }
        }
        made
    }

    /// Makes the files, then writes all forks down at once. Files nobody has written down are removed by the next start.
    async fn record_forks(
        &self,
        origin: &Origin,
        order: &Order,
        operation: OperationId,
        actor: &Actor,
        authority: &Authority,
    ) -> Result<Vec<VmRecord>, Failure> {
        let (snapshot, parent) = (&origin.source.snapshot, &origin.vm);
        let below =
            origin.source.chain.first().ok_or_else(|| {
                Failure::new(ErrorCode::Internal, "a snapshot has no disk layer in the record")
            })?;
        let owner = snapshot.owner.clone();
        let memory = origin.source.memory.is_some().then_some(snapshot.id);
        let mut plans = Vec::new();
        let ids: Vec<(VmId, LayerId)> = (0..order.count)
            .map(|_| {
                let id = VmId::new();
                (id, LayerId::from_uuid(*id.as_uuid()))
            })
            .collect();
        for (id, layer) in &ids {
            let mut spec = parent.spec.clone();
            // Theirs until all are ready.
            spec.lifetime = Lifetime::Request;
            let ForkSettings { labels, env, life } = &order.settings;
            (spec.policy, spec.life) = (parent.policy, parent.life.changed(*life));
            spec.labels = labels.clone().unwrap_or(spec.labels);
            spec.env = env.clone().unwrap_or(spec.env);
            let layer =
                layers::new_layer(*layer, &owner, &parent.node, &spec, Some(snapshot.layer), operation);
            let (node, provider, isolation) = (self.options.node.clone(), parent.provider, parent.isolation);
            let position = Some(snapshot.id);
            let vm =
                NewVm { id: *id, owner: owner.clone(), node, spec, provider, isolation, memory, position };
            // The name is found out in the transaction.
            let created = self.new_operation(
                authority,
                OperationKind::Create,
                Some((*id, &parent.name)),
                &owner,
                format!("a fork of `{}`", parent.name),
            );
            plans.push((vm, layer, created));
        }
        let paths: Vec<_> = plans.iter().map(|(_, layer, _)| self.layout.state.join(&layer.path)).collect();
        let (below, size, name) =
            (self.layout.state.join(&below.path), parent.spec.disk, parent.name.clone());
        let made = offshoot_store::blocking(move || {
            // Worth nothing before the forks run; flushed in the background when they are kept.
            let durability = Durability::Volatile;
            paths
                .iter()
                .try_for_each(|path| layers::make(path, Some(&below), &below, size, durability, &name))
        });
        made.await.map_err(|_| error::shutting_down())??;

        let (order, base, actor) = (order.clone(), parent.name.clone(), actor.clone());
        let reason = format!("continues from snapshot {}", snapshot.id);
        let written = self.store.transaction(move |tx| {
            let mut rows = Vec::new();
            let mut next = 1;
            for (number, (vm, layer, created)) in (1..).zip(&plans) {
                let mut vm = vm.clone();
                vm.spec.name = match (&order.name, order.count) {
                    (Some(name), 1) => name.clone(),
                    (Some(name), _) => numbered(name, number)?,
                    (None, _) => free_name(tx, &base, &vm.owner, &mut next)?,
                };
                tx.create_vm(created, &vm)?;
                tx.add_layer(layer)?;
                tx.set_vm_layer(vm.id, layer.id)?;
                let row = tx.vm(vm.id)?.ok_or_else(|| gone(vm.id))?;
                tx.move_vm(&Move {
                    vm: vm.id,
                    expected: row.generation,
                    to: if vm.memory.is_some() { VmState::Suspended } else { VmState::Stopped },
                    reason: reason.clone(),
                    actor: actor.clone(),
                    operation: Some(operation),
                })?;
                tx.end_operation(created.id, &OperationOutcome::Done)?;
                rows.push(tx.vm(vm.id)?.ok_or_else(|| gone(vm.id))?);
            }
            Ok(rows)
        });
        Ok(written.await?)
    }

    /// Starts all forks at once; the first failure is everybody's.
    async fn start_forks(
        &self,
        ids: &[VmId],
        source: &Arc<Source>,
        order: &Order,
        authority: &Authority,
    ) -> Result<Vec<ForkedVm>, Failure> {
        let starts = ids.iter().map(|id| async move {
            let handle = self.manager.get(*id).ok_or_else(error::shutting_down)?;
            self.start_fork(&handle, source, order, authority).await
        });
        futures::future::try_join_all(starts).await
    }

    async fn start_fork(
        &self,
        handle: &VmHandle,
        source: &Arc<Source>,
        order: &Order,
        authority: &Authority,
    ) -> Result<ForkedVm, Failure> {
        let ask = ForkAsk::new(source.clone(), create::durability(order.lifetime), order.identity);
        let ask = Arc::new(ask);
        let asked = Asked {
            kind: OperationKind::Start,
            request: RequestKind::Start,
            authority: authority.clone(),
            command: None,
            within: None,
            grace: Duration::ZERO,
            key: None,
            input: Input::Fork(ask.clone()),
            reason: "a fork begins to run".into(),
        };
        self.change_and_wait(handle, asked).await?;
        let view = handle.view.borrow();
        if view.state.name() != VmStateName::Running {
            return Err(error::process_gone(&handle.name));
        }
        Ok(ForkedVm {
            vm: handle.id,
            name: handle.name.clone(),
            generation: view.generation,
            attestations: ask.thawed(),
        })
    }

    /// Has the host's disk hold the files of new forks: what their guests flush into them is worth no more than that.
    fn flush_later(self: &Arc<Self>, ids: &[VmId]) {
        let (disks, state) = (self.layout.disks(), self.layout.state.clone());
        let names: Vec<String> =
            ids.iter().map(|id| Layout::layer_name(LayerId::from_uuid(*id.as_uuid()))).collect();
        self.tasks.spawn(TaskKind::Persister, Scope::default(), async move {
            let flushed = offshoot_store::blocking(move || {
                let flush = |path: &Path| File::open(path).and_then(|file| file.sync_all());
                names.iter().map(|name| state.join(name)).try_for_each(|path| match flush(&path) {
                    // Destroyed again meanwhile.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                    flushed => flushed,
                })?;
                flush(&disks)
            });
            if let Ok(Err(error)) = flushed.await {
                let error = error.to_string();
                TraceEvent::NotFlushed { error: &error }.emit(&Scope::default());
            }
        });
    }

    /// From here on they are VMs like any other; the operation that made them has ended in the same instant.
    async fn keep_forks(&self, ids: &[VmId], operation: OperationId, actor: &Actor) -> Result<(), Failure> {
        let (kept, actor) = (ids.to_vec(), actor.clone());
        self.store
            .transaction(move |tx| {
                tx.keep_vms(&kept, operation, &actor)?;
                tx.end_operation(operation, &OperationOutcome::Done)
            })
            .await?;
        for handle in ids.iter().filter_map(|id| self.manager.get(*id)) {
            let (done, refreshed) = oneshot::channel();
            if handle.send(Request::Refresh(done)).await.is_ok() {
                // An error means that its driver has ended: there is no row to read again.
                let _ = refreshed.await;
            }
        }
        Ok(())
    }
}

fn gone(id: VmId) -> StoreError {
    StoreError::NotFound { what: "VM", id: id.to_string() }
}

fn numbered(base: &VmName, number: u32) -> Result<VmName, StoreError> {
    format!("{base}-{number}").parse().map_err(|error: offshoot_types::InvalidName| StoreError::Invalid {
        what: "name",
        detail: error.to_string(),
    })
}

/// The next of `base-1`, `base-2`, ... that no VM of the owner has.
pub(super) fn free_name(
    tx: &Tx<'_>,
    base: &VmName,
    owner: &Owner,
    next: &mut u32,
) -> Result<VmName, StoreError> {
    loop {
        let name = numbered(base, *next)?;
        *next += 1;
        if tx.find_vm(&VmRef::Name(name.clone()), owner)?.is_none() {
            return Ok(name);
        }
    }
}
