//! A VM that runs and is idle goes on in another process, which maps its memory instead of having it for its own.
//!
//! ```text
//! base       a snapshot of a moment ago, looked up and checked      present process
//! prepare    a layer for it, if it goes on after all                      |
//! layer      a layer over what it has written                             |
//! instance   written down                                                 |
//! freeze, hold ....................................................... stands still
//! restore    new process: over the base, with what has changed since      |
//! connect    its agent answers                                            |
//! switch     one transaction                                              x  ended
//!            the guest's processes go on
//! ```
//! It is the present state that goes on, to the last page, in one place only, so nothing is renewed: a program sees a
//! pause. Whatever is asked of the VM before the switch cancels it, and whatever fails before the switch leaves the VM as
//! it was. The history, and where `undo` goes, are what they were.

use super::{
    Change, Input, OnCrash, Saga, StepFuture, Undo,
    beside::{self, Going, going, switched},
    quiet,
    snapshot::without_input,
    start, step,
};
use crate::{
    capture,
    machine::Machine,
    state_dir::{CONSOLE, CONSOLE_BEFORE},
    trace::TraceEvent,
};
use offshoot_provider::{AfterCheckpoint, memory::Memory};
use offshoot_store::Rebase;
use offshoot_types::{
    ErrorCode, Failure, OperationKind, SnapshotKind, SnapshotOrigin, SnapshotState, VmStateName,
};
use std::{fs, io, path::Path, sync::Arc};

pub(crate) const REBASE: Saga = Saga {
    kind: OperationKind::Rebase,
    steps: &[&[
        step("base", base, Undo::Nothing("reads only")),
        quiet("prepare", prepare, Undo::Run(beside::abandon)),
        quiet("layer", layer, Undo::Nothing("a layer nobody needs is removed later")),
        quiet("directories", directories, Undo::Run(beside::remove_directories)),
        quiet("instance", beside::instance, Undo::Run(beside::reclaim)),
        quiet("freeze", beside::freeze, Undo::Run(beside::unfreeze)),
        quiet("hold", hold, Undo::Run(beside::release)),
        quiet("restore", restore, Undo::Nothing("the process is ended with its record")),
        quiet("connect", beside::connect, Undo::Nothing("the link is closed with the record")),
        step(super::rollback::SWITCH, switch, Undo::Run(take_over)),
    ]],
    on_crash: OnCrash::Undo,
};

/// What is to be copied into the new process may be so much, whatever it gains.
const LITTLE: u64 = 4 << 20;

fn base<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Input::Rebase(onto) = change.input else { return Err(without_input()) };
        if machine.going.as_ref().is_some_and(|going| going.operation == change.operation) {
            return Ok(());
        }
        // More than one: its complete memory is put together, rather than copied into the process.
        let source = machine.core.source(onto, 2).await?;
        let (kept, own) = (&source.snapshot, machine.own_instance());
        let fits = kept.vm == machine.id()
            && kept.origin == SnapshotOrigin::Rebase
            && kept.state == SnapshotState::Durable
            && own.is_some_and(|own| own.memory_base == kept.memory_base);
        if !fits || machine.state() != VmStateName::Running {
            let message =
                format!("VM `{}` is not in the process any more of which {onto} was taken", machine.name());
            return Err(Failure::new(ErrorCode::Busy, message));
        }
        start::check_image(machine, change).await?;
        machine.going = Some(Going {
            operation: change.operation,
            to: onto,
            generation: machine.row.generation.next(),
            layer: None,
            lives: true,
            promised: false,
            warning: None,
            attestations: None,
        });
        machine.source = Some(source.into());
        Ok(())
    })
}

fn prepare<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(capture::prepare(machine, change, SnapshotKind::Full))
}

fn layer<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let chain = written(machine).await?;
        let below = chain
            .first()
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "a VM has no disk in the record"))?;
        beside::make_layer(machine, change, below).await
    })
}

/// The disk of the present process up to the moment in which it stands still.
async fn written(machine: &Machine) -> Result<Vec<offshoot_store::LayerRecord>, Failure> {
    let layer = machine.capture.as_ref().map(|capture| capture.layer).ok_or_else(without_input)?;
    Ok(machine.core.store.read(move |view| view.layer_chain(layer)).await?)
}

