//! Everything the engine says to the log, as one enum: the level follows from the event, never from the mood
//! of the line that emits it. Each line carries `vm`, `op` and `actor` where they are known.

use offshoot_types::{Actor, Generation, OperationId, OperationKind, VmId, VmStateName};
use std::time::Duration;

/// Whom an event is about.
#[derive(Debug, Clone, Default)]
pub struct Scope {
    pub vm: Option<VmId>,
    pub op: Option<OperationId>,
    pub actor: Option<Actor>,
}

#[derive(Debug, Clone)]
pub enum TraceEvent<'a> {
    EngineStarted {
        vms: usize,
        adopted: usize,
        took: Duration,
    },
    EngineStopped {
        left_running: usize,
    },
    VmMoved {
        from: Option<VmStateName>,
        to: VmStateName,
        generation: Generation,
        reason: &'a str,
    },
    OperationAccepted {
        kind: OperationKind,
    },
    OperationEnded {
        kind: OperationKind,
        outcome: &'a str,
        took: Duration,
    },
    StepStarted {
        saga: &'a str,
        step: &'a str,
    },
    StepFailed {
        saga: &'a str,
        step: &'a str,
        error: &'a str,
    },
    StepUndone {
        saga: &'a str,
        step: &'a str,
    },
    NothingToUndo {
        saga: &'a str,
        step: &'a str,
        because: &'a str,
    },
    NotSettled {
        error: &'a str,
    },
    UndoFailed {
        saga: &'a str,
        step: &'a str,
        error: &'a str,
    },
    Adopted {
        generation: Generation,
    },
    AdoptionFailed {
        error: &'a str,
    },
    RecoveryStarted {
        kind: OperationKind,
        step: &'a str,
    },
    StopRung {
        rung: &'a str,
        took: Duration,
    },
    VmmExited {
        exit: &'a str,
    },
    GuestConnected {
        kernel: &'a str,
        took: Duration,
    },
    GuestLost {
        reason: &'a str,
    },
    GuestSilent,
    GuestAnswersAgain,
    ReaperRetry {
        attempt: u32,
        error: &'a str,
        next: Duration,
    },
    /// The guest did not stand still in time: the state is kept all the same, and marked.
    NotQuiesced {
        error: &'a str,
    },
    /// The guest did not confirm that its processes go on; it is asked again.
    NotUnfrozen {
        error: &'a str,
    },
    NotPersisted {
        snapshot: &'a str,
        error: &'a str,
    },
    /// The disks of new forks could not be flushed: a crash of the host may lose them.
    NotFlushed {
        error: &'a str,
    },
    LayerRemoved {
        path: &'a str,
    },
    /// Layers of a disk stay as many as they are until the next snapshot.
    NotMerged {
        error: &'a str,
    },
    /// The process goes on reading its disk from the layers it has open.
    NotRestacked {
        error: &'a str,
    },
    /// A file nobody needs could not be removed; it is tried again.
    NotCollected {
        path: &'a str,
        error: &'a str,
    },
    /// A transaction is not rolled back yet.
    RollbackRetry {
        attempt: u32,
        error: &'a str,
        next: Duration,
    },
    StrayRemoved {
        path: &'a str,
    },
    StrayKept {
        path: &'a str,
    },
    StoreFailed {
        operation: &'a str,
        error: &'a str,
    },
    TaskPanicked {
        task: &'a str,
        message: &'a str,
    },
    /// A VM took over an instance of the warm pool.
    Claimed {
        member: &'a str,
        isolation: offshoot_types::IsolationClass,
        took: Duration,
    },
    /// An instance of the pool was ended instead of claimed; the start goes on without it.
    NotClaimed {
        error: &'a str,
    },
    /// A template or an instance of the pool could not be made; it is tried again.
    PoolTrouble {
        error: &'a str,
    },
    /// A template lacks something that would make starts from it faster.
    NotWarmed {
        what: &'a str,
        error: &'a str,
    },
    /// A start from a template failed, and the VM boots instead.
    ColdAfterAll {
        error: &'a str,
    },
    /// Some tasks did not let go in time and were dropped where they stood.
    TasksAbandoned,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    /// Pages a human: something we promise does not hold.
    Error,
    /// Carried on, but somebody should look.
    Warn,
    Info,
    Debug,
}

