//! Something that was run is run again, in a fork of the state from before it and never in the VM itself.
//!
//! ```text
//! entry --> nearest state before it --> fork --> the same command --> its own entry --> compared --> fork gone
//! ```
//! Every step is asked of policy as if the caller had asked for it: to read, to fork, to run.

use super::{
    error::{ApiError, BranchErrors},
    extract::{Json, OperationPath},
    history::shown,
    request::Call,
};
use offshoot_api::v1::{
    HistoryEntry, HistoryOutput, NewReplay, Replay, ReplayRequest, SameAsRecorded, VmBefore,
};
use offshoot_engine::{CodeEvent, ExecEvent, HistoryRecord, RequestVm, Rerun, RerunKind};
use offshoot_types::{
    Command, Environment, ErrorCode, Failure, ForkSource, OperationId, SnapshotRef, VmId, VmName, VmRef,
};
use std::collections::BTreeSet;

/// Run something again in a fork of the state from before it, and compare. Answers once it has ended.
#[utoipa::path(post, path = "/v1/history/{id}/replay", tag = "history", operation_id = "replay",
    request_body = ReplayRequest, params(("id" = String, Path, description = "Id of the entry")),
    responses((status = 200, body = Replay), BranchErrors))]
pub async fn replay(
    call: Call,
    OperationPath(id): OperationPath,
    Json(request): Json<ReplayRequest>,
) -> Result<axum::Json<Replay>, ApiError> {
    let wanted = request.try_into()?;
    let replayed = Box::pin(call.until_cut(replayed(&call, id, wanted))).await?;
    Ok(axum::Json(replayed))
}

/// The fork it is run in.
enum Fork {
    /// Gone with this, whatever becomes of the request.
    Fleeting(RequestVm),
    Kept(VmId),
}

impl Fork {
    fn id(&self) -> VmId {
        match self {
            Self::Fleeting(vm) => vm.id(),
            Self::Kept(id) => *id,
        }
    }
}

async fn replayed(call: &Call, id: OperationId, wanted: NewReplay) -> Result<Replay, Failure> {
    let recorded = shown(call, id).await.map_err(ApiError::into_failure)?;
    if recorded.ended.is_none() {
        return Err(Failure::new(ErrorCode::WrongState, "it still runs: there is nothing to repeat yet"));
    }
    let (record, rerun) = call.engine.rerun(call.permit(Command::InspectOperation { id }).await?).await?;
    let Some(from) = recorded.before.clone() else { return Err(no_state(&record)) };
    let kept = wanted.keep.is_some();
    let fork = forked(call, &record, &from, wanted.keep).await?;
    let missing_env = missing(call, &fork, &rerun.env, &wanted.env).await?;
    let missing_input = rerun.had_input;
    let again = run(call, fork.id(), rerun, wanted.env).await?;
    call.engine.wait(again, None).await?;
    let entry = shown(call, again).await.map_err(ApiError::into_failure)?;
    if let Fork::Fleeting(vm) = fork {
        // What cannot be destroyed now, the engine goes on to destroy.
        let _ = vm.destroy().await;
    }
    let same = compare(&recorded, &entry);
    Ok(Replay { of: id, from, kept, entry, same, missing_env, missing_input })
}

fn no_state(record: &HistoryRecord) -> Failure {
    let message = format!("no state of VM `{}` from before it is kept", record.vm_name);
    Failure::new(ErrorCode::WrongState, message).hint(
        "take a snapshot before what is to be repeated, or have one taken: `offshoot snapshot policy NAME before-exec`",
    )
}

