//! Snapshots: keep, list, show, remove, verify.

use super::{
    error::{ApiError, BranchErrors, LookupErrors, ReadErrors},
    extract::{Json, Query, SnapshotPath, Vm},
    request::Call,
    view,
};
use offshoot_api::v1::{
    NewSnapshot, PageQuery, RemoveSnapshotQuery, Snapshot, SnapshotList, SnapshotVerified, SnapshotsRemoved,
    TakeSnapshot,
};
use offshoot_types::{Command, VmRef};

/// Keep a VM's present state. Answers once it is durable; a running VM stands still for a small part of that.
#[utoipa::path(post, path = "/v1/vms/{vm}/snapshots", tag = "snapshots", operation_id = "take_snapshot",
    request_body = TakeSnapshot, params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = Snapshot), BranchErrors))]
pub async fn take(
    call: Call,
    Vm(vm): Vm,
    Json(request): Json<TakeSnapshot>,
) -> Result<axum::Json<Snapshot>, ApiError> {
    let NewSnapshot { name, kind, note } = request.try_into()?;
    let permit = call.permit(Command::Snapshot { vm, name, kind, note }).await?;
    let taken = call.until_cut(call.engine.snapshot(permit)).await?;
    Ok(axum::Json(view::snapshot(taken)))
}

/// Snapshots of a VM, parents before children.
#[utoipa::path(get, path = "/v1/vms/{vm}/snapshots", tag = "snapshots", operation_id = "list_vm_snapshots",
    params(("vm" = String, Path, description = "Name or id"), PageQuery),
    responses((status = 200, body = SnapshotList), LookupErrors))]
pub async fn list_of(
    call: Call,
    Vm(vm): Vm,
    Query(page): Query<PageQuery>,
) -> Result<axum::Json<SnapshotList>, ApiError> {
    listed(&call, Some(vm), &page).await
}

async fn listed(
    call: &Call,
    vm: Option<VmRef>,
    page: &PageQuery,
) -> Result<axum::Json<SnapshotList>, ApiError> {
    let found = call.engine.snapshots(call.permit(Command::Inspect { vm }).await?).await?;
    let (found, next_cursor) = page.of(found, |snapshot| snapshot.id.to_string())?;
    Ok(axum::Json(SnapshotList { snapshots: found.into_iter().map(view::snapshot).collect(), next_cursor }))
}

/// Snapshots of all VMs, the destroyed ones included, parents before children.
#[utoipa::path(get, path = "/v1/snapshots", tag = "snapshots", operation_id = "list_snapshots",
    params(PageQuery), responses((status = 200, body = SnapshotList), ReadErrors))]
pub async fn list(call: Call, Query(page): Query<PageQuery>) -> Result<axum::Json<SnapshotList>, ApiError> {
    listed(&call, None, &page).await
}

/// One snapshot.
#[utoipa::path(get, path = "/v1/snapshots/{snapshot}", tag = "snapshots", operation_id = "show_snapshot",
    params(("snapshot" = String, Path, description = "`VM@NAME` or id")),
    responses((status = 200, body = Snapshot), LookupErrors))]
pub async fn show(
    call: Call,
    SnapshotPath(snapshot): SnapshotPath,
) -> Result<axum::Json<Snapshot>, ApiError> {
    let found = call.engine.snapshot_view(call.permit(Command::InspectSnapshot { snapshot }).await?).await?;
    Ok(axum::Json(view::snapshot(found)))
}

/// Remove a snapshot; refused while others, VMs or transactions need it.
#[utoipa::path(delete, path = "/v1/snapshots/{snapshot}", tag = "snapshots", operation_id = "remove_snapshot",
    params(("snapshot" = String, Path, description = "`VM@NAME` or id"), RemoveSnapshotQuery),
    responses((status = 200, body = SnapshotsRemoved), BranchErrors))]
pub async fn remove(
    call: Call,
    SnapshotPath(snapshot): SnapshotPath,
    Query(query): Query<RemoveSnapshotQuery>,
) -> Result<axum::Json<SnapshotsRemoved>, ApiError> {
    let permit = call.permit(Command::RemoveSnapshot { snapshot, prune: query.prune }).await?;
    let removed = call.until_cut(call.engine.remove_snapshot(permit)).await?;
    Ok(axum::Json(SnapshotsRemoved { removed }))
}

/// Read every byte of a snapshot and compare it with its hash.
#[utoipa::path(post, path = "/v1/snapshots/{snapshot}/verify", tag = "snapshots", operation_id = "verify_snapshot",
    params(("snapshot" = String, Path, description = "`VM@NAME` or id")),
    responses((status = 200, body = SnapshotVerified), BranchErrors))]
pub async fn verify(
    call: Call,
    SnapshotPath(snapshot): SnapshotPath,
) -> Result<axum::Json<SnapshotVerified>, ApiError> {
    let permit = call.permit(Command::VerifySnapshot { snapshot }).await?;
    let verified = call.until_cut(call.engine.verify_snapshot(permit)).await?;
    Ok(axum::Json(SnapshotVerified {
        snapshot: verified.snapshot,
        parts: verified.parts,
        bytes: verified.bytes.0,
        faults: verified.faults,
    }))
}
