//! What holds whenever nothing is under way, whatever went wrong before.

use crate::world::{World, permit};
use offshoot_engine::{Engine, SnapshotView, VmView};
use offshoot_store::{InstanceRow, LayerRecord, SnapshotRecord, StoreError, VmRecord};
use offshoot_types::{
    Command, Failure, Lifetime, Operation, OperationKind, SnapshotId, SnapshotOrigin, SnapshotState,
    VmStateName,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    path::{Path, PathBuf},
};

/// What an engine at rest shows.
#[derive(Debug)]
pub struct Facts {
    pub vms: Vec<VmView>,
    pub snapshots: Vec<SnapshotView>,
    /// The newest hundred, newest first.
    pub operations: Vec<Operation>,
    /// By VM: the parent of its next snapshot, and where an undo goes.
    pub positions: BTreeMap<String, Option<SnapshotId>>,
    pub undo: BTreeMap<String, Option<SnapshotId>>,
}

impl Facts {
    pub fn vm(&self, name: &str) -> Option<&VmView> {
        self.vms.iter().find(|vm| vm.name.as_str() == name)
    }
}

struct Record {
    vms: Vec<(VmRecord, Option<SnapshotId>)>,
    instances: Vec<InstanceRow>,
    layers: Vec<LayerRecord>,
    unused: usize,
    snapshots: Vec<SnapshotRecord>,
    unfinished: Vec<Operation>,
}

/// The facts, or the first thing that does not hold (yet).
pub async fn check(world: &World, engine: &Engine) -> Result<Facts, String> {
    let inspect = || permit(engine, Command::Inspect { vm: None });
    let refused = |failure: Failure| format!("a read is refused: {failure:?}");
    let mut facts = Facts {
        positions: BTreeMap::new(),
        undo: BTreeMap::new(),
        vms: engine.vms(inspect()).map_err(refused)?,
        snapshots: engine.snapshots(inspect()).await.map_err(refused)?,
        operations: engine.operations(inspect(), Default::default()).await.map_err(refused)?,
    };
    let read = engine.store().read(|view| {
        let undo = |vm: VmRecord| Ok((vm.clone(), view.newest_undo(vm.id)?.map(|snapshot| snapshot.id)));
        Ok(Record {
            vms: view.vms()?.into_iter().map(undo).collect::<Result<_, StoreError>>()?,
            instances: view.instances()?,
            layers: view.layers()?,
            unused: view.unused_layers()?.len(),
            snapshots: view.snapshots(None)?,
            unfinished: view.unfinished_operations()?,
        })
    });
    let record = read.await.map_err(|error| format!("the record cannot be read: {error}"))?;
    for (vm, undo) in &record.vms {
        facts.positions.insert(vm.name.to_string(), vm.position);
        facts.undo.insert(vm.name.to_string(), *undo);
    }
    let open = engine.transactions(inspect()).await.map_err(refused)?;
    if let Some(open) = open.first() {
        return Err(format!("a transaction of {} is still {:?}", open.vm_name, open.state));
    }
    at_rest(&facts)?;
    operations(&facts, &record)?;
    machines(world, &facts, &record)?;
    files(world, &facts, &record)?;
    Ok(facts)
}

fn at_rest(facts: &Facts) -> Result<(), String> {
    use VmStateName::{Failed, Paused, Running, Stopped, Suspended};
    for vm in &facts.vms {
        if !matches!(vm.state.name(), Running | Paused | Stopped | Suspended | Failed) {
            return Err(format!("{} is in between: {:?}", vm.name, vm.state));
        }
        if vm.lifetime == Lifetime::Request {
            return Err(format!("{} outlives its request", vm.name));
        }
        if vm.state.name() == Suspended && vm.suspended_to.is_none() {
            return Err(format!("{} is suspended without a memory", vm.name));
        }
    }
    for snapshot in &facts.snapshots {
        match snapshot.state {
            SnapshotState::Durable => {}
            // Forks run on from what could not be written any more; it goes with the first collection after them.
            SnapshotState::Damaged if snapshot.origin == SnapshotOrigin::Fork => {}
            state => {
                return Err(format!("a {} snapshot of {} is {state}", snapshot.origin, snapshot.vm_name));
            }
        }
    }
    Ok(())
}

