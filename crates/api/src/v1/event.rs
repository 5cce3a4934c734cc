//! Events: what happened, in the order it happened.

use super::{OutcomeName, Problem, TransactionEnd, VmFailure, schema};
use jiff::Timestamp;
use offshoot_types::{
    self as types, EventId, EventKind, Generation, OperationId, OperationKind, OperationOutcome, SnapshotId,
    SnapshotName, SnapshotOrigin, SnapshotState, TransactionId, VmId, VmName, VmState, VmStateName,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// Strictly increasing, never reused.
    #[schema(value_type = u64)]
    pub id: EventId,
    #[schema(schema_with = schema::timestamp)]
    pub at: Timestamp,
    pub owner: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub vm: Option<VmId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub vm_name: Option<VmName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub operation: Option<OperationId>,
    pub actor: String,
    #[serde(flatten)]
    pub detail: EventDetail,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventDetail {
    StateChanged {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(schema_with = schema::vm_state)]
        from: Option<VmStateName>,
        #[schema(schema_with = schema::vm_state)]
        to: VmStateName,
        #[schema(value_type = u64)]
        generation: Generation,
        reason: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        failure: Option<VmFailure>,
    },
    OperationStarted {
        #[schema(value_type = String)]
        kind: OperationKind,
    },
    OperationEnded {
        #[schema(value_type = String)]
        kind: OperationKind,
        outcome: OutcomeName,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        problem: Option<Problem>,
    },
    GuestHealth {
        responsive: bool,
    },
    SnapshotTaken {
        #[schema(schema_with = schema::uuid)]
        snapshot: SnapshotId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        name: Option<SnapshotName>,
        #[schema(schema_with = schema::snapshot_origin)]
        origin: SnapshotOrigin,
    },
    /// It became durable or damaged, or is kept for another reason than before.
    SnapshotChanged {
        #[schema(schema_with = schema::uuid)]
        snapshot: SnapshotId,
        #[schema(schema_with = schema::snapshot_state)]
        state: SnapshotState,
        #[schema(schema_with = schema::snapshot_origin)]
        origin: SnapshotOrigin,
    },
    SnapshotRemoved {
        #[schema(schema_with = schema::uuid)]
        snapshot: SnapshotId,
    },
    /// The VM continues from a snapshot; `undo` holds what it left.
    RolledBack {
        #[schema(schema_with = schema::uuid)]
        to: SnapshotId,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(schema_with = schema::uuid)]
        undo: Option<SnapshotId>,
        #[schema(value_type = u64)]
        generation: Generation,
    },
    /// The VM goes on as it was, in a process whose memory is a difference to that of this snapshot.
    Rebased {
        #[schema(schema_with = schema::uuid)]
        onto: SnapshotId,
        #[schema(value_type = u64)]
        generation: Generation,
    },
    /// The VM was made as a fork.
    Forked {
        #[schema(schema_with = schema::uuid)]
        from: SnapshotId,
    },
    TransactionBegun {
        #[schema(schema_with = schema::uuid)]
        transaction: TransactionId,
    },
    TransactionEnded {
        #[schema(schema_with = schema::uuid)]
        transaction: TransactionId,
        end: TransactionEnd,
    },
    Warning {
        message: String,
    },
}

impl From<types::Event> for Event {
    fn from(event: types::Event) -> Self {
        let detail = match event.kind {
            EventKind::StateChanged { from, to, generation, reason } => EventDetail::StateChanged {
                from: from.map(|state| state.name()),
                to: to.name(),
                generation,
                reason,
                failure: VmFailure::of(&to),
            },
            EventKind::OperationStarted { kind } => EventDetail::OperationStarted { kind },
            EventKind::OperationEnded { kind, outcome } => {
                let (outcome, problem) = match outcome {
                    OperationOutcome::Done => (OutcomeName::Done, None),
                    OperationOutcome::Failed { failure } => (OutcomeName::Failed, Some(failure.into())),
                    OperationOutcome::Interrupted { .. } => (OutcomeName::Interrupted, None),
                };
                EventDetail::OperationEnded { kind, outcome, problem }
            }
            EventKind::GuestHealth { responsive } => EventDetail::GuestHealth { responsive },
            EventKind::SnapshotTaken { snapshot, name, origin } => {
                EventDetail::SnapshotTaken { snapshot, name, origin }
            }
            EventKind::SnapshotChanged { snapshot, state, origin } => {
                EventDetail::SnapshotChanged { snapshot, state, origin }
            }
            EventKind::SnapshotRemoved { snapshot } => EventDetail::SnapshotRemoved { snapshot },
            EventKind::RolledBack { to, undo, generation } => {
                EventDetail::RolledBack { to, undo, generation }
            }
            EventKind::Rebased { onto, generation } => EventDetail::Rebased { onto, generation },
            EventKind::Forked { from } => EventDetail::Forked { from },
            EventKind::TransactionBegun { transaction } => EventDetail::TransactionBegun { transaction },
            EventKind::TransactionEnded { transaction, end } => {
                EventDetail::TransactionEnded { transaction, end: end.into() }
            }
            EventKind::Warning { message } => EventDetail::Warning { message },
        };
        Self {
            id: event.id,
            at: event.at,
            owner: event.owner.to_string(),
            vm: event.vm,
            vm_name: event.vm_name,
            operation: event.operation,
            actor: event.actor.to_string(),
            detail,
        }
    }
}

impl VmFailure {
    /// Present for a failed VM only.
    pub fn of(state: &VmState) -> Option<Self> {
        match state {
            VmState::Failed(failure) => {
                Some(Self { reason: failure.reason.clone(), step: failure.step.clone() })
            }
            _ => None,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventPage {
    pub events: Vec<Event>,
    /// What to ask for `after` next.
    pub next_after: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct EventQuery {
    /// Events with a greater id; from the first one kept if absent.
    #[serde(default)]
    pub after: u64,
    /// If there is none yet, wait this long (at most 60000) for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
    /// At most 1000, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}
