//! `Stopped | Failed | Suspended -> Starting -> Running`: from a verified image to a guest that answered its handshake,
//! or from a verified snapshot to a guest that confirmed that it was renewed.
//!
//! A VM that never ran may find an instance of the warm pool: then the first step is all of it, and the others find it
//! running. Or it continues from its image's template, on a disk layer that becomes its own when it runs: until then it
//! has the disk it was made with, so a start that fails leaves nothing of the template.

use super::{
    Change, Input, OnCrash, Saga, Step, StepFuture, Undo, Unwound, create, disk, quiet, step, thaw::Identity,
};
use crate::{
    layers,
    link::{NoClient, ended},
    machine::{Live, Machine, Power, Verdict, exit_words, io_failure},
    pool,
    state_dir::{Layout, make_private_dir},
};
use offshoot_provider::{BootPlan, InstanceRecord, RestorePlan, vm::Vm};
use offshoot_store::{KeptDisk, LayerRecord};
use offshoot_types::{
    ErrorCode, Failure, Generation, LastStart, OperationKind, SnapshotId, StartedFrom, VmId, VmState,
    VmStateName,
};
use std::{fs, io, path::Path};
use tokio::time::Instant;

pub(crate) const START: Saga = Saga { kind: OperationKind::Start, steps: &[STEPS], on_crash: OnCrash::Undo };

pub(super) const STEPS: &[Step] = &[
    step(FIRST, pool::claim, Undo::Run(reclaim)),
    quiet("disk-is-there", disk::is_there, Undo::Nothing("reads only")),
    // The ledger admits the memory in the transaction of the move. What an earlier failure left is removed first:
    // two processes on one disk would be the end of it.
    quiet("admit", admit, Undo::Nothing("settled by where the start failed: Stopped, Suspended or Failed")),
    quiet("check-image", check_own_image, Undo::Nothing("reads only")),
    quiet("check-state", check_state, Undo::Run(reset_disk)),
    quiet("directories", directories, Undo::Run(remove_sockets)),
    // Before the process exists: a daemon that dies in the next step finds it by this.
    quiet("record", record, Undo::Run(reclaim)),
    quiet("boot", boot, Undo::Nothing("the process is ended with its record")),
    quiet("connect", connect, Undo::Nothing("the link is closed with the record")),
    quiet("thaw", thaw, Undo::Nothing("the process is ended with its record")),
    quiet("put-disk-back", disk::put_back, Undo::Nothing("the process is ended with its record")),
    quiet("running", running, Undo::Nothing("the last step: nothing fails after it")),
];

/// The step with which a start begins to act; it is complete when the VM runs.
pub(crate) const FIRST: &str = "claim";

/// Where the VM belongs after its start failed at `step`.
pub(crate) fn verdict(machine: &Machine, change: &Change, step: &str, failure: &Failure) -> Verdict {
    match step {
        // The state it was to continue from is as it was: it can be tried again.
        _ if machine.row.memory.is_some() => Verdict::AtRest,
        "boot" | "connect" | "thaw" | "running" if failure.code != ErrorCode::Interrupted => {
            Verdict::failed(change, step, failure.message.clone())
        }
        // Nothing of the guest ran, or somebody changed their mind: it is as if it had not been asked for.
        _ => Verdict::AtRest,
    }
}

fn admit<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.state() == VmStateName::Starting || is_claimed(machine) {
            return Ok(());
        }
        machine.reclaim_instances().await?;
        let Err(refused) = machine.move_to(VmState::Starting, change).await else { return Ok(()) };
        let (core, owner) = (machine.core.clone(), machine.row.owner.clone());
        if !core.made_room(&refused, &owner).await {
            return Err(refused);
        }
        machine.move_to(VmState::Starting, change).await
    })
}

/// Whether the first step found an instance: it runs already.
fn is_claimed(machine: &Machine) -> bool {
    machine.state() == VmStateName::Running
}

fn check_own_image<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    if is_claimed(machine) { Box::pin(async { Ok(()) }) } else { check_image(machine, change) }
}

pub(super) fn check_image<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (images, digest) = (machine.core.options.images.clone(), machine.row.spec.image_digest.clone());
        machine.boot_files = Some(machine.blocking(move || images.boot_files(&digest)).await?);
        Ok(())
    })
}

