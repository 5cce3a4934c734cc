//! Reading VMs: list, show, wait.

use super::{
    bounded_wait,
    error::{ApiError, LookupErrors, ReadErrors, WaitErrors},
    extract::{Query, Vm},
    request::Call,
    view,
};
use axum::Json;
use offshoot_api::v1::{self, InvalidField, PageQuery, WaitQuery};
use offshoot_engine::{VmCondition, VmView};
use offshoot_types::{Command, ErrorCode, Failure, Generation, VmRef, VmState, VmStateName};
use std::time::Duration;

/// All VMs, by name.
#[utoipa::path(get, path = "/v1/vms", tag = "vms", operation_id = "list_vms", params(PageQuery),
    responses((status = 200, body = v1::VmList), ReadErrors))]
pub async fn list(call: Call, Query(page): Query<PageQuery>) -> Result<Json<v1::VmList>, ApiError> {
    let vms = call.engine.vms(call.permit(Command::Inspect { vm: None }).await?)?;
    let (vms, next_cursor) = page.of(vms, |vm| vm.name.to_string())?;
    let mut vms: Vec<v1::Vm> = vms.into_iter().map(view::vm).collect();
    add_branches(&call, None, &mut vms).await?;
    Ok(Json(v1::VmList { vms, next_cursor }))
}

/// Adds what the record, rather than the VM, knows: kept states and the open transaction.
async fn add_branches(call: &Call, vm: Option<VmRef>, vms: &mut [v1::Vm]) -> Result<(), Failure> {
    let inspect = || call.permit(Command::Inspect { vm: vm.clone() });
    let snapshots = call.engine.snapshots(inspect().await?).await?;
    let transactions = call.engine.transactions(inspect().await?).await?;
    for vm in vms {
        vm.snapshots = Some(snapshots.iter().filter(|snapshot| snapshot.vm == vm.id).count() as u64);
        let open = transactions.iter().find(|open| open.vm == vm.id && open.parent.is_none());
        vm.transaction = open.cloned().map(view::transaction);
    }
    Ok(())
}

/// One VM, with its usage measured now.
#[utoipa::path(get, path = "/v1/vms/{vm}", tag = "vms", operation_id = "show_vm",
    params(("vm" = String, Path, description = "Name or id")),
    responses((status = 200, body = v1::Vm), LookupErrors))]
pub async fn show(call: Call, Vm(vm): Vm) -> Result<Json<v1::Vm>, ApiError> {
    let found = call.engine.vm(call.permit(Command::Inspect { vm: Some(vm) }).await?).await?;
    let id = VmRef::Id(found.id);
    let mut found = [view::vm(found)];
    add_branches(&call, Some(id), &mut found).await?;
    let [found] = found;
    Ok(Json(found))
}

/// Wait until a VM is in a state, or has moved.
#[utoipa::path(get, path = "/v1/vms/{vm}/wait", tag = "vms", operation_id = "wait_vm",
    params(("vm" = String, Path, description = "Name or id"), WaitQuery),
    responses((status = 200, body = v1::WaitOutcome), WaitErrors))]
pub async fn wait(
    call: Call,
    Vm(vm): Vm,
    Query(query): Query<WaitQuery>,
) -> Result<Json<v1::WaitOutcome>, ApiError> {
    let wanted = query.state.as_deref().map(state).transpose()?;
    let limit = bounded_wait(query.timeout_ms);
    let newer_than = query.newer_than.map(Generation);
    let reached = VmCondition { states: wanted.into_iter().collect(), newer_than };
    // A VM that fails meanwhile will not get there by itself: that ends the wait too.
    let mut until = reached.clone();
    if wanted.is_some() {
        until.states.push(VmStateName::Failed);
    }
    let permit = call.permit(Command::Inspect { vm: Some(vm) }).await?;
    let found = tokio::select! {
        found = call.engine.wait_vm(permit, until, Some(limit)) => found?,
        () = call.app.shutdown.requested() => return Err(stopping().into()),
    };
    match &found.state {
        VmState::Failed(failure) if wanted.is_some_and(|state| state != VmStateName::Failed) => {
            let message = format!("VM `{}` has failed at {}: {}", found.name, failure.step, failure.reason);
            let hint = format!("start it again, or remove it with `offshoot destroy {}`", found.name);
            Err(Failure::new(ErrorCode::WrongState, message).hint(hint).into())
        }
        _ => Ok(Json(v1::WaitOutcome { reached: reached.met(&found), vm: view::vm(found) })),
    }
}

fn state(text: &str) -> Result<VmStateName, InvalidField> {
    VmStateName::ALL.into_iter().find(|state| state.as_str() == text).ok_or_else(|| {
        let known: Vec<&str> = VmStateName::ALL.iter().map(|state| state.as_str()).collect();
        InvalidField::new("state", format!("`{text:.40}` is not one of {}", known.join(", ")))
    })
}

/// The answer to whoever waits when the daemon is asked to end.
pub fn stopping() -> Failure {
    Failure::new(ErrorCode::Interrupted, "the daemon is shutting down")
        .hint("repeat the command; it starts a new daemon")
}

/// The VM as it is now, without measuring anything.
pub async fn glance(call: &Call, vm: VmRef) -> Result<VmView, Failure> {
    let permit = call.permit(Command::Inspect { vm: Some(vm) }).await?;
    call.engine.wait_vm(permit, VmCondition::default(), Some(Duration::ZERO)).await
}
