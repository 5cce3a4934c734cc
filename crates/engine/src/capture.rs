//! Taking a VM's state: the steps that snapshot, suspend and rollback have in common.
//!
//! ```text
//! prepare     a new disk layer on top, in the record: right whether or not the VMM ever writes to it
//! flush       of a disk that is kept without the memory: the guest's page cache is written out
//! freeze      the guest's user processes stand still (or the state is marked as not quiesced)
//! take        CPUs stop, device state and written pages are copied, the disk goes on in the new layer, CPUs go on
//! unfreeze
//! record      the snapshot is in the record, usable by this daemon
//! ```

use crate::{
    ask::{SnapshotAsk, Taken},
    layers,
    machine::{Live, Machine, Power, io_failure},
    saga::{Change, create},
    snapshots::{DEVICE_STATE, Volatile},
    state_dir::{Layout, make_private_dir},
    trace::TraceEvent,
};
use offshoot_guest_proto::client::ClientError;
use offshoot_provider::{Adoption, AfterCheckpoint, Checkpoint, CheckpointPlan, memory::Delta, vm::Adopted};
use offshoot_store::{LayerRecord, NewSnapshot, SnapshotRecord, StoreError, Tx};
use offshoot_types::{
    Actor, Bytes, ErrorCode, Failure, LayerId, OperationId, Owner, SnapshotId, SnapshotKind, SnapshotName,
    SnapshotOrigin, VmStateName,
};
use serde_json::Value;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

/// How long the guest may take to have its processes stand still, attempt after attempt: a process in the middle of a
/// `fork` on a busy host takes longer than an idle one, and a state that is not quiesced cannot be forked.
const FREEZE: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(200), Duration::from_millis(500)];

/// A guest writes out its whole page cache in that time on a slow disk.
const FLUSH: Duration = Duration::from_secs(60);

/// A disk of the VMM has at most so many layers, and a rollback adds one more.
const MOST_LAYERS: usize = offshoot_provider::disk::MAX_LAYERS - 2;

#[derive(Debug)]
pub(crate) struct Capture {
    operation: OperationId,
    pub id: SnapshotId,
    pub kind: SnapshotKind,
    /// The disk as it is at that instant.
    pub layer: LayerId,
    next: PathBuf,
    dir: PathBuf,
    pub quiesced: bool,
    /// Whose complete memory the process maps.
    memory_base: Option<SnapshotId>,
    checkpoint: Option<Checkpoint>,
}

impl Capture {
    /// How long the CPUs stood still.
    pub fn paused(&self) -> Option<Duration> {
        self.checkpoint.as_ref().map(|checkpoint| checkpoint.paused)
    }
    /// The pages that were the process's own, until they are handed to others.
    pub fn delta(&self) -> Option<Delta> {
        self.checkpoint.as_ref().and_then(|checkpoint| checkpoint.memory.clone())
    }
    /// Where the VMM has written its devices to.
    pub fn device_state(&self) -> PathBuf {
        self.dir.join(DEVICE_STATE)
    }
    /// Whether everything has been taken that was asked for.
    pub fn is_taken(&self) -> bool {
        self.checkpoint.is_some()
    }
}

/// What a rollback of the daemon before this one left: its process stands still, and its state was in that daemon's
/// memory. It is taken again. Returns whether there is such a process and it could be.
pub(crate) async fn take_again(machine: &mut Machine, left: &SnapshotRecord) -> Result<bool, Failure> {
    let own = machine.own_instance().map(|record| record.generation);
    let old = machine.instances.iter().filter(|record| Some(record.generation) < own);
    let Some(record) = old.max_by_key(|record| record.generation).cloned() else { return Ok(false) };
    let provider = machine.core.provider(record.provider)?;
    let adopted = provider.adopt(&record).await;
    let Adoption::Running(instance) = adopted.map_err(|error| machine.vmm_failure("adopt", &error))? else {
        return Ok(false);
    };
    let vm = match Adopted::observe(instance).await {
        Ok(Adopted::Paused(vm)) => vm,
        // It ran on: what it is now is not what was left.
        Ok(Adopted::Running(_)) | Err(_) => return Ok(false),
    };
    let layout = machine.core.layout.clone();
    let dir = layout.new_snapshot(left.id);
    machine
        .blocking({
            let dir = dir.clone();
            move || {
                create::remove_tree(&dir)?;
                make_private_dir(&dir).map_err(|error| io_failure("make directory", &dir, &error))
            }
        })
        .await?;
    let next = layer_id(OperationId::from_uuid(*left.id.as_uuid()));
    let plan = CheckpointPlan {
        dir,
        memory: left.kind == SnapshotKind::Full,
        next_layer: layout.state.join(Layout::layer_name(next)),
        then: AfterCheckpoint::Hold,
    };
    let taken = vm.checkpoint(&plan).await;
    let checkpoint = taken.map_err(|error| machine.vmm_failure("taking the state that was left", &error))?;
    let volatile = Volatile::new(left.id, checkpoint.memory.map(Arc::new));
    machine.retiring = Some(machine.core.snapshots.insert(volatile));
    Ok(true)
}