/// What it continues from, and what it writes to.
fn check_state<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if is_claimed(machine) {
            return Ok(());
        }
        if machine.row.memory.is_none() && machine.warm.template.is_some() {
            return above_template(machine, change).await;
        }
        machine.source = match (machine.row.memory, &change.input) {
            (None, _) => None,
            (Some(memory), Input::Fork(fork)) if fork.source.snapshot.id == memory => {
                Some(fork.source.clone())
            }
            (Some(memory), _) => Some(machine.core.source(memory, 1).await?.into()),
        };
        let layer = machine.row.layer.ok_or_else(|| {
            Failure::new(ErrorCode::Internal, format!("VM `{}` has no disk in the record", machine.name()))
        })?;
        machine.chain = machine.core.store.read(move |view| view.layer_chain(layer)).await?;
        let Some(source) = &machine.source else { return Ok(()) };
        // The memory fits one disk only: the one of its instant.
        let below = machine.chain.get(1).map(|layer| layer.id);
        if below != Some(source.snapshot.layer) {
            let snapshot = source.snapshot.id;
            let message = format!("disk layer {layer} does not lie over that of snapshot {snapshot}");
            return Err(Failure::new(ErrorCode::Internal, message));
        }
        match &change.input {
            // Made a moment ago.
            Input::Fork(_) => Ok(()),
            // An earlier start that failed may have left something.
            _ => clear_top(machine).await,
        }
    })
}

/// Makes the layer on which a VM that never ran continues from its image's template. It belongs to the change until the
/// VM runs.
async fn above_template(machine: &mut Machine, change: &Change) -> Result<(), Failure> {
    let Some((source, id)) = &machine.warm.template else { return Ok(()) };
    let (source, id) = (source.clone(), *id);
    let row = &machine.row;
    let below = source
        .chain
        .first()
        .ok_or_else(|| Failure::new(ErrorCode::Internal, "a template has no disk layer in the record"))?;
    let layer = layers::new_layer(id, &row.owner, &row.node, &row.spec, Some(below.id), change.operation);
    let state = machine.core.layout.state.clone();
    let (path, below) = (state.join(&layer.path), state.join(&below.path));
    let (size, name) = (row.spec.disk, machine.name().clone());
    let durability = create::durability(row.spec.lifetime);
    machine.blocking(move || layers::make(&path, Some(&below), &below, size, durability, &name)).await?;
    let chain = machine.core.store.transaction(move |tx| {
        tx.add_layer(&layer)?;
        tx.layer_chain(id)
    });
    machine.chain = chain.await?;
    machine.source = Some(source);
    Ok(())
}

/// A guest that was restored and not handed out may have written to its disk: that is forgotten, so that the memory
/// fits the disk again.
fn reset_disk<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (Some(_), Some(layer)) = (machine.row.memory, machine.row.layer) else { return Ok(()) };
        machine.source = None;
        machine.chain = machine.core.store.read(move |view| view.layer_chain(layer)).await?;
        clear_top(machine).await
    })
}

fn clear_top(machine: &Machine) -> StepFuture<'_> {
    Box::pin(async move {
        let [top, below, ..] = machine.chain.as_slice() else { return Ok(()) };
        if !machine.instances.is_empty() {
            let message = "what is left of its process may still write to its disk";
            return Err(Failure::new(ErrorCode::Backend, message));
        }
        let state = &machine.core.layout.state;
        let (path, below) = (state.join(&top.path), state.join(&below.path));
        let (size, name) = (machine.row.spec.disk, machine.name().clone());
        let durability = create::durability(machine.row.spec.lifetime);
        machine.blocking(move || layers::make_again(&path, &below, size, durability, &name)).await
    })
}

/// The generation of this boot: that of the move to `Starting`.
fn generation(machine: &Machine) -> Generation {
    machine.row.generation
}

fn directories<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if is_claimed(machine) {
            return Ok(());
        }
        let (layout, id, generation) = (machine.core.layout.clone(), machine.id(), generation(machine));
        machine
            .blocking(move || {
                remove_old_boots(&layout.vm(id), generation)?;
                make_directories(&layout, id, generation)
            })
            .await
    })
}

