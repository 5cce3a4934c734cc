//! One task per VM: the only writer of its row.
//!
//! ```text
//!   first: reconcile (a VM from the store) or create (a new one), then, until Destroyed:
//!
//!   select, in this order                          while a change runs     while idle
//!     1. destroy                                   cancels it              runs it
//!     2. the change under way has ended            settles, next           -
//!     3. the VMM has ended                         the change sees it      Stopped | Failed
//!     4. the guest's health                        -                       event
//!     5. requests                                  queue                   judge, run
//!     6. the engine ends                           the change goes on      lets go
//!     7. leftovers to be removed                   -                       tries again
//!     8. nothing was asked for long, or time is up -                       rests (`rest`)
//!     9. nothing was asked for a while             -                       moves its memory (`rebase`)
//! ```
//! A change that is stuck cannot block a destroy, and whoever waits is answered when the VM goes: a request
//! that is dropped answers for itself.

use crate::{
    admission::{self, Admission, DeniedReason, Offer, RequestKind, RequestQueue},
    branch::transactions::Access,
    capture::{self, snapshot_id},
    core::{Authority, Core},
    engine::facts_of,
    error,
    link::{GuestLink, LinkState, ended},
    machine::{Machine, Verdict},
    manager::Inbox,
    operations::Ticket,
    reaper::Reap,
    rebase::Moving,
    reconcile::Unfinished,
    request::{ChangeRequest, GuestRequest, Request},
    saga::{
        Change, Input, Saga, Unwound, create::CREATE, destroy::DESTROY, pause, rebase::REBASE,
        rollback::ROLLBACK, snapshot::SNAPSHOT, start, stop, suspend::SUSPEND, verb,
    },
    startup::Settling,
    tasks::TaskKind,
    trace::TraceEvent,
};
use offshoot_policy::{Decision, Facts, Grant};
use offshoot_provider::{Exit, UndoReport};
use offshoot_store::SnapshotRecord;
use offshoot_types::{
    Command, ErrorCode, Failure, FailureReason, OperationKind, OperationOutcome, RollbackCause, VmState,
    VmStateName,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// Between two attempts to remove what is left of a process: doubled from the first to the second.
const TIDY_FIRST: Duration = Duration::from_millis(500);
const TIDY_MOST: Duration = Duration::from_secs(60);
/// Between two attempts to have a guest's processes go on.
const UNFREEZE_AGAIN: Duration = Duration::from_secs(1);

/// How a driver begins.
#[derive(Debug)]
pub(crate) enum Beginning {
    Create(Ticket),
    /// A VM that was just recorded, at rest.
    AtRest,
    /// A VM of the store: `ready` is answered once its state is known, `settling` is dropped once nothing of an
    /// earlier daemon's work is unfinished.
    Reconcile {
        unfinished: Vec<Unfinished>,
        /// What a rollback left and the daemon before this one had not written.
        left: Option<SnapshotRecord>,
        ready: oneshot::Sender<()>,
        settling: Settling,
    },
}

pub(crate) struct Driver {
    pub core: Arc<Core>,
    pub machine: Machine,
    inbox: Inbox,
    queue: RequestQueue<Request>,
    /// The destroy that pre-empted the change under way.
    destroy: Option<Request>,
    /// What the last health event said.
    responsive: bool,
    tidy: Duration,
    /// Before this it does not rest by itself: an attempt has failed.
    pub rest_after: Instant,
    pub rebasing: Moving,
}

pub(crate) fn saga_of(kind: OperationKind) -> Option<&'static Saga> {
    match kind {
        OperationKind::Create => Some(&CREATE),
        OperationKind::Start => Some(&start::START),
        OperationKind::Stop => Some(&stop::STOP),
        OperationKind::Restart => Some(&stop::RESTART),
        OperationKind::Pause => Some(&pause::PAUSE),
        OperationKind::Resume => Some(&pause::RESUME),
        OperationKind::Destroy => Some(&DESTROY),
        OperationKind::Snapshot => Some(&SNAPSHOT),
        OperationKind::Rollback => Some(&ROLLBACK),
        OperationKind::Suspend => Some(&SUSPEND),
        OperationKind::Rebase => Some(&REBASE),
        OperationKind::Exec
        | OperationKind::WriteFiles
        | OperationKind::RemoveSnapshot
        | OperationKind::Fork
        | OperationKind::Import
        | OperationKind::Transaction
        | OperationKind::Race
        | OperationKind::Context
        | OperationKind::Reconcile => None,
    }
}

