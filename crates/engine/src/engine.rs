//! The handle transports hold: every change and every read goes through a permit.
//!
//! ```text
//! Authorized<Command> --submit--> journaled Operation --> the VM's driver --> outcome, new generation
//!                     --exec / attach--> ExecSession        (streams; an operation too)
//!                     --guest--> GuestAccess                (files, TCP; writes are operations)
//!                     --vm, vms, events, ...--> views       (reads; `Command::Inspect`)
//! ```
//! No method takes a bare `Command`. A permit for another verb than the method's is a defect of the caller and
//! answered as such.

use crate::{
    Census, Console, EventStream, ExecView, GuestAccess, Options, PoolView, ProviderView, RequestVm,
    StartError, StateDirLock, VmView,
    accept::Asked,
    admission::RequestKind,
    branch::transactions::Access,
    core::{Authority, Core},
    driver::reason_for,
    error, placement,
    reaper::Reap,
    saga::Input,
    tasks::TaskKind,
};
use offshoot_policy::{Authorized, Denial, Facts, Grant, VmFacts};
use offshoot_store::{AuditDecision, AuditEntry, Idempotency, OperationFilter, Store, VmRecord};
use offshoot_types::{
    Actor, Command, ErrorCode, EventId, Failure, FileAccess, Generation, ImageDigest, Lifetime, Operation,
    OperationId, OperationKind, OperationOutcome, OperationState, Owner, SnapshotRef, Target, TransactionId,
    VmId, VmRef, VmSpec, VmState, VmStateName,
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// A running engine. Cheap to clone; dropping every clone without [`shutdown`](Self::shutdown) leaves the VMs
/// running, as a crash would.
#[derive(Debug, Clone)]
pub struct Engine {
    owner: Arc<Owned>,
    /// The transaction whose changes this handle makes.
    within: Option<TransactionId>,
}

/// Ends the tasks with the last handle: whatever they hold, the core included, goes with them.
#[derive(Debug)]
struct Owned {
    core: Arc<Core>,
    settled: watch::Receiver<usize>,
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.core.tasks.abort_soon();
    }
}

/// What [`Engine::wait_vm`] waits for: any of the states (none named: any state), newer than the generation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmCondition {
    pub states: Vec<VmStateName>,
    pub newer_than: Option<Generation>,
}

impl VmCondition {
    pub fn met(&self, view: &VmView) -> bool {
        let state = self.states.is_empty() || self.states.contains(&view.state.name());
        state && self.newer_than.is_none_or(|generation| view.generation > generation)
    }
}

/// Which operations [`Engine::operations`] lists, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperationPage {
    /// Only those older than this one.
    pub before: Option<OperationId>,
    pub limit: u32,
}
impl Default for OperationPage {
    fn default() -> Self {
        Self { before: None, limit: 100 }
    }
}

/// What a shutdown does with running VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnShutdown {
    /// They live on with their keepers; the next engine adopts them.
    LeaveVms,
    StopVms {
        grace: Duration,
    },
}

/// How a shutdown went; nothing in it prevents the next start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    pub left_running: Vec<VmId>,
    /// VMs that were to be stopped and could not be.
    pub not_stopped: Vec<(VmId, Failure)>,
    /// Operations that were still running when the drain ended; the next start completes or undoes them.
    pub interrupted: Vec<OperationId>,
}

/// Where an attached session begins to read; what the guest's ring no longer holds is reported as lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AttachFrom {
    pub stdout: u64,
    pub stderr: u64,
}

pub(crate) fn facts_of(row: &VmRecord) -> VmFacts {
    VmFacts {
        id: row.id,
        name: row.name.clone(),
        owner: row.owner.clone(),
        labels: row.labels.clone(),
        provider: row.provider,
        state: row.state.name(),
        generation: row.generation,
    }
}

impl Engine {
    /// Opens the store, brings record and world together (VMs that run are adopted undisturbed, what was half
    /// made is completed or undone), and takes requests from then on.
    ///
    /// Returns as soon as every VM's state is known; recoveries that take longer (an interrupted stop, say) go
    /// on in their drivers, where requests queue behind them. [`settled`](Self::settled) awaits those.
    pub async fn start(lock: StateDirLock, options: Options) -> Result<Self, StartError> {
        let (core, settled) = crate::startup::start(lock, options).await?;
        Ok(Self { owner: Arc::new(Owned { core, settled }), within: None })
    }

