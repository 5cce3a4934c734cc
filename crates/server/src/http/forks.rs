//! Forks: VMs that continue from a state.

use super::{
    error::{ApiError, BranchErrors},
    extract::Json,
    request::Call,
    view, vms,
};
use offshoot_api::v1::{ForkRequest, Forked, NewForks};
use offshoot_types::{Command, ErrorCode, Failure, ForkSource, SnapshotId, SnapshotRef, VmRef};

/// Make VMs that continue from a VM's present state or from a snapshot. Answers once all of them run and each has
/// said what was renewed in it; if one cannot, none is left.
#[utoipa::path(post, path = "/v1/forks", tag = "snapshots", operation_id = "fork", request_body = ForkRequest,
    responses((status = 200, body = Forked), BranchErrors))]
pub async fn fork(call: Call, Json(request): Json<ForkRequest>) -> Result<axum::Json<Forked>, ApiError> {
    let NewForks { source, name, count } = request.try_into()?;
    let source = resolve(&call, source).await?;
    let permit = call.permit(Command::Fork { source, name, count }).await?;
    let report = Box::pin(call.until_cut(call.engine.fork(permit))).await?;
    Ok(axum::Json(view::forked(report)))
}

/// An id without a word is a VM's if there is such a VM, else a snapshot's.
pub(super) async fn resolve(call: &Call, source: ForkSource) -> Result<ForkSource, Failure> {
    let ForkSource::Vm(VmRef::Id(id)) = source else { return Ok(source) };
    match vms::glance(call, VmRef::Id(id)).await {
        Ok(_) => Ok(source),
        Err(absent) if absent.code == ErrorCode::NotFound => {
            Ok(ForkSource::Snapshot(SnapshotRef::Id(SnapshotId::from_uuid(*id.as_uuid()))))
        }
        Err(failure) => Err(failure),
    }
}