impl Driver {
    pub fn new(machine: Machine, inbox: Inbox) -> Self {
        let core = machine.core.clone();
        let queue = RequestQueue::default();
        Self {
            core,
            machine,
            inbox,
            queue,
            destroy: None,
            responsive: true,
            tidy: TIDY_FIRST,
            rest_after: Instant::now(),
            rebasing: Moving::default(),
        }
    }

    /// Runs until the VM is destroyed or the engine ends.
    pub async fn run(mut self, beginning: Beginning) {
        match beginning {
            Beginning::Create(ticket) => self.create(ticket).await,
            Beginning::AtRest => {}
            Beginning::Reconcile { unfinished, left, ready, settling } => {
                let (execs, changes): (Vec<_>, Vec<_>) = self
                    .reconcile(unfinished)
                    .await
                    .into_iter()
                    .partition(|u| u.operation.kind == OperationKind::Exec);
                for exec in execs {
                    self.recover(exec).await;
                }
                if let Some(left) = left {
                    self.keep_what_was_left(&left).await;
                }
                // Nobody waits any more if the engine was dropped meanwhile.
                let _ = ready.send(());
                let (transactions, changes): (Vec<_>, Vec<_>) =
                    changes.into_iter().partition(|u| u.operation.kind == OperationKind::Transaction);
                for change in changes {
                    self.recover(change).await;
                }
                // Before anybody's request: what an open transaction did is taken back first.
                self.recover_transactions().await;
                for transaction in transactions {
                    self.recover(transaction).await;
                }
                if self.machine.has_strangers() && self.machine.retiring.is_none() {
                    self.tidy().await;
                }
                drop(settling);
            }
        }
        while self.machine.state() != VmStateName::Destroyed {
            if !self.turn().await {
                break;
            }
        }
        self.answer_the_rest();
        if self.machine.state() == VmStateName::Destroyed {
            // What the change that destroyed it needed until it had ended.
            self.core.collect_layers().await;
        }
    }

    /// A rollback loses nothing, not even by a crash just after it.
    async fn keep_what_was_left(&mut self, left: &SnapshotRecord) {
        match capture::take_again(&mut self.machine, left).await {
            Ok(true) => return self.core.persist_later(left.id),
            Ok(false) => {}
            Err(failure) => self.unsettled(&failure),
        }
        self.core.discard(left.id).await;
        if let Err(failure) = self.machine.refresh().await {
            self.unsettled(&failure);
        }
    }

