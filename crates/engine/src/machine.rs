//! What a driver knows of its VM and the primitive things it can do to it. Only the driver task holds a
//! `Machine`, so everything here may assume to be the only writer of the VM's row.
//!
//! ```text
//! row        the record as last written         (store)
//! instances  processes that may exist           (store; recorded before boot, forgotten when seen gone)
//!              the VM's own: the newest that is not newer than the row. A newer one is the process a rollback began
//!              and did not switch to; an older one is what it left and has not ended yet
//! live       the process we hold, its CPUs running or paused, and the link to its guest
//! ```

mod still;

use crate::{
    VmView,
    capture::Capture,
    core::Core,
    images::BootFiles,
    link::{GuestLink, chain},
    pool::{self, Warm},
    saga::{
        Change, Checkpoints,
        beside::{Beside, Going},
        verb,
    },
    shared::VmShared,
    snapshots::{Source, Volatile},
    trace::{Scope, TraceEvent},
};
use offshoot_provider::{
    Adoption, BootError, Diagnostics, Exit, InstanceRecord,
    vm::{Adopted, Dialer, Paused, Running, Vm},
};
use offshoot_store::{LayerRecord, Move, NewInstance, Step, StepState, StoreError, Tx, VmRecord};
use offshoot_types::{
    Actor, Attestations, ErrorCode, EventKind, Failure, FailureReason, Generation, OperationId,
    OperationKind, VmId, VmName, VmState, VmStateName,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::{io, path::Path, sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};

/// Before each attempt to learn from a VMM which state it is in: an answer may be lost.
const LOOK_AGAIN: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(50), Duration::from_millis(200), Duration::from_millis(500)];

#[derive(Debug)]
pub(crate) struct Machine {
    pub core: Arc<Core>,
    pub row: VmRecord,
    pub instances: Vec<InstanceRecord>,
    pub live: Option<Live>,
    /// Verified for the boot under way.
    pub boot_files: Option<BootFiles>,
    /// What the start, rollback or rebase under way continues from; `None`: it boots.
    pub source: Option<Arc<Source>>,
    /// What the start under way found of the pool.
    pub warm: Warm,
    /// The state that is being taken by the change under way.
    pub capture: Option<Capture>,
    /// The process that is to take the place of the present one.
    pub beside: Option<Beside>,
    /// The rollback or rebase under way.
    pub going: Option<Going>,
    /// What a rollback left is ended once this is durable.
    pub retiring: Option<Arc<Volatile>>,
    /// The disk of the boot under way, newest layer first.
    pub chain: Vec<LayerRecord>,
    /// Whether the VM that is being suspended stood still before.
    pub paused_before: bool,
    /// What the guest attested at its last thaw in this process.
    pub attestations: Option<Attestations>,
    /// The guest was told to stand still and has not confirmed that it goes on.
    pub frozen: bool,
    /// The session in which a frozen guest was set going: what its handshake said is old.
    unfrozen: Option<u64>,
    /// When the guest of the boot under way must have answered.
    pub boot_until: Option<Instant>,
    /// Whether the guest agreed to power off, so that waiting for it makes sense.
    pub powering_off: bool,
    pub shared: Arc<VmShared>,
    view: watch::Sender<VmView>,
    log: StepLog,
}

/// A process we hold.
#[derive(Debug)]
pub(crate) struct Live {
    /// `None` after a move was cut off: the handle is gone, the process is not. `reobserve` finds it again.
    pub power: Option<Power>,
    pub dialer: Dialer,
    pub link: GuestLink,
}

impl Live {
    pub async fn diagnostics(&self) -> Diagnostics {
        match &self.power {
            Some(Power::Running(vm)) => vm.diagnostics().await,
            Some(Power::Paused(vm)) => vm.diagnostics().await,
            None => Diagnostics::default(),
        }
    }
}

#[derive(Debug)]
pub(crate) enum Power {
    Running(Vm<Running>),
    Paused(Vm<Paused>),
}

/// What a saga's step has in the journal.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct StepDetail {
    /// The VM's when the step began.
    pub generation: Generation,
    pub state: VmStateName,
}

/// The journal of the change under way: every step begun, in order.
#[derive(Debug, Default)]
struct StepLog {
    operation: Option<OperationId>,
    entries: Vec<(String, StepState)>,
}

