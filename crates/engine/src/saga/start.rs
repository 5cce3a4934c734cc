//! `Stopped | Failed -> Starting -> Running`: from a verified image to a guest that answered its handshake.

use super::{Change, OnCrash, Saga, Step, StepFuture, Undo, create};
use crate::{
    link::{NoClient, ended},
    machine::{Machine, Power, Verdict, exit_words, io_failure},
    state_dir::make_private_dir,
};
use offshoot_provider::{BootPlan, InstanceRecord, vm::Vm};
use offshoot_types::{ErrorCode, Failure, Generation, OperationKind, VmState, VmStateName};
use std::{fs, path::Path};
use tokio::time::Instant;

pub(crate) const START: Saga = Saga { kind: OperationKind::Start, steps: &[STEPS], on_crash: OnCrash::Undo };

pub(super) const STEPS: &[Step] = &[
    // The ledger admits the memory in the transaction of the move. What an earlier failure left is removed first:
    // two processes on one disk would be the end of it.
    Step {
        name: "admit",
        act: admit,
        undo: Undo::Nothing("settled by where the start failed: Stopped or Failed"),
    },
    Step { name: "check-image", act: check_image, undo: Undo::Nothing("reads only") },
    Step { name: "directories", act: directories, undo: Undo::Run(remove_sockets) },
    // Before the process exists: a daemon that dies in the next step finds it by this.
    Step { name: "record", act: record, undo: Undo::Run(reclaim) },
    Step { name: "boot", act: boot, undo: Undo::Nothing("the process is ended with its record") },
    Step { name: "connect", act: connect, undo: Undo::Nothing("the link is closed with the record") },
    Step { name: LAST, act: running, undo: Undo::Nothing("the last step: nothing fails after it") },
];

/// The step after which a start is complete, whatever else was written.
pub(crate) const LAST: &str = "running";

/// Where the VM belongs after its start failed at `step`.
pub(crate) fn verdict(change: &Change, step: &str, failure: &Failure) -> Verdict {
    match step {
        "boot" | "connect" | LAST if failure.code != ErrorCode::Interrupted => {
            Verdict::failed(change, step, failure.message.clone())
        }
        // Nothing of the guest ran, or somebody changed their mind: it is as if it had not been asked for.
        _ => Verdict::Stopped,
    }
}

fn admit<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() == VmStateName::Starting {
            return Ok(());
        }
        machine.reclaim_instances().await?;
        machine.move_to(VmState::Starting, change).await
    })
}

fn check_image<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (images, digest) = (machine.core.options.images.clone(), machine.row.spec.image_digest.clone());
        machine.boot_files = Some(machine.blocking(move || images.boot_files(&digest)).await?);
        Ok(())
    })
}

/// The generation of this boot: that of the move to `Starting`.
fn generation(machine: &Machine) -> Generation {
    machine.row.generation
}

fn directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (layout, id, generation) = (machine.core.layout.clone(), machine.id(), generation(machine));
        machine
            .blocking(move || {
                remove_old_boots(&layout.vm(id), generation)?;
                for dir in
                    [layout.boot(id, generation), layout.runtime_vm(id), layout.runtime_boot(id, generation)]
                {
                    make_private_dir(&dir).map_err(|error| io_failure("make directory", &dir, &error))?;
                }
                Ok(())
            })
            .await
    })
}

/// Only the latest boot's console is kept, so that a VM that is restarted for ever does not fill the disk.
fn remove_old_boots(vm: &Path, keep: Generation) -> Result<(), Failure> {
    let entries = fs::read_dir(vm).map_err(|error| io_failure("read", vm, &error))?;
    for entry in entries.filter_map(Result::ok) {
        let name = entry.file_name();
        let boot =
            name.to_str().and_then(|n| n.strip_prefix('g')).and_then(|n| n.parse().ok()).map(Generation);
        if boot.is_some_and(|generation| generation != keep) {
            create::remove_tree(&entry.path())?;
        }
    }
    Ok(())
}

/// The boot's state directory stays: its console says why it failed.
fn remove_sockets<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let dir = machine.core.layout.runtime_vm(machine.id());
        machine.blocking(move || create::remove_tree(&dir)).await
    })
}