    /// One thing: the next request, or what happens by itself. `false` when nobody can ask any more.
    async fn turn(&mut self) -> bool {
        while let Ok(request) = self.inbox.urgent.try_recv() {
            self.offer(request);
        }
        // Before any request that would believe it lives, too.
        if let Some(exit) = self.machine.seen_exit() {
            return match self.exited(exit).await {
                Err(failure) if self.machine.seen_exit().is_some() => self.again_later(&failure).await,
                _ => true,
            };
        }
        if let Some(request) = self.destroy.take().or_else(|| self.queue.next()) {
            self.handle(request).await;
            return true;
        }
        if self.machine.to_unfreeze() {
            self.machine.unfreeze().await;
        }
        let (exit, link) = self.watched();
        let closing = self.core.closing.clone();
        let leftovers = self.leftovers();
        // A guest that did not confirm is asked again after a while.
        let stuck = self.machine.to_unfreeze().then_some(UNFREEZE_AGAIN);
        let (rest, rebase) = (self.to_rest(), self.to_rebase());
        tokio::select! {
            biased;
            // 1. A destroy goes before everything.
            Some(request) = self.inbox.urgent.recv() => self.offer(request),
            // 2. (No change is under way here.)
            // 3. The truth about the process goes before requests that believe it lives.
            // What could not be written is tried again by the next turn.
            exit = exit => drop(self.exited(exit).await),
            // 4. The guest stopped answering, answers again, or is connected.
            () = link => self.guest_changed().await,
            // 5. The queue is bounded; senders wait.
            request = self.inbox.requests.recv() => match request {
                Some(request) => self.offer(request),
                // Every handle is gone: the engine was dropped.
                None => return false,
            },
            // 6. The engine ends; the VM does not.
            () = closing.cancelled() => return false,
            // 7. Something of a dead process could not be removed.
            () = leftovers => self.tidy().await,
            // 8. A guest stands still that should not.
            () = after(stuck) => {}
            // 9. Whoever asked before was answered first.
            why = rest => self.rest(why).await,
            // 10. As that, and nobody waits for it.
            due = rebase => self.rebase(due).await,
        }
        true
    }

    /// What there is to watch of the process and its guest, as futures that never resolve without one.
    fn watched(&self) -> (impl Future<Output = Exit> + use<>, impl Future<Output = ()> + use<>) {
        let live = self.machine.live.as_ref();
        let exit = live.map(|live| live.dialer.exit());
        let link = live.map(|live| live.link.changes());
        (exit_of(exit), change_of(link, self.machine.published_guest()))
    }

    /// Resolves when something of a process is to be removed: one that its VM, by its state, does not have, or one that
    /// a rollback left and whose state is kept by now.
    fn leftovers(&self) -> impl Future<Output = ()> + use<> {
        let machine = &self.machine;
        let left = !machine.instances.is_empty() && !machine.state().has_process();
        let retired = machine.has_strangers();
        let (retiring, tidy) = (machine.retiring.clone(), self.tidy);
        let first = tidy == TIDY_FIRST;
        async move {
            match (left, retired, retiring) {
                (false, false, _) => std::future::pending().await,
                // However that ended: nothing more can be had of it.
                (false, true, Some(kept)) if first => drop(kept.written().await),
                (false, true, None) if first => {}
                _ => tokio::time::sleep(tidy).await,
            }
        }
    }

    // ---- requests

    fn offer(&mut self, request: Request) {
        let name = self.machine.name().clone();
        match self.queue.offer(request.kind(), request) {
            Offer::Queued => {}
            Offer::Preempts { request, others } => {
                self.destroy = Some(request);
                for other in others {
                    refuse(&self.core, other, DeniedReason::BeingDestroyed.failure(&name));
                }
            }
            Offer::Refused { request, reason } => refuse(&self.core, request, reason.failure(&name)),
        }
    }

    async fn handle(&mut self, request: Request) {
        let kind = request.kind();
        if let Request::Refresh(done) = request {
            if let Err(failure) = self.machine.refresh().await {
                self.unsettled(&failure);
            }
            // Whoever asked may be gone.
            let _ = done.send(());
            return;
        }
        // A destroy takes a VM from wherever it is; everything else finds it at rest.
        if kind != RequestKind::Destroy && self.machine.in_between() {
            self.come_to_rest().await;
        }
        let mut admitted = self.admit(&request);
        if let Ok(Admission::Denied(_)) = admitted
            && self.wakes(&request)
        {
            admitted = match self.wake(&request).await {
                Ok(()) => self.admit(&request),
                Err(failure) => Err(failure),
            };
        }
        match (request, admitted) {
            (Request::Change(change), Ok(Admission::Run)) => {
                self.carry_out(*change).await;
            }
            (Request::Change(change), Ok(Admission::AlreadySatisfied)) => {
                let outcome = match self.stays_suspended(change.kind).await {
                    Ok(()) => OperationOutcome::Done,
                    Err(failure) => OperationOutcome::Failed { failure },
                };
                self.core.close(change.ticket, outcome).await;
            }
            (Request::UseGuest(guest), Ok(Admission::Run | Admission::AlreadySatisfied)) => self.lend(guest),
            // Answered above.
            (Request::Refresh(_), Ok(_)) => {}
            (request, Ok(Admission::Denied(reason))) => {
                let failure = self.why(reason);
                self.refuse_now(request, failure).await;
            }
            (request, Err(failure)) => self.refuse_now(request, failure).await,
        }
        if kind == RequestKind::Destroy && self.machine.state() != VmStateName::Destroyed {
            self.queue.destroy_failed();
            let reap = Reap { vm: self.machine.id(), reason: "an earlier destroy left something over" };
            // A closed reaper means that the engine ends; the failed VM is there for the next one to destroy.
            let _ = self.core.reaper.send(reap);
        }
    }

