//! What may happen to a VM next: plain synchronous data, no I/O, no clock.
//!
//! ```text
//!             offer                       next
//! request ----------> [ queue, FIFO ] ----------> judge(state, request)
//!            |  |                                   |- Run
//!            |  +-> Full: refused at once           |- AlreadySatisfied: ends Done, nothing changes
//!            +----> Destroy: pre-empts              +- Denied{reason}: the state and what to do, in words
//! ```
//! A request is judged when its turn comes, against the state its predecessors left, so the answers are those
//! of *some* sequential order: exactly the order of the queue. Destroy alone does not wait: it cancels the
//! change under way, and everything queued is answered `BeingDestroyed`.

use offshoot_types::{ErrorCode, Failure, OperationKind, VmName, VmStateName};
use std::collections::VecDeque;

/// Requests a VM's queue holds; more are refused as `busy`. Enough for a caller's burst, few enough that the
/// last one is answered before a person gives up.
pub(crate) const QUEUE_DEPTH: usize = 64;

/// What can be asked of a VM that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RequestKind {
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Destroy,
    Snapshot,
    Rollback,
    Suspend,
    /// Reading the record again; in any state.
    Refresh,
    /// Anything that talks to the guest: exec, attach, files, TCP.
    UseGuest,
}

impl RequestKind {
    #[cfg(test)]
    pub const ALL: [Self; 11] = [
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Pause,
        Self::Resume,
        Self::Destroy,
        Self::Snapshot,
        Self::Rollback,
        Self::Suspend,
        Self::Refresh,
        Self::UseGuest,
    ];

