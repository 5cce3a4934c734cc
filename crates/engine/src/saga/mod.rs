//! Changes of several steps, written as tables: name, act, undo.
//!
//! ```text
//!          journal step i        act i            journal step i+1 ...               outcome
//! ---------------o-----------------o------------------o--------------------------------o---->
//!                        | fails, is cancelled, or the deadline passes
//!                        v
//!                 undo i, undo i-1, ..., undo 0        each bounded in time; a failed undo is
//!                                                      reported and does not stop the others
//!
//! after a crash at step i:   OnCrash::Undo      undo i ... undo 0            create, start, snapshot, rollback, suspend, rebase
//!                            OnCrash::Complete  act i, act i+1, ...          stop, restart, destroy, pause, resume
//! ```
//! Every act and every undo is idempotent, and an undo works on a step that was done in part or not at all:
//! after a crash nobody can tell. Acts may be dropped at any await; what they leave, their undo finds again
//! through the VM's row, its instance record and the fixed layout of directories.

pub(crate) mod beside;
mod checkpoint;
pub(crate) mod create;
pub(crate) mod destroy;
mod disk;
pub(crate) mod pause;
pub(crate) mod rebase;
pub(crate) mod rollback;
pub(crate) mod snapshot;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod suspend;
pub(crate) mod thaw;

pub use checkpoint::{Checkpoint, Checkpoints, Fault, Phase};

use crate::{
    ask::{ForkAsk, RollbackAsk, SnapshotAsk},
    machine::Machine,
    trace::TraceEvent,
};
use futures::future::BoxFuture;
use offshoot_provider::UndoReport;
use offshoot_types::{Actor, ErrorCode, Failure, OperationId, OperationKind, SnapshotId, SnapshotOrigin};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long one undo may take before the next one is tried.
const UNDO_DEADLINE: Duration = Duration::from_secs(30);

pub(crate) type StepFuture<'a> = BoxFuture<'a, Result<(), Failure>>;
pub(crate) type StepFn = for<'a> fn(&'a mut Machine, &'a Change) -> StepFuture<'a>;

pub(crate) struct Step {
    pub name: &'static str,
    pub act: StepFn,
    pub undo: Undo,
    pub journal: Journal,
}

/// Whether a step's beginning is written down by itself. Each write costs a flush of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Journal {
    Written,
    /// It counts as begun with the last step before it that is written: whoever takes that back takes this back too.
    WithEarlier,
}

pub(crate) const fn step(name: &'static str, act: StepFn, undo: Undo) -> Step {
    Step { name, act, undo, journal: Journal::Written }
}

/// A step whose beginning is not written down.
pub(crate) const fn quiet(name: &'static str, act: StepFn, undo: Undo) -> Step {
    Step { name, act, undo, journal: Journal::WithEarlier }
}

pub(crate) enum Undo {
    Run(StepFn),
    /// Why there is nothing to take back.
    Nothing(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnCrash {
    Undo,
    Complete,
}

pub(crate) struct Saga {
    pub kind: OperationKind,
    pub steps: &'static [&'static [Step]],
    pub on_crash: OnCrash,
}

/// One request being carried out.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub operation: OperationId,
    pub kind: OperationKind,
    pub actor: Actor,
    /// Goes into the event of every move this change makes.
    pub reason: String,
    /// For stop and restart: how long the guest may take to power off.
    pub grace: Duration,
    pub deadline: Instant,
    /// What is asked for beyond its kind; nothing for a change that an earlier daemon began.
    pub input: Input,
}

/// What a change is to do, and where it puts what it found out.
#[derive(Debug, Clone, Default)]
pub(crate) enum Input {
    #[default]
    None,
    Snapshot(Arc<SnapshotAsk>),
    Rollback(Arc<RollbackAsk>),
    /// The snapshot whose memory is to be the base from now on.
    Rebase(SnapshotId),
    /// A start that is a fork's first.
    Fork(Arc<ForkAsk>),
    /// A destroy that takes snapshots somebody asked for with it.
    DestroyAll,
}

impl Input {
    /// Whether it is the daemon's own doing, which nobody asked for.
    pub fn is_upkeep(&self) -> bool {
        match self {
            Self::Rebase(_) => true,
            Self::Snapshot(ask) => ask.origin == SnapshotOrigin::Rebase,
            Self::None | Self::Rollback(_) | Self::Fork(_) | Self::DestroyAll => false,
        }
    }
}

