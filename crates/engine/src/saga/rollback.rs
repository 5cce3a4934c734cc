//! The VM continues from an earlier state.
//!
//! ```text
//! target     looked up and checked           present process
//! prepare    a layer for what is left             |
//! layer      a layer over the target's            |
//! instance   written down                         |
//! freeze, hold ................................ stands still (its state is the undo snapshot)
//! restore, connect, thaw    new process           |
//! switch     one transaction: record, undo snapshot, history
//!                    |                            x  ended once the undo snapshot is durable
//!                    v
//! ```
//! Whatever fails before the switch ends the new process and lets the present one go on as it was. A VM without a
//! process is switched only; who asked starts it.

use super::{
    Change, Input, OnCrash, Saga, StepFuture, Undo,
    beside::{self, Going, going, switched},
    quiet,
    snapshot::without_input,
    start, step,
    thaw::Identity,
};
use crate::{
    ask::{Target, Went},
    capture::{self, Keep},
    error,
    machine::Machine,
};
use offshoot_store::{SnapshotRecord, StoreError, Switch, View};
use offshoot_types::{
    ErrorCode, Failure, OperationKind, SnapshotKind, SnapshotOrigin, SnapshotState, VmId, VmState,
    VmStateName,
};

pub(crate) const ROLLBACK: Saga = Saga {
    kind: OperationKind::Rollback,
    steps: &[&[
        step("target", target, Undo::Nothing("reads only")),
        quiet("prepare", prepare, Undo::Run(beside::abandon)),
        quiet("layer", layer, Undo::Nothing("a layer nobody needs is removed later")),
        quiet("directories", beside::directories, Undo::Run(beside::remove_directories)),
        quiet("instance", beside::instance, Undo::Run(beside::reclaim)),
        quiet("freeze", beside::freeze, Undo::Run(beside::unfreeze)),
        quiet("hold", beside::hold, Undo::Run(beside::release)),
        quiet("restore", restore, Undo::Nothing("the process is ended with its record")),
        quiet("connect", beside::connect, Undo::Nothing("the link is closed with the record")),
        quiet("thaw", thaw, Undo::Nothing("the process is ended with its record")),
        step(SWITCH, switch, Undo::Run(take_over)),
    ]],
    on_crash: OnCrash::Undo,
};

/// The step after which the VM is the other state.
pub(crate) const SWITCH: &str = "switch";

fn target<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Input::Rollback(ask) = &change.input else { return Err(without_input()) };
        if machine.going.as_ref().is_some_and(|going| going.operation == change.operation) {
            return Ok(());
        }
        let lives = matches!(machine.state(), VmStateName::Running | VmStateName::Paused);
        if !lives {
            machine.reclaim_instances().await?;
        }
        let (vm, to) = (machine.id(), ask.to);
        let found = machine.core.store.read(move |view| match to {
            Target::Snapshot(id) => view.snapshot(id),
            Target::LastGood => view.last_good(vm),
            Target::Undo => view.newest_undo(vm),
            Target::Newest => newest(view, vm),
        });
        let found = found.await?.ok_or_else(|| nothing_to_go_to(machine, to))?;
        if found.owner != machine.row.owner {
            return Err(nothing_to_go_to(machine, to));
        }
        let source = machine.core.source(found.id, 1).await?;
        let warning = (!found.quiesced && found.kind == SnapshotKind::Full).then(|| {
            "the guest did not stand still when this snapshot was taken: programs in it ran on with its random state \
             and clock until it was renewed"
                .to_owned()
        });
        if lives {
            start::check_image(machine, change).await?;
        }
        machine.going = Some(Going {
            operation: change.operation,
            to: found.id,
            generation: machine.row.generation.next(),
            layer: None,
            lives,
            promised: ask.promised,
            warning,
            attestations: None,
        });
        machine.source = Some(source.into());
        Ok(())
    })
}

/// The nearest state before the present one that was kept to be gone back to. What was kept for forks or to suspend to
/// comes after those.
fn newest(view: &View<'_>, vm: VmId) -> Result<Option<SnapshotRecord>, StoreError> {
    let mut at = view.vm(vm)?.and_then(|row| row.position);
    let mut other = None;
    while let Some(id) = at {
        let Some(snapshot) = view.snapshot(id)? else { break };
        at = snapshot.parent;
        let passing = matches!(snapshot.origin, SnapshotOrigin::Fork | SnapshotOrigin::Suspend);
        match (snapshot.state, passing) {
            (SnapshotState::Damaged, _) => {}
            (_, false) => return Ok(Some(snapshot)),
            (_, true) => other = other.or(Some(snapshot)),
        }
    }
    Ok(other)
}

