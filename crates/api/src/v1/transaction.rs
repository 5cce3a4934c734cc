//! Transactions: spans of changes to one VM that are kept or undone as a whole.

use super::{InvalidField, schema};
use jiff::Timestamp;
use offshoot_types::{
    self as types, RollbackCause, SnapshotId, TransactionId, TransactionState, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// How long a transaction stays open when the request does not say.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10 * 60);
const MAX_DEADLINE_MS: u64 = 7 * 24 * 3600 * 1000;

/// Begin a transaction, or a savepoint within the one that is open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BeginTransaction {
    /// The innermost open transaction, to begin a savepoint in it; that of the request's header if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub parent: Option<TransactionId>,
    /// It is rolled back after this long, at most a week; 10 minutes if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

impl BeginTransaction {
    pub fn deadline(&self) -> Result<Duration, InvalidField> {
        match self.deadline_ms {
            None => Ok(DEFAULT_DEADLINE),
            Some(ms @ 1..=MAX_DEADLINE_MS) => Ok(Duration::from_millis(ms)),
            Some(ms) => {
                let problem = format!("{ms} is not between 1 and {MAX_DEADLINE_MS}");
                Err(InvalidField::new("deadline_ms", problem))
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Transaction {
    #[schema(schema_with = schema::uuid)]
    pub id: TransactionId,
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    #[schema(value_type = String)]
    pub vm_name: VmName,
    /// The transaction it is a savepoint of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub parent: Option<TransactionId>,
    /// Its beginning: what a rollback goes back to.
    #[schema(schema_with = schema::uuid)]
    pub snapshot: SnapshotId,
    #[schema(schema_with = schema::transaction_state)]
    pub state: TransactionState,
    /// Once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<TransactionEnd>,
    #[schema(schema_with = schema::timestamp)]
    pub begun: Timestamp,
    /// It is rolled back then.
    #[schema(schema_with = schema::timestamp)]
    pub deadline: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::timestamp)]
    pub ended: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransactionList {
    /// Outermost first.
    pub transactions: Vec<Transaction>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TransactionEnd {
    pub committed: bool,
    /// Why it was rolled back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<RollbackCauseName>,
    /// Of the command or check that failed, as a shell would report it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<i32>,
    /// The cause as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RollbackCauseName {
    Asked,
    Failed,
    CheckFailed,
    Deadline,
    Denied,
    GuestCrashed,
    CallerLeft,
    DaemonDied,
}

impl From<types::TransactionEnd> for TransactionEnd {
    fn from(end: types::TransactionEnd) -> Self {
        let cause = match end {
            types::TransactionEnd::Committed => {
                return Self { committed: true, cause: None, status: None, reason: None };
            }
            types::TransactionEnd::RolledBack { cause } => cause,
        };
        let reason = Some(cause.to_string());
        let (cause, status) = match cause {
            RollbackCause::Asked => (RollbackCauseName::Asked, None),
            RollbackCause::Failed { status } => (RollbackCauseName::Failed, Some(status)),
            RollbackCause::CheckFailed { status } => (RollbackCauseName::CheckFailed, Some(status)),
            RollbackCause::Deadline => (RollbackCauseName::Deadline, None),
            RollbackCause::Denied => (RollbackCauseName::Denied, None),
            RollbackCause::GuestCrashed => (RollbackCauseName::GuestCrashed, None),
            RollbackCause::CallerLeft => (RollbackCauseName::CallerLeft, None),
            RollbackCause::DaemonDied => (RollbackCauseName::DaemonDied, None),
        };
        Self { committed: false, cause: Some(cause), status, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_never_or_at_once_passes_is_refused() {
        let deadline = |deadline_ms| BeginTransaction { deadline_ms, ..Default::default() }.deadline();
        assert_eq!(deadline(None), Ok(DEFAULT_DEADLINE));
        assert_eq!(deadline(Some(5)), Ok(Duration::from_millis(5)));
        assert_eq!(deadline(Some(0)).unwrap_err().field, "deadline_ms");
        assert_eq!(deadline(Some(u64::MAX)).unwrap_err().field, "deadline_ms");
    }

    #[test]
    fn an_end_says_why_in_a_word_a_status_and_a_sentence() {
        let cause = RollbackCause::CheckFailed { status: 3 };
        let end = TransactionEnd::from(types::TransactionEnd::RolledBack { cause });
        let json = serde_json::to_value(&end).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "committed": false, "cause": "check-failed", "status": 3,
                "reason": "the check exited with 3"
            })
        );
        let committed = TransactionEnd::from(types::TransactionEnd::Committed);
        assert_eq!(serde_json::to_string(&committed).unwrap(), r#"{"committed":true}"#);
    }
}
