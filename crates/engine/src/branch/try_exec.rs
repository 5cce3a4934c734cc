//! One exec as a transaction: snapshot, run, check, then keep or undo, all of it in the engine.
//!
//! ```text
//! begin --> Begun --> exec --Exec*--> exited with 0 --> check --Check*--> exited with 0 --> commit ----> Ended
//!                       |  anything else, the caller leaves, time is up, ...                 |
//!                       '-----------------------------------------------> roll back ------> Ended
//! ```
//! It is carried out by a task of its own: whoever asked may go away at any moment, which is a reason to roll back.

mod run;

pub(super) use run::{Outlet, Undoable, inner};

use crate::{Engine, ExecEvent, ExecInput, core::Authority, error, tasks::TaskKind};
use offshoot_policy::Authorized;
use offshoot_types::{Command, ExecStatus, Failure, SnapshotId, TransactionEnd, TransactionId};
use tokio::sync::mpsc;

/// Events buffered between the task and its caller.
const EVENT_DEPTH: usize = 16;

#[derive(Debug, Clone, PartialEq)]
pub enum TryEvent {
    /// The snapshot it goes back to on failure has been taken.
    Begun {
        transaction: TransactionId,
        snapshot: SnapshotId,
    },
    Exec(ExecEvent),
    Check(ExecEvent),
    /// The last event: it was committed or rolled back, and that is on disk.
    Ended(TryEnd),
    /// The last event: it could not be carried out. What was done in it is undone, or will be: the VM is owned until then.
    Failed(Failure),
}

#[derive(Debug, Clone, PartialEq)]
pub struct TryEnd {
    pub transaction: TransactionId,
    pub end: TransactionEnd,
    /// Of the command; `None` if it never ended by itself.
    pub status: Option<ExecStatus>,
}

/// Dropping it before the last event rolls back.
#[derive(Debug)]
pub struct TrySession {
    pub(crate) input: ExecInput,
    pub(crate) events: mpsc::Receiver<TryEvent>,
}

impl TrySession {
    /// To the command, while that runs.
    pub fn input(&self) -> &ExecInput {
        &self.input
    }
    /// `None` after the last event. Cancel-safe.
    pub async fn next(&mut self) -> Option<TryEvent> {
        self.events.recv().await
    }
}

impl Engine {
    /// Snapshot, run, check, then keep or undo ([`Command::Try`]). Returns once the snapshot has been taken.
    pub async fn try_exec(&self, permit: Authorized<Command>) -> Result<TrySession, Failure> {
        let (command, grant) = permit.into_parts();
        let Command::Try { vm, spec } = command else {
            return Err(error::wrong_permit("try_exec", command.action()));
        };
        let (core, parent) = (self.core().clone(), self.transaction());
        let handle = core.manager.find(&vm, &grant.actor().owner())?;
        let authority = Authority::Granted(Box::new(grant));
        // Detached with the session inside: a caller that goes away in the middle drops it, and it is rolled back.
        self.core()
            .detached(TaskKind::Acceptor, async move {
                let (input, inner) = inner();
                let (events, receiver) = mpsc::channel(EVENT_DEPTH);
                let run = Undoable::begin(core, handle, authority, *spec, parent).await?;
                run.spawn(inner.into(), Outlet::Try(events));
                Ok(TrySession { input, events: receiver })
            })
            .await
    }
}
