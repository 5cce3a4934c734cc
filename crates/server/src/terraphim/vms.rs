//! `/api/vms`: VMs, their snapshots, rollbacks, figures and history.

use super::{
    Asker,
    agents::{image, name_of, of_caller},
    asked::{NewVm, Rollback, TakeSnapshot, either},
    code::read,
    told::{self, NAMED},
};
use crate::http::ApiError;
use axum::{Json, body::Body, extract::Path, http::StatusCode};
use offshoot_api::{
    ClientError,
    v1::{
        CreateVm, DestroyQuery, InvalidField, RemoveSnapshotQuery, RollbackRequest, TakeSnapshot as Take, Vm,
    },
};
use offshoot_types::{ErrorCode, Failure, SnapshotRef, VmName, VmRef};
use serde_json::{Value, json};

/// What clients say for the newest state that no failure has touched.
const LAST_SUCCESS: [&str; 3] = ["last-success", "last_success", "last-good"];

pub fn vm_ref(text: &str) -> Result<VmRef, InvalidField> {
    text.parse().map_err(|error| InvalidField::new("vm_id", error))
}

pub async fn create(asker: Asker, body: Body) -> Result<(StatusCode, Json<Value>), ApiError> {
    let asked: NewVm = read(body).await?;
    let theirs = either("vm_name", asked.vm_name, asked.name)?;
    let theirs = theirs.ok_or_else(|| InvalidField::new("vm_name", "a VM has a name"))?;
    let mut create = CreateVm {
        image: asked.vm_type.as_deref().map(image),
        memory_mib: asked.memory_mb,
        cpus: asked.vcpus,
        ..of_caller(&asker)
    };
    create.name = match theirs.parse::<VmName>() {
        Ok(name) => name.to_string(),
        // Theirs may be of any characters; it is found by this, too.
        Err(_) => {
            super::asked::name("vm_name", &theirs)?;
            create.labels.insert(NAMED.into(), theirs.clone());
            name_of(&asker, "vm", &theirs)?.to_string()
        }
    };
    let vm = made(&asker, create).await?;
    Ok((StatusCode::CREATED, Json(told::vm(&vm))))
}

/// Makes a VM, all of it, whoever leaves.
pub async fn made(asker: &Asker, create: CreateVm) -> Result<Vm, Failure> {
    let client = asker.client.clone();
    let making = async move {
        let changed = client.create(&create).await.map_err(ClientError::into_failure)?;
        changed.vm.ok_or_else(|| Failure::new(ErrorCode::Internal, "the VM was made and is not there"))
    };
    asker.call.detached(making).await
}

pub async fn list(asker: Asker) -> Result<Json<Value>, ApiError> {
    let vms = asker.client.vms().await.map_err(ClientError::into_failure)?.vms;
    let told: Vec<Value> = vms.iter().map(told::vm).collect();
    Ok(Json(json!({ "total": told.len(), "vms": told })))
}

pub async fn show(asker: Asker, Path(vm): Path<String>) -> Result<Json<Value>, ApiError> {
    let vm = asker.client.vm(&vm_ref(&vm)?).await.map_err(ClientError::into_failure)?;
    Ok(Json(told::vm(&vm)))
}

pub async fn destroy(asker: Asker, Path(vm): Path<String>) -> Result<Json<Value>, ApiError> {
    let vm = vm_ref(&vm)?;
    let known = asker.client.vm(&vm).await.map_err(ClientError::into_failure)?;
    let options = DestroyQuery { wait: Some(true), ..DestroyQuery::default() };
    let gone =
        asker.client.destroy(&VmRef::Id(known.id), &options).await.map_err(ClientError::into_failure)?;
    Ok(Json(json!({
        "id": known.id,
        "message": format!("VM `{}` is destroyed", known.name),
        "snapshots_kept": gone.snapshots_kept,
    })))
}

pub async fn metrics(asker: Asker, Path(vm): Path<String>) -> Result<Json<Value>, ApiError> {
    let vm = asker.client.vm(&vm_ref(&vm)?).await.map_err(ClientError::into_failure)?;
    Ok(Json(figures(&vm)))
}

pub async fn metrics_of_all(asker: Asker) -> Result<Json<Value>, ApiError> {
    let vms = asker.client.vms().await.map_err(ClientError::into_failure)?.vms;
    let mut told = Vec::with_capacity(vms.len());
    for vm in &vms {
        // Measured only where one is asked for.
        match asker.client.vm(&VmRef::Id(vm.id)).await {
            Ok(vm) => told.push(figures(&vm)),
            // Gone meanwhile.
            Err(error) if error.code() == ErrorCode::NotFound => {}
            Err(error) => return Err(error.into_failure().into()),
        }
    }
    Ok(Json(json!({ "total": told.len(), "vms": told })))
}

