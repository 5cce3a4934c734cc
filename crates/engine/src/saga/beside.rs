//! A process that is to take the place of the VM's own: what a rollback and a rebase have in common.
//!
//! ```text
//! directories, instance      written down                  present process
//! freeze, hold ......................................... stands still
//! start, connect             the process beside it              |
//! (switch)                   one transaction                    x  ended later; or it goes on as it was
//! ```
//! Whatever fails before the switch ends the new process and lets the present one go on.

use super::{Change, StepFuture, create, snapshot::without_input, start, suspend};
use crate::{
    capture,
    machine::{Live, Machine, Power},
};
use offshoot_provider::{AfterCheckpoint, RestorePlan, memory::Memory, vm::Vm};
use offshoot_store::{LayerRecord, NewLayer};
use offshoot_types::{
    Attestations, ErrorCode, Failure, Generation, LayerId, OperationId, SnapshotId, VmStateName,
};
use std::path::PathBuf;
use tokio::time::Instant;
use uuid::Uuid;

/// A process that is to take the VM's place.
#[derive(Debug)]
pub(crate) struct Beside {
    pub live: Live,
}

/// The change under way that has, or will have, such a process.
#[derive(Debug)]
pub(crate) struct Going {
    pub operation: OperationId,
    /// What the process continues from, or what its memory is a difference to.
    pub to: SnapshotId,
    /// Of the process to come, and of the VM once it is switched.
    pub generation: Generation,
    /// What it will write to.
    pub layer: Option<LayerRecord>,
    /// The present state has a process.
    pub lives: bool,
    /// The ledger is not asked.
    pub promised: bool,
    pub warning: Option<String>,
    pub attestations: Option<Attestations>,
}

pub(super) fn going(machine: &Machine) -> Result<&Going, Failure> {
    machine.going.as_ref().ok_or_else(without_input)
}

/// Whether the VM is what it was to become already: then nothing is taken back.
pub(super) fn switched(machine: &Machine) -> bool {
    machine.going.as_ref().is_some_and(|going| machine.row.generation >= going.generation)
}

/// Whether this change has switched it, however the change ended.
pub(crate) fn has_switched(machine: &Machine, operation: OperationId) -> bool {
    switched(machine) && machine.going.as_ref().is_some_and(|going| going.operation == operation)
}

pub(super) fn abandon<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return Ok(());
        }
        machine.going = None;
        machine.source = None;
        capture::abandon(machine, change).await
    })
}

/// Of what it writes to; beside the layer of the state that is taken, which has the operation's own id.
fn layer_id(operation: OperationId) -> LayerId {
    LayerId::from_uuid(Uuid::from_u128(operation.as_uuid().as_u128() ^ 1))
}

/// Makes the layer it writes to, over `below`.
pub(super) async fn make_layer(
    machine: &mut Machine,
    change: &Change,
    below: &LayerRecord,
) -> Result<(), Failure> {
    let row = &machine.row;
    let id = layer_id(change.operation);
    let new: NewLayer =
        crate::layers::new_layer(id, &row.owner, &row.node, &row.spec, Some(below.id), change.operation);
    let state = &machine.core.layout.state;
    let (path, below) = (state.join(&new.path), state.join(&below.path));
    let (size, name) = (row.spec.disk, machine.name().clone());
    let durability = create::durability(row.spec.lifetime);
    machine
        .blocking(move || crate::layers::make(&path, Some(&below), &below, size, durability, &name))
        .await?;
    let written = machine.write(move |tx| {
        tx.add_layer(&new)?;
        tx.layer(id)
    });
    let record = written.await?;
    if let Some(going) = &mut machine.going {
        going.layer = record;
    }
    Ok(())
}

pub(super) fn directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Going { lives, generation, .. } = *going(machine)?;
        if !lives {
            return Ok(());
        }
        let (layout, id) = (machine.core.layout.clone(), machine.id());
        machine.blocking(move || start::make_directories(&layout, id, generation)).await
    })
}

/// Those of the generation that did not come to be: the next attempt has the same one.
pub(super) fn remove_directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return Ok(());
        }
        let (layout, id, next) = (machine.core.layout.clone(), machine.id(), machine.row.generation.next());
        machine
            .blocking(move || {
                create::remove_tree(&layout.boot(id, next))?;
                create::remove_tree(&layout.runtime_boot(id, next))
            })
            .await
    })
}

pub(super) fn instance<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Going { lives, promised, generation, .. } = *going(machine)?;
        if !lives {
            return Ok(());
        }
        let base = machine.source.as_ref().and_then(|source| source.memory_base());
        let record = start::instance_record(machine, generation, base);
        if promised {
            return machine.record_instance(record).await;
        }
        match machine.record_beside(record.clone()).await {
            // What an earlier rollback left is counted too, and about to end.
            Err(failure) if failure.code == ErrorCode::NoResource && machine.has_strangers() => {
                if let Some(left) = machine.retiring.clone() {
                    // However that ended: nothing more can be had of its process.
                    drop(left.written().await);
                    machine.retiring = None;
                }
                machine.reclaim_strangers().await?;
                machine.record_beside(record).await
            }
            recorded => recorded,
        }
    })
}

pub(super) fn reclaim<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return Ok(());
        }
        machine.reclaim_strangers().await
    })
}

pub(super) fn freeze<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::freeze(machine, change))
}

pub(super) fn unfreeze<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return Ok(());
        }
        capture::unfreeze(machine).await
    })
}

pub(super) fn hold<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !going(machine)?.lives {
            return Ok(());
        }
        capture::take(machine, AfterCheckpoint::Hold).await
    })
}

/// The present process goes on as it was.
pub(super) fn release<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) || machine.live.is_none() || machine.state() != VmStateName::Running {
            return Ok(());
        }
        suspend::resume(machine).await
    })
}

/// Starts it, on a disk whose layers are `below` under its own: from a device state and a memory, or without both.
pub(super) async fn start(
    machine: &mut Machine,
    below: &[LayerRecord],
    saved: Option<(PathBuf, Memory)>,
) -> Result<(), Failure> {
    let going = going(machine)?;
    let generation = going.generation;
    let chain: Vec<LayerRecord> = going.layer.iter().chain(below).cloned().collect();
    let plan = start::plan(machine, generation, &chain)?;
    let provider = machine.core.provider(machine.row.provider)?;
    let until = Instant::now() + plan.boot_deadline;
    let instance = match saved {
        Some((device_state, memory)) => {
            provider.restore(&RestorePlan { boot: plan, device_state, memory }).await
        }
        None => provider.boot(&plan).await,
    };
    let instance = instance.map_err(|error| machine.boot_failure(&error))?;
    let record = instance.record().clone();
    if !machine.instances.contains(&record) {
        machine.record_instance(record.clone()).await?;
    }
    let vm = Vm::booted(instance);
    let dialer = vm.dialer();
    machine.boot_until = Some(until);
    let live = machine.hold(Power::Running(vm), dialer, &record, until);
    machine.beside = Some(Beside { live });
    Ok(())
}

pub(super) fn connect<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(beside) = &machine.beside else { return Ok(()) };
        let until = machine.boot_until.unwrap_or(change.deadline).min(change.deadline);
        start::handshake(machine, &beside.live, until).await
    })
}

/// Makes it the VM's process, once the record says so; those who talk to the one before are told why they cannot. `false`
/// if that was done before.
pub(super) fn take_place(machine: &mut Machine, why: &str) -> bool {
    let Some(Beside { live }) = machine.beside.take() else { return false };
    if let Some(before) = machine.take_over(live) {
        before.link.close(why);
    }
    true
}
