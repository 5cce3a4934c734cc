//! What happened, in the order it happened. Events are rows written in the transaction that changed the state.

use crate::{
    Actor, EventId, Generation, OperationId, Owner, SnapshotId, SnapshotName, SnapshotOrigin, SnapshotState,
    TransactionEnd, TransactionId, VmId, VmName, VmState,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: EventId,
    pub at: Timestamp,
    pub owner: Owner,
    pub vm: Option<VmId>,
    pub vm_name: Option<VmName>,
    pub operation: Option<OperationId>,
    pub actor: Actor,
    #[serde(flatten)]
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// One per move: previous and new state differ, the reason is not empty.
    StateChanged {
        from: Option<VmState>,
        to: VmState,
        generation: Generation,
        reason: String,
    },
    OperationStarted {
        kind: crate::OperationKind,
    },
    OperationEnded {
        kind: crate::OperationKind,
        outcome: crate::OperationOutcome,
    },
    /// The VM's guest answers or has stopped answering, while its process lives.
    GuestHealth {
        responsive: bool,
    },
    SnapshotTaken {
        snapshot: SnapshotId,
        name: Option<SnapshotName>,
        origin: SnapshotOrigin,
    },
    /// It became durable or damaged, or is kept for another reason than before.
    SnapshotChanged {
        snapshot: SnapshotId,
        state: SnapshotState,
        origin: SnapshotOrigin,
    },
    SnapshotRemoved {
        snapshot: SnapshotId,
    },
    /// The VM continues from a snapshot; `undo` holds what it left.
    RolledBack {
        to: SnapshotId,
        undo: Option<SnapshotId>,
        generation: Generation,
    },
    /// The VM goes on as it was, in a process whose memory is a difference to that of this snapshot.
    Rebased {
        onto: SnapshotId,
        generation: Generation,
    },
    /// The VM was made as a fork.
    Forked {
        from: SnapshotId,
    },
    TransactionBegun {
        transaction: TransactionId,
    },
    TransactionEnded {
        transaction: TransactionId,
        #[serde(flatten)]
        end: TransactionEnd,
    },
    /// Something an operator should see: a stray file, a low disk.
    Warning {
        message: String,
    },
}