/// Only a process runs on, and only as long as its VM.
fn operations(facts: &Facts, record: &Record) -> Result<(), String> {
    for operation in &record.unfinished {
        let vm = facts.vms.iter().find(|vm| Some(vm.id) == operation.vm);
        let runs = vm.is_some_and(|vm| vm.state.name().has_process());
        if operation.kind != OperationKind::Exec || !runs {
            return Err(format!("an operation without an outcome: {operation:?}"));
        }
    }
    Ok(())
}

/// One machine for each VM that has one by its state, in that state, and no other.
fn machines(world: &World, facts: &Facts, record: &Record) -> Result<(), String> {
    let machines = world.host.machines();
    let known =
        |vm, generation| record.instances.iter().any(|row| (row.vm, row.generation) == (vm, generation));
    if let Some(machine) = machines.iter().find(|machine| !known(machine.vm, machine.generation)) {
        return Err(format!("a machine that nobody knows: {machine:?}"));
    }
    if let Some(row) = record.instances.iter().find(|row| !facts.vms.iter().any(|vm| vm.id == row.vm)) {
        return Err(format!("an instance of no VM: {row:?}"));
    }
    for vm in &facts.vms {
        let (name, state) = (&vm.name, vm.state.name());
        let rows = record.instances.iter().filter(|row| row.vm == vm.id).count();
        let own: Vec<_> = machines.iter().filter(|machine| machine.vm == vm.id).collect();
        let expected = usize::from(state.has_process());
        if own.len() != expected || rows != expected {
            return Err(format!("{name} is {state:?} with {rows} instances and {own:?}"));
        }
        for machine in own {
            if !machine.runs || machine.paused != (state == VmStateName::Paused) {
                return Err(format!("{name} is {state:?}, its machine is not: {machine:?}"));
            }
            if machine.frozen && state == VmStateName::Running {
                return Err(format!("{name} runs, and its processes stand still"));
            }
        }
    }
    Ok(())
}

/// A directory for each VM and each snapshot, a file for each layer, and nothing else.
fn files(world: &World, facts: &Facts, record: &Record) -> Result<(), String> {
    /// Of an id, in the runtime directory.
    const DIGITS: usize = 12;
    let state = world.state();
    if record.unused > 0 {
        return Err(format!("{} disk layers that nobody needs", record.unused));
    }
    let ids: BTreeSet<String> = facts.vms.iter().map(|vm| vm.id.simple()).collect();
    let directories = names(&state.join("vms"));
    // A VM that never was started has none.
    let stray: BTreeSet<_> = directories.difference(&ids).collect();
    same("directories of VMs", &stray, &BTreeSet::new())?;
    let layers: BTreeSet<PathBuf> = record.layers.iter().map(|layer| state.join(&layer.path)).collect();
    let on_disk = names(&state.join("disks")).iter().map(|name| state.join("disks").join(name)).collect();
    same("disk layers", &on_disk, &layers)?;
    let durable = record.snapshots.iter().filter(|snapshot| snapshot.state == SnapshotState::Durable);
    let kept: BTreeSet<_> = durable.map(|snapshot| snapshot.id.simple()).collect();
    same("directories of snapshots", &names(&state.join("snapshots")), &kept)?;
    let tails: BTreeSet<_> = ids.iter().map(|id| id[id.len() - DIGITS..].to_owned()).collect();
    let runtime = names(&world.runtime());
    same("directories of sockets", &runtime.difference(&tails).collect(), &BTreeSet::new())
}

pub fn names(dir: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).expect("a directory of ours");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fn same<T: Ord + Debug>(what: &str, found: &BTreeSet<T>, expected: &BTreeSet<T>) -> Result<(), String> {
    let (more, less): (Vec<_>, Vec<_>) =
        (found.difference(expected).collect(), expected.difference(found).collect());
    match (more.is_empty(), less.is_empty()) {
        (true, true) => Ok(()),
        _ => Err(format!("{what}: {more:?} are there and nobody's, {less:?} are not there")),
    }
}
