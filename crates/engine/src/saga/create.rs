//! `Creating -> Stopped`: directories and data disk. The row and its place in the ledger were written together
//! with the operation, before this began; undoing everything takes the row to `Destroyed`.

use super::{Change, OnCrash, Saga, StepFuture, Undo, quiet};
use crate::{
    layers,
    machine::{Machine, io_failure},
    state_dir::{DATA_DISK, Layout, make_private_dir},
};
use offshoot_provider::Durability;
use offshoot_types::{ErrorCode, Failure, Lifetime, OperationKind, VmState};
use std::{fs, io, path::Path};

pub(crate) const CREATE: Saga = Saga {
    kind: OperationKind::Create,
    steps: &[&[
        // Row and ledger came with the operation; their undo is the row's end, after all files are gone. Nothing is
        // journaled: a create that was cut off is taken back from its end, however far it came.
        quiet("reserve", |_, _| Box::pin(async { Ok(()) }), Undo::Run(release)),
        quiet("directories", directories, Undo::Run(remove_directories)),
        quiet("data-disk", data_disk, Undo::Run(remove_disk)),
        quiet("stopped", stopped, Undo::Nothing("the last step: nothing fails after it")),
    ]],
    on_crash: OnCrash::Undo,
};

fn release<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        machine.move_to(VmState::Destroyed, change).await?;
        machine.core.collect_layers().await;
        Ok(())
    })
}

fn directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let dir = machine.core.layout.vm(machine.id());
        machine
            .blocking(move || {
                make_private_dir(&dir).map_err(|error| io_failure("make directory", &dir, &error))
            })
            .await
    })
}

fn remove_directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(remove_all(machine))
}

/// Removes the VM's directories. Nothing of it may run. A disk layer goes when nobody needs it, see [`crate::layers`].
pub(super) async fn remove_all(machine: &mut Machine) -> Result<(), Failure> {
    let layout = machine.core.layout.clone();
    let id = machine.id();
    machine
        .blocking(move || {
            remove_tree(&layout.runtime_vm(id))?;
            remove_own(&layout.vm(id))
        })
        .await
}

/// Everything in a VM's directory, and the directory: but for a disk layer that lies there.
fn remove_own(dir: &Path) -> Result<(), Failure> {
    if !dir.join(DATA_DISK).exists() {
        return remove_tree(dir);
    }
    let entries = fs::read_dir(dir).map_err(|error| io_failure("read", dir, &error))?;
    for entry in entries.filter_map(Result::ok).filter(|entry| entry.file_name() != DATA_DISK) {
        remove_tree(&entry.path())?;
    }
    Ok(())
}

pub(crate) fn remove_tree(path: &Path) -> Result<(), Failure> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_failure("remove", path, &error)),
        _ => Ok(()),
    }
}

fn data_disk<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let images = machine.core.options.images.clone();
        let (digest, size) = (machine.row.spec.image_digest.clone(), machine.row.spec.disk);
        let durability = durability(machine.row.spec.lifetime);
        let layer = machine.row.layer.ok_or_else(|| {
            Failure::new(ErrorCode::Internal, format!("VM `{}` has no disk in the record", machine.name()))
        })?;
        let path = machine.core.layout.state.join(Layout::layer_name(layer));
        let name = machine.name().clone();
        machine
            .blocking(move || {
                let template = images.boot_files(&digest)?.disk_template;
                layers::make(&path, None, &template, size, durability, &name)
            })
            .await
    })
}

/// Its record goes with the VM.
fn remove_disk<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(layer) = machine.row.layer else { return Ok(()) };
        let path = machine.core.layout.state.join(Layout::layer_name(layer));
        machine.blocking(move || layers::remove_file(&path)).await
    })
}

/// What a guest's `fsync` is worth: a VM that dies with its request needs none.
pub(crate) const fn durability(lifetime: Lifetime) -> Durability {
    match lifetime {
        Lifetime::Kept => Durability::Flushed,
        Lifetime::Request => Durability::Volatile,
    }
}

fn stopped<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(machine.move_to(VmState::Stopped, change))
}