/// What is measured, and nothing else: a VM without a process has no figures.
fn figures(vm: &Vm) -> Value {
    json!({
        "vm_id": vm.id,
        "status": vm.state,
        "vcpus": vm.cpus,
        "memory_mb": vm.memory_mib,
        "memory_used_bytes": vm.usage.map(|usage| usage.pss_bytes),
        "cpu_ms": vm.usage.map(|usage| usage.cpu_ms),
    })
}

/// Processes that run in it or have lately ended.
pub async fn tasks(asker: Asker, Path(vm): Path<String>) -> Result<Json<Value>, ApiError> {
    let execs = asker.client.execs(&vm_ref(&vm)?).await.map_err(ClientError::into_failure)?.execs;
    Ok(Json(json!({ "total": execs.len(), "tasks": execs })))
}

pub async fn snapshot(
    asker: Asker,
    Path(vm): Path<String>,
    body: Body,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let asked: TakeSnapshot = read(body).await?;
    Ok((StatusCode::CREATED, Json(take(&asker, vm_ref(&vm)?, asked).await?)))
}

/// Clients' names are made of the time in seconds, and so need not differ: they are notes here, and the id is the name.
pub async fn take(asker: &Asker, vm: VmRef, asked: TakeSnapshot) -> Result<Value, Failure> {
    let name = asked.name.unwrap_or_default();
    if name.contains('\n') {
        return Err(InvalidField::new("name", "it has one line").into());
    }
    let note = match (name, asked.description) {
        (name, Some(description)) => format!("{name}\n{description}"),
        (name, None) => name,
    };
    let request = Take { note: (!note.is_empty()).then_some(note), ..Take::default() };
    let taken = asker.client.snapshot(&vm, &request).await.map_err(ClientError::into_failure)?;
    Ok(told::snapshot(&taken))
}

pub async fn snapshots(asker: Asker, Path(vm): Path<String>) -> Result<Json<Value>, ApiError> {
    let all = asker.client.snapshots_of(&vm_ref(&vm)?).await.map_err(ClientError::into_failure)?.snapshots;
    let told: Vec<Value> = all.iter().map(told::snapshot).collect();
    Ok(Json(json!({ "total": told.len(), "snapshots": told })))
}

pub async fn remove_snapshot(
    asker: Asker,
    Path((vm, snapshot)): Path<(String, String)>,
) -> Result<Json<Value>, ApiError> {
    let (vm, snapshot) = (vm_ref(&vm)?, snapshot_ref(&snapshot)?);
    let known = asker.client.show_snapshot(&snapshot).await.map_err(ClientError::into_failure)?;
    let vm = asker.client.vm(&vm).await.map_err(ClientError::into_failure)?;
    if known.vm != vm.id {
        let message = format!("VM `{}` has no snapshot {snapshot}", vm.name);
        return Err(Failure::new(ErrorCode::NotFound, message).into());
    }
    let removed = asker.client.remove_snapshot(&snapshot, &RemoveSnapshotQuery::default()).await;
    let removed = removed.map_err(ClientError::into_failure)?.removed;
    Ok(Json(json!({ "message": format!("snapshot {} is removed", known.id), "removed": removed })))
}

fn snapshot_ref(text: &str) -> Result<SnapshotRef, InvalidField> {
    text.parse().map_err(|error| InvalidField::new("snapshot_id", error))
}

pub async fn rollback(
    asker: Asker,
    Path((vm, snapshot)): Path<(String, String)>,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let asked: Rollback = read(body).await?;
    for (field, said, meant) in [("vm_id", &asked.vm_id, &vm), ("snapshot_id", &asked.snapshot_id, &snapshot)]
    {
        if said.as_ref().is_some_and(|said| said != meant) {
            return Err(InvalidField::new(field, "the path says another").into());
        }
    }
    let mut told = go_back(&asker, vm_ref(&vm)?, &snapshot).await?;
    if asked.create_pre_rollback_snapshot == Some(false) && told["warning"].is_null() {
        told["warning"] = json!("the state before a rollback is always kept");
    }
    Ok(Json(told))
}

/// Goes back to a snapshot, or to the last success. What is left is always kept, also where clients do not want that.
pub async fn go_back(asker: &Asker, vm: VmRef, snapshot: &str) -> Result<Value, Failure> {
    let request = match LAST_SUCCESS.contains(&snapshot) {
        true => RollbackRequest { snapshot: None, last_good: true },
        false => RollbackRequest { snapshot: Some(snapshot.into()), last_good: false },
    };
    let client = asker.client.clone();
    let going = async move { client.rollback(&vm, &request).await.map_err(ClientError::into_failure) };
    let done = asker.call.detached(going).await?;
    Ok(json!({
        "message": format!("the VM is as it was at snapshot {}", done.to),
        "vm_id": done.vm,
        "restored_snapshot_id": done.to,
        "snapshot_id": done.to,
        "pre_rollback_snapshot_id": done.undo,
        "rolled_back_at": told::now(),
        "success": true,
        "undone": done.undone,
        "warning": done.warning,
        "error": null,
    }))
}
