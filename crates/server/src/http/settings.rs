//! How a VM behaves without being asked each time.

use super::{
    error::{ApiError, SettingErrors},
    extract::{Json, Vm},
    request::Call,
};
use axum::http::StatusCode;
use offshoot_api::v1::{DescribeVm, Life, SetLife, SetSnapshotPolicy, SnapshotPolicy};
use offshoot_types::Command;

/// Change when snapshots of a VM are taken without being asked for, and what a failed exec does. It holds for what begins
/// after the answer.
#[utoipa::path(patch, path = "/v1/vms/{vm}/snapshot-policy", tag = "snapshots", operation_id = "set_snapshot_policy",
    request_body = SetSnapshotPolicy, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = SnapshotPolicy), SettingErrors))]
pub async fn snapshot_policy(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<SetSnapshotPolicy>,
) -> Result<axum::Json<SnapshotPolicy>, ApiError> {
    let permit = call.permit(Command::SetPolicy { vm, policy: request.try_into()? }).await?;
    let policy = call.until_cut(call.engine.set_policy(permit)).await?;
    Ok(axum::Json(policy.into()))
}

/// Change what a VM is found by, and what its processes find in their environment.
#[utoipa::path(patch, path = "/v1/vms/{vm}", tag = "vms", operation_id = "describe_vm", request_body = DescribeVm,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 204, description = "Changed"), SettingErrors))]
pub async fn describe(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<DescribeVm>,
) -> Result<StatusCode, ApiError> {
    let (labels, env) = request.checked()?;
    let permit = call.permit(Command::Describe { vm, labels, env }).await?;
    call.until_cut(call.engine.describe(permit)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Change when a VM rests by itself and how long it may run. A new limit of a VM that runs counts from now.
#[utoipa::path(patch, path = "/v1/vms/{vm}/life", tag = "vms", operation_id = "set_life", request_body = SetLife,
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Life), SettingErrors))]
pub async fn life(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<SetLife>,
) -> Result<axum::Json<Life>, ApiError> {
    let permit = call.permit(Command::SetLife { vm, life: request.try_into()? }).await?;
    let (life, deadline) = call.until_cut(call.engine.set_life(permit)).await?;
    Ok(axum::Json(Life::new(life, deadline)))
}
