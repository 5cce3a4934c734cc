//! `Running | Paused -> Stopping -> Stopped`, and `restart`, which is this and a start.
//!
//! ```text
//! keep-disk        what was written, of a VM whose disk is its memory: until it is durable, the VM can go on
//! guest-shutdown   the agent syncs and powers off        (caller's grace)
//! end-process      VMM quit, TERM, KILL                  (the provider's ladder; each rung is logged)
//! reclaim          sockets, cgroup, record               only after the process was seen gone
//! ```

use super::{Change, OnCrash, Saga, Step, StepFuture, Undo, disk, quiet, start, step};
use crate::{
    machine::{Machine, Power, exit_words},
    trace::TraceEvent,
};
use offshoot_guest_proto::message::ShutdownKind;
use offshoot_provider::StopStep;
use offshoot_store::KeptDisk;
use offshoot_types::{OperationKind, VmState, VmStateName};
use std::time::Duration;
use tokio::time::Instant;

pub(crate) const STOP: Saga =
    Saga { kind: OperationKind::Stop, steps: &[KEEP, STEPS], on_crash: OnCrash::Complete };

pub(crate) const RESTART: Saga =
    Saga { kind: OperationKind::Restart, steps: &[KEEP, STEPS, start::STEPS], on_crash: OnCrash::Complete };

const NOT_TAKEN_BACK: Undo = Undo::Nothing("memory that is gone does not come back: a stop is completed");

/// Not written down: after a crash it begins anew, with a process that has all it had.
const KEEP: &[Step] = &[
    quiet("may-stop", disk::may_stop, Undo::Nothing("reads only")),
    quiet("keep-disk", disk::keep, Undo::Run(disk::go_on)),
];

const STEPS: &[Step] = &[
    step("stopping", stopping, NOT_TAKEN_BACK),
    step("guest-shutdown", guest_shutdown, NOT_TAKEN_BACK),
    step("end-process", end_process, NOT_TAKEN_BACK),
    step("reclaim", reclaim, NOT_TAKEN_BACK),
    step("stopped", stopped, NOT_TAKEN_BACK),
];

/// How long the agent may take to say that it will power off; the powering off itself has the grace.
pub(super) const SHUTDOWN_ANSWER: Duration = Duration::from_secs(5);

pub(super) fn stopping<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if !machine.state().may_become(VmStateName::Stopping) {
            return Ok(());
        }
        // There is no way back from here: what was kept is the VM's disk, whatever becomes of its process.
        let kept = machine.row.kept_disk.clone().filter(|kept| kept.operation == change.operation);
        let kept = kept.map(|kept| KeptDisk { current: true, ..kept });
        let vm = machine.id();
        machine
            .move_with(VmState::Stopping, change, move |tx| match &kept {
                Some(kept) => tx.set_vm_kept_disk(vm, Some(kept)),
                None => Ok(()),
            })
            .await
    })
}

/// Asks; a guest that cannot be asked is not an error, the next rung ends it.
fn guest_shutdown<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        machine.powering_off = false;
        if change.grace.is_zero() {
            return Ok(());
        }
        resume_if_paused(machine).await;
        let Some(live) = &machine.live else { return Ok(()) };
        if live.link.is_silent() {
            return Ok(());
        }
        let begun = Instant::now();
        let until = begun + change.grace.min(SHUTDOWN_ANSWER);
        let asked = async {
            // A VM that was adopted a moment ago has its link still dialling.
            let client = live.link.client(until).await.ok()?;
            Some(client.shutdown(ShutdownKind::PowerOff).await.is_ok())
        };
        let answer = tokio::time::timeout_at(until, asked).await.ok().flatten();
        let rung = match answer {
            Some(true) => "guest-shutdown",
            Some(false) => "guest-shutdown (refused)",
            None => "guest-shutdown (no answer)",
        };
        machine.powering_off = answer == Some(true);
        TraceEvent::StopRung { rung, took: begun.elapsed() }.emit(&machine.scope(change));
        Ok(())
    })
}

/// A paused guest cannot write its data back: it runs on until it has.
pub(super) async fn resume_if_paused(machine: &mut Machine) {
    let Some(live) = &mut machine.live else { return };
    live.power = match live.power.take() {
        Some(Power::Paused(vm)) => Some(match vm.resume().await {
            Ok(vm) => Power::Running(vm),
            Err((vm, _)) => Power::Paused(vm),
        }),
        other => other,
    };
}

pub(super) fn end_process<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        // What a rollback left goes with it.
        machine.retiring = None;
        let Some(live) = &mut machine.live else { return Ok(()) };
        // A guest that did not agree to power off will not: there is nothing to wait for.
        let grace = if machine.powering_off { change.grace } else { Duration::ZERO };
        let Some(power) = live.power.take() else { return Ok(()) };
        let stopped = match power {
            Power::Running(vm) => vm.stop(grace).await.map_err(|(_, error)| error),
            Power::Paused(vm) => vm.stop(grace).await.map_err(|(_, error)| error),
        };
        let scope = machine.scope(change);
        match stopped {
            Ok(report) => {
                for (rung, took) in &report.steps {
                    TraceEvent::StopRung { rung: rung_name(*rung), took: *took }.emit(&scope);
                }
                TraceEvent::VmmExited { exit: &exit_words(Some(&report.exit)) }.emit(&scope);
            }
            // The next step ends it by its record, and tells if that fails too.
            Err(error) => TraceEvent::StopRung { rung: &error.to_string(), took: grace }.emit(&scope),
        }
        Ok(())
    })
}

const fn rung_name(rung: StopStep) -> &'static str {
    match rung {
        StopStep::GuestShutdown => "guest-shutdown",
        StopStep::VmmQuit => "vmm-quit",
        StopStep::Term => "term",
        StopStep::Kill => "kill",
    }
}

pub(super) fn reclaim<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        machine.reclaim_instances().await?;
        let dir = machine.core.layout.runtime_vm(machine.id());
        machine.blocking(move || super::create::remove_tree(&dir)).await
    })
}

fn stopped<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    // A suspended VM that is stopped loses its memory: that is what was asked for.
    let (vm, memory) = (machine.id(), machine.row.memory);
    Box::pin(machine.move_with(VmState::Stopped, change, move |tx| match memory {
        Some(_) => tx.set_vm_memory(vm, None),
        None => Ok(()),
    }))
}