impl Machine {
    pub fn new(
        core: Arc<Core>,
        row: VmRecord,
        instances: Vec<InstanceRecord>,
    ) -> (Self, watch::Receiver<VmView>) {
        let (view, receiver) = watch::channel(view_of(&row, None));
        let machine = Self {
            core,
            row,
            instances,
            live: None,
            boot_files: None,
            source: None,
            warm: Warm::default(),
            capture: None,
            beside: None,
            going: None,
            retiring: None,
            chain: Vec::new(),
            paused_before: false,
            attestations: None,
            frozen: false,
            unfrozen: None,
            boot_until: None,
            powering_off: false,
            shared: Arc::default(),
            view,
            log: StepLog::default(),
        };
        (machine, receiver)
    }

    pub fn id(&self) -> VmId {
        self.row.id
    }
    pub fn name(&self) -> &VmName {
        &self.row.name
    }
    pub fn state(&self) -> VmStateName {
        self.row.state.name()
    }
    pub fn checkpoints(&self) -> Checkpoints {
        self.core.options.checkpoints.clone()
    }
    pub fn scope(&self, change: &Change) -> Scope {
        Scope { vm: Some(self.id()), op: Some(change.operation), actor: Some(change.actor.clone()) }
    }
    /// For what is observed rather than asked for.
    pub fn own_scope(&self) -> Scope {
        Scope { vm: Some(self.id()), op: None, actor: Some(Actor::Daemon) }
    }

    // ---- record

    /// Moves the VM: row, event and audit in one transaction, then the view. Being there already is no move.
    pub async fn move_to(&mut self, to: VmState, change: &Change) -> Result<(), Failure> {
        self.write_move(to, change.reason.clone(), change.actor.clone(), Some(change.operation)).await
    }

    /// Moves the VM because of what was seen, not asked for.
    pub async fn observe(&mut self, to: VmState, reason: impl Into<String>) -> Result<(), Failure> {
        self.write_move(to, reason.into(), Actor::Daemon, None).await
    }

    async fn write_move(
        &mut self,
        to: VmState,
        reason: String,
        actor: Actor,
        operation: Option<OperationId>,
    ) -> Result<(), Failure> {
        self.write_move_with(to, reason, actor, operation, |_| Ok(())).await
    }