/// A saga that did not reach its end: the step and cause, and what became of the steps before it.
#[derive(Debug)]
pub(crate) struct Unwound {
    pub step: &'static str,
    pub failure: Failure,
    pub undo: UndoReport,
}

/// Why a step did not come to its end.
enum Stopped {
    Failed(Failure),
    /// It was dropped at an await: what it had asked of the store may still be written.
    Cut(Failure),
}

impl Saga {
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = &'static Step> {
        self.steps.iter().flat_map(|part| part.iter())
    }

    fn position(&self, step: &str) -> Option<usize> {
        self.steps().position(|s| s.name == step)
    }

    /// Carries out all steps, or takes back those begun. Cancelling makes it unwind at once; the future itself
    /// must be polled to its end, or the daemon's next start has to finish it.
    pub async fn run(
        &self,
        machine: &mut Machine,
        change: &Change,
        cancel: &CancellationToken,
    ) -> Result<(), Unwound> {
        self.run_from(0, machine, change, cancel).await
    }

    /// Goes on after a crash at step `step`, for sagas that are completed. A part whose steps have undos is taken
    /// back to its beginning first: what they need is not in the journal.
    pub async fn complete(
        &self,
        step: Option<&str>,
        machine: &mut Machine,
        change: &Change,
        cancel: &CancellationToken,
    ) -> Result<(), Unwound> {
        let mut first = 0;
        if let Some(position) = step.and_then(|step| self.position(step)) {
            let (part_first, part) = self.part_of(position);
            let undone = part.iter().any(|step| matches!(step.undo, Undo::Run(_)));
            if undone {
                self.unwind(self.last_begun(position), machine, change).await;
            }
            first = if undone { part_first } else { position };
        }
        self.run_from(first, machine, change, cancel).await
    }

    /// The last step that may have begun if the one at `position` is the last in the journal.
    fn last_begun(&self, position: usize) -> usize {
        let after = self.steps().skip(position + 1);
        position + after.take_while(|step| step.journal == Journal::WithEarlier).count()
    }

    /// The part that holds a step, and the position of the part's first step.
    fn part_of(&self, position: usize) -> (usize, &'static [Step]) {
        let mut first = 0;
        for part in self.steps {
            if position < first + part.len() {
                return (first, part);
            }
            first += part.len();
        }
        (first, &[])
    }

    async fn run_from(
        &self,
        first: usize,
        machine: &mut Machine,
        change: &Change,
        cancel: &CancellationToken,
    ) -> Result<(), Unwound> {
        for (index, step) in self.steps().enumerate().skip(first) {
            if let Err(stopped) = self.perform(step, machine, change, cancel).await {
                let failure = match stopped {
                    Stopped::Failed(failure) => failure,
                    Stopped::Cut(failure) => {
                        machine.catch_up(change).await;
                        failure
                    }
                };
                let (saga, error) = (self.name(), failure.message.as_str());
                TraceEvent::StepFailed { saga, step: step.name, error }.emit(&machine.scope(change));
                let undo = self.unwind(index, machine, change).await;
                return Err(Unwound { step: step.name, failure, undo });
            }
        }
        Ok(())
    }

    async fn perform(
        &self,
        step: &'static Step,
        machine: &mut Machine,
        change: &Change,
        cancel: &CancellationToken,
    ) -> Result<(), Stopped> {
        TraceEvent::StepStarted { saga: self.name(), step: step.name }.emit(&machine.scope(change));
        let vm = machine.name().clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(Stopped::Cut(cancelled(self.name(), &vm))),
            () = tokio::time::sleep_until(change.deadline) => {
                Err(Stopped::Cut(timed_out(self.name(), step.name, &vm)))
            }
            done = self.act(step, machine, change) => done.map_err(Stopped::Failed),
        }
    }

    async fn act(&self, step: &'static Step, machine: &mut Machine, change: &Change) -> Result<(), Failure> {
        let checkpoints = machine.checkpoints();
        let at = |phase| checkpoints.visit(Checkpoint { kind: self.kind, step: step.name, phase });
        proceed(at(Phase::BeforeJournal).await)?;
        match step.journal {
            Journal::Written => machine.journal_step(change, step.name).await?,
            Journal::WithEarlier => machine.show_step(change, step.name),
        }
        proceed(at(Phase::BeforeAct).await)?;
        (step.act)(machine, change).await?;
        if at(Phase::AfterAct).await.repeats()? {
            (step.act)(machine, change).await?;
        }
        Ok(())
    }

    /// Takes back the steps up to and including the one named; all of them if it is not known.
    pub async fn undo_from(&self, step: Option<&str>, machine: &mut Machine, change: &Change) -> UndoReport {
        let last = step.and_then(|step| self.position(step)).map(|position| self.last_begun(position));
        let last = last.unwrap_or_else(|| self.steps().count().saturating_sub(1));
        self.unwind(last, machine, change).await
    }

    async fn unwind(&self, last: usize, machine: &mut Machine, change: &Change) -> UndoReport {
        let mut report = UndoReport::default();
        let begun: Vec<&'static Step> = self.steps().take(last + 1).collect();
        for step in begun.into_iter().rev() {
            let undo = match step.undo {
                Undo::Run(undo) => undo,
                Undo::Nothing(because) => {
                    let (saga, step) = (self.name(), step.name);
                    TraceEvent::NothingToUndo { saga, step, because }.emit(&machine.scope(change));
                    continue;
                }
            };
            let undone = tokio::time::timeout(UNDO_DEADLINE, self.undo(step, undo, machine, change)).await;
            let scope = machine.scope(change);
            match undone {
                Ok(Ok(())) => {
                    TraceEvent::StepUndone { saga: self.name(), step: step.name }.emit(&scope);
                    report.undone.push(step.name.into());
                }
                failed => {
                    let error = match failed {
                        Ok(Err(failure)) => failure.to_string(),
                        _ => {
                            machine.catch_up(change).await;
                            format!("not done within {UNDO_DEADLINE:?}")
                        }
                    };
                    TraceEvent::UndoFailed { saga: self.name(), step: step.name, error: &error }.emit(&scope);
                    report.failed.push(format!("{}: {error}", step.name));
                }
            }
        }
        report
    }

    async fn undo(
        &self,
        step: &'static Step,
        undo: StepFn,
        machine: &mut Machine,
        change: &Change,
    ) -> Result<(), Failure> {
        let checkpoints = machine.checkpoints();
        let at = |phase| checkpoints.visit(Checkpoint { kind: self.kind, step: step.name, phase });
        proceed(at(Phase::BeforeUndo).await)?;
        undo(machine, change).await?;
        if at(Phase::AfterUndo).await.repeats()? {
            undo(machine, change).await?;
        }
        machine.journal_undone(change, step.name).await
    }

    pub fn name(&self) -> &'static str {
        verb(self.kind)
    }
}

