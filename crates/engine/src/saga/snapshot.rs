//! Keeps the present state of a VM that runs, is paused or has no process. What is kept is usable when the saga has
//! ended, and durable when the operation has: see [`crate::snapshots`].

use super::{Change, Input, OnCrash, Saga, StepFuture, Undo, quiet, step};
use crate::{
    capture::{self, Keep, snapshot_id},
    machine::Machine,
};
use offshoot_provider::AfterCheckpoint;
use offshoot_types::{ErrorCode, Failure, OperationKind};

pub(crate) const SNAPSHOT: Saga = Saga {
    kind: OperationKind::Snapshot,
    steps: &[&[
        step("prepare", prepare, Undo::Run(abandon)),
        quiet("flush", flush, Undo::Nothing("writes only what was to be written")),
        quiet("freeze", freeze, Undo::Run(unfreeze)),
        quiet("take", take, Undo::Nothing("the VM runs on, on its old disk layer or on the new one")),
        quiet("unfreeze", unfreeze, Undo::Nothing("done already")),
        quiet("record", record, Undo::Run(discard)),
    ]],
    // Its pages are in the memory of the daemon that died.
    on_crash: OnCrash::Undo,
};

fn prepare<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Input::Snapshot(ask) = &change.input else { return Err(without_input()) };
        capture::prepare(machine, change, ask.kind).await
    })
}

fn abandon<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::abandon(machine, change))
}

fn flush<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::flush(machine))
}

fn freeze<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::freeze(machine, change))
}

fn unfreeze<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::unfreeze(machine))
}

fn take<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::take(machine, AfterCheckpoint::Continue))
}

fn record<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Input::Snapshot(ask) = &change.input else { return Err(without_input()) };
        capture::record(machine, change, Keep::from(&**ask)).await
    })
}

/// Also after a crash: then the record may know it, and its files may lie in either place.
fn discard<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        machine.core.discard(snapshot_id(change.operation)).await;
        machine.refresh().await
    })
}

pub(super) fn without_input() -> Failure {
    Failure::new(ErrorCode::Internal, "a change was begun without what it is to do")
}