    /// Waits until every change that an earlier engine left unfinished has been completed or undone.
    pub async fn settled(&self) {
        let mut settled = self.owner.settled.clone();
        // An error means that the last recovery has ended and let go of its end.
        let _ = settled.wait_for(|unfinished| *unfinished == 0).await;
    }

    /// The same engine, speaking from within a transaction: its changes are admitted to the VM that transaction owns.
    #[must_use = "the handle it is called on stays outside the transaction"]
    pub fn within(&self, transaction: TransactionId) -> Self {
        Self { within: Some(transaction), ..self.clone() }
    }

    pub(crate) fn transaction(&self) -> Option<TransactionId> {
        self.within
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.owner.core
    }

    /// What policy may rest its decision about `target` on, read now.
    pub fn facts(&self, actor: &Actor, target: &Target) -> Facts {
        let key = self.core().keys.facts(actor, self.core().now());
        Facts { vm: self.vm_facts(actor, target), beside: None, key }
    }

    /// The same for a whole command, with what the record alone tells: whose an operation or a snapshot is that is named
    /// by its id, or the VM of which is gone.
    pub async fn facts_about(&self, actor: &Actor, command: &Command) -> Result<Facts, Failure> {
        let target = command.target();
        let mut facts = self.facts(actor, &target);
        if facts.vm.is_none() {
            facts.vm = self.recorded_vm(actor, target).await?;
        }
        if let Some(other) = command.beside() {
            let found = match self.vm_facts(actor, &other) {
                None => self.recorded_vm(actor, other).await?,
                found => found,
            };
            facts.beside = found.map(|vm| vm.name);
        }
        Ok(facts)
    }

    async fn recorded_vm(&self, actor: &Actor, target: Target) -> Result<Option<VmFacts>, Failure> {
        if !matches!(target, Target::Operation(_) | Target::Snapshot(_)) {
            return Ok(None);
        }
        let owner = actor.owner();
        let read = self.core().store.read(move |view| {
            let vm = match &target {
                Target::Operation(id) => view.operation(*id)?.and_then(|operation| operation.vm),
                Target::Snapshot(snapshot) => view.find_snapshot(snapshot, &owner)?.map(|found| found.vm),
                _ => None,
            };
            vm.map_or(Ok(None), |vm| view.vm(vm))
        });
        Ok(read.await?.map(|row| facts_of(&row)))
    }

    fn vm_facts(&self, actor: &Actor, target: &Target) -> Option<VmFacts> {
        let (Target::Vm(vm) | Target::Snapshot(SnapshotRef::Named { vm, .. })) = target else { return None };
        let handle = self.core().manager.find(vm, &actor.owner()).ok()?;
        let view = handle.view.borrow();
        let (labels, generation) = (view.labels.clone(), view.generation);
        let (id, name, owner) = (handle.id, handle.name.clone(), handle.owner.clone());
        let (provider, state) = (view.provider, view.state.name());
        Some(VmFacts { id, name, owner, labels, provider, state, generation })
    }

    /// Writes a denial into the audit: what was refused is as much a fact as what was done. A transaction it was to be
    /// done in has been rolled back when this returns, or will be.
    pub async fn record_denial(&self, denial: &Denial) {
        let entry = AuditEntry {
            actor: denial.actor.clone(),
            action: denial.action.to_string(),
            target: "request".into(),
            decision: AuditDecision::Deny,
            rules: denial.rule_ids.iter().map(ToString::to_string).collect(),
            revision: denial.revision.to_string(),
            detail: denial.sentence.clone(),
        };
        if let Err(error) = self.core().store.audit_entry(entry).await {
            self.core().store_failed("record a denial", &error);
        }
        self.denied_within(denial).await;
    }

    // ---- changes