/// The word for an operation in steps, reasons and messages.
pub(crate) const fn verb(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Create => "create",
        OperationKind::Start => "start",
        OperationKind::Stop => "stop",
        OperationKind::Restart => "restart",
        OperationKind::Pause => "pause",
        OperationKind::Resume => "resume",
        OperationKind::Destroy => "destroy",
        OperationKind::Exec => "exec",
        OperationKind::WriteFiles => "write-files",
        OperationKind::Snapshot => "snapshot",
        OperationKind::RemoveSnapshot => "remove-snapshot",
        OperationKind::Fork => "fork",
        OperationKind::Rollback => "rollback",
        OperationKind::Suspend => "suspend",
        OperationKind::Import => "import",
        OperationKind::Transaction => "transaction",
        OperationKind::Race => "race",
        OperationKind::Context => "context",
        OperationKind::Rebase => "rebase",
        OperationKind::Reconcile => "reconcile",
    }
}

impl Fault {
    /// Whether the act is to be repeated.
    fn repeats(self) -> Result<bool, Failure> {
        match self {
            Self::Continue => Ok(false),
            Self::Repeat => Ok(true),
            Self::Fail(failure) => Err(failure),
        }
    }
}

fn proceed(fault: Fault) -> Result<(), Failure> {
    fault.repeats().map(|_| ())
}

fn cancelled(saga: &str, vm: &offshoot_types::VmName) -> Failure {
    Failure::new(ErrorCode::Interrupted, format!("{saga} of VM `{vm}` was cancelled and taken back"))
}

fn timed_out(saga: &str, step: &str, vm: &offshoot_types::VmName) -> Failure {
    Failure::new(ErrorCode::Timeout, format!("{saga} of VM `{vm}` ran out of time at step `{step}`"))
        .hint(format!("`offshoot logs {vm} --console` may show why; what was begun has been taken back"))
}

/// The steps of a change in order, with whether they are undone: for tests that visit each.
#[doc(hidden)]
pub fn steps_of(kind: OperationKind) -> Vec<(&'static str, bool)> {
    let saga = crate::driver::saga_of(kind);
    let steps = saga.into_iter().flat_map(Saga::steps);
    steps.map(|step| (step.name, matches!(step.undo, Undo::Run(_)))).collect()
}
