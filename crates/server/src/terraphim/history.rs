//! `/api/vms/VM/history`: what ran in a VM, newest first.

use super::{Asker, vms::vm_ref};
use crate::http::{ApiError, Query};
use axum::{Json, extract::Path};
use jiff::Timestamp;
use offshoot_api::{
    ClientError,
    v1::{ExitStatus, HistoryEntry, HistoryOutput, HistoryQuery, InvalidField},
};
use offshoot_types::{AgentName, ExecStatus};
use serde::Deserialize;
use serde_json::{Value, json};

/// As the history has an agent's id: as it is if that is possible there, else by the digits of its hash.
pub fn agent_name(agent: &str) -> AgentName {
    agent.parse().unwrap_or_else(|_| {
        let name = format!("agent-{}", &blake3::hash(agent.as_bytes()).to_hex()[..16]);
        name.parse().expect("letters, digits and a dash")
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    agent_id: Option<String>,
    limit: Option<u32>,
    #[serde(default)]
    failures_only: bool,
    start_date: Option<String>,
    end_date: Option<String>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

fn date(field: &'static str, text: Option<String>) -> Result<Option<Timestamp>, InvalidField> {
    text.map(|text| text.parse().map_err(|error| InvalidField::new(field, error))).transpose()
}

pub async fn list(
    asker: Asker,
    Path(vm): Path<String>,
    Query(which): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    let query = HistoryQuery {
        agent: which.agent_id.as_deref().map(agent_name),
        failures: which.failures_only,
        since: date("start_date", which.start_date)?,
        until: date("end_date", which.end_date)?,
        output: true,
        limit: which.limit,
        cursor: which.cursor,
        ..HistoryQuery::default()
    };
    let found = asker.client.history_of(&vm_ref(&vm)?, &query).await.map_err(ClientError::into_failure)?;
    let told: Vec<Value> = found.entries.iter().map(entry).collect();
    Ok(Json(json!({
        "vm_id": vm,
        "history": told,
        "entries": told,
        "total": found.total,
        "next_cursor": found.next_cursor,
    })))
}

/// As `CommandHistoryEntry`, with more.
fn entry(entry: &HistoryEntry) -> Value {
    let exact = entry.before.as_ref().filter(|before| before.exact);
    json!({
        "id": entry.id,
        "execution_id": entry.id,
        "vm_id": entry.vm,
        "agent_id": entry.agent,
        "command": entry.what,
        "language": entry.language.as_deref().unwrap_or("command"),
        "kind": entry.kind,
        "snapshot_id": exact.map(|before| before.snapshot),
        "success": entry.succeeded,
        "exit_code": entry.exit.map(status),
        "stdout": text(entry.stdout.as_ref()),
        "stderr": text(entry.stderr.as_ref()),
        "error": entry.error.as_ref().or(entry.problem.as_ref().map(|problem| &problem.message)),
        "state": entry.state,
        "undone": entry.undone_by.is_some(),
        "undone_by": entry.undone_by,
        "transaction": entry.transaction,
        "executed_at": entry.started,
        "completed_at": entry.ended,
        "duration_ms": entry.duration_us.map(|us| us / 1000),
    })
}

/// As a shell has it.
fn status(status: ExitStatus) -> i32 {
    ExecStatus::from(status).shell_status()
}

/// Both ends of a stream, and how much is between them.
fn text(stream: Option<&HistoryOutput>) -> Option<String> {
    let stream = stream?;
    let part = |part: &Option<offshoot_api::v1::Output>| {
        part.clone().and_then(|part| part.into_bytes()).unwrap_or_default()
    };
    let (head, tail) = (part(&stream.head), part(&stream.tail));
    let between = stream.bytes.saturating_sub((head.len() + tail.len()) as u64);
    if between == 0 {
        return Some(String::from_utf8_lossy(&[head, tail].concat()).into_owned());
    }
    let (head, tail) = (String::from_utf8_lossy(&head), String::from_utf8_lossy(&tail));
    Some(format!("{head}\n[... {between} bytes are left out here ...]\n{tail}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_agent_has_a_name_in_the_history_and_no_two_have_the_same() {
        let names = ["agent-1", "agent 1", "agent\t1", "é"].map(agent_name);
        assert_eq!(names[0].as_str(), "agent-1");
        for (index, name) in names.iter().enumerate() {
            assert!(!names[index + 1..].contains(name), "{name}");
        }
    }
}