    /// Accepts create, start, stop, restart, pause, resume, suspend and destroy. Once this returns the operation is on
    /// disk and will be carried out, completed or undone, whatever happens to this process.
    pub async fn submit(&self, permit: Authorized<Command>) -> Result<Operation, Failure> {
        self.accept(permit, None, false).await
    }

    /// As [`submit`](Self::submit) of a [`Command::Destroy`], with the VM's snapshots that somebody asked for: without
    /// this they outlive it.
    pub async fn destroy_with_snapshots(&self, permit: Authorized<Command>) -> Result<Operation, Failure> {
        match permit.get() {
            Command::Destroy { .. } => self.accept(permit, None, true).await,
            other => Err(error::wrong_permit("destroy_with_snapshots", other.action())),
        }
    }

    /// As [`submit`](Self::submit); the same key with the same command is the same operation, however often it
    /// is sent.
    pub async fn submit_once(
        &self,
        permit: Authorized<Command>,
        key: Idempotency,
    ) -> Result<Operation, Failure> {
        self.accept(permit, Some(key), false).await
    }

    async fn accept(
        &self,
        permit: Authorized<Command>,
        key: Option<Idempotency>,
        snapshots: bool,
    ) -> Result<Operation, Failure> {
        self.core().manager.check_open()?;
        let (command, grant) = permit.into_parts();
        let none = (Duration::ZERO, Input::None);
        let (kind, request, vm, (grace, input)) = match &command {
            Command::Create { spec } if spec.lifetime == Lifetime::Kept => {
                let spec = (**spec).clone();
                return self.create(spec, grant, key).await;
            }
            Command::Create { .. } => {
                return Err(Failure::new(
                    ErrorCode::Internal,
                    "a VM that lives as long as its request was submitted without one",
                ));
            }
            Command::Start { vm } => (OperationKind::Start, RequestKind::Start, vm, none),
            Command::Stop { vm, grace } => {
                (OperationKind::Stop, RequestKind::Stop, vm, (*grace, Input::None))
            }
            Command::Restart { vm, grace } => {
                (OperationKind::Restart, RequestKind::Restart, vm, (*grace, Input::None))
            }
            Command::Pause { vm } => (OperationKind::Pause, RequestKind::Pause, vm, none),
            // From a suspended VM's memory it is a start like any other.
            Command::Resume { vm } if self.is_suspended(vm, &grant) => {
                (OperationKind::Start, RequestKind::Start, vm, none)
            }
            Command::Resume { vm } => (OperationKind::Resume, RequestKind::Resume, vm, none),
            Command::Suspend { vm } => (OperationKind::Suspend, RequestKind::Suspend, vm, none),
            Command::Destroy { vm } => {
                let input = if snapshots { Input::DestroyAll } else { Input::None };
                (OperationKind::Destroy, RequestKind::Destroy, vm, (Duration::ZERO, input))
            }
            Command::Exec { .. }
            | Command::Attach { .. }
            | Command::Files { .. }
            | Command::Connect { .. }
            | Command::Snapshot { .. }
            | Command::RemoveSnapshot { .. }
            | Command::VerifySnapshot { .. }
            | Command::ExportSnapshot { .. }
            | Command::ImportSnapshot { .. }
            | Command::Fork { .. }
            | Command::Rollback { .. }
            | Command::Undo { .. }
            | Command::Begin { .. }
            | Command::Commit { .. }
            | Command::RollbackTransaction { .. }
            | Command::Try { .. }
            | Command::Race { .. }
            | Command::RunCode { .. }
            | Command::RemoveContext { .. }
            | Command::RestartContext { .. }
            | Command::SetPolicy { .. }
            | Command::SetLife { .. }
            | Command::Describe { .. }
            | Command::Diff { .. }
            | Command::Inspect { .. }
            | Command::InspectSnapshot { .. }
            | Command::InspectOperation { .. }
            | Command::Admit { .. }
            | Command::CreateKey { .. }
            | Command::ListKeys
            | Command::RemoveKey { .. }
            | Command::ManageImage { .. }
            | Command::StopDaemon { .. } => return Err(error::wrong_permit("submit", command.action())),
        };
        let handle = self.core().manager.find(vm, &grant.actor().owner())?;
        let (authority, core) = (Authority::Granted(Box::new(grant)), self.core().clone());
        let command = Some(command.clone());
        let reason = reason_for(kind);
        let within = self.transaction();
        if request == RequestKind::Destroy {
            // Before it is sent: a destroy cancels whatever is under way as soon as the driver sees it.
            let owned = handle.shared.ownership.admit(within, Access::Destroy);
            owned.map_err(|refused| refused.failure(&handle.name))?;
        }
        let asked = Asked { kind, request, authority, command, within, grace, key, input, reason };
        self.core().detached(TaskKind::Acceptor, async move { core.change(&handle, asked).await }).await
    }