    /// A failed VM says why it failed; other states speak for themselves.
    fn why(&self, reason: DeniedReason) -> Failure {
        let failure = reason.failure(self.machine.name());
        match &self.machine.row.state {
            VmState::Failed(why) => {
                Failure { cause: Some(format!("it failed at {}: {}", why.step, why.reason)), ..failure }
            }
            _ => failure,
        }
    }

    /// As `refuse`, with the outcome on disk when this returns.
    async fn refuse_now(&self, request: Request, failure: Failure) {
        match request {
            Request::Change(change) => {
                self.core.close(change.ticket, OperationOutcome::Failed { failure }).await;
            }
            other @ (Request::UseGuest(_) | Request::Refresh(_)) => refuse(&self.core, other, failure),
        }
    }

    /// Judges a request whose turn has come: policy once more if the VM has moved since, then the state.
    fn admit(&self, request: &Request) -> Result<Admission, Failure> {
        let (authority, command) = request.authority();
        if let (Authority::Granted(grant), Some(command)) = (authority, command)
            && grant.generation() != Some(self.machine.row.generation)
        {
            let refused =
                match self.core.options.policy.decide(grant.actor(), command.clone(), &self.facts(grant)) {
                    Decision::Permit(_) => None,
                    Decision::Deny(denial) => Some(denial.into()),
                    Decision::Require(required) => Some(error::obligation(&required)),
                };
            if let Some(refused) = refused {
                // Whoever acts in a transaction may not go on in it as if this had been done.
                if let Some(id) = request.within() {
                    self.machine.shared.ownership.wish(id, RollbackCause::Denied);
                }
                return Err(refused);
            }
        }
        if let Authority::Granted(_) = authority {
            let (ownership, within) = (&self.machine.shared.ownership, request.within());
            let owned = match command {
                // Asked when it was accepted: by now it has cut off whatever was under way.
                Some(Command::Destroy { .. }) => Ok(()),
                Some(command) => ownership.admit(within, Access::of(command)),
                None => ownership.admit_part(within),
            };
            owned.map_err(|refused| refused.failure(self.machine.name()))?;
        }
        Ok(admission::judge(self.machine.state(), request.kind()))
    }

    fn facts(&self, grant: &Grant) -> Facts {
        Facts {
            vm: Some(facts_of(&self.machine.row)),
            beside: grant.beside().cloned(),
            key: self.core.keys.facts(grant.actor(), self.core.now()),
        }
    }

    fn lend(&self, guest: GuestRequest) {
        let link: Result<GuestLink, Failure> = match &self.machine.live {
            Some(live) => Ok(live.link.lent(&self.machine.shared.work)),
            None => Err(error::process_gone(self.machine.name())),
        };
        // A caller that went away needs no answer.
        drop(guest.reply.send(link));
    }

    // ---- changes

    async fn create(&mut self, ticket: Ticket) {
        let change = self.change(ticket.operation(), Duration::ZERO, Input::None);
        let outcome = self.run_saga(&CREATE, None, &change).await;
        self.conclude(ticket, outcome, &change, OperationOutcome::Done).await;
    }