fn record<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (layout, id, generation) = (machine.core.layout.clone(), machine.id(), generation(machine));
        let record = InstanceRecord {
            provider: machine.row.provider,
            isolation: machine.row.isolation,
            vm: id,
            generation,
            state_dir: layout.boot(id, generation),
            runtime_dir: layout.runtime_boot(id, generation),
        };
        machine.record_instance(record).await
    })
}

fn reclaim<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(machine.reclaim_instances())
}

fn boot<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.live.is_some() {
            return Ok(());
        }
        let begun = Instant::now();
        let plan = plan(machine)?;
        let provider = machine.core.provider(machine.row.provider)?;
        let instance = provider.boot(&plan).await.map_err(|error| machine.boot_failure(&error))?;
        // What runs is what counts: the provider may have proven another class than the record assumed.
        let record = instance.record().clone();
        if !machine.instances.contains(&record) {
            machine.record_instance(record.clone()).await?;
        }
        let vm = Vm::booted(instance);
        let dialer = vm.dialer();
        let until = begun + plan.boot_deadline;
        machine.boot_until = Some(until);
        machine.attach(Power::Running(vm), dialer, &record, until);
        Ok(())
    })
}

fn plan(machine: &Machine) -> Result<BootPlan, Failure> {
    let (layout, id, generation) = (&machine.core.layout, machine.id(), generation(machine));
    let spec = &machine.row.spec;
    let files = machine.boot_files.clone().ok_or_else(|| {
        Failure::new(ErrorCode::Internal, "a VM was to boot before its image had been checked")
    })?;
    Ok(BootPlan {
        vm: id,
        name: machine.name().clone(),
        generation,
        image: spec.image_digest.clone(),
        kernel: files.kernel,
        initramfs: files.initramfs,
        root: files.root,
        data_disk: layout.data_disk(id),
        durability: create::durability(spec.lifetime),
        memory: spec.memory,
        cpus: spec.cpus,
        state_dir: layout.boot(id, generation),
        runtime_dir: layout.runtime_boot(id, generation),
        boot_deadline: machine.core.options.deadlines.boot,
        min_isolation: spec.min_isolation,
    })
}

/// Awaits the guest's handshake, or the end of its process, whichever comes first.
fn connect<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(live) = &machine.live else {
            return Err(Failure::new(ErrorCode::Internal, "the VM's process was lost between two steps"));
        };
        let (link, exit) = (live.link.clone(), live.dialer.exit());
        let until = machine.boot_until.unwrap_or(change.deadline).min(change.deadline);
        let failure = tokio::select! {
            biased;
            exit = ended(exit) => format!("its guest did not come up: {}", exit_words(Some(&exit))),
            client = link.client(until) => match client {
                Ok(_) => return Ok(()),
                Err(NoClient::Ended { reason }) => format!("its guest did not come up: {reason}"),
                Err(NoClient::Late { reason }) => {
                    let last = reason.map(|reason| format!(" (last attempt: {reason})")).unwrap_or_default();
                    format!("its guest agent did not answer within {:?}{last}", machine.core.options.deadlines.boot)
                }
            },
        };
        let diagnostics = machine.diagnostics().await;
        let name = machine.name();
        let mut failure = Failure::new(ErrorCode::Guest, format!("VM `{name}` did not start: {failure}"));
        let said: Vec<String> = [diagnostics.vmm_stderr, diagnostics.console_tail].concat();
        failure.cause = crate::machine::cause_with_console(None, &said);
        Err(failure.hint(format!("`offshoot logs {name} --console` shows how far it came")))
    })
}

fn running<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(machine.move_to(VmState::Running, change))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_boot_directory_is_kept_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["g2", "g7", "g12", "gx", "other"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("disk.qcow2"), b"").unwrap();
        remove_old_boots(dir.path(), Generation(7)).unwrap();
        let mut left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["disk.qcow2", "g7", "gx", "other"]);
        assert!(matches!(
            remove_old_boots(&dir.path().join("none"), Generation(1)).unwrap_err().code,
            ErrorCode::Internal
        ));
    }
}
