//! Any state `-> Destroyed`: no process, no file, no row that still means something. Each step goes on where a
//! failed or interrupted destroy ended; what could not be removed is named, and the reaper tries again.

use super::{Change, Input, OnCrash, Saga, StepFuture, Undo, create, step, stop};
use crate::machine::Machine;
use offshoot_types::{OperationKind, VmState};

pub(crate) const DESTROY: Saga = Saga {
    kind: OperationKind::Destroy,
    steps: &[&[
        step("stopping", stop::stopping, NOT_TAKEN_BACK),
        step("end-process", stop::end_process, NOT_TAKEN_BACK),
        step("reclaim", stop::reclaim, NOT_TAKEN_BACK),
        // Only now: a process that still ran would write to files without names.
        step("files", files, NOT_TAKEN_BACK),
        step("destroyed", destroyed, NOT_TAKEN_BACK),
        // Only what no VM needs is removed, and until the step before this one needed its disk.
        step("snapshots", snapshots, NOT_TAKEN_BACK),
    ]],
    on_crash: OnCrash::Complete,
};

const NOT_TAKEN_BACK: Undo = Undo::Nothing("what is removed does not come back: a destroy is completed");

fn files<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(create::remove_all(machine))
}

fn destroyed<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(machine.move_to(VmState::Destroyed, change))
}

/// Snapshots nobody asked for go with their VM; others stay, unless they were asked to go too. What something else
/// still needs stays until that is gone. What cannot be removed now is removed by the housekeeper.
fn snapshots<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let core = machine.core.clone();
        let all = matches!(change.input, Input::DestroyAll);
        core.remove_snapshots_of(machine.id(), all, change.operation, &change.actor).await;
        core.collect_layers().await;
        Ok(())
    })
}
