//! Going back to a kept state, and taking that back.

use super::{
    error::{ApiError, BranchErrors},
    extract::{Json, Vm},
    request::Call,
    view,
};
use offshoot_api::v1::{RollbackRequest, RolledBack};
use offshoot_types::{Command, Failure, RollbackTo};

/// Let a VM continue from an earlier state. If that fails, it runs on as it was.
#[utoipa::path(post, path = "/v1/vms/{vm}/rollback", tag = "snapshots", operation_id = "rollback",
    request_body = RollbackRequest, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = RolledBack), BranchErrors))]
pub async fn rollback(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<RollbackRequest>,
) -> Result<axum::Json<RolledBack>, ApiError> {
    let to = RollbackTo::try_from(request)?;
    Ok(go(&call, Command::Rollback { vm, to }).await?)
}

/// Take back a VM's last rollback, commit or race.
#[utoipa::path(post, path = "/v1/vms/{vm}/undo", tag = "snapshots", operation_id = "undo",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = RolledBack), BranchErrors))]
pub async fn undo(call: Call, Vm(vm): Vm) -> Result<axum::Json<RolledBack>, ApiError> {
    Ok(go(&call, Command::Undo { vm }).await?)
}

async fn go(call: &Call, command: Command) -> Result<axum::Json<RolledBack>, Failure> {
    let permit = call.permit(command).await?;
    let report = call.until_cut(call.engine.rollback(permit)).await?;
    Ok(axum::Json(view::rolled_back(report)))
}