/// A snapshot is the operation that took it, and so is the layer above it: found again by it after a crash.
pub(crate) const fn snapshot_id(operation: OperationId) -> SnapshotId {
    SnapshotId::from_uuid(*operation.as_uuid())
}
const fn layer_id(operation: OperationId) -> LayerId {
    LayerId::from_uuid(*operation.as_uuid())
}

/// Puts a new layer on top of the VM's disk. A VM without a process has no memory to keep.
pub(crate) async fn prepare(
    machine: &mut Machine,
    change: &Change,
    kind: SnapshotKind,
) -> Result<(), Failure> {
    if machine.capture.as_ref().is_some_and(|capture| capture.operation == change.operation) {
        return Ok(());
    }
    let runs = matches!(machine.state(), VmStateName::Running | VmStateName::Paused);
    if !runs {
        machine.reclaim_instances().await?;
    }
    let kind = if runs { kind } else { SnapshotKind::DiskOnly };
    if kind == SnapshotKind::DiskOnly && !machine.core.provider(machine.row.provider)?.keeps_disk() {
        let (name, provider) = (machine.name(), machine.row.provider);
        let message = format!(
            "VM `{name}` has no disk to take a snapshot of: with provider `{provider}` what it writes lies in its memory"
        );
        return Err(Failure::new(ErrorCode::Unsupported, message)
            .hint("a snapshot of it while it runs, memory included, holds all of it"));
    }
    let (id, next) = (snapshot_id(change.operation), layer_id(change.operation));
    let layer = machine.row.layer.ok_or_else(|| {
        Failure::new(ErrorCode::Internal, format!("VM `{}` has no disk in the record", machine.name()))
    })?;
    let chain = machine.core.store.read(move |view| view.layer_chain(layer)).await?;
    let below = chain.first().ok_or_else(|| {
        Failure::new(ErrorCode::Internal, format!("disk layer {layer} is not in the record"))
    })?;
    if runs && machine.shared.take_shorter() {
        restack(machine, &chain).await;
    }
    if chain.len() >= MOST_LAYERS {
        // The next one may find less.
        machine.core.snapshots.grown.add(machine.id());
        let message = format!(
            "the disk of VM `{}` has {} layers above each other, one for each state that was kept of it; more are not \
             supported",
            machine.name(),
            chain.len()
        );
        return Err(Failure::new(ErrorCode::Unsupported, message)
            .hint("go back to an earlier state, or take what matters to a new VM with `offshoot cp`"));
    }
    let row = &machine.row;
    let new = layers::new_layer(next, &row.owner, &row.node, &row.spec, Some(layer), change.operation);
    let layout = machine.core.layout.clone();
    let (path, dir) = (layout.state.join(&new.path), layout.new_snapshot(id));
    let durability = create::durability(row.spec.lifetime);
    let (name, size) = (machine.name().clone(), row.spec.disk);
    machine
        .blocking({
            let (path, dir, below) = (path.clone(), dir.clone(), layout.state.join(&below.path));
            move || {
                // Of an attempt that was cut off.
                create::remove_tree(&dir)?;
                make_private_dir(&dir).map_err(|error| io_failure("make directory", &dir, &error))?;
                layers::make(&path, Some(&below), &below, size, durability, &name)
            }
        })
        .await?;
    let vm = machine.id();
    machine
        .write(move |tx| {
            tx.add_layer(&new)?;
            tx.freeze_layer(layer)?;
            tx.set_vm_layer(vm, next)
        })
        .await?;
    let memory_base = machine.own_instance().and_then(|record| record.memory_base);
    machine.capture = Some(Capture {
        operation: change.operation,
        id,
        kind,
        layer,
        next: path,
        dir,
        // What does not run stands still.
        quiesced: !runs,
        memory_base: memory_base.filter(|_| kind == SnapshotKind::Full),
        checkpoint: None,
    });
    Ok(())
}