/// As for any process, with the console of the present one: what the guest has said so far stays to be read, and what it
/// says next comes after it.
fn directories<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        beside::directories(machine, change).await?;
        let own = machine.own_instance().map(|own| own.generation).ok_or_else(without_input)?;
        let (layout, id, to) = (machine.core.layout.clone(), machine.id(), going(machine)?.generation);
        machine.blocking(move || keep_console(&layout.boot(id, own), &layout.boot(id, to))).await
    })
}

fn keep_console(from: &Path, to: &Path) -> Result<(), Failure> {
    for name in [CONSOLE, CONSOLE_BEFORE] {
        match fs::hard_link(from.join(name), to.join(name)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists) => {}
            linked => linked.map_err(|error| crate::machine::io_failure("link", &to.join(name), &error))?,
        }
    }
    Ok(())
}

fn hold<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !machine.capture.as_ref().is_some_and(|capture| capture.quiesced) {
            let message = format!("the processes of VM `{}` did not stand still in time", machine.name());
            return Err(Failure::new(ErrorCode::Busy, message));
        }
        capture::take(machine, AfterCheckpoint::Hold).await
    })
}

fn restore<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.beside.is_some() {
            return Ok(());
        }
        let Some(source) = machine.source.clone() else { return Err(without_input()) };
        let whole = source.memory.as_ref().and_then(|memory| memory.memory.base.clone());
        let saved = machine.capture.as_ref().map(|capture| (capture.delta(), capture.device_state()));
        let (Some(whole), Some((Some(now), device_state))) = (whole, saved) else {
            return Err(without_input());
        };
        let before = machine.core.own_pages(&source.snapshot).await?;
        let (onto, own) = (source.snapshot.id, now.bytes());
        let since = machine.blocking({
            let whole = whole.clone();
            move || now.since(&before, &whole).map_err(|error| crate::snapshots::memory_failure(onto, &error))
        });
        let since = since.await?;
        if since.bytes().0 > LITTLE && since.bytes().0 > own.0 / 2 {
            let message = format!(
                "VM `{}` has changed {} of its {own} since its base was taken",
                machine.name(),
                since.bytes()
            );
            return Err(Failure::new(ErrorCode::Busy, message));
        }
        let chain = written(machine).await?;
        let memory = Memory { base: Some(whole), delta: Some(Arc::new(since)) };
        beside::start(machine, &chain, Some((device_state, memory))).await
    })
}

fn switch<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if switched(machine) {
            return take_over(machine, change).await;
        }
        let going = going(machine)?;
        let rebase = Rebase {
            vm: machine.id(),
            expected: machine.row.generation,
            layer: going.layer.as_ref().map(|layer| layer.id).ok_or_else(without_input)?,
            onto: going.to,
            actor: change.actor.clone(),
            operation: change.operation,
        };
        machine.write(move |tx| tx.rebase_vm(&rebase)).await?;
        take_over(machine, change).await
    })
}

/// Makes the new process the VM's, once the record says so, and has its guest go on. The one before is ended by the
/// driver.
fn take_over<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !switched(machine) {
            return Ok(());
        }
        if beside::take_place(machine, "it goes on in another process") {
            // Asked below, and until it has said so by the driver.
            machine.stands_still();
        }
        machine.source = None;
        if machine.frozen {
            machine.go_on().await;
        }
        machine.publish();
        if let Err(failure) = capture::abandon(machine, change).await {
            // The next start removes it.
            let path = capture::snapshot_id(change.operation).to_string();
            TraceEvent::NotCollected { path: &path, error: &failure.message }.emit(&machine.scope(change));
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_goes_on_in_the_new_place_and_is_removed_there_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("g1"), dir.path().join("g2"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join(CONSOLE), "booted\n").unwrap();
        keep_console(&from, &to).unwrap();
        // What the guest says until it stands still.
        let mut console = fs::OpenOptions::new().append(true).open(from.join(CONSOLE)).unwrap();
        io::Write::write_all(&mut console, b"more\n").unwrap();
        keep_console(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(to.join(CONSOLE)).unwrap(), "booted\nmore\n");
        fs::remove_dir_all(&to).unwrap();
        assert_eq!(fs::read_to_string(from.join(CONSOLE)).unwrap(), "booted\nmore\n");
    }
}
