//! Operations: every change anyone asked for, and what came of it.

use super::schema;
use jiff::Timestamp;
use offshoot_types::{self as types, ErrorCode, Failure, OperationId, OperationKind, VmId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    #[schema(schema_with = schema::uuid)]
    pub id: OperationId,
    /// `create`, `start`, `exec`, ...
    #[schema(value_type = String)]
    pub kind: OperationKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub vm: Option<VmId>,
    /// `uid:1000`, `daemon`.
    pub actor: String,
    pub reason: String,
    pub state: OperationStateName,
    /// The step under way, while `running`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// What it waits for, while `waiting`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obligation: Option<String>,
    /// Once `ended`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomeName>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// For `interrupted`: whether the next start of the daemon took it back (else it was completed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<bool>,
    /// The operation that took back what this one did; absent while the VM's state holds it. An undo of a rollback brings
    /// back what that took, and then it is absent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub undone_by: Option<OperationId>,
    #[schema(schema_with = schema::timestamp)]
    pub created: Timestamp,
    #[schema(schema_with = schema::timestamp)]
    pub updated: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OperationStateName {
    Pending,
    Waiting,
    Running,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OutcomeName {
    Done,
    Failed,
    /// The daemon died during it.
    Interrupted,
}

/// A failure as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    #[schema(schema_with = schema::error_code)]
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let Failure { code, message, cause, hint } = failure;
        Self { code, message, cause, hint }
    }
}
impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let Problem { code, message, cause, hint } = problem;
        Self { code, message, cause, hint }
    }
}

impl Operation {
    pub fn ended(&self) -> bool {
        self.state == OperationStateName::Ended
    }
}

impl From<types::Operation> for Operation {
    fn from(operation: types::Operation) -> Self {
        use types::{OperationOutcome as Outcome, OperationState as State};
        let mut wire = Self {
            id: operation.id,
            kind: operation.kind,
            vm: operation.vm,
            actor: operation.actor.to_string(),
            reason: operation.reason,
            state: OperationStateName::Pending,
            step: None,
            obligation: None,
            outcome: None,
            problem: None,
            undone: None,
            undone_by: operation.undone_by,
            created: operation.created,
            updated: operation.updated,
        };
        match operation.state {
            State::Pending => {}
            State::Waiting { obligation } => {
                wire.state = OperationStateName::Waiting;
                wire.obligation = Some(obligation);
            }
            State::Running { step } => {
                wire.state = OperationStateName::Running;
                wire.step = Some(step);
            }
            State::Ended { outcome } => {
                wire.state = OperationStateName::Ended;
                (wire.outcome, wire.problem, wire.undone) = match outcome {
                    Outcome::Done => (Some(OutcomeName::Done), None, None),
                    Outcome::Failed { failure } => (Some(OutcomeName::Failed), Some(failure.into()), None),
                    Outcome::Interrupted { undone } => (Some(OutcomeName::Interrupted), None, Some(undone)),
                };
            }
        }
        wire
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OperationList {
    /// Newest first.
    pub operations: Vec<Operation>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct OperationQuery {
    /// Return when it has ended, or after this long (at most 60000); at once if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_ms: Option<u64>,
}