/// Those of a boot that is about to be. Blocks.
pub(super) fn make_directories(layout: &Layout, id: VmId, generation: Generation) -> Result<(), Failure> {
    let boot = layout.boot(id, generation);
    if boot.is_symlink() {
        // To an instance of the pool that was not claimed in the end.
        create::remove_tree(&boot)?;
    }
    for dir in [boot, layout.runtime_vm(id), layout.runtime_boot(id, generation)] {
        make_private_dir(&dir).map_err(|error| io_failure("make directory", &dir, &error))?;
    }
    Ok(())
}

/// Only the latest boot's console is kept, so that a VM that is restarted for ever does not fill the disk.
pub(crate) fn remove_old_boots(vm: &Path, keep: Generation) -> Result<(), Failure> {
    let entries = match fs::read_dir(vm) {
        Ok(entries) => entries,
        // A fork's first start.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_failure("read", vm, &error)),
    };
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
        if is_claimed(machine) {
            return Ok(());
        }
        let base = machine.source.as_ref().and_then(|source| source.memory_base());
        let record = instance_record(machine, generation(machine), base);
        machine.record_instance(record).await
    })
}

/// Of a process about to exist.
pub(super) fn instance_record(
    machine: &Machine,
    generation: Generation,
    memory_base: Option<SnapshotId>,
) -> InstanceRecord {
    let (layout, id) = (&machine.core.layout, machine.id());
    InstanceRecord {
        provider: machine.row.provider,
        isolation: machine.row.isolation,
        vm: id,
        generation,
        state_dir: layout.boot(id, generation),
        runtime_dir: layout.runtime_boot(id, generation),
        memory_base,
    }
}

fn reclaim<'a>(machine: &'a mut Machine, _: &'a Change) -> StepFuture<'a> {
    Box::pin(machine.reclaim_instances())
}

fn boot<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        if machine.live.is_some() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut plan = plan(machine, generation(machine), &machine.chain)?;
        if let Input::Fork(fork) = &change.input {
            plan.durability = fork.durability;
        }
        let until = begun + plan.boot_deadline;
        let provider = machine.core.provider(machine.row.provider)?;
        let source = machine.source.clone();
        let instance = match source.as_ref().and_then(|source| source.memory.as_ref()) {
            Some(memory) => {
                let (device_state, memory) = (memory.device_state.clone(), memory.memory.clone());
                provider.restore(&RestorePlan { boot: plan, device_state, memory }).await
            }
            None => provider.boot(&plan).await,
        };
        let instance = instance.map_err(|error| machine.boot_failure(&error))?;
        // What runs is what counts: the provider may have proven another class than the record assumed.
        let record = instance.record().clone();
        if !machine.instances.contains(&record) {
            machine.record_instance(record.clone()).await?;
        }
        let vm = Vm::booted(instance);
        let dialer = vm.dialer();
        machine.boot_until = Some(until);
        machine.attach(Power::Running(vm), dialer, &record, until);
        Ok(())
    })
}

/// `chain`: its disk, newest layer first.
pub(super) fn plan(
    machine: &Machine,
    generation: Generation,
    chain: &[LayerRecord],
) -> Result<BootPlan, Failure> {
    let (layout, id) = (&machine.core.layout, machine.id());
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
        disk: layers::stack(layout, chain, files.disk_template),
        durability: create::durability(spec.lifetime),
        memory: spec.memory,
        cpus: spec.cpus,
        state_dir: layout.boot(id, generation),
        runtime_dir: layout.runtime_boot(id, generation),
        boot_deadline: machine.core.options.deadlines.boot,
        min_isolation: spec.min_isolation,
    })
}

fn connect<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let Some(live) = &machine.live else {
            return Err(Failure::new(ErrorCode::Internal, "the VM's process was lost between two steps"));
        };
        let until = machine.boot_until.unwrap_or(change.deadline).min(change.deadline);
        handshake(machine, live, until).await
    })
}