impl TraceEvent<'_> {
    const fn level(&self) -> Level {
        match self {
            Self::StoreFailed { .. } | Self::TaskPanicked { .. } => Level::Error,
            Self::UndoFailed { .. }
            | Self::NotSettled { .. }
            | Self::AdoptionFailed { .. }
            | Self::ReaperRetry { .. }
            | Self::RollbackRetry { .. }
            | Self::StrayKept { .. }
            | Self::NotQuiesced { .. }
            | Self::NotUnfrozen { .. }
            | Self::NotPersisted { .. }
            | Self::NotFlushed { .. }
            | Self::NotCollected { .. }
            | Self::NotClaimed { .. }
            | Self::PoolTrouble { .. }
            | Self::ColdAfterAll { .. }
            | Self::NotMerged { .. }
            | Self::NotRestacked { .. }
            | Self::TasksAbandoned
            | Self::GuestSilent => Level::Warn,
            Self::EngineStarted { .. }
            | Self::EngineStopped { .. }
            | Self::VmMoved { .. }
            | Self::OperationEnded { .. }
            | Self::StepFailed { .. }
            | Self::RecoveryStarted { .. }
            | Self::VmmExited { .. }
            | Self::GuestAnswersAgain
            | Self::Claimed { .. }
            | Self::NotWarmed { .. }
            | Self::StrayRemoved { .. } => Level::Info,
            Self::OperationAccepted { .. }
            | Self::StepStarted { .. }
            | Self::StepUndone { .. }
            | Self::NothingToUndo { .. }
            | Self::Adopted { .. }
            | Self::StopRung { .. }
            | Self::LayerRemoved { .. }
            | Self::GuestConnected { .. }
            | Self::GuestLost { .. } => Level::Debug,
        }
    }

    /// The event's name in logs: stable, kebab-case.
    const fn name(&self) -> &'static str {
        match self {
            Self::EngineStarted { .. } => "engine-started",
            Self::EngineStopped { .. } => "engine-stopped",
            Self::VmMoved { .. } => "vm-moved",
            Self::OperationAccepted { .. } => "operation-accepted",
            Self::OperationEnded { .. } => "operation-ended",
            Self::StepStarted { .. } => "step-started",
            Self::StepFailed { .. } => "step-failed",
            Self::StepUndone { .. } => "step-undone",
            Self::NothingToUndo { .. } => "nothing-to-undo",
            Self::NotSettled { .. } => "not-settled",
            Self::UndoFailed { .. } => "undo-failed",
            Self::Adopted { .. } => "adopted",
            Self::AdoptionFailed { .. } => "adoption-failed",
            Self::RecoveryStarted { .. } => "recovery-started",
            Self::StopRung { .. } => "stop-rung",
            Self::VmmExited { .. } => "vmm-exited",
            Self::GuestConnected { .. } => "guest-connected",
            Self::GuestLost { .. } => "guest-lost",
            Self::GuestSilent => "guest-silent",
            Self::GuestAnswersAgain => "guest-answers-again",
            Self::ReaperRetry { .. } => "reaper-retry",
            Self::RollbackRetry { .. } => "rollback-retry",
            Self::NotQuiesced { .. } => "not-quiesced",
            Self::NotUnfrozen { .. } => "not-unfrozen",
            Self::NotPersisted { .. } => "not-persisted",
            Self::NotFlushed { .. } => "not-flushed",
            Self::LayerRemoved { .. } => "layer-removed",
            Self::NotCollected { .. } => "not-collected",
            Self::NotMerged { .. } => "not-merged",
            Self::NotRestacked { .. } => "not-restacked",
            Self::StrayRemoved { .. } => "stray-removed",
            Self::StrayKept { .. } => "stray-kept",
            Self::StoreFailed { .. } => "store-failed",
            Self::TaskPanicked { .. } => "task-panicked",
            Self::Claimed { .. } => "claimed",
            Self::NotClaimed { .. } => "not-claimed",
            Self::PoolTrouble { .. } => "pool-trouble",
            Self::NotWarmed { .. } => "not-warmed",
            Self::ColdAfterAll { .. } => "cold-after-all",
            Self::TasksAbandoned => "tasks-abandoned",
        }
    }

    pub(crate) fn emit(&self, scope: &Scope) {
        let (vm, op) = (scope.vm.map(tracing::field::display), scope.op.map(tracing::field::display));
        let actor = scope.actor.as_ref().map(tracing::field::display);
        let event = self.name();
        macro_rules! at {
            ($level:ident) => {
                tracing::$level!(target: "offshoot::engine", vm, op, actor, event, detail = ?self)
            };
        }
        match self.level() {
            Level::Error => at!(error),
            Level::Warn => at!(warn),
            Level::Info => at!(info),
            Level::Debug => at!(debug),
        }
    }
}