    async fn carry_out(&mut self, request: ChangeRequest) {
        let ChangeRequest { kind, ticket, grace, input, .. } = request;
        if let Err(failure) = self.stays_suspended(kind).await {
            self.core.close(ticket, OperationOutcome::Failed { failure }).await;
            return;
        }
        let Some(saga) = saga_of(ticket.operation().kind) else {
            let failure =
                Failure::new(ErrorCode::Internal, "this kind of operation is not carried out by a driver");
            self.core.close(ticket, OperationOutcome::Failed { failure }).await;
            return;
        };
        let change = self.change(ticket.operation(), grace, input);
        let mut outcome = self.run_saga(saga, None, &change).await;
        if let Err(unwound) = &outcome
            && let Some(why) = start::goes_cold(&self.machine, &change, unwound)
            && self.destroy.is_none()
        {
            match self.machine.go_cold(&change, why).await {
                Ok(()) => outcome = self.run_saga(saga, None, &change).await,
                // It could not be brought to rest: that is told by what follows.
                Err(failure) => self.unsettled(&failure),
            }
        }
        self.conclude(ticket, outcome, &change, OperationOutcome::Done).await;
    }

    pub fn change(&self, operation: &offshoot_types::Operation, grace: Duration, input: Input) -> Change {
        let limits = &self.core.options.deadlines;
        let start = limits.boot + limits.thaw + limits.start_overhead;
        // A disk that is memory is written, or put back, on the way.
        let in_memory = self.core.ends_as(self.machine.row.provider) == OperationKind::Suspend;
        let carry = if in_memory { limits.write } else { Duration::ZERO };
        let start = if self.machine.row.kept_disk.is_some() { start + carry } else { start };
        let stop = grace + limits.stop + carry;
        let limit = match operation.kind {
            OperationKind::Create => limits.create,
            OperationKind::Start => start,
            OperationKind::Stop => stop,
            OperationKind::Restart => stop + start + carry,
            OperationKind::Destroy => limits.destroy,
            OperationKind::Snapshot => limits.snapshot,
            OperationKind::Rollback => limits.snapshot + start + limits.thaw,
            OperationKind::Rebase => limits.snapshot + start,
            OperationKind::Suspend => limits.snapshot + limits.write + limits.stop,
            OperationKind::Pause
            | OperationKind::Resume
            | OperationKind::Exec
            | OperationKind::WriteFiles
            | OperationKind::RemoveSnapshot
            | OperationKind::Fork
            | OperationKind::Import
            | OperationKind::Transaction
            | OperationKind::Race
            | OperationKind::Context
            | OperationKind::Reconcile => limits.pause,
        };
        Change {
            operation: operation.id,
            kind: operation.kind,
            actor: operation.actor.clone(),
            reason: operation.reason.clone(),
            grace,
            deadline: Instant::now() + limit,
            input,
        }
    }

    /// Runs a saga while listening: a destroy cancels it, other requests queue; they cancel one that nobody asked for.
    /// `resume_at`: the step an earlier daemon was at, for a change that is to be completed.
    pub async fn run_saga(
        &mut self,
        saga: &'static Saga,
        resume_at: Option<Option<String>>,
        change: &Change,
    ) -> Result<(), Unwound> {
        self.machine.publish_operation(Some(change.operation));
        // What the daemon does for itself is no use of the VM: it would never rest.
        let _worked_with = (!change.input.is_upkeep()).then(|| self.machine.shared.work.begin());
        if saga.kind == OperationKind::Destroy {
            self.queue.begin_destroy();
        }
        let cancel = CancellationToken::new();
        let mut destroy = None;
        let ended = {
            let Self { machine, inbox, queue, core, .. } = &mut *self;
            let name = machine.name().clone();
            let mut refused = Vec::new();
            let run = async {
                match resume_at {
                    None => saga.run(machine, change, &cancel).await,
                    Some(step) => saga.complete(step.as_deref(), machine, change, &cancel).await,
                }
            };
            tokio::pin!(run);
            loop {
                let request = tokio::select! {
                    biased;
                    Some(request) = inbox.urgent.recv() => request,
                    ended = &mut run => break ended,
                    Some(request) = inbox.requests.recv() => request,
                };
                match queue.offer(request.kind(), request) {
                    Offer::Queued if saga.kind == OperationKind::Rebase => cancel.cancel(),
                    Offer::Queued => {}
                    Offer::Preempts { request, others } => {
                        destroy = Some(request);
                        cancel.cancel();
                        refused.extend(others.into_iter().map(|other| (other, DeniedReason::BeingDestroyed)));
                    }
                    Offer::Refused { request, reason } => refused.push((request, reason)),
                }
                for (request, reason) in refused.drain(..) {
                    refuse(core, request, reason.failure(&name));
                }
            }
        };
        self.destroy = destroy;
        self.machine.publish_operation(None);
        ended
    }

