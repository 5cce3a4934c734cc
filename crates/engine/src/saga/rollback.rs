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
    Change, Input, OnCrash, Saga, StepFuture, Undo, create, quiet, snapshot::without_input, start, step,
    suspend, thaw::Identity,
};
use crate::{
    ask::{Target, Went},
    capture::{self, Keep},
    error, layers,
    machine::{Live, Machine, Power},
};
use offshoot_provider::{AfterCheckpoint, RestorePlan, vm::Vm};
use offshoot_store::{LayerRecord, SnapshotRecord, StoreError, Switch, View};
use offshoot_types::{
    Attestations, ErrorCode, Failure, Generation, LayerId, OperationId, OperationKind, SnapshotId,
    SnapshotKind, SnapshotOrigin, SnapshotState, VmId, VmState, VmStateName,
};
use tokio::time::Instant;
use uuid::Uuid;

pub(crate) const ROLLBACK: Saga = Saga {
    kind: OperationKind::Rollback,
    steps: &[&[
        step("target", target, Undo::Nothing("reads only")),
        quiet("prepare", prepare, Undo::Run(abandon)),
        quiet("layer", layer, Undo::Nothing("a layer nobody needs is removed later")),
        quiet("directories", directories, Undo::Run(remove_directories)),
        quiet("instance", instance, Undo::Run(reclaim)),
        quiet("freeze", freeze, Undo::Run(unfreeze)),
        quiet("hold", hold, Undo::Run(release)),
        quiet("restore", restore, Undo::Nothing("the process is ended with its record")),
        quiet("connect", connect, Undo::Nothing("the link is closed with the record")),
        quiet("thaw", thaw, Undo::Nothing("the process is ended with its record")),
        step(SWITCH, switch, Undo::Run(take_over)),
    ]],
    on_crash: OnCrash::Undo,
};

/// The step after which the VM is the other state.
pub(crate) const SWITCH: &str = "switch";

/// A process that is to take the VM's place.
#[derive(Debug)]
pub(crate) struct Beside {
    pub live: Live,
}

/// The rollback under way.
#[derive(Debug)]
pub(crate) struct Going {
    operation: OperationId,
    to: SnapshotId,
    /// Of the process to come, and of the VM once it is switched.
    generation: Generation,
    /// What it will write to.
    layer: Option<LayerRecord>,
    /// The present state has a process.
    lives: bool,
    /// The ledger is not asked.
    promised: bool,
    warning: Option<String>,
    attestations: Option<Attestations>,
}

fn going(machine: &Machine) -> Result<&Going, Failure> {
    machine.going.as_ref().ok_or_else(without_input)
}

/// Whether the VM is the other state already: then nothing is taken back.
fn switched(machine: &Machine) -> bool {
    machine.going.as_ref().is_some_and(|going| machine.row.generation >= going.generation)
}

/// Beside that of the undo snapshot, which is the operation's own id.
fn layer_id(operation: OperationId) -> LayerId {
    LayerId::from_uuid(Uuid::from_u128(operation.as_uuid().as_u128() ^ 1))
}

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
        capture::prepare(machine, change, SnapshotKind::Full).await
    })
}

fn abandon<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return Ok(());
        }
        machine.going = None;
        machine.source = None;
        capture::abandon(machine, change).await
    })
}

fn layer<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(source) = machine.source.clone() else { return Err(without_input()) };
        let row = &machine.row;
        let id = layer_id(change.operation);
        let new = layers::new_layer(
            id,
            &row.owner,
            &row.node,
            &row.spec,
            Some(source.snapshot.layer),
            change.operation,
        );
        let below = source
            .chain
            .first()
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "a snapshot has no disk layer in the record"))?;
        let state = &machine.core.layout.state;
        let (path, below) = (state.join(&new.path), state.join(&below.path));
        let (size, name) = (row.spec.disk, machine.name().clone());
        let durability = create::durability(row.spec.lifetime);
        machine.blocking(move || layers::make(&path, Some(&below), &below, size, durability, &name)).await?;
        let written = machine.write(move |tx| {
            tx.add_layer(&new)?;
            tx.layer(id)
        });
        let record = written.await?;
        if let Some(going) = &mut machine.going {
            going.layer = record;
        }
        Ok(())
    })
}

fn directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
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
fn remove_directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
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

fn instance<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
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

fn reclaim<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return Ok(());
        }
        machine.reclaim_strangers().await
    })
}

fn freeze<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::freeze(machine, change))
}

fn unfreeze<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return Ok(());
        }
        capture::unfreeze(machine).await
    })
}

fn hold<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !going(machine)?.lives {
            return Ok(());
        }
        capture::take(machine, AfterCheckpoint::Hold).await
    })
}

/// The present process goes on as it was.
fn release<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) || machine.live.is_none() || machine.state() != VmStateName::Running {
            return Ok(());
        }
        suspend::resume(machine).await
    })
}

fn restore<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (Some(source), Some(going)) = (machine.source.clone(), &machine.going) else {
            return Err(without_input());
        };
        if !going.lives || machine.beside.is_some() {
            return Ok(());
        }
        let generation = going.generation;
        let chain: Vec<LayerRecord> = going.layer.iter().chain(&source.chain).cloned().collect();
        let plan = start::plan(machine, generation, &chain)?;
        let provider = machine.core.provider(machine.row.provider)?;
        let begun = Instant::now();
        let until = begun + plan.boot_deadline;
        let instance = match &source.memory {
            Some(memory) => {
                let plan = RestorePlan {
                    boot: plan,
                    device_state: memory.device_state.clone(),
                    memory: memory.memory.clone(),
                };
                provider.restore(&plan).await
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
    })
}

fn connect<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(beside) = &machine.beside else { return Ok(()) };
        let until = machine.boot_until.unwrap_or(change.deadline).min(change.deadline);
        start::handshake(machine, &beside.live, until).await
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
        if let Some(Beside { live }) = machine.beside.take() {
            machine.attestations = machine.going.as_ref().and_then(|going| going.attestations.clone());
            let name = machine.name().clone();
            if let Some(before) = machine.take_over(live) {
                before.link.close(&error::rolled_back(&name));
            }
        }
        machine.source = None;
        machine.publish();
        Ok(())
    })
}
