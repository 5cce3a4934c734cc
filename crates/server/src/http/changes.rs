//! Moving VMs: start, stop, restart, pause, resume, suspend, destroy.

use super::{
    error::{ApiError, ChangeErrors},
    extract::{Json, Query, Vm},
    request::Call,
    view, vms,
};
use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use offshoot_api::v1::{self, Change, Changed, DestroyQuery, MAX_WAIT_MS};
use offshoot_types::{
    Command, ErrorCode, Failure, Operation, OperationKind, OperationOutcome, OperationState, SnapshotId,
    VmId, VmRef,
};
use std::time::Duration;

/// Boot a VM.
#[utoipa::path(post, path = "/v1/vms/{vm}/start", tag = "vms", operation_id = "start_vm", request_body = Change,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Changed), (status = 202, body = Changed), ChangeErrors))]
pub async fn start(call: Call, Vm(vm): Vm, Json(change): Json<Change>) -> Result<Response, ApiError> {
    carry_out(&call, Command::Start { vm }, change.wait).await
}

/// Shut a VM down: the guest is asked, then the VMM, then it is killed.
#[utoipa::path(post, path = "/v1/vms/{vm}/stop", tag = "vms", operation_id = "stop_vm", request_body = Change,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Changed), (status = 202, body = Changed), ChangeErrors))]
pub async fn stop(call: Call, Vm(vm): Vm, Json(change): Json<Change>) -> Result<Response, ApiError> {
    let grace = change.grace()?;
    carry_out(&call, Command::Stop { vm, grace }, change.wait).await
}

/// Stop and start a VM; its disk is kept.
#[utoipa::path(post, path = "/v1/vms/{vm}/restart", tag = "vms", operation_id = "restart_vm", request_body = Change,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Changed), (status = 202, body = Changed), ChangeErrors))]
pub async fn restart(call: Call, Vm(vm): Vm, Json(change): Json<Change>) -> Result<Response, ApiError> {
    let grace = change.grace()?;
    carry_out(&call, Command::Restart { vm, grace }, change.wait).await
}

/// Halt a VM's CPUs; its memory is kept.
#[utoipa::path(post, path = "/v1/vms/{vm}/pause", tag = "vms", operation_id = "pause_vm", request_body = Change,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Changed), (status = 202, body = Changed), ChangeErrors))]
pub async fn pause(call: Call, Vm(vm): Vm, Json(change): Json<Change>) -> Result<Response, ApiError> {
    carry_out(&call, Command::Pause { vm }, change.wait).await
}

/// Write a VM's memory to disk and end its process; `start` continues it.
#[utoipa::path(post, path = "/v1/vms/{vm}/suspend", tag = "vms", operation_id = "suspend_vm", request_body = Change,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Changed), (status = 202, body = Changed), ChangeErrors))]
pub async fn suspend(call: Call, Vm(vm): Vm, Json(change): Json<Change>) -> Result<Response, ApiError> {
    carry_out(&call, Command::Suspend { vm }, change.wait).await
}

/// Let a paused VM run on.
#[utoipa::path(post, path = "/v1/vms/{vm}/resume", tag = "vms", operation_id = "resume_vm", request_body = Change,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Changed), (status = 202, body = Changed), ChangeErrors))]
pub async fn resume(call: Call, Vm(vm): Vm, Json(change): Json<Change>) -> Result<Response, ApiError> {
    carry_out(&call, Command::Resume { vm }, change.wait).await
}

/// Remove a VM with everything of it but the audit, and the snapshots that somebody asked for.
#[utoipa::path(delete, path = "/v1/vms/{vm}", tag = "vms", operation_id = "destroy_vm",
    params(("vm" = String, Path, description = "Name or id"), DestroyQuery),
    responses((status = 200, body = Changed), (status = 202, body = Changed), ChangeErrors))]
