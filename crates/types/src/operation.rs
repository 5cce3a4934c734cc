//! An operation: a change somebody asked for, journaled before it is begun.

use crate::{Actor, Failure, OperationId, VmId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OperationKind {
    Create,
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Destroy,
    Exec,
    WriteFiles,
    Snapshot,
    RemoveSnapshot,
    /// The making of all forks of one request.
    Fork,
    Rollback,
    Suspend,
    /// The making of a VM from an exported snapshot.
    Import,
    /// A transaction from its beginning to its end.
    Transaction,
    Race,
    /// Code run in a live interpreter, or the interpreter's own beginning and end.
    Context,
    /// The daemon's own: a VM that runs and is idle goes on in a process with a fresh base, as if nothing had happened.
    Rebase,
    /// The daemon's own: bringing record and world together after a restart or an observed exit.
    Reconcile,
}

impl fmt::Display for OperationKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Destroy => "destroy",
            Self::Exec => "exec",
            Self::WriteFiles => "write-files",
            Self::Snapshot => "snapshot",
            Self::RemoveSnapshot => "remove-snapshot",
            Self::Fork => "fork",
            Self::Rollback => "rollback",
            Self::Suspend => "suspend",
            Self::Import => "import",
            Self::Transaction => "transaction",
            Self::Race => "race",
            Self::Context => "context",
            Self::Rebase => "rebase",
            Self::Reconcile => "reconcile",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    pub id: OperationId,
    pub kind: OperationKind,
    pub vm: Option<VmId>,
    pub actor: Actor,
    /// Why, in the caller's words or ours.
    pub reason: String,
    pub state: OperationState,
    /// The rollback, transaction or race that took back what it did; `None` while its VM's state holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone_by: Option<OperationId>,
    pub created: Timestamp,
    pub updated: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum OperationState {
    /// Acknowledged, queued at the VM's driver.
    Pending,
    /// Held back by an obligation of its decision (an approval, say).
    Waiting {
        obligation: String,
    },
    /// The named saga step is under way.
    Running {
        step: String,
    },
    Ended {
        outcome: OperationOutcome,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum OperationOutcome {
    Done,
    /// Failed, and every step it had taken was undone unless `failure` says otherwise.
    Failed {
        failure: Failure,
    },
    /// The daemon died during it; `undone` tells whether the next start took it back or completed it.
    Interrupted {
        undone: bool,
    },
}
