//! What clients are told, in both of their spellings.

use super::{
    run::{Piece, Ran},
    step::Kept,
};
use jiff::Timestamp;
use offshoot_api::v1::{Snapshot, Vm};
use offshoot_code::{Block, Hazard, Intent, Origin};
use offshoot_types::VmStateName;
use serde_json::{Map, Value, json};

/// Label of a VM that is an agent's own; its value is the agent's id.
pub const AGENT: &str = "terraphim.agent";
/// Label of a VM that is a session; its value is the session's name.
pub const SESSION: &str = "terraphim.session";
/// Label of what a client called a VM, if that is no name here.
pub const NAMED: &str = "terraphim.name";

/// A VM. There is no address: it has no network interface.
pub fn vm(vm: &Vm) -> Value {
    let named = vm.labels.get(NAMED).or_else(|| vm.labels.get(SESSION));
    json!({
        "id": vm.id,
        "name": named.map_or(vm.name.as_str(), String::as_str),
        "vm_name": vm.name,
        "vm_type": vm.image,
        "status": status(vm.state),
        "ip_address": null,
        "created_at": vm.created,
        "last_activity": vm.updated,
        "vcpus": vm.cpus,
        "memory_mb": vm.memory_mib,
        "agent_id": vm.labels.get(AGENT),
        "isolation": vm.isolation,
        "provider": vm.provider,
    })
}

/// What clients wait for is `running`; a suspended VM goes on when it is used.
fn status(state: VmStateName) -> String {
    state.to_string()
}

/// A snapshot, under the one id by which it is restored and removed, too.
pub fn snapshot(snapshot: &Snapshot) -> Value {
    let note = snapshot.note.as_deref().unwrap_or_default();
    let (name, description) = note.split_once('\n').unwrap_or((note, ""));
    let name = snapshot.name.as_ref().map_or(name, |name| name.as_str());
    json!({
        "snapshot_id": snapshot.id,
        "id": snapshot.id,
        "vm_id": snapshot.vm,
        "name": name,
        "description": description,
        "origin": snapshot.origin,
        "created_at": snapshot.created,
        "size_bytes": snapshot.size_bytes,
    })
}

/// What became of one piece of code, as `VmExecuteResponse` with more.
pub fn execution(
    vm: &Vm,
    piece: &Piece,
    ran: &Ran,
    kept: &Kept,
    metadata: Option<&Map<String, Value>>,
) -> Value {
    let id = &ran.execution;
    let finished = ran.started.checked_add(ran.took).unwrap_or(ran.started);
    let dropped = [&ran.outputs.stdout, &ran.outputs.stderr].map(|stream| stream.dropped());
    json!({
        "execution_id": id,
        "vm_id": vm.id,
        "vm_name": vm.name,
        "language": piece.language.as_str(),
        "exit_code": ran.exit_code,
        "success": ran.success(),
        "stdout": ran.outputs.stdout.text(id),
        "stderr": ran.outputs.stderr.text(id),
        "stdout_truncated_bytes": dropped[0],
        "stderr_truncated_bytes": dropped[1],
        "output_truncated": dropped != [0, 0],
        "result": ran.value,
        "error": ran.error,
        "duration_ms": ran.took.as_millis() as u64,
        "started_at": ran.started,
        "completed_at": finished,
        "snapshot_id": kept.before,
        "failure_snapshot_id": kept.failed,
        "rolled_back": kept.rolled_back,
        "rolledBack": kept.rolled_back,
        "rollback_error": kept.problem,
        "metadata": metadata,
    })
}

/// A block as `CodeBlock`.
pub fn block(block: &Block) -> Value {
    let (found, info) = match &block.origin {
        Origin::Named { info } => ("fence", Some(info)),
        Origin::Unnamed { info } => ("detected", Some(info)),
        Origin::Line => ("line", None),
    };
    json!({
        "language": block.tag.as_str(),
        "code": block.code,
        "execution_confidence": block.confidence.as_f64(),
        "start_pos": block.span.start,
        "end_pos": block.span.end,
        "metadata": {
            "language_from": found,
            "info": info,
            "code_start": block.code_span.start,
            "code_end": block.code_span.end,
            "intended": block.intended,
            "runnable": block.language().is_some(),
            "risk": risk(block.hazard),
        },
    })
}

pub fn risk(hazard: Option<Hazard>) -> Value {
    hazard
        .map_or(Value::Null, |hazard| json!({ "hazard": hazard.as_str(), "reason": format!("it {hazard}") }))
}

pub fn intent(intent: &Intent) -> Value {
    json!({
        "confidence": intent.confidence.as_f64(),
        "suggested_action": intent.suggestion.as_str(),
        "trigger_keywords": intent.keywords,
    })
}

/// The time of a rollback is when it was told.
pub fn now() -> Timestamp {
    Timestamp::now()
}