    /// As [`move_to`](Self::move_to), with more in the same transaction, before the move.
    pub async fn move_with(
        &mut self,
        to: VmState,
        change: &Change,
        more: impl Fn(&Tx<'_>) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), Failure> {
        let Change { reason, actor, operation, .. } = change.clone();
        self.write_move_with(to, reason, actor, Some(operation), more).await
    }

    async fn write_move_with(
        &mut self,
        to: VmState,
        reason: String,
        actor: Actor,
        operation: Option<OperationId>,
        more: impl Fn(&Tx<'_>) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), Failure> {
        let from = self.state();
        if from == to.name() {
            return Ok(());
        }
        let change = Move {
            vm: self.id(),
            expected: self.row.generation,
            to,
            reason: reason.clone(),
            actor: actor.clone(),
            operation,
        };
        let id = self.id();
        let moved = self
            .core
            .store
            .transaction(move |tx| {
                more(tx)?;
                tx.move_vm(&change)?;
                tx.vm(id)
            })
            .await?;
        if let Some(row) = moved {
            self.row = row;
        }
        let scope = Scope { vm: Some(id), op: operation, actor: Some(actor) };
        let (to, generation) = (self.state(), self.row.generation);
        TraceEvent::VmMoved { from: Some(from), to, generation, reason: &reason }.emit(&scope);
        if to == VmStateName::Destroyed {
            // Before anybody is told: whoever hears that it is gone does not find it any more.
            self.core.manager.remove(id);
        }
        self.publish();
        Ok(())
    }

    /// Reads the row again, after others wrote to it: what a fork's making or a policy changed.
    pub async fn refresh(&mut self) -> Result<(), Failure> {
        let id = self.id();
        if let Some(row) = self.core.store.vm(id).await? {
            self.row = row;
        }
        self.publish();
        Ok(())
    }

    /// Writes to the record what is not a move, and reads the row back.
    pub async fn write<T: Send + 'static>(
        &mut self,
        work: impl Fn(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let id = self.id();
        let written = self.core.store.transaction(move |tx| {
            let done = work(tx)?;
            Ok((done, tx.vm(id)?))
        });
        let (done, row) = written.await?;
        if let Some(row) = row {
            self.row = row;
        }
        Ok(done)
    }

    /// Shows the row and the guest as they are now to everyone who waits.
    pub fn publish(&self) {
        let guest = self.live.as_ref().and_then(|live| live.link.view());
        self.view.send_modify(|view| {
            let operation = view.operation;
            *view = view_of(&self.row, guest);
            view.operation = operation;
            view.attestations.clone_from(&self.attestations);
        });
        self.core.count();
    }

    /// The guest as everyone who waits sees it.
    pub fn published_guest(&self) -> Option<crate::GuestView> {
        self.view.borrow().guest.clone()
    }

    /// Shows which operation is under way.
    pub fn publish_operation(&self, operation: Option<OperationId>) {
        self.view.send_modify(|view| view.operation = operation);
    }

    // ---- journal of the change under way

    /// Journals that a step is about to act, and that the one before it has acted: one write for both.
    pub async fn journal_step(&mut self, change: &Change, name: &'static str) -> Result<(), Failure> {
        if self.log.operation != Some(change.operation) {
            self.log = StepLog { operation: Some(change.operation), entries: Vec::new() };
        }
        let detail = json!(StepDetail { generation: self.row.generation, state: self.state() });
        let entries = &mut self.log.entries;
        let last_open = entries.last().is_some_and(|(_, state)| *state == StepState::Begun);
        let repeats = last_open && entries.last().is_some_and(|(last, _)| last == name);
        if !repeats {
            let (operation, position) = (change.operation, entries.len() as u32);
            self.core
                .store
                .transaction(move |tx| {
                    if last_open {
                        tx.step_done(operation, position - 1, None)?;
                    }
                    tx.step_begun(operation, position, name, &detail)
                })
                .await?;
            if let Some((_, state)) = entries.last_mut().filter(|_| last_open) {
                *state = StepState::Done;
            }
            entries.push((name.into(), StepState::Begun));
        }
        self.core.operations.step(change.operation, name, self.core.now());
        Ok(())
    }

    /// Shows a step that is not written down by itself.
    pub fn show_step(&self, change: &Change, name: &'static str) {
        self.core.operations.step(change.operation, name, self.core.now());
    }

    /// Journals that nothing of a step is left.
    pub async fn journal_undone(&mut self, change: &Change, name: &str) -> Result<(), Failure> {
        let entries = &mut self.log.entries;
        let position = entries.iter().rposition(|(n, state)| n == name && *state != StepState::Undone);
        if let (Some(position), true) = (position, self.log.operation == Some(change.operation)) {
            self.core.store.step_undone(change.operation, position as u32, None).await?;
            entries[position].1 = StepState::Undone;
        }
        Ok(())
    }

    /// Takes up the journal of a change that an earlier daemon began. Returns the step it was at.
    pub fn resume_journal(&mut self, operation: OperationId, steps: Vec<Step>) -> Option<String> {
        let first = steps.first().and_then(|step| StepDetail::deserialize(&step.detail).ok());
        self.paused_before = first.is_some_and(|first| first.state == VmStateName::Paused);
        let entries: Vec<(String, StepState)> = steps.into_iter().map(|s| (s.name, s.state)).collect();
        let last = entries.iter().rev().find(|(_, state)| *state != StepState::Undone);
        let last = last.map(|(name, _)| name.clone());
        self.log = StepLog { operation: Some(operation), entries };
        last
    }

    /// Reads back what the record says. For after a step that was dropped at an await: a write that was queued then is
    /// carried out all the same, and this one queues behind it.
    pub async fn catch_up(&mut self, change: &Change) {
        let (id, operation) = (self.id(), change.operation);
        let read = self
            .core
            .store
            .transaction(move |tx| Ok((tx.vm(id)?, tx.instances_of(id)?, tx.steps(operation)?)))
            .await;
        let (row, instances, steps) = match read {
            Ok(read) => read,
            // Whatever comes next meets the same store and tells.
            Err(error) => return self.core.store_failed("read back what a cut-off step wrote", &error),
        };
        if let Some(row) = row {
            self.row = row;
        }
        if self.state() == VmStateName::Destroyed {
            self.core.manager.remove(id);
        }
        for row in instances {
            match row.decode::<InstanceRecord>() {
                // What is known and not in the record stays known: forgetting what was never written is no error.
                Ok(record) if !self.instances.iter().any(|known| known.generation == record.generation) => {
                    self.instances.push(record);
                }
                Ok(_) => {}
                Err(error) => self.core.store_failed("read back an instance", &error),
            }
        }
        self.instances.sort_by_key(|record| record.generation);
        let entries = steps.into_iter().map(|step| (step.name, step.state)).collect();
        self.log = StepLog { operation: Some(operation), entries };
        self.publish();
    }

    // ---- instances

    /// Writes down a process that is about to exist.
    pub async fn record_instance(&mut self, record: InstanceRecord) -> Result<(), Failure> {
        self.record_if(record, |_, _| Ok(())).await
    }

    /// Writes down a process that is about to exist beside the VM's own, if the ledger has room for both.
    pub async fn record_beside(&mut self, record: InstanceRecord) -> Result<(), Failure> {
        let generation = record.generation;
        let recorded = self.record_if(record, move |tx, new| {
            // Once it is recorded the ledger counts it.
            let known = tx.instances_of(new.vm)?.iter().any(|row| row.generation == generation);
            if known { Ok(()) } else { tx.admit_beside(new.vm) }
        });
        let recorded = recorded.await;
        if recorded.as_ref().is_err_and(|failure| failure.code == ErrorCode::NoResource) {
            // Refused, so it is not there: nothing of it is to be reclaimed.
            self.instances.retain(|known| known.generation != generation);
        }
        recorded
    }

    async fn record_if(
        &mut self,
        record: InstanceRecord,
        admit: impl Fn(&Tx<'_>, &NewInstance) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), Failure> {
        let InstanceRecord { vm, generation, provider, isolation, memory_base, .. } = record;
        let new = NewInstance::new(vm, generation, provider, isolation, memory_base, &record)?;
        // Known before it is written: a caller dropped at the await below cannot tell whether the row is there,
        // and only what is known is reclaimed and forgotten. Forgetting what was never written is no error.
        self.instances.retain(|known| known.generation != generation);
        self.instances.push(record);
        let written = self.core.store.transaction(move |tx| {
            admit(tx, &new)?;
            tx.record_instance(&new)
        });
        written.await?;
        (self.row.provider, self.row.isolation) = (provider, isolation);
        Ok(())
    }

    /// The record of the process that is the VM's.
    pub fn own_instance(&self) -> Option<&InstanceRecord> {
        let own = self.instances.iter().filter(|record| record.generation <= self.row.generation);
        own.max_by_key(|record| record.generation)
    }

    /// Whether something of a process is recorded that is not the VM's.
    pub fn has_strangers(&self) -> bool {
        let own = self.own_instance().map(|record| record.generation);
        self.instances.iter().any(|record| Some(record.generation) != own)
    }

    /// Ends whatever is left of every recorded process, and forgets those that were seen gone.
    pub async fn reclaim_instances(&mut self) -> Result<(), Failure> {
        if let Some(live) = self.live.take() {
            live.link.close("it was stopped");
        }
        if let Some(beside) = self.beside.take() {
            beside.live.link.close("it was stopped");
        }
        self.shared.set_dialer(None);
        self.retiring = None;
        self.attestations = None;
        self.frozen = false;
        self.reclaim_where(|_| true).await
    }

    /// Ends whatever is left of processes that are not the VM's: what a rollback began beside it, or left.
    pub async fn reclaim_strangers(&mut self) -> Result<(), Failure> {
        if let Some(beside) = self.beside.take() {
            beside.live.link.close("it was stopped");
        }
        let own = self.own_instance().map(|record| record.generation);
        self.reclaim_where(|record| Some(record.generation) != own).await
    }

    async fn reclaim_where(&mut self, which: impl Fn(&InstanceRecord) -> bool) -> Result<(), Failure> {
        let mut failed = Vec::new();
        for record in self.instances.iter().filter(|record| which(record)).cloned().collect::<Vec<_>>() {
            let provider = self.core.provider(record.provider)?;
            let limit = self.core.options.deadlines.stop;
            let failures = match tokio::time::timeout(limit, provider.reclaim(&record)).await {
                Ok(report) => report.failed,
                Err(_elapsed) => {
                    vec![format!("generation {} was not gone after {limit:?}", record.generation)]
                }
            };
            if failures.is_empty() {
                self.core.store.forget_instance(record.vm, record.generation).await?;
                self.instances.retain(|known| known.generation != record.generation);
                if let Err(failure) = self.bring_home(record).await {
                    failed.push(failure.message);
                }
            } else {
                failed.extend(failures);
            }
        }
        self.publish();
        if failed.is_empty() {
            return Ok(());
        }
        let name = self.name();
        Err(Failure::new(
            ErrorCode::Backend,
            format!("what is left of the process of VM `{name}` could not be removed: {}", failed.join(", ")),
        )
        .hint("it is tried again; `offshoot status` shows the state"))
    }

    /// What came from the pool left its files where it was made.
    async fn bring_home(&self, record: InstanceRecord) -> Result<(), Failure> {
        let layout = &self.core.layout;
        let boot = layout.boot(record.vm, record.generation);
        let runtime = layout.runtime_boot(record.vm, record.generation);
        if record.state_dir == boot && record.runtime_dir == runtime {
            return Ok(());
        }
        self.blocking(move || pool::bring_home(&record, &boot, &runtime)).await
    }

    /// Looks at the recorded processes again: after a restart of the daemon, or a handle lost in a cut-off move.
    pub async fn find_process(&mut self) -> Found {
        let Some(record) = self.own_instance().cloned() else { return Found::Nothing };
        let provider = match self.core.provider(record.provider) {
            Ok(provider) => provider,
            Err(failure) => return Found::Unknown(failure),
        };
        match provider.adopt(&record).await {
            Ok(Adoption::Running(instance)) => match Adopted::observe(instance).await {
                Ok(adopted) => {
                    let (power, dialer) = match adopted {
                        Adopted::Running(vm) => {
                            let dialer = vm.dialer();
                            (Power::Running(vm), dialer)
                        }
                        Adopted::Paused(vm) => {
                            let dialer = vm.dialer();
                            (Power::Paused(vm), dialer)
                        }
                    };
                    let paused = matches!(power, Power::Paused(_));
                    match self.live.as_mut() {
                        Some(live) => live.power = Some(power),
                        None => self.attach(power, dialer, &record, Instant::now()),
                    }
                    TraceEvent::Adopted { generation: record.generation }.emit(&self.own_scope());
                    if paused { Found::Paused } else { Found::Running }
                }
                Err((_instance, error)) => Found::Unknown(self.vmm_failure("adopt", &error)),
            },
            Ok(Adoption::Ended(exit)) => Found::Ended(exit),
            Ok(Adoption::NeverStarted) => Found::NeverStarted,
            Err(error) => Found::Unknown(self.vmm_failure("adopt", &error)),
        }
    }

    /// Holds a process and starts to connect to its guest. `boot_deadline` is that of its first handshake.
    pub fn attach(&mut self, power: Power, dialer: Dialer, record: &InstanceRecord, boot_deadline: Instant) {
        let live = self.hold(power, dialer, record, boot_deadline);
        self.take_over(live);
    }

    /// As [`attach`](Self::attach), without making it the VM's process.
    pub fn hold(
        &self,
        power: Power,
        dialer: Dialer,
        record: &InstanceRecord,
        boot_deadline: Instant,
    ) -> Live {
        let link = GuestLink::spawn(
            &self.core,
            self.own_scope(),
            dialer.clone(),
            self.name(),
            record.generation,
            boot_deadline.max(Instant::now() + self.core.options.deadlines.reconnect),
        );
        Live { power: Some(power), dialer, link }
    }

    /// Makes a process the VM's. Returns the one before it.
    pub fn take_over(&mut self, live: Live) -> Option<Live> {
        self.shared.set_dialer(Some(live.dialer.clone()));
        let before = self.live.replace(live);
        self.set_going();
        self.publish();
        before
    }

    // ---- observations

    /// The process ended by itself: `Stopped` if the guest powered off, else `Failed` with the exit. What is
    /// left of it is removed after the state is told.
    pub async fn observe_exit(&mut self, exit: Option<Exit>) -> Result<(), Failure> {
        let words = exit_words(exit.as_ref());
        TraceEvent::VmmExited { exit: &words }.emit(&self.own_scope());
        if let Some(live) = &self.live {
            live.link.close(&words);
        }
        if exit == Some(Exit::PoweredOff) {
            if matches!(self.state(), VmStateName::Running | VmStateName::Paused) {
                self.observe(VmState::Stopping, &words).await?;
            }
            self.reclaim_instances().await?;
            self.observe(VmState::Stopped, &words).await
        } else {
            let step = "observed/vmm-exit".into();
            self.observe(VmState::Failed(FailureReason { reason: words.clone(), step }), words).await?;
            self.reclaim_instances().await
        }
    }

    /// The exit of the process we hold, if it has ended.
    pub fn seen_exit(&self) -> Option<Exit> {
        self.live.as_ref().and_then(|live| live.dialer.exit().borrow().clone())
    }

    /// Whether the VM is in a state that only a change under way may have.
    pub fn in_between(&self) -> bool {
        matches!(
            self.state(),
            VmStateName::Creating | VmStateName::Starting | VmStateName::Stopping | VmStateName::Suspending
        )
    }

    /// After a move that was cut off its typed handle is gone: the VMM is asked what it did of it. A VM that nobody wanted
    /// to stand still goes on.
    pub async fn look_again(&mut self, change: OperationKind) {
        if self.live.as_ref().is_none_or(|live| live.power.is_some()) {
            return;
        }
        let limit = self.core.options.deadlines.pause;
        let mut found = None;
        for pause in LOOK_AGAIN {
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            found = tokio::time::timeout(limit, self.find_process()).await.ok();
            if !matches!(found, Some(Found::Unknown(_))) {
                break;
            }
        }
        let observed = match (self.state(), found) {
            (VmStateName::Running, Some(Found::Paused))
                if change != OperationKind::Pause && crate::saga::suspend::resume(self).await.is_ok() =>
            {
                Ok(())
            }
            (VmStateName::Running, Some(Found::Paused)) => {
                self.observe(VmState::Paused, "found paused after a pause that was cut off").await
            }
            (VmStateName::Paused, Some(Found::Running)) => {
                self.observe(VmState::Running, "found running after a resume that was cut off").await
            }
            // An exit is seen by the driver; what could not be told now is asked again by the next move.
            _ => Ok(()),
        };
        if let Err(failure) = observed {
            TraceEvent::NotSettled { error: &failure.message }.emit(&self.own_scope());
        }
    }

    /// Brings a VM out of a state that only a change under way may have. Called when none is.
    pub async fn settle(&mut self, verdict: Verdict, change: &Change) -> Result<(), Failure> {
        match verdict {
            Verdict::Failed(reason) if self.state().may_become(VmStateName::Failed) => {
                self.move_to(VmState::Failed(reason), change).await
            }
            Verdict::AtRest if self.in_between() && self.row.memory.is_some() => {
                self.move_to(VmState::Suspended, change).await
            }
            Verdict::AtRest if self.in_between() && self.state().may_become(VmStateName::Stopped) => {
                self.move_to(VmState::Stopped, change).await
            }
            Verdict::Failed(_) | Verdict::AtRest | Verdict::AsItIs => Ok(()),
        }
    }

    /// Tells that the guest stopped answering, or answers again.
    pub async fn guest_health(&self, responsive: bool) {
        let trace = if responsive { TraceEvent::GuestAnswersAgain } else { TraceEvent::GuestSilent };
        trace.emit(&self.own_scope());
        let vm = Some((self.id(), self.name().clone()));
        self.core.event(self.row.owner.clone(), vm, EventKind::GuestHealth { responsive }).await;
    }

    // ---- files

    pub async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        match offshoot_store::blocking(work).await {
            Ok(done) => done,
            Err(_) => Err(Failure::new(ErrorCode::Internal, "a file operation did not come to its end")),
        }
    }

    // ---- words

    pub fn vmm_failure(&self, operation: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
        let name = self.name();
        Failure::new(ErrorCode::Backend, format!("{operation} of VM `{name}` failed: {}", chain(error)))
            .hint(format!("`offshoot logs {name} --console` shows what the guest last said"))
    }

    pub fn boot_failure(&self, error: &BootError) -> Failure {
        let code = match error.step {
            offshoot_provider::BootStep::Probe => ErrorCode::Unavailable,
            offshoot_provider::BootStep::Keeper
            | offshoot_provider::BootStep::Vmm
            | offshoot_provider::BootStep::Channel
            | offshoot_provider::BootStep::Handshake => ErrorCode::Backend,
        };
        let name = self.name();
        let mut failure = Failure::new(code, format!("VM `{name}` did not start: {error}"));
        failure.cause = cause_with_console(std::error::Error::source(error), &error.console_tail);
        failure.hint(error.hint.clone().unwrap_or_else(|| {
            format!(
                "`offshoot logs {name} --console` shows how far it came; `offshoot doctor` checks this host"
            )
        }))
    }
}

/// What [`Machine::find_process`] found.
#[derive(Debug)]
pub(crate) enum Found {
    Running,
    Paused,
    Ended(Option<Exit>),
    NeverStarted,
    /// No process is recorded.
    Nothing,
    /// It could not be told.
    Unknown(Failure),
}

/// Where a VM belongs after a change that did not reach its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Failed(FailureReason),
    /// Without a process: `Suspended` if it has a memory to continue from, else `Stopped`.
    AtRest,
    AsItIs,
}

impl Verdict {
    pub fn failed(change: &Change, step: &str, reason: impl Into<String>) -> Self {
        Self::Failed(FailureReason { reason: reason.into(), step: format!("{}/{step}", verb(change.kind)) })
    }
}

pub(crate) fn exit_words(exit: Option<&Exit>) -> String {
    match exit {
        Some(Exit::PoweredOff) => "the guest powered itself off".into(),
        Some(Exit::Code(code)) => format!("the VMM ended with status {code}"),
        Some(Exit::Signal(signal)) => format!("the VMM was ended by signal {signal}"),
        Some(Exit::GuestPanic { line }) => format!("the guest's kernel panicked: {line}"),
        Some(Exit::KeeperLost) => "the VMM's keeper is gone, and the VMM with it".into(),
        None => "the VMM ended while no daemon watched it".into(),
    }
}

/// The cause of a failed boot, followed by what the guest last said.
pub(crate) fn cause_with_console(
    source: Option<&(dyn std::error::Error + 'static)>,
    console: &[String],
) -> Option<String> {
    let mut parts: Vec<String> = source.map(chain).into_iter().collect();
    if !console.is_empty() {
        parts.push(format!("console: {}", console.join(" | ")));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// An I/O failure on one of our own paths, by what the caller can do about it.
pub(crate) fn io_failure(operation: &str, path: &Path, error: &io::Error) -> Failure {
    let (code, hint) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            (ErrorCode::NoResource, "free space on the disk that holds the state directory")
        }
        _ => (ErrorCode::Internal, "check the permissions and the disk of the state directory"),
    };
    Failure::new(code, format!("cannot {operation} {}", path.display())).caused_by(error).hint(hint)
}

fn view_of(row: &VmRecord, guest: Option<crate::GuestView>) -> VmView {
    VmView {
        id: row.id,
        name: row.name.clone(),
        owner: row.owner.clone(),
        labels: row.labels.clone(),
        env: row.spec.env.clone(),
        node: row.node.clone(),
        image: row.spec.image.clone(),
        image_digest: row.spec.image_digest.clone(),
        provider: row.provider,
        isolation: row.isolation,
        state: row.state.clone(),
        generation: row.generation,
        lifetime: row.spec.lifetime,
        policy: row.policy,
        life: row.life,
        wakes: crate::rest::goes_on(row),
        deadline: row.deadline,
        memory: row.spec.memory,
        cpus: row.spec.cpus,
        disk: row.spec.disk,
        created: row.created,
        updated: row.updated,
        started_at: row.started,
        guest,
        usage: None,
        operation: None,
        suspended_to: row.memory,
        position: row.position,
        attestations: None,
        last_start: row.last_start.clone(),
    }
}