fn nothing_to_go_to(machine: &Machine, to: Target) -> Failure {
    let name = machine.name();
    let (message, hint) = match to {
        Target::Snapshot(id) => return crate::snapshots::not_found(id),
        Target::Newest => (format!("VM `{name}` has no snapshot"), "`offshoot snapshot` takes one"),
        Target::LastGood => (
            format!("VM `{name}` has no snapshot from before its last failed exec"),
            "`offshoot snapshot list` shows the snapshots there are",
        ),
        Target::Undo => (
            format!("there is nothing to undo in VM `{name}`"),
            "`undo` takes back a rollback, a commit or a race",
        ),
    };
    Failure::new(ErrorCode::NotFound, message).hint(hint)
}

fn prepare<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        // What a suspended VM leaves is kept already: its memory and the disk below its layer.
        if machine.state() == VmStateName::Suspended {
            return Ok(());
        }
        // All it had was in its memory, and that is gone: nothing is left to keep.
        let lives = matches!(machine.state(), VmStateName::Running | VmStateName::Paused);
        if !lives && !machine.core.provider(machine.row.provider)?.keeps_disk() {
            return Ok(());
        }
        capture::prepare(machine, change, SnapshotKind::Full).await
    })
}

fn layer<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(source) = machine.source.clone() else { return Err(without_input()) };
        let below = source
            .chain
            .first()
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "a snapshot has no disk layer in the record"))?;
        beside::make_layer(machine, change, below).await
    })
}

fn restore<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(source) = machine.source.clone() else { return Err(without_input()) };
        if !going(machine)?.lives || machine.beside.is_some() {
            return Ok(());
        }
        let saved = source.memory.as_ref().map(|saved| (saved.device_state.clone(), saved.memory.clone()));
        beside::start(machine, &source.chain, saved).await
    })
}

fn thaw<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (Some(beside), Some(going)) = (&machine.beside, &machine.going) else { return Ok(()) };
        if machine.source.as_ref().is_none_or(|source| source.memory.is_none()) {
            return Ok(());
        }
        // The winner of a race was a machine of its own; from now on it is this one.
        let own = machine.source.as_ref().is_some_and(|source| source.snapshot.vm == machine.id());
        let identity = if own { Identity::Kept } else { Identity::New };
        let thawed = machine.thaw(&beside.live.link, going.generation, identity).await?;
        if let Some(going) = &mut machine.going {
            going.attestations = Some(thawed);
        }
        Ok(())
    })
}

fn switch<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return take_over(machine, change).await;
        }
        let Input::Rollback(ask) = &change.input else { return Err(without_input()) };
        let keep = Keep { name: None, origin: SnapshotOrigin::Undo, note: None };
        let left = machine.capture.is_some().then(|| capture::captured(machine, keep)).transpose()?;
        let suspended = machine.row.memory;
        let undo = left.as_ref().map(|left| left.id).or(suspended);
        let going = going(machine)?;
        let (lives, to) = (going.lives, going.to);
        let layer = going.layer.as_ref().map(|layer| layer.id).ok_or_else(without_input)?;
        let full = machine.source.as_ref().is_some_and(|source| source.memory.is_some());
        let order = Switch {
            vm: machine.id(),
            expected: machine.row.generation,
            layer,
            position: Some(to),
            to,
            undo,
            reason: change.reason.clone(),
            actor: change.actor.clone(),
            operation: change.operation,
            state: match (lives, full) {
                (true, _) => VmState::Running,
                (false, true) => VmState::Suspended,
                (false, false) => VmState::Stopped,
            },
        };
        capture::publish(machine);
        let kept = machine.row.kept_disk.is_some();
        let (operation, actor) = (change.operation, change.actor.clone());
        let undone = machine
            .write(move |tx| {
                if let Some(left) = &left {
                    tx.add_snapshot(left, operation, &actor)?;
                } else if let Some(suspended) = suspended {
                    tx.set_snapshot_origin(suspended, SnapshotOrigin::Undo)?;
                }
                tx.switch_vm(&order)?;
                tx.mark_undone(order.vm, to, operation)
            })
            .await?;
        if kept {
            super::disk::forget(machine).await;
        }
        let going = self::going(machine)?;
        ask.answer(Went {
            to,
            undo,
            generation: machine.row.generation,
            undone,
            attestations: going.attestations.clone(),
            warning: going.warning.clone(),
        });
        take_over(machine, change).await
    })
}

/// Makes the new process the VM's, once the record says so. What was left is ended when its state is durable.
fn take_over<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !switched(machine) {
            return Ok(());
        }
        if let Some(left) = machine.capture.take() {
            machine.retiring = machine.core.snapshots.volatile(left.id);
        }
        if beside::take_place(machine, &error::rolled_back(&machine.name().clone())) {
            machine.attestations = machine.going.as_ref().and_then(|going| going.attestations.clone());
        }
        machine.source = None;
        machine.publish();
        Ok(())
    })
}