/// Has the process read its disk from the layers there are now. It need not: those it has open say the same.
async fn restack(machine: &mut Machine, chain: &[LayerRecord]) {
    let layers: Vec<PathBuf> =
        chain.iter().map(|layer| machine.core.layout.state.join(&layer.path)).collect();
    let told = match &machine.live {
        Some(Live { power: Some(Power::Running(vm)), .. }) => vm.restack(&layers).await,
        Some(Live { power: Some(Power::Paused(vm)), .. }) => vm.restack(&layers).await,
        _ => return,
    };
    if let Err(error) = told {
        TraceEvent::NotRestacked { error: &crate::link::chain(&error) }.emit(&machine.own_scope());
    }
}

/// Removes what was written of a state that is not kept. The new layer stays on top: it is empty, or written to by now.
pub(crate) async fn abandon(machine: &mut Machine, change: &Change) -> Result<(), Failure> {
    machine.capture = None;
    machine.core.snapshots.give_up(snapshot_id(change.operation));
    let dir = machine.core.layout.new_snapshot(snapshot_id(change.operation));
    machine.blocking(move || create::remove_tree(&dir)).await
}

/// Has the disk hold what the guest's programs have written. A memory that is kept too holds the rest; the disk alone
/// would lack it.
pub(crate) async fn flush(machine: &mut Machine) -> Result<(), Failure> {
    let disk_only = machine.capture.as_ref().is_some_and(|capture| capture.kind == SnapshotKind::DiskOnly);
    if !disk_only || !machine.state().has_process() {
        return Ok(());
    }
    let name = machine.name().clone();
    let refused = |why: &str| {
        let message =
            format!("the guest of VM `{name}` did not write to its disk what its programs wrote: {why}");
        Failure::new(ErrorCode::Unavailable, message)
            .hint("a full snapshot (without --disk-only) holds it without that; so does a disk-only one of a stopped VM")
    };
    let link = match &machine.live {
        Some(live) if machine.state() == VmStateName::Running && !live.link.is_silent() => live.link.clone(),
        _ => return Err(refused("it does not run")),
    };
    let client = link.client(Instant::now() + FLUSH).await;
    let client = client.map_err(|error| refused(&crate::link::chain(&error)))?;
    client.flush(FLUSH).await.map_err(|error| refused(&crate::link::chain(&error)))
}

/// Has the guest's processes stand still. A guest that does not answer in time is no error: the state is marked.
pub(crate) async fn freeze(machine: &mut Machine, change: &Change) -> Result<(), Failure> {
    let Some(live) = &machine.live else { return Ok(()) };
    if machine.state() != VmStateName::Running || live.link.is_silent() {
        return Ok(());
    }
    let link = live.link.clone();
    // From here on it may stand still, whatever is heard of it.
    machine.frozen = true;
    let Ok(client) = link.client(Instant::now()).await else { return Ok(()) };
    for (attempt, limit) in FREEZE.into_iter().enumerate() {
        let error = match client.freeze(limit).await {
            Ok(_) => {
                if let Some(capture) = &mut machine.capture {
                    capture.quiesced = true;
                }
                return Ok(());
            }
            Err(error) => error,
        };
        // Only a guest that answered will answer again; it has set its processes going meanwhile.
        if matches!(error, ClientError::Guest(_)) && attempt + 1 < FREEZE.len() {
            continue;
        }
        let error = crate::link::chain(&error);
        TraceEvent::NotQuiesced { error: &error }.emit(&machine.scope(change));
        break;
    }
    Ok(())
}

/// Sets the guest's processes going again. That it could not be confirmed is no failure of the change: the driver asks
/// again until it is.
pub(crate) async fn unfreeze(machine: &mut Machine) -> Result<(), Failure> {
    if machine.frozen {
        machine.unfreeze().await;
    }
    Ok(())
}

