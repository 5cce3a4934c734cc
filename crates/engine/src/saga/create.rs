//! `Creating -> Stopped`: directories and data disk. The row and its place in the ledger were written together
//! with the operation, before this began; undoing everything takes the row to `Destroyed`.

use super::{Change, OnCrash, Saga, Step, StepFuture, Undo};
use crate::{
    machine::{Machine, io_failure},
    state_dir::make_private_dir,
};
use offshoot_provider::{
    Durability,
    disk::{self, DiskError},
};
use offshoot_types::{ErrorCode, Failure, Lifetime, OperationKind, VmState};
use std::{fs, io, path::Path};

pub(crate) const CREATE: Saga = Saga {
    kind: OperationKind::Create,
    steps: &[&[
        // Row and ledger came with the operation; their undo is the row's end, after all files are gone.
        Step { name: "reserve", act: |_, _| Box::pin(async { Ok(()) }), undo: Undo::Run(release) },
        Step { name: "directories", act: directories, undo: Undo::Run(remove_directories) },
        Step { name: "data-disk", act: data_disk, undo: Undo::Nothing("removed with its directory") },
        Step { name: "stopped", act: stopped, undo: Undo::Nothing("the last step: nothing fails after it") },
    ]],
    on_crash: OnCrash::Undo,
};

fn release<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(machine.move_to(VmState::Destroyed, change))
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

/// Removes every file of the VM. Nothing of it may run.
pub(super) async fn remove_all(machine: &mut Machine) -> Result<(), Failure> {
    let layout = machine.core.layout.clone();
    let id = machine.id();
    machine
        .blocking(move || {
            remove_tree(&layout.runtime_vm(id))?;
            remove_tree(&layout.vm(id))
        })
        .await
}

pub(super) fn remove_tree(path: &Path) -> Result<(), Failure> {
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
        let path = machine.core.layout.data_disk(machine.id());
        let name = machine.name().clone();
        machine
            .blocking(move || {
                let template = images.boot_files(&digest)?.disk_template;
                // It appears complete or not at all, so one that is there is an earlier run's of this step.
                if disk::inspect(&path)
                    .is_ok_and(|found| found.size == size.bytes() && found.template == template)
                {
                    return Ok(());
                }
                disk::create_overlay(&template, size, &path, durability).map_err(|error| match &error {
                    DiskError::SmallerThanTemplate { template, .. } => Failure::new(
                        ErrorCode::InvalidArgument,
                        format!("VM `{name}` was not created: {error}"),
                    )
                    .hint(format!("ask for a disk of at least {template}")),
                    DiskError::Io { source, .. } => io_failure("make the data disk", &path, source),
                    DiskError::TemplatePath { .. } | DiskError::Foreign { .. } => {
                        Failure::new(ErrorCode::Internal, format!("VM `{name}` was not created"))
                            .caused_by(&error)
                    }
                })
            })
            .await
    })
}

/// What a guest's `fsync` is worth: a VM that dies with its request needs none.
pub(super) const fn durability(lifetime: Lifetime) -> Durability {
    match lifetime {
        Lifetime::Kept => Durability::Flushed,
        Lifetime::Request => Durability::Volatile,
    }
}

fn stopped<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(machine.move_to(VmState::Stopped, change))
}