    /// Brings the VM to rest after a change, writes the outcome and answers the waiters.
    pub async fn conclude(
        &mut self,
        ticket: Ticket,
        ended: Result<(), Unwound>,
        change: &Change,
        done: OperationOutcome,
    ) {
        // Nothing is restored any more, before anybody hears that it has ended.
        self.machine.source = None;
        let outcome = match ended {
            // It ends when the snapshot is durable, and the VM does not wait for that.
            Ok(()) if change.kind == OperationKind::Snapshot && done == OperationOutcome::Done => {
                return self.persist(ticket, change).await;
            }
            Ok(()) => done,
            Err(unwound) => {
                if !unwound.undo.failed.is_empty() {
                    self.core.remove_unrecorded(snapshot_id(change.operation)).await;
                }
                // A destroy that waits settles everything itself.
                if self.destroy.is_none() {
                    let verdict = self.verdict(change, &unwound);
                    if let Err(failure) = self.machine.settle(verdict, change).await {
                        self.unsettled(&failure);
                    }
                    self.machine.look_again(change.kind).await;
                }
                OperationOutcome::Failed { failure: with_undo(unwound.failure, &unwound.undo) }
            }
        };
        if let (OperationKind::Rollback, Some(left)) = (change.kind, &self.machine.retiring) {
            self.core.persist_later(left.id);
        }
        // What was made for nothing, or, of a VM without a process, the layer that nobody writes to any more.
        let leaves_a_layer = change.kind == OperationKind::Rebase
            || change.kind == OperationKind::Rollback
                && (outcome != OperationOutcome::Done || self.machine.retiring.is_none());
        self.core.close(ticket, outcome).await;
        if leaves_a_layer {
            self.core.collect_layers().await;
        }
        if std::mem::take(&mut self.machine.warm.leaves_a_layer) {
            self.core.collect_layers_later();
        }
    }

    /// Ends a snapshot's operation: at once for those who go on from it now and write it themselves, else when it is
    /// durable.
    async fn persist(&mut self, ticket: Ticket, change: &Change) {
        self.machine.capture = None;
        if matches!(&change.input, Input::Snapshot(ask) if ask.volatile) {
            self.core.close(ticket, OperationOutcome::Done).await;
            return;
        }
        let (core, id) = (self.core.clone(), snapshot_id(change.operation));
        let scope = crate::core::scope(ticket.operation());
        self.core.tasks.spawn(TaskKind::Persister, scope, async move {
            let outcome = match core.persist(id).await {
                Ok(()) => OperationOutcome::Done,
                Err(failure) => OperationOutcome::Failed { failure },
            };
            core.close(ticket, outcome).await;
            core.collect_layers().await;
        });
    }

