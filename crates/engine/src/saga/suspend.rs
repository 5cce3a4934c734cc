//! `Running | Paused -> Suspending -> Suspended`: the memory goes to the disk, then the process ends.
//!
//! The CPUs stand still from `hold` on, so what is written is the truth until the process is gone. Up to `suspended` the
//! VM can go on as it was; from there on the disk is what counts.

use super::{Change, OnCrash, Saga, StepFuture, Undo, quiet, step, stop};
use crate::{
    capture::{self, Keep, snapshot_id},
    machine::{Machine, Power},
};
use offshoot_provider::AfterCheckpoint;
use offshoot_types::{OperationKind, SnapshotKind, SnapshotOrigin, VmState, VmStateName};

pub(crate) const SUSPEND: Saga = Saga {
    kind: OperationKind::Suspend,
    steps: &[&[
        step("prepare", prepare, Undo::Run(abandon)),
        quiet("freeze", freeze, Undo::Run(unfreeze)),
        step("suspending", suspending, Undo::Run(back)),
        quiet("hold", hold, Undo::Run(release)),
        quiet("record", record, Undo::Run(discard)),
        quiet("write", write, Undo::Nothing("removed with the record")),
        quiet(
            "suspended",
            suspended,
            Undo::Nothing("the memory is on the disk: what is left is to end the process"),
        ),
        step("end-process", end_process, Undo::Nothing("what is left is removed later")),
    ]],
    on_crash: OnCrash::Undo,
};

fn prepare<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::prepare(machine, change, SnapshotKind::Full))
}

fn abandon<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() == VmStateName::Suspended {
            // It is kept: the next change must not take it for a state it has taken itself.
            machine.capture = None;
            return Ok(());
        }
        capture::abandon(machine, change).await
    })
}

fn freeze<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::freeze(machine, change))
}

fn unfreeze<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() == VmStateName::Suspended {
            return Ok(());
        }
        capture::unfreeze(machine).await
    })
}

fn suspending<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        machine.paused_before = machine.state() == VmStateName::Paused;
        machine.move_to(VmState::Suspending, change).await
    })
}

/// To where the process is: running, unless it stood still before.
fn back<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() != VmStateName::Suspending {
            return Ok(());
        }
        let to = if machine.paused_before { VmState::Paused } else { VmState::Running };
        machine.move_to(to, change).await
    })
}

fn hold<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::take(machine, AfterCheckpoint::Hold))
}

/// The VM that was to be suspended goes on.
fn release<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() == VmStateName::Suspended || machine.paused_before || machine.live.is_none() {
            return Ok(());
        }
        resume(machine).await
    })
}

/// Lets the CPUs go on, if they stand still.
pub(crate) async fn resume(machine: &mut Machine) -> Result<(), offshoot_types::Failure> {
    let resumed = match capture::take_power(machine).await? {
        Power::Paused(vm) => vm.resume().await.map_err(|(_, error)| error),
        Power::Running(vm) => Ok(vm),
    };
    let vm = resumed.map_err(|error| machine.vmm_failure("resume", &error))?;
    capture::put_back(machine, Power::Running(vm));
    Ok(())
}

fn record<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    let keep = Keep { name: None, origin: SnapshotOrigin::Suspend, note: None };
    Box::pin(capture::record(machine, change, keep))
}

fn discard<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() == VmStateName::Suspended {
            return Ok(());
        }
        machine.core.discard(snapshot_id(change.operation)).await;
        machine.refresh().await
    })
}

fn write<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    let core = machine.core.clone();
    Box::pin(async move { core.persist(snapshot_id(change.operation)).await })
}

fn suspended<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    let (vm, memory) = (machine.id(), snapshot_id(change.operation));
    Box::pin(machine.move_with(VmState::Suspended, change, move |tx| tx.set_vm_memory(vm, Some(memory))))
}

fn end_process<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        machine.capture = None;
        if let Some(live) = &machine.live {
            live.link.close("it was suspended");
        }
        stop::end_process(machine, change).await?;
        stop::reclaim(machine, change).await
    })
}
