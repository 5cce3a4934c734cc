//! The task of one exec that is a transaction.

use super::TryEvent;
use crate::{
    ExecEvent, ExecInput, ExecState, OnDrop, TryEnd,
    branch::transactions::{Beginning, LONGEST},
    core::{Authority, Core},
    exec::exec_id,
    manager::VmHandle,
    session::{self, Sink},
    tasks::TaskKind,
};
use offshoot_types::{
    Command, ErrorCode, ExecArgv, ExecLimits, ExecSpec, ExecStatus, Failure, OperationId, RollbackCause,
    TransactionEnd, TransactionId, TrySpec, VmRef,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// What a shell reports of a command that could not be run.
const NOT_RUN: i32 = 127;

/// Where the events go.
pub(crate) enum Outlet {
    Try(mpsc::Sender<TryEvent>),
    /// It is an ordinary exec to its caller, whose last event comes once the VM is in order.
    Exec {
        events: mpsc::Sender<ExecEvent>,
        on_drop: watch::Receiver<OnDrop>,
    },
}

/// The exec's events and the pump's end of it. What the caller sends goes to the pump directly.
pub(crate) struct Inner {
    events: session::ExecEvents,
    sink: Sink,
}

/// The same, once it runs.
pub(crate) struct Running {
    events: session::ExecEvents,
    operation: OperationId,
}

impl Running {
    pub fn operation(&self) -> OperationId {
        self.operation
    }
}

/// Whether the command is still to be started.
pub(crate) enum Program {
    Waiting(Inner),
    Running(Running),
}

impl From<Inner> for Program {
    fn from(inner: Inner) -> Self {
        Self::Waiting(inner)
    }
}
impl From<Running> for Program {
    fn from(running: Running) -> Self {
        Self::Running(running)
    }
}

/// The caller's input, and the exec it goes to.
pub(crate) fn inner() -> (ExecInput, Inner) {
    let (input, events, sink) = session::channels(OnDrop::Kill);
    (input, Inner { events, sink })
}

/// An open transaction in which one exec is to be run.
pub(crate) struct Undoable {
    core: Arc<Core>,
    handle: VmHandle,
    authority: Authority,
    spec: TrySpec,
    id: TransactionId,
    snapshot: offshoot_types::SnapshotId,
    ended: CancellationToken,
}

/// What is to become of the transaction.
enum Verdict {
    Commit,
    RollBack(RollbackCause),
    /// Somebody ended it already: its time was up, the guest crashed, a denial.
    Over,
}

impl Undoable {
    /// Opens the transaction: its snapshot is taken before anything runs.
    pub async fn begin(
        core: Arc<Core>,
        handle: VmHandle,
        authority: Authority,
        spec: TrySpec,
        parent: Option<TransactionId>,
    ) -> Result<Self, Failure> {
        let reason = format!("try {}", crate::exec::reason(&spec.exec));
        let deadline = spec.timeout.unwrap_or(LONGEST);
        let beginning = Beginning { authority: authority.clone(), parent, deadline, reason };
        let (view, ended) = core.open_transaction(&handle, beginning).await?;
        Ok(Self { core, handle, authority, spec, id: view.id, snapshot: view.snapshot, ended })
    }

    /// Starts the command before anybody is told that it began. If that is refused nothing was done, and the
    /// transaction is ended.
    pub async fn start_first(self, inner: Inner) -> Result<(Self, Running), Failure> {
        let Inner { events, sink } = inner;
        match self.start(self.spec.exec.clone(), sink).await {
            Ok(operation) => Ok((self, Running { events, operation })),
            Err(failure) => {
                let cause = RollbackCause::Failed { status: NOT_RUN };
                // The refusal is the answer. A rollback that failed is tried again by whoever watches it.
                drop(self.core.undo_transaction(&self.handle, self.id, cause, Authority::Daemon).await);
                Err(failure)
            }
        }
    }

    pub fn spawn(self, program: Program, outlet: Outlet) {
        let (core, scope) =
            (self.core.clone(), crate::trace::Scope { vm: Some(self.handle.id), ..Default::default() });
        core.tasks.spawn(TaskKind::Try, scope, self.run(program, outlet));
    }

    async fn run(self, program: Program, outlet: Outlet) {
        let mut seen = Seen::default();
        outlet.begun(self.id, self.snapshot).await;
        let closing = self.core.closing.clone();
        let verdict = tokio::select! {
            biased;
            // The next daemon rolls it back.
            () = closing.cancelled() => return,
            () = self.ended.cancelled() => Verdict::Over,
            () = outlet.left() => Verdict::RollBack(RollbackCause::CallerLeft),
            verdict = self.execute(program, &outlet, &mut seen) => verdict,
        };
        // The exec's session is dropped by now: what still runs of it is killed, or undone with everything else.
        let (core, handle) = (&self.core, &self.handle);
        let ended = match verdict {
            Verdict::Commit => match core.commit_transaction(handle, self.id).await {
                Ok(view) => Ok(view),
                // Not written, so not committed: nothing of it may stay.
                Err(failure) if !self.ended.is_cancelled() => {
                    let cause = RollbackCause::Asked;
                    match core.undo_transaction(handle, self.id, cause, Authority::Daemon).await {
                        Ok(_) | Err(_) => Err(failure),
                    }
                }
                Err(_) => core.transaction_view(handle, self.id).await,
            },
            Verdict::RollBack(cause) => {
                match core.undo_transaction(handle, self.id, cause, Authority::Daemon).await {
                    Err(_) if self.ended.is_cancelled() => core.transaction_view(handle, self.id).await,
                    ended => ended,
                }
            }
            Verdict::Over => core.transaction_view(handle, self.id).await,
        };
        let ended = ended.and_then(|view| {
            let end = view.end.ok_or_else(|| destroyed(handle))?;
            Ok(TryEnd { transaction: self.id, end, status: seen.status })
        });
        outlet.ended(ended, seen.last).await;
    }

    /// Runs the command, then the check.
    async fn execute(&self, program: Program, outlet: &Outlet, seen: &mut Seen) -> Verdict {
        let (mut events, started) = match program {
            Program::Waiting(Inner { events, sink }) => {
                (events, self.start(self.spec.exec.clone(), sink).await)
            }
            Program::Running(Running { events, operation }) => (events, Ok(operation)),
        };
        let end = match started {
            Err(failure) => ExecEvent::Failed(failure),
            Ok(operation) => self.follow(operation, &mut events, |event| outlet.exec(event)).await,
        };
        let verdict = match &end {
            ExecEvent::Ended(ended) if ended.status.success() => None,
            ExecEvent::Ended(ended) => Some(RollbackCause::Failed { status: ended.status.shell_status() }),
            other => Some(cause_of(other)),
        };
        if let ExecEvent::Ended(ended) = &end {
            seen.status = Some(ended.status);
        }
        outlet.exec_ended(&end).await;
        seen.last = Some(end);
        match (verdict, &self.spec.check) {
            (Some(cause), _) => Verdict::RollBack(cause),
            (None, None) => Verdict::Commit,
            (None, Some(check)) => self.check(check, outlet).await,
        }
    }

    async fn check(&self, check: &ExecArgv, outlet: &Outlet) -> Verdict {
        let (_, Inner { mut events, sink }) = inner();
        let end = match self.start(check_spec(&self.spec.exec, check), sink).await {
            Err(failure) => ExecEvent::Failed(failure),
            Ok(operation) => self.follow(operation, &mut events, |event| outlet.check(event)).await,
        };
        outlet.check(end.clone()).await;
        match end {
            ExecEvent::Ended(ended) if ended.status.success() => Verdict::Commit,
            ExecEvent::Ended(ended) => {
                Verdict::RollBack(RollbackCause::CheckFailed { status: ended.status.shell_status() })
            }
            ExecEvent::Failed(failure) if failure.code == ErrorCode::ExecFailed => {
                Verdict::RollBack(RollbackCause::CheckFailed { status: NOT_RUN })
            }
            other => Verdict::RollBack(cause_of(&other)),
        }
    }

    async fn start(&self, spec: ExecSpec, sink: Sink) -> Result<OperationId, Failure> {
        let command = Command::Exec { vm: VmRef::Id(self.handle.id), spec: Box::new(spec.clone()) };
        let (core, handle, authority) = (self.core.clone(), self.handle.clone(), self.authority.clone());
        let within = Some(self.id);
        // Also if the transaction ends meanwhile: what was written down of it is brought to an end.
        self.core
            .detached(TaskKind::Acceptor, async move {
                core.exec_into(&handle, authority, command, spec, within, sink).await
            })
            .await
    }

    /// Passes events on; returns the last one.
    async fn follow<F: Future<Output = ()>>(
        &self,
        operation: OperationId,
        events: &mut session::ExecEvents,
        pass: impl Fn(ExecEvent) -> F,
    ) -> ExecEvent {
        loop {
            match events.next().await {
                Some(end @ (ExecEvent::Ended(_) | ExecEvent::Failed(_))) => return end,
                // Somebody attached to it and has its streams now; how it ends is recorded all the same.
                Some(ExecEvent::Detached) | None => return self.recorded(operation).await,
                Some(event) => pass(event).await,
            }
        }
    }

    async fn recorded(&self, operation: OperationId) -> ExecEvent {
        if let Err(failure) = self.core.wait(operation, None).await {
            return ExecEvent::Failed(failure);
        }
        let state = self.handle.shared.execs.get(exec_id(operation)).map(|(view, _)| view.state);
        match state {
            Some(ExecState::Ended(status)) => ExecEvent::Ended(crate::ExecEnd {
                status,
                truncated: false,
                wall: Duration::ZERO,
                user: Duration::ZERO,
                system: Duration::ZERO,
            }),
            Some(ExecState::Failed(failure)) => ExecEvent::Failed(failure),
            Some(ExecState::Running | ExecState::Interrupted) | None => {
                ExecEvent::Failed(crate::error::exec_lost(&self.handle.name, exec_id(operation)))
            }
        }
    }
}

/// What is known of the command.
#[derive(Debug, Default)]
struct Seen {
    status: Option<ExecStatus>,
    last: Option<ExecEvent>,
}

/// Why something that did not end by itself is undone.
fn cause_of(event: &ExecEvent) -> RollbackCause {
    match event {
        ExecEvent::Failed(failure) => match failure.code {
            ErrorCode::Denied => RollbackCause::Denied,
            ErrorCode::Guest | ErrorCode::Interrupted | ErrorCode::Backend => RollbackCause::GuestCrashed,
            ErrorCode::Timeout => RollbackCause::Deadline,
            _ => RollbackCause::Failed { status: NOT_RUN },
        },
        _ => RollbackCause::Failed { status: NOT_RUN },
    }
}

/// As the command, where and as whom it ran.
fn check_spec(exec: &ExecSpec, check: &ExecArgv) -> ExecSpec {
    ExecSpec {
        argv: check.clone(),
        pty: None,
        stdin: false,
        limits: ExecLimits { timeout: None, ..exec.limits.clone() },
        ..exec.clone()
    }
}

fn destroyed(handle: &VmHandle) -> Failure {
    let message = format!("VM `{}` is gone, and what was done in it", handle.name);
    Failure::new(ErrorCode::Interrupted, message)
}

impl Outlet {
    /// Resolves once nobody wants the outcome any more.
    async fn left(&self) {
        match self {
            Self::Try(events) => events.closed().await,
            Self::Exec { events, on_drop } => {
                events.closed().await;
                if *on_drop.borrow() == OnDrop::Detach {
                    // It runs on without its caller, and is kept or undone as it ends.
                    std::future::pending::<()>().await;
                }
            }
        }
    }

    async fn begun(&self, transaction: TransactionId, snapshot: offshoot_types::SnapshotId) {
        if let Self::Try(events) = self {
            // A caller that has left is noticed by `left`.
            let _ = events.send(TryEvent::Begun { transaction, snapshot }).await;
        }
    }

    async fn exec(&self, event: ExecEvent) {
        match self {
            Self::Try(events) => drop(events.send(TryEvent::Exec(event)).await),
            Self::Exec { events, .. } => drop(events.send(event).await),
        }
    }

    /// The last event of the command: to the caller of an exec it comes last of all.
    async fn exec_ended(&self, event: &ExecEvent) {
        if let Self::Try(events) = self {
            drop(events.send(TryEvent::Exec(event.clone())).await);
        }
    }

    async fn check(&self, event: ExecEvent) {
        if let Self::Try(events) = self {
            drop(events.send(TryEvent::Check(event)).await);
        }
    }

    async fn ended(&self, ended: Result<TryEnd, Failure>, last: Option<ExecEvent>) {
        match self {
            Self::Try(events) => {
                let event = match ended {
                    Ok(end) => TryEvent::Ended(end),
                    Err(failure) => TryEvent::Failed(failure),
                };
                drop(events.send(event).await);
            }
            Self::Exec { events, .. } => {
                let event = match (ended, last) {
                    (Ok(_), Some(last)) => last,
                    (Ok(TryEnd { end: TransactionEnd::RolledBack { cause }, .. }), None) => {
                        let message = format!("the command did not end, and what it did was undone: {cause}");
                        ExecEvent::Failed(Failure::new(ErrorCode::Interrupted, message))
                    }
                    (Ok(TryEnd { end: TransactionEnd::Committed, .. }), None) => {
                        let message = "what the command did is kept, but how it ended is not known";
                        ExecEvent::Failed(Failure::new(ErrorCode::Internal, message))
                    }
                    (Err(failure), _) => ExecEvent::Failed(failure),
                };
                drop(events.send(event).await);
            }
        }
    }
}