    fn is_suspended(&self, vm: &VmRef, grant: &Grant) -> bool {
        let found = self.core().manager.find(vm, &grant.actor().owner());
        found.is_ok_and(|handle| handle.view.borrow().state == VmState::Suspended)
    }

    async fn create(
        &self,
        spec: VmSpec,
        grant: Grant,
        key: Option<Idempotency>,
    ) -> Result<Operation, Failure> {
        let core = self.core().clone();
        self.core().detached(TaskKind::Acceptor, async move { core.create(spec, grant, key).await }).await
    }

    /// The operation once it has ended, or as it is after `limit`.
    pub async fn wait(&self, operation: OperationId, limit: Option<Duration>) -> Result<Operation, Failure> {
        self.core().wait(operation, limit).await
    }

    /// Creates a VM that lives as long as the returned guard: for `offshoot run`. The spec's lifetime must be
    /// `Lifetime::Request`. Returns when the VM is `Stopped`.
    pub async fn create_for_request(&self, permit: Authorized<Command>) -> Result<RequestVm, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Create { spec } = command else {
            return Err(error::wrong_permit("create_for_request", command.action()));
        };
        if spec.lifetime != Lifetime::Request {
            return Err(Failure::new(ErrorCode::Internal, "a VM of a request must have the lifetime of one"));
        }
        let name = spec.name.clone();
        let engine = self.clone();
        // Detached with the guard inside: a caller that goes away in the middle leaves no VM behind.
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let operation = engine.core().create(*spec, grant, None).await?;
                let Some(id) = operation.vm else {
                    return Err(Failure::new(ErrorCode::Internal, "a create without a VM"));
                };
                let guard = RequestVm::new(engine.clone(), id, name);
                match engine.wait(operation.id, None).await?.state {
                    OperationState::Ended { outcome: OperationOutcome::Done } => Ok(guard),
                    OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => Err(failure),
                    _ => Err(error::shutting_down()),
                }
            })
            .await
    }

    pub(crate) async fn destroy_for_daemon(
        &self,
        vm: VmId,
        reason: &'static str,
    ) -> Result<Operation, Failure> {
        let core = self.core().clone();
        let done =
            self.core().detached(TaskKind::Acceptor, async move { core.destroy(vm, reason).await }).await;
        let gone = match &done {
            Ok(operation) => {
                matches!(operation.state, OperationState::Ended { outcome: OperationOutcome::Done })
            }
            Err(failure) => failure.code == ErrorCode::NotFound,
        };
        if !gone {
            self.reap(vm, reason);
        }
        done
    }

    pub(crate) fn reap(&self, vm: VmId, reason: &'static str) {
        // A closed reaper means that the engine ends; the next start finds the VM by its lifetime.
        let _ = self.core().reaper.send(Reap { vm, reason });
    }

    /// Access to files ([`Command::Files`]) or a TCP port ([`Command::Connect`]) of a running guest.
    pub async fn guest(&self, permit: Authorized<Command>) -> Result<GuestAccess, Failure> {
        let (command, grant) = permit.into_parts();
        let (vm, writes) = match &command {
            Command::Files { vm, access, path } => {
                (vm, (*access == FileAccess::Write).then(|| format!("write {path}")))
            }
            Command::Connect { vm, .. } => (vm, None),
            _ => return Err(error::wrong_permit("guest", command.action())),
        };
        let core = self.core().clone();
        let handle = core.manager.find(vm, &grant.actor().owner())?;
        let (authority, within) = (Authority::Granted(Box::new(grant)), self.transaction());
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let opening = writes.as_ref().map(|_| handle.shared.openings.enter());
                let link = core.borrow_guest(&handle, authority.clone(), Some(command), within).await?;
                let until = Instant::now() + core.options.deadlines.reconnect;
                let client = link
                    .client(until)
                    .await
                    .map_err(|error| error::guest_silent(&handle.name, &error.to_string()))?;
                let ticket = match writes {
                    None => None,
                    Some(reason) => {
                        let vm = Some((handle.id, &handle.name));
                        let new = core.new_operation(
                            &authority,
                            OperationKind::WriteFiles,
                            vm,
                            &handle.owner,
                            reason,
                        );
                        let begun = core.store.begin_operation(new).await?;
                        Some(core.opened(begun.into_operation()))
                    }
                };
                Ok(GuestAccess::new(core, (link, client), ticket, opening))
            })
            .await
    }

    // ---- reads: permits for `Command::Inspect` and `Command::InspectOperation`

    /// The VM named, with usage measured now.
    pub async fn vm(&self, permit: Authorized<Command>) -> Result<VmView, Failure> {
        let handle = self.inspected(&permit, "vm")?;
        let mut view = handle.view.borrow().clone();
        if let Some(dialer) = handle.shared.dialer() {
            // A process that ends while it is measured has no figures; that is no failure of the read.
            view.usage = dialer.usage().await.ok();
        }
        Ok(view)
    }

    /// All VMs of the actor's owner, by name.
    pub fn vms(&self, permit: Authorized<Command>) -> Result<Vec<VmView>, Failure> {
        let owner = inspecting(&permit, "vms")?;
        let sees = self.core().keys.sees(permit.grant().actor());
        let mut views: Vec<VmView> = self
            .core()
            .manager
            .all()
            .into_iter()
            .filter(|handle| handle.owner == owner && sees.name(&handle.name))
            .map(|handle| handle.view.borrow().clone())
            .collect();
        views.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(views)
    }

    /// An image is about to be removed ([`Command::ManageImage`]), or is gone: what the warm pool keeps of it goes too.
    pub async fn release_image(
        &self,
        permit: &Authorized<Command>,
        image: &ImageDigest,
    ) -> Result<(), Failure> {
        match permit.get() {
            Command::ManageImage { .. } => self.core().release_image(image).await,
            other => return Err(error::wrong_permit("release_image", other.action())),
        }
        Ok(())
    }

    /// VMs that are the daemon's own, which nobody's list shows: their directories are no strays.
    pub async fn own_vms(&self, permit: &Authorized<Command>) -> Result<Vec<VmId>, Failure> {
        inspecting(permit, "own_vms")?;
        let vms = self.core().store.read(|view| view.vms()).await?;
        Ok(vms.into_iter().filter(|vm| vm.owner == Owner::daemon()).map(|vm| vm.id).collect())
    }

    /// The warm pool as it is now; it is the daemon's, whoever asks.
    pub fn pool(&self, permit: Authorized<Command>) -> Result<PoolView, Failure> {
        inspecting(&permit, "pool").map(|_| self.core().pool.view())
    }

    /// The VM once the condition is met, or as it is after `limit`; a destroyed VM ends the wait.
    pub async fn wait_vm(
        &self,
        permit: Authorized<Command>,
        until: VmCondition,
        limit: Option<Duration>,
    ) -> Result<VmView, Failure> {
        let mut view = self.inspected(&permit, "wait_vm")?.view;
        let waited = view.wait_for(|view| until.met(view) || view.state == VmState::Destroyed);
        let found = match limit {
            None => waited.await.ok().map(|view| view.clone()),
            Some(limit) => match tokio::time::timeout(limit, waited).await {
                Ok(found) => found.ok().map(|view| view.clone()),
                Err(_elapsed) => None,
            },
        };
        Ok(found.unwrap_or_else(|| view.borrow().clone()))
    }

    /// Processes of the VM named that run or have lately ended, newest first.
    pub async fn execs(&self, permit: Authorized<Command>) -> Result<Vec<ExecView>, Failure> {
        Ok(self.inspected(&permit, "execs")?.shared.execs.list())
    }

    pub async fn operation(
        &self,
        permit: Authorized<Command>,
        wait: Option<Duration>,
    ) -> Result<Operation, Failure> {
        match permit.get() {
            Command::InspectOperation { id } => self.wait(*id, Some(wait.unwrap_or_default())).await,
            other => Err(error::wrong_permit("operation", other.action())),
        }
    }

    /// Operations of the VM named, or of all, newest first.
    pub async fn operations(
        &self,
        permit: Authorized<Command>,
        page: OperationPage,
    ) -> Result<Vec<Operation>, Failure> {
        let owner = inspecting(&permit, "operations")?;
        let vm = match permit.get() {
            Command::Inspect { vm: Some(_) } => Some(self.inspected(&permit, "operations")?.id),
            _ => {
                self.core().keys.sees(permit.grant().actor()).all("operations")?;
                None
            }
        };
        let filter = OperationFilter { owner: Some(owner), vm, before: page.before };
        Ok(self.core().store.operations(filter, page.limit).await?)
    }

    /// Events of the VM named, or of all, after `after` (`None`: from now on), then as they happen.
    pub async fn events(
        &self,
        permit: Authorized<Command>,
        after: Option<EventId>,
    ) -> Result<EventStream, Failure> {
        let owner = inspecting(&permit, "events")?;
        let vm = match permit.get() {
            Command::Inspect { vm: Some(_) } => Some(self.inspected(&permit, "events")?.id),
            _ => {
                self.core().keys.sees(permit.grant().actor()).all("events")?;
                None
            }
        };
        Ok(EventStream::new(self.core().store.clone(), owner, vm, after))
    }

    /// The console of the VM's present or latest boot.
    pub async fn console(&self, permit: Authorized<Command>) -> Result<Console, Failure> {
        let handle = self.inspected(&permit, "console")?;
        Ok(Console::new(self.core().layout.clone(), handle.view))
    }

    pub(crate) fn inspected(
        &self,
        permit: &Authorized<Command>,
        method: &'static str,
    ) -> Result<crate::manager::VmHandle, Failure> {
        match permit.get() {
            Command::Inspect { vm: Some(vm) } => {
                self.core().manager.find(vm, &permit.grant().actor().owner())
            }
            other => Err(error::wrong_permit(method, other.action())),
        }
    }

    // ---- facts about the engine itself

    pub fn census(&self) -> Census {
        *self.core().census.borrow()
    }
    /// Changes whenever the census does; for a daemon that leaves when idle.
    pub fn census_changes(&self) -> watch::Receiver<Census> {
        self.core().census.subscribe()
    }
    pub async fn providers(&self) -> Vec<ProviderView> {
        let capabilities = self.core().capabilities().await;
        let preferred = placement::strongest(&capabilities).map(|(kind, _)| kind);
        capabilities
            .into_iter()
            .map(|c| ProviderView { preferred: Some(c.kind) == preferred, capabilities: c })
            .collect()
    }
    pub fn options(&self) -> &Options {
        &self.core().options
    }

    /// Accepts nothing new, waits a bounded time for running operations, then leaves or stops the VMs. Processes
    /// in VMs that live on are attached to again by the next engine.
    pub async fn shutdown(&self, vms: OnShutdown) -> ShutdownReport {
        crate::startup::shutdown(self.core(), vms).await
    }

    /// The record itself: for tests that look into it, or make its disk look full.
    #[doc(hidden)]
    pub fn store(&self) -> &Store {
        &self.core().store
    }

    /// Drops every task where it stands, as a SIGKILL would, and lets go of the state directory: for tests of
    /// what the next start makes of it.
    #[doc(hidden)]
    pub async fn crash(self) {
        let core = self.core().clone();
        drop(self);
        core.tasks.abort().await;
        core.let_go().await;
    }
}

/// The owner whose records a permit to inspect lets be read.
fn inspecting(permit: &Authorized<Command>, method: &'static str) -> Result<Owner, Failure> {
    match permit.get() {
        Command::Inspect { .. } => Ok(permit.grant().actor().owner()),
        other => Err(error::wrong_permit(method, other.action())),
    }
}