    fn verdict(&self, change: &Change, unwound: &Unwound) -> Verdict {
        let failed = |reason: String| Verdict::failed(change, unwound.step, reason);
        // Nobody asked for it, and the process it was to replace is there: what is left of the other is ended later.
        if change.kind == OperationKind::Rebase && !self.machine.instances.is_empty() {
            return Verdict::AsItIs;
        }
        if !unwound.undo.failed.is_empty() {
            return failed(format!(
                "{}; left over: {}",
                unwound.failure.message,
                unwound.undo.failed.join(", ")
            ));
        }
        match (change.kind, self.machine.state()) {
            (_, VmStateName::Destroyed) => Verdict::AsItIs,
            (OperationKind::Start | OperationKind::Restart, VmStateName::Starting) => {
                start::verdict(&self.machine, change, unwound.step, &unwound.failure)
            }
            // It was cut off after its last move, and the process was taken back with it.
            (_, VmStateName::Running | VmStateName::Paused) if self.machine.instances.is_empty() => {
                failed(unwound.failure.message.clone())
            }
            (
                OperationKind::Pause
                | OperationKind::Resume
                | OperationKind::Snapshot
                | OperationKind::Rollback,
                _,
            ) => Verdict::AsItIs,
            // Refused before anything was touched.
            (
                _,
                VmStateName::Stopped
                | VmStateName::Running
                | VmStateName::Paused
                | VmStateName::Suspended
                | VmStateName::Failed,
            ) if change.kind != OperationKind::Destroy => Verdict::AsItIs,
            _ => failed(unwound.failure.message.clone()),
        }
    }

    /// The store did not take the move: the next request finds the state in between and tries again.
    pub fn unsettled(&self, failure: &Failure) {
        TraceEvent::NotSettled { error: &failure.message }.emit(&self.machine.own_scope());
    }

    /// For a VM that a change left in a state of its own, because its end could not be written.
    async fn come_to_rest(&mut self) {
        let reclaimed = self.machine.reclaim_instances().await;
        let reason = "an earlier change could not be brought to its end";
        let failed = FailureReason { reason: reason.into(), step: "observed/cut-off".into() };
        let moved = self.machine.observe(VmState::Failed(failed), reason).await;
        if let Err(failure) = reclaimed.and(moved) {
            self.unsettled(&failure);
        }
    }

    // ---- what happens by itself

    async fn exited(&mut self, exit: Exit) -> Result<(), Failure> {
        let observed = self.machine.observe_exit(Some(exit)).await;
        if let Err(failure) = &observed {
            // Removed later, by the last arm of the select.
            self.unsettled(failure);
        }
        self.responsive = true;
        self.tidy = TIDY_FIRST;
        observed
    }

    /// That the process has ended could not be written, perhaps for a full disk: not tried again without a pause, and who
    /// wants something meanwhile is told so, but for a destroy, which settles everything. `false` if the engine ends
    /// meanwhile, or nobody can ask any more.
    async fn again_later(&mut self, failure: &Failure) -> bool {
        let closing = self.core.closing.clone();
        let pause = tokio::time::sleep(TIDY_FIRST);
        tokio::pin!(pause);
        loop {
            if let Some(destroy) = self.destroy.take() {
                self.handle(destroy).await;
                return true;
            }
            match self.queue.next() {
                Some(request) if request.is_destroy() => {
                    self.handle(request).await;
                    return true;
                }
                // It is written already, and only to be read.
                Some(request @ Request::Refresh(_)) => self.handle(request).await,
                Some(request) => self.refuse_now(request, failure.clone()).await,
                None => tokio::select! {
                    biased;
                    () = closing.cancelled() => return false,
                    Some(request) = self.inbox.urgent.recv() => self.offer(request),
                    request = self.inbox.requests.recv() => match request {
                        Some(request) => self.offer(request),
                        None => return false,
                    },
                    () = &mut pause => return true,
                },
            }
        }
    }

    async fn guest_changed(&mut self) {
        self.machine.publish();
        let Some(live) = &self.machine.live else { return };
        // A paused guest is silent by order.
        let responsive = match &*live.link.changes().borrow() {
            LinkState::Connected { silent, .. } => !*silent || self.machine.state() == VmStateName::Paused,
            LinkState::Connecting { .. } | LinkState::Ended { .. } => self.responsive,
        };
        if responsive != self.responsive {
            self.responsive = responsive;
            self.machine.guest_health(responsive).await;
        }
    }