/// Awaits the guest's handshake, or the end of its process, whichever comes first.
pub(super) async fn handshake(machine: &Machine, live: &Live, until: Instant) -> Result<(), Failure> {
    let (link, exit) = (live.link.clone(), live.dialer.exit());
    let mut hint = None;
    let failure = tokio::select! {
        biased;
        exit = ended(exit) => format!("its guest did not come up: {}", exit_words(Some(&exit))),
        client = link.client(until) => match client {
            Ok(_) => return Ok(()),
            Err(NoClient::Ended { reason }) => format!("its guest did not come up: {reason}"),
            Err(NoClient::Foreign { reason, hint: what_to_do }) => {
                hint = Some(what_to_do.to_owned());
                reason
            }
            Err(NoClient::Late { reason }) => {
                let last = reason.map(|reason| format!(" (last attempt: {reason})")).unwrap_or_default();
                format!("its guest agent did not answer within {:?}{last}", machine.core.options.deadlines.boot)
            }
        },
    };
    let diagnostics = live.diagnostics().await;
    let name = machine.name();
    let mut failure = Failure::new(ErrorCode::Guest, format!("VM `{name}` did not start: {failure}"));
    let said: Vec<String> = [diagnostics.vmm_stderr, diagnostics.console_tail].concat();
    failure.cause = crate::machine::cause_with_console(None, &said);
    Err(failure
        .hint(hint.unwrap_or_else(|| format!("`offshoot logs {name} --console` shows how far it came"))))
}

/// A guest that was restored, or is a fork, runs nobody's programs before it has confirmed that it was renewed.
fn thaw<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let restored = machine.source.as_ref().is_some_and(|source| source.memory.is_some());
        let identity = match &change.input {
            Input::Fork(fork) => fork.identity,
            _ if machine.warm.template.is_some() => Identity::New,
            _ if restored => Identity::Kept,
            _ => return Ok(()),
        };
        let Some(live) = &machine.live else {
            return Err(Failure::new(ErrorCode::Internal, "the VM's process was lost between two steps"));
        };
        let thawed = machine.thaw(&live.link, generation(machine), identity).await?;
        if let Input::Fork(fork) = &change.input {
            fork.answer(thawed.clone());
        }
        machine.attestations = Some(thawed);
        machine.set_going();
        Ok(())
    })
}

/// Its memory is its own from here on: what it came from is no more than history.
fn running<'a>(machine: &'a mut Machine, change: &'a Change) -> StepFuture<'a> {
    Box::pin(async move {
        let (vm, restored) = (machine.id(), machine.row.memory.is_some());
        let template = machine.warm.template.as_ref().map(|(_, layer)| *layer);
        let from = match (restored, template) {
            (true, _) => StartedFrom::Snapshot,
            (false, Some(_)) => StartedFrom::Template,
            (false, None) => StartedFrom::Boot,
        };
        let start = LastStart { from, not_pooled: machine.warm.not_pooled.clone() };
        // What it writes from here on is not in there.
        let kept = machine.row.kept_disk.clone().filter(|kept| kept.current);
        let kept = kept.map(|kept| KeptDisk { current: false, ..kept });
        machine
            .move_with(VmState::Running, change, move |tx| {
                tx.set_vm_last_start(vm, &start)?;
                if let Some(kept) = &kept {
                    tx.set_vm_kept_disk(vm, Some(kept))?;
                }
                if let Some(layer) = template {
                    tx.set_vm_layer(vm, layer)?;
                }
                if restored { tx.set_vm_memory(vm, None) } else { Ok(()) }
            })
            .await?;
        machine.source = None;
        machine.warm.template = None;
        Ok(())
    })
}

/// Why the start of a VM that found something warm is to be tried again without: what failed it was the template's, and
/// all of it is taken back.
pub(crate) fn goes_cold(machine: &Machine, change: &Change, unwound: &Unwound) -> Option<String> {
    let warm = change.kind == OperationKind::Start && machine.warm.template.is_some();
    let clean = unwound.undo.failed.is_empty() && machine.instances.is_empty();
    let asked = !matches!(unwound.failure.code, ErrorCode::Interrupted | ErrorCode::NoResource);
    (warm && clean && asked && Instant::now() < change.deadline).then(|| unwound.failure.message.clone())
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
        remove_old_boots(&dir.path().join("none"), Generation(1)).unwrap();
        let file = remove_old_boots(&dir.path().join("disk.qcow2"), Generation(1)).unwrap_err();
        assert_eq!(file.code, ErrorCode::Internal);
    }
}
