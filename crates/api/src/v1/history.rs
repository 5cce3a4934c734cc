//! The history: what was run in VMs, what it said and how it ended.

use super::{ExitStatus, InvalidField, Output, PageQuery, Problem, exec::check_env, invalid::parse, schema};
use jiff::Timestamp;
use offshoot_types::{
    AgentName, ContextName, Environment, OperationId, SnapshotId, TransactionId, VmId, VmName,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::{IntoParams, ToSchema};

/// Entries of one page of the history unless `limit` says otherwise.
pub const DEFAULT_HISTORY: usize = 100;

/// Which runs. All that is given has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct HistoryQuery {
    /// Only those that were run on behalf of this agent, as the callers said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub agent: Option<AgentName>,
    /// Only those of this transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub transaction: Option<TransactionId>,
    /// Only those that have ended without success, or of which nobody knows how they ended.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub failures: bool,
    /// Only those that were taken back by a rollback, or only those that were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undone: Option<bool>,
    /// Only those begun at this time or later: RFC 3339, such as `2026-01-31T09:00:00Z`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub since: Option<Timestamp>,
    /// Only those begun before this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(value_type = Option<String>)]
    pub until: Option<Timestamp>,
    /// With both ends of what each said.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub output: bool,
    /// At most so many, 1 to 1000; 100 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

impl HistoryQuery {
    pub fn limit(&self) -> Result<usize, InvalidField> {
        let page = PageQuery { limit: self.limit, cursor: None };
        Ok(page.limit()?.unwrap_or(DEFAULT_HISTORY))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryList {
    /// Newest first.
    pub entries: Vec<HistoryEntry>,
    /// How many there are in all under the same conditions, on this page and on others.
    pub total: u64,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryKind {
    /// A process.
    Exec,
    /// Code in a live context.
    Code,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HistoryStateName {
    Running,
    /// It was carried out; whether it succeeded is said by `succeeded`.
    Ended,
    /// It could not be carried out, or not to its end: see `problem`.
    Failed,
    /// The daemon died during it, and how it ended is not known.
    Interrupted,
}

/// The state of the VM that is kept from before something was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmBefore {
    #[schema(schema_with = schema::uuid)]
    pub snapshot: SnapshotId,
    /// Nothing had changed the VM between the two. Else it is the nearest state that is kept.
    pub exact: bool,
}

/// One process, or one piece of code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryEntry {
    /// Also that of its operation and, of a process, that of the exec.
    #[schema(schema_with = schema::uuid)]
    pub id: OperationId,
    pub kind: HistoryKind,
    /// It may have been destroyed since.
    #[schema(schema_with = schema::uuid)]
    pub vm: VmId,
    /// What it was called then.
    #[schema(value_type = String)]
    pub vm_name: VmName,
    /// Who asked for it, as verified: `uid:1000`, `key:...`, `daemon`.
    pub actor: String,
    /// On whose behalf, as its caller said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub agent: Option<AgentName>,
    /// The command line, quoted for a shell, or the code; its first 16 KiB.
    pub what: String,
    /// More than `what` has where that is cut.
    pub what_bytes: u64,
    /// Of code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
    /// Of code: the live context it was run in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub context: Option<ContextName>,
    /// As whom, inside the VM.
    pub user: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// That it was part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub transaction: Option<TransactionId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<VmBefore>,
    /// The first state of the VM that was kept after it had ended and that holds what it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub snapshot_after: Option<SnapshotId>,
    /// The operation that took back what it did; absent while the VM's state holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::uuid)]
    pub undone_by: Option<OperationId>,
    #[schema(schema_with = schema::timestamp)]
    pub started: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(schema_with = schema::timestamp)]
    pub ended: Option<Timestamp>,
    /// As measured in the guest where that could be asked, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    pub state: HistoryStateName,
    /// Absent while it runs; false also if nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<bool>,
    /// How the process ended; of code, 1 if it raised an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitStatus>,
    /// Of code: it was interrupted, by its caller or by its time limit.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// Of code: the error it raised; its first 4 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Of code: the value it ended in, as text; its first 4 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Why it could not be carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// Output beyond the caller's own limit was dropped in the guest.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// Absent while it runs, and if nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<HistoryOutput>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<HistoryOutput>,
}

/// What is known of one stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HistoryOutput {
    /// How much there was.
    pub bytes: u64,
    /// How much of that was overwritten before anybody read it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lost_bytes: u64,
    /// How much of it, from the beginning, can be read from `/v1/history/{id}/stdout` or `/stderr`; in the answer of
    /// `/v1/history/{id}` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_bytes: Option<u64>,
    /// BLAKE3 of all of it, in hex digits; absent if some of it was lost, or if output is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Its first 8 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head: Option<Output>,
    /// Its last 8 KiB, without what is in `head` already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Output>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(bytes: &u64) -> bool {
    *bytes == 0
}

/// Which part of a stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StreamQuery {
    /// Bytes to leave out.
    #[serde(default)]
    pub offset: u64,
    /// At most so many bytes; all that are kept if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
}

/// Run something again, in a fork of the state from before it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Keep the fork, under this name; without one it is destroyed again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<String>,
    /// Variables of its environment: their values were not written down.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
}

/// A checked [`ReplayRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReplay {
    pub keep: Option<VmName>,
    pub env: Environment,
}

impl TryFrom<ReplayRequest> for NewReplay {
    type Error = InvalidField;
    fn try_from(wire: ReplayRequest) -> Result<Self, InvalidField> {
        check_env("env", &wire.env)?;
        let keep = wire.keep.as_deref().map(|name| parse("keep", name)).transpose()?;
        Ok(Self { keep, env: wire.env })
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Replay {
    /// What was run again.
    #[schema(schema_with = schema::uuid)]
    pub of: OperationId,
    /// The state it was run in.
    pub from: VmBefore,
    /// The fork was kept: it is the VM of `entry`.
    pub kept: bool,
    /// As it is in the history now, with both ends of what it said.
    pub entry: HistoryEntry,
    pub same: SameAsRecorded,
    /// Variables that it had the first time and now did not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_env: Vec<String>,
    /// It was given input the first time, which was not written down; now it had none.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub missing_input: bool,
}

/// Whether it went as the first time. Absent: nobody can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SameAsRecorded {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdout: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_leaves_out_what_it_does_not_ask_for() {
        let empty = serde_urlencoded::to_string(HistoryQuery::default()).unwrap();
        assert_eq!(empty, "");
        let full = HistoryQuery {
            agent: Some("planner/1".parse().unwrap()),
            failures: true,
            since: Some("2026-01-31T09:00:00Z".parse().unwrap()),
            ..HistoryQuery::default()
        };
        let text = serde_urlencoded::to_string(&full).unwrap();
        assert_eq!(text, "agent=planner%2F1&failures=true&since=2026-01-31T09%3A00%3A00Z");
        assert_eq!(serde_urlencoded::from_str::<HistoryQuery>(&text).unwrap(), full);
        assert!(serde_urlencoded::from_str::<HistoryQuery>("agent=a+b").is_err());
        assert!(serde_urlencoded::from_str::<HistoryQuery>("only_failures=true").is_err());
    }

    #[test]
    fn a_replay_that_cannot_be_is_refused_by_its_field() {
        let refused = |wire: ReplayRequest| NewReplay::try_from(wire).unwrap_err().field;
        assert_eq!(refused(ReplayRequest { keep: Some("A".into()), ..Default::default() }), "keep");
        let env = BTreeMap::from([("A=B".to_owned(), String::new())]);
        assert!(refused(ReplayRequest { env, ..Default::default() }).starts_with("env"));
    }
}