    async fn tidy(&mut self) {
        let reclaimed = if self.machine.state().has_process() {
            self.machine.retiring = None;
            self.machine.reclaim_strangers().await
        } else {
            self.machine.reclaim_instances().await
        };
        if reclaimed.is_ok() {
            self.forget_old_boots().await;
        }
        match reclaimed {
            Ok(()) => self.tidy = TIDY_FIRST,
            Err(_) => self.tidy = (self.tidy * 2).min(TIDY_MOST),
        }
    }

    /// Nothing reads the console of a process that was replaced, and its base may be needed no more.
    async fn forget_old_boots(&self) {
        let machine = &self.machine;
        let Some(keep) = machine.own_instance().map(|own| own.generation) else { return };
        let dir = self.core.layout.vm(machine.id());
        if let Err(failure) = machine.blocking(move || start::remove_old_boots(&dir, keep)).await {
            self.unsettled(&failure);
        }
        self.core.join_bases(machine.id());
    }

    /// Whoever is still queued when the driver ends is told why.
    fn answer_the_rest(&mut self) {
        self.inbox.urgent.close();
        self.inbox.requests.close();
        while let Ok(request) = self.inbox.urgent.try_recv() {
            self.answer_late(request);
        }
        while let Ok(request) = self.inbox.requests.try_recv() {
            self.answer_late(request);
        }
        for request in self.destroy.take().into_iter().chain(self.queue.drain()).collect::<Vec<_>>() {
            self.answer_late(request);
        }
    }

    fn answer_late(&self, request: Request) {
        match (self.machine.state(), request) {
            // A destroy that came second got what it asked for.
            (VmStateName::Destroyed, Request::Change(change)) if change.kind == RequestKind::Destroy => {
                let core = self.core.clone();
                let scope = crate::core::scope(change.ticket.operation());
                self.core.tasks.spawn(TaskKind::Recorder, scope, async move {
                    core.close(change.ticket, OperationOutcome::Done).await;
                });
            }
            (VmStateName::Destroyed, request) => {
                refuse(&self.core, request, error::vm_gone(self.machine.name()));
            }
            // The engine ends: tickets that are dropped say so.
            (_, request) => drop(request),
        }
    }
}

/// Answers a request that is not carried out. The outcome is written by a task of its own: the driver may be in
/// the middle of a change.
fn refuse(core: &Arc<Core>, request: Request, failure: Failure) {
    match request {
        Request::Change(change) => {
            let (core, scope) = (core.clone(), crate::core::scope(change.ticket.operation()));
            core.clone().tasks.spawn(TaskKind::Recorder, scope, async move {
                core.close(change.ticket, OperationOutcome::Failed { failure }).await;
            });
        }
        // A caller that went away needs no answer.
        Request::UseGuest(guest) => drop(guest.reply.send(Err(failure))),
        // Its sender is told by the closed channel.
        Request::Refresh(_) => {}
    }
}

/// Says in the failure what could not be taken back.
fn with_undo(mut failure: Failure, undo: &UndoReport) -> Failure {
    if !undo.failed.is_empty() {
        let left = format!("not taken back: {}", undo.failed.join(", "));
        failure.cause = Some(match failure.cause {
            Some(cause) => format!("{cause}; {left}"),
            None => left,
        });
    }
    failure
}

async fn exit_of(exit: Option<watch::Receiver<Option<Exit>>>) -> Exit {
    match exit {
        Some(exit) => ended(exit).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the link shows something else than what was published last.
async fn change_of(link: Option<watch::Receiver<LinkState>>, published: Option<crate::GuestView>) {
    let Some(mut link) = link else { return std::future::pending().await };
    loop {
        if crate::link::view_of(&link.borrow_and_update()) != published {
            return;
        }
        if link.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

async fn after(delay: Option<Duration>) {
    match delay {
        Some(delay) => tokio::time::sleep(delay).await,
        None => std::future::pending().await,
    }
}

pub(crate) fn reason_for(kind: OperationKind) -> String {
    format!("{} was asked for", verb(kind))
}