/// Copies the state. What was taken once is not taken again: the disk's layer is of that instant.
pub(crate) async fn take(machine: &mut Machine, then: AfterCheckpoint) -> Result<(), Failure> {
    let Some(capture) = &machine.capture else {
        return Err(Failure::new(ErrorCode::Internal, "a state was to be taken before it was prepared"));
    };
    if capture.is_taken() || !matches!(machine.state(), state if state.has_process()) {
        return Ok(());
    }
    let plan = CheckpointPlan {
        dir: capture.dir.clone(),
        memory: capture.kind == SnapshotKind::Full,
        next_layer: capture.next.clone(),
        then,
    };
    let checkpoint = match (take_power(machine).await?, then) {
        (Power::Running(vm), AfterCheckpoint::Hold) => match vm.checkpoint_and_hold(&plan).await {
            Ok((vm, checkpoint)) => {
                put_back(machine, Power::Paused(vm));
                Ok(checkpoint)
            }
            // Whether it stands still nobody knows: without a handle, the VMM is asked.
            Err((_, error)) => Err(error),
        },
        (Power::Running(vm), AfterCheckpoint::Continue) => {
            let taken = vm.checkpoint(&plan).await;
            put_back(machine, Power::Running(vm));
            taken
        }
        (Power::Paused(vm), _) => {
            let taken = vm.checkpoint(&plan).await;
            put_back(machine, Power::Paused(vm));
            taken
        }
    };
    let checkpoint = checkpoint.map_err(|error| machine.vmm_failure("taking the state", &error))?;
    if let Some(capture) = &mut machine.capture {
        capture.checkpoint = Some(checkpoint);
    }
    Ok(())
}

/// The typed handle. One that was lost in a cut-off move is found again by asking the VMM.
pub(crate) async fn take_power(machine: &mut Machine) -> Result<Power, Failure> {
    crate::saga::pause::take(machine).await
}

pub(crate) fn put_back(machine: &mut Machine, power: Power) {
    crate::saga::pause::put_back(machine, power);
}

/// Why a state is kept, and under which name.
pub(crate) struct Keep {
    pub name: Option<SnapshotName>,
    pub origin: SnapshotOrigin,
    pub note: Option<String>,
}

impl From<&SnapshotAsk> for Keep {
    fn from(ask: &SnapshotAsk) -> Self {
        Self { name: ask.name.clone(), origin: ask.origin, note: ask.note.clone() }
    }
}

/// The record of the captured state, and its pages: to be written with whatever belongs to the same instant.
pub(crate) fn captured(machine: &Machine, keep: Keep) -> Result<NewSnapshot, Failure> {
    let Some(capture) = &machine.capture else {
        return Err(Failure::new(ErrorCode::Internal, "a state was to be kept before it was taken"));
    };
    let row = &machine.row;
    // A base is the daemon's own: in nobody's list, and in no tree.
    let base = keep.origin == SnapshotOrigin::Rebase;
    Ok(NewSnapshot {
        id: capture.id,
        owner: if base { Owner::daemon() } else { row.owner.clone() },
        labels: Default::default(),
        node: row.node.clone(),
        vm: row.id,
        name: keep.name,
        origin: keep.origin,
        kind: capture.kind,
        parent: row.position.filter(|_| !base),
        layer: capture.layer,
        memory_base: capture.memory_base,
        quiesced: capture.quiesced,
        note: keep.note,
        manifest: Value::Null,
        // Known once it is written.
        size: Bytes(0),
    })
}

/// Hands the captured pages to those who restore from them and to whoever writes them.
pub(crate) fn publish(machine: &mut Machine) -> Option<Arc<Volatile>> {
    let capture = machine.capture.as_mut()?;
    if let Some(volatile) = machine.core.snapshots.volatile(capture.id) {
        return Some(volatile);
    }
    let delta = capture.checkpoint.as_mut().and_then(|checkpoint| checkpoint.memory.take()).map(Arc::new);
    Some(machine.core.snapshots.insert(Volatile::new(capture.id, delta)))
}

/// Writes the captured state down as a snapshot.
pub(crate) async fn record(machine: &mut Machine, change: &Change, keep: Keep) -> Result<(), Failure> {
    let new = captured(machine, keep)?;
    let id = new.id;
    publish(machine);
    let (operation, actor) = (change.operation, change.actor.clone());
    machine.write(move |tx| add(tx, &new, operation, &actor)).await?;
    machine.publish();
    if let crate::saga::Input::Snapshot(ask) = &change.input {
        let paused = machine.capture.as_ref().and_then(Capture::paused);
        ask.answer(Taken { snapshot: id, paused });
    }
    Ok(())
}

fn add(tx: &Tx<'_>, new: &NewSnapshot, operation: OperationId, actor: &Actor) -> Result<(), StoreError> {
    tx.add_snapshot(new, operation, actor)
}