    const fn verb(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Destroy => "destroy",
            Self::Snapshot => "snapshot",
            Self::Rollback => "rollback",
            Self::Suspend => "suspend",
            Self::Refresh => "refresh",
            Self::UseGuest => "use",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admission {
    Run,
    AlreadySatisfied,
    Denied(DeniedReason),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeniedReason {
    /// The state does not allow the verb.
    WrongState {
        request: RequestKind,
        state: VmStateName,
    },
    QueueFull,
    BeingDestroyed,
}

/// Legality of a request in a state at rest or left by an interrupted change. Exhaustive: a new state or
/// request does not compile until each pair is decided.
pub(crate) const fn judge(state: VmStateName, request: RequestKind) -> Admission {
    use Admission::{AlreadySatisfied, Run};
    use RequestKind::{
        Destroy, Pause, Refresh, Restart, Resume, Rollback, Snapshot, Start, Stop, Suspend, UseGuest,
    };
    use VmStateName::{
        Creating, Destroyed, Failed, Migrating, Paused, Running, Starting, Stopped, Stopping, Suspended,
        Suspending,
    };
    let wrong = Admission::Denied(DeniedReason::WrongState { request, state });
    match (request, state) {
        (Start, Stopped | Failed | Suspended) => Run,
        (Start, Running) => AlreadySatisfied,
        (Start, Paused | Creating | Starting | Suspending | Stopping | Migrating | Destroyed) => wrong,

        // Stopping a failed VM clears what is left of its process.
        (Stop, Running | Paused | Failed | Suspended) => Run,
        (Stop, Stopped) => AlreadySatisfied,
        (Stop, Creating | Starting | Suspending | Stopping | Migrating | Destroyed) => wrong,

        // A suspended VM loses its memory, as a running one does.
        (Restart, Running | Paused | Stopped | Failed | Suspended) => Run,
        (Restart, Creating | Starting | Suspending | Stopping | Migrating | Destroyed) => wrong,

        (Pause, Running) => Run,
        (Pause, Paused) => AlreadySatisfied,
        (
            Pause,
            Stopped | Failed | Suspended | Creating | Starting | Suspending | Stopping | Migrating
            | Destroyed,
        ) => wrong,

        (Resume, Paused) => Run,
        (Resume, Running) => AlreadySatisfied,
        (
            Resume,
            Stopped | Failed | Suspended | Creating | Starting | Suspending | Stopping | Migrating
            | Destroyed,
        ) => wrong,

        // A suspended VM's state is kept already, as the snapshot it was suspended to.
        (Snapshot, Running | Paused | Stopped | Failed) => Run,
        (Snapshot, Suspended | Creating | Starting | Suspending | Stopping | Migrating | Destroyed) => wrong,

        (Rollback, Running | Paused | Stopped | Failed | Suspended) => Run,
        (Rollback, Creating | Starting | Suspending | Stopping | Migrating | Destroyed) => wrong,

        (Suspend, Running | Paused) => Run,
        (Suspend, Suspended) => AlreadySatisfied,
        (Suspend, Stopped | Failed | Creating | Starting | Suspending | Stopping | Migrating | Destroyed) => {
            wrong
        }

        (Refresh, _) => Run,

        // From anywhere: there is no state without an exit, except in the hands of another node.
        (
            Destroy,
            Creating | Stopped | Starting | Running | Paused | Suspending | Suspended | Stopping | Failed,
        ) => Run,
        (Destroy, Destroyed) => AlreadySatisfied,
        (Destroy, Migrating) => wrong,

        (UseGuest, Running) => Run,
        (
            UseGuest,
            Paused | Stopped | Failed | Suspended | Creating | Starting | Suspending | Stopping | Migrating
            | Destroyed,
        ) => wrong,
    }
}

impl DeniedReason {
    /// For the caller: names the VM, the state and what to do next.
    pub fn failure(self, vm: &VmName) -> Failure {
        match self {
            Self::WrongState { request, state } => {
                let failure =
                    Failure::new(ErrorCode::WrongState, format!("VM `{vm}` is {}", in_words(state)));
                match remedy(request, state) {
                    Some(verb) => Failure {
                        message: format!("{}; {verb} it with `offshoot {verb} {vm}`", failure.message),
                        ..failure
                    },
                    None if state == VmStateName::Destroyed => failure,
                    None => failure.hint(format!(
                        "`{}` is not possible in this state; `offshoot wait {vm}` waits for the next one",
                        request.verb()
                    )),
                }
            }
            Self::QueueFull => {
                let message = format!("VM `{vm}` has {QUEUE_DEPTH} requests waiting already");
                Failure::new(ErrorCode::NoResource, message).hint("try again when some have ended")
            }
            Self::BeingDestroyed => {
                Failure::new(ErrorCode::WrongState, format!("VM `{vm}` is being destroyed"))
            }
        }
    }
}

const fn in_words(state: VmStateName) -> &'static str {
    match state {
        VmStateName::Creating => "still being created",
        VmStateName::Stopped => "stopped",
        VmStateName::Starting => "still starting",
        VmStateName::Running => "running",
        VmStateName::Paused => "paused",
        VmStateName::Suspending => "being suspended",
        VmStateName::Suspended => "suspended",
        VmStateName::Stopping => "being stopped",
        VmStateName::Migrating => "moving to another node",
        VmStateName::Failed => "failed",
        VmStateName::Destroyed => "destroyed",
    }
}

/// The verb that brings the VM to where the request makes sense.
const fn remedy(request: RequestKind, state: VmStateName) -> Option<&'static str> {
    match (request, state) {
        (
            RequestKind::UseGuest | RequestKind::Pause | RequestKind::Resume | RequestKind::Suspend,
            VmStateName::Stopped | VmStateName::Failed,
        ) => Some("start"),
        (RequestKind::UseGuest | RequestKind::Pause | RequestKind::Snapshot, VmStateName::Suspended) => {
            Some("resume")
        }
        (RequestKind::UseGuest | RequestKind::Start, VmStateName::Paused) => Some("resume"),
        _ => None,
    }
}

/// The request that a kind of operation makes of a VM that exists.
pub(crate) const fn request_of(kind: OperationKind) -> Option<RequestKind> {
    match kind {
        OperationKind::Start => Some(RequestKind::Start),
        OperationKind::Stop => Some(RequestKind::Stop),
        OperationKind::Restart => Some(RequestKind::Restart),
        OperationKind::Pause => Some(RequestKind::Pause),
        OperationKind::Resume => Some(RequestKind::Resume),
        OperationKind::Destroy => Some(RequestKind::Destroy),
        OperationKind::Exec | OperationKind::WriteFiles => Some(RequestKind::UseGuest),
        // The state it was asked to keep or to go back to has passed with the daemon that was asked.
        OperationKind::Create
        | OperationKind::Snapshot
        | OperationKind::Rollback
        | OperationKind::Suspend
        | OperationKind::RemoveSnapshot
        | OperationKind::Fork
        | OperationKind::Import
        | OperationKind::Transaction
        | OperationKind::Race
        | OperationKind::Context
        | OperationKind::Rebase
        | OperationKind::Reconcile => None,
    }
}

/// The waiting requests of one VM. Generic over the request so that the model test needs no VM.
#[derive(Debug)]
pub(crate) struct RequestQueue<R> {
    waiting: VecDeque<R>,
    destroying: bool,
}

/// Where an offered request went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Offer<R> {
    Queued,
    /// It is the destroy: cancel the change under way, answer the others (returned in order), then run it.
    Preempts {
        request: R,
        others: Vec<R>,
    },
    Refused {
        request: R,
        reason: DeniedReason,
    },
}

impl<R> Default for RequestQueue<R> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), destroying: false }
    }
}

impl<R> RequestQueue<R> {
    pub fn offer(&mut self, kind: RequestKind, request: R) -> Offer<R> {
        match kind {
            // A second destroy joins the queue and finds itself satisfied, or tries again after a failure.
            RequestKind::Destroy if !self.destroying => {
                self.destroying = true;
                Offer::Preempts { request, others: self.waiting.drain(..).collect() }
            }
            _ if self.waiting.len() >= QUEUE_DEPTH => {
                Offer::Refused { request, reason: DeniedReason::QueueFull }
            }
            RequestKind::Destroy => {
                self.waiting.push_back(request);
                Offer::Queued
            }
            _ if self.destroying => Offer::Refused { request, reason: DeniedReason::BeingDestroyed },
            _ => {
                self.waiting.push_back(request);
                Offer::Queued
            }
        }
    }

    pub fn next(&mut self) -> Option<R> {
        self.waiting.pop_front()
    }

    /// A destroy is carried out that did not come through here: a recovery.
    pub fn begin_destroy(&mut self) {
        self.destroying = true;
    }

    /// A destroy did not succeed: the VM takes requests again.
    pub fn destroy_failed(&mut self) {
        self.destroying = false;
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Everything still waiting, to be answered because the VM is gone.
    pub fn drain(&mut self) -> Vec<R> {
        self.waiting.drain(..).collect()
    }
}

#[cfg(test)]
mod tests;