async fn forked(
    call: &Call,
    record: &HistoryRecord,
    from: &VmBefore,
    keep: Option<VmName>,
) -> Result<Fork, Failure> {
    let source = ForkSource::Snapshot(SnapshotRef::Id(from.snapshot));
    let fleeting = keep.is_none();
    let name = keep.unwrap_or_else(|| made_up_name(&record.vm_name));
    let permit = call.permit(Command::Fork { source, name: Some(name), count: 1 }).await?;
    if fleeting {
        return Ok(Fork::Fleeting(call.engine.fork_for_request(permit).await?));
    }
    let report = call.engine.fork(permit).await?;
    let fork = report.forks.first();
    let fork = fork.ok_or_else(|| Failure::new(ErrorCode::Internal, "a fork was made that is none"))?;
    Ok(Fork::Kept(fork.vm))
}

/// What it had in its environment and will not have now.
async fn missing(
    call: &Call,
    fork: &Fork,
    had: &BTreeSet<String>,
    given: &Environment,
) -> Result<Vec<String>, Failure> {
    let permit = call.permit(Command::Inspect { vm: Some(VmRef::Id(fork.id())) }).await?;
    let of_vm = call.engine.variables(&permit)?;
    let lacks = |name: &&String| !given.contains_key(*name) && !of_vm.contains(*name);
    Ok(had.iter().filter(lacks).cloned().collect())
}

/// Runs it to its end; how that was is in the history.
async fn run(call: &Call, vm: VmId, rerun: Rerun, env: Environment) -> Result<OperationId, Failure> {
    let vm = VmRef::Id(vm);
    match rerun.what {
        RerunKind::Exec(mut spec) => {
            spec.env = env;
            let mut session = call.engine.exec(call.permit(Command::Exec { vm, spec }).await?).await?;
            while let Some(event) = session.next().await {
                if matches!(event, ExecEvent::Ended(_) | ExecEvent::Failed(_) | ExecEvent::Detached) {
                    break;
                }
            }
            Ok(session.operation)
        }
        RerunKind::Code(mut code) => {
            code.env = env;
            let mut session = call.engine.run_code(call.permit(Command::RunCode { vm, code }).await?).await?;
            while let Some(event) = session.next().await {
                if matches!(event, CodeEvent::Ended { .. } | CodeEvent::Failed(_)) {
                    break;
                }
            }
            Ok(session.operation)
        }
    }
}

fn compare(first: &HistoryEntry, again: &HistoryEntry) -> SameAsRecorded {
    let how = |entry: &HistoryEntry| (entry.exit, entry.interrupted, entry.error.clone());
    let stream = |first: &Option<HistoryOutput>, again: &Option<HistoryOutput>| {
        let (first, again) = (first.as_ref()?, again.as_ref()?);
        match (&first.hash, &again.hash) {
            (Some(first), Some(again)) => Some(first == again),
            // What was lost of it is not known, and how much there was tells enough if that differs.
            _ => (first.bytes != again.bytes).then_some(false),
        }
    };
    SameAsRecorded {
        exit: (first.exit.is_some() || again.exit.is_some()).then(|| how(first) == how(again)),
        stdout: stream(&first.stdout, &again.stdout),
        stderr: stream(&first.stderr, &again.stderr),
    }
}

/// `VM-replay-DIGITS`, with as much of the VM's name as fits. Unique for all practical purposes.
fn made_up_name(vm: &VmName) -> VmName {
    const LONGEST: usize = 63;
    let random = VmId::new().simple();
    // The tail of a UUIDv7 is its random part.
    let word = format!("-replay-{}", &random[random.len() - 8..]);
    let kept: String = vm.as_str().chars().take(LONGEST - word.len()).collect();
    format!("{kept}{word}").parse().expect("a name, a word and hex digits are a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_has_a_valid_name_that_begins_as_that_of_its_vm() {
        for vm in ["a", &"x".repeat(63)] {
            let vm: VmName = vm.parse().unwrap();
            let name = made_up_name(&vm);
            assert!(name.as_str().starts_with(&vm.as_str()[..1]) && name.as_str().contains("-replay-"));
            assert_ne!(name, made_up_name(&vm));
        }
    }
}
