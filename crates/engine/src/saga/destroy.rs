//! Any state `-> Destroyed`: no process, no file, no row that still means something. Each step goes on where a
//! failed or interrupted destroy ended; what could not be removed is named, and the reaper tries again.

use super::{Change, OnCrash, Saga, Step, StepFuture, Undo, create, stop};
use crate::machine::Machine;
use offshoot_types::{OperationKind, VmState};

pub(crate) const DESTROY: Saga = Saga {
    kind: OperationKind::Destroy,
    steps: &[&[
        Step { name: "stopping", act: stop::stopping, undo: NOT_TAKEN_BACK },
        Step { name: "end-process", act: stop::end_process, undo: NOT_TAKEN_BACK },
        Step { name: "reclaim", act: stop::reclaim, undo: NOT_TAKEN_BACK },
        // Only now: a process that still ran would write to files without names.
        Step { name: "files", act: files, undo: NOT_TAKEN_BACK },
        Step { name: "destroyed", act: destroyed, undo: NOT_TAKEN_BACK },
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