pub async fn destroy(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<DestroyQuery>,
) -> Result<Response, ApiError> {
    let permit = call.permit(Command::Destroy { vm }).await?;
    let operation = match query.snapshots {
        true => call.engine.destroy_with_snapshots(permit).await?,
        false => call.engine.submit(permit).await?,
    };
    carried_out(&call, operation, query.wait).await
}

async fn carry_out(call: &Call, command: Command, wait: Option<bool>) -> Result<Response, ApiError> {
    let operation = call.engine.submit(call.permit(command).await?).await?;
    carried_out(call, operation, wait).await
}

async fn carried_out(
    call: &Call,
    mut operation: Operation,
    wait: Option<bool>,
) -> Result<Response, ApiError> {
    if wait.unwrap_or(true) {
        operation = settle(call, operation).await?;
    }
    changed(call, operation).await
}

/// Waits, within bounds, for the end of an operation; a failed one is an error.
pub async fn settle(call: &Call, operation: Operation) -> Result<Operation, Failure> {
    let limit = Some(Duration::from_millis(MAX_WAIT_MS));
    let operation = tokio::select! {
        ended = call.engine.wait(operation.id, limit) => ended?,
        () = call.app.shutdown.expired() => return Ok(operation),
    };
    check(&operation).map(|()| operation)
}

/// Waits for the end of an operation, for callers who are told of nothing else: one that has not ended when the daemon does
/// is an error too. Each of its steps has a limit of its own.
pub async fn finished(call: &Call, operation: &Operation) -> Result<Operation, Failure> {
    let ended = call.until_cut(call.engine.wait(operation.id, None)).await?;
    check(&ended).map(|()| ended)
}

/// Whether an operation failed.
pub fn check(operation: &Operation) -> Result<(), Failure> {
    match &operation.state {
        OperationState::Ended { outcome: OperationOutcome::Failed { failure } } => Err(failure.clone()),
        // The next daemon found that all of it was done.
        OperationState::Ended { outcome: OperationOutcome::Interrupted { undone: false } }
            if operation.kind == OperationKind::Create =>
        {
            Ok(())
        }
        OperationState::Ended { outcome: OperationOutcome::Interrupted { .. } } => Err(Failure::new(
            ErrorCode::Interrupted,
            format!("`{}` was interrupted by the end of a daemon", operation.kind),
        )
        .hint("look at the VM's state, then repeat the command")),
        OperationState::Ended { outcome: OperationOutcome::Done }
        | OperationState::Pending
        | OperationState::Waiting { .. }
        | OperationState::Running { .. } => Ok(()),
    }
}

/// 200 with what came of it, or 202 with what is under way.
pub async fn changed(call: &Call, operation: Operation) -> Result<Response, ApiError> {
    let vm = match operation.vm {
        Some(id) => match vms::glance(call, VmRef::Id(id)).await {
            Ok(found) => Some(view::vm(found)),
            Err(gone) if gone.code == ErrorCode::NotFound => None,
            Err(failure) => return Err(failure.into()),
        },
        None => None,
    };
    let operation = v1::Operation::from(operation);
    let status = if operation.ended() { StatusCode::OK } else { StatusCode::ACCEPTED };
    let snapshots_kept = match (&operation, vm.is_none()) {
        (v1::Operation { kind: OperationKind::Destroy, vm: Some(id), .. }, true) if operation.ended() => {
            kept_of(call, *id).await?
        }
        _ => None,
    };
    Ok((status, axum::Json(Changed { operation, vm, snapshots_kept })).into_response())
}

/// The snapshots that a destroyed VM has left; `None` for whoever may not list them. It is destroyed all the same.
async fn kept_of(call: &Call, vm: VmId) -> Result<Option<Vec<SnapshotId>>, Failure> {
    let all = match call.permit(Command::Inspect { vm: None }).await {
        Ok(permit) => call.engine.snapshots(permit).await?,
        Err(denied) if denied.code == ErrorCode::Denied => return Ok(None),
        Err(failure) => return Err(failure),
    };
    Ok(Some(all.into_iter().filter(|snapshot| snapshot.vm == vm).map(|snapshot| snapshot.id).collect()))
}
