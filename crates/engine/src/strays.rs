//! Files in our directories that belong to no VM.
//!
//! ```text
//! vms/<id>           of a VM that the record says is destroyed     removed: a leftover of ours
//! <runtime>/<12 hex> with nothing but empty directories in it      removed: sockets come back with a boot
//! snapshots/.new-<id>, .old-<id>, .merged-<id>                     removed: half written, removed or replaced
//! disks/<layer>.qcow2 nobody ever wrote to and the record does not know   removed
//! anything else                                                    kept, and reported as a warning
//! ```
//! A disk whose VM the record does not know is not deleted: the record may be the part that was lost.

use crate::{
    core::Core,
    state_dir::{DATA_DISK, RUNTIME_DIGITS},
    trace::{Scope, TraceEvent},
};
use offshoot_provider::InstanceRecord;
use offshoot_types::{EventKind, Owner, VmId, VmState};
use std::{
    collections::HashSet,
    fs, io,
    path::{Path, PathBuf},
};
use uuid::Uuid;

/// Runs once per start, after every VM is known.
pub(crate) async fn sweep(core: &Core) {
    let layout = core.layout.clone();
    let ids: HashSet<VmId> = core.manager.all().into_iter().map(|handle| handle.id).collect();
    let mut runtime: HashSet<PathBuf> = ids.iter().map(|id| layout.runtime_vm(*id)).collect();
    // A process that came from the warm pool has its files where it was made.
    let Some(elsewhere) = directories_of_instances(core).await else { return };
    runtime.extend(elsewhere.iter().cloned());

    for path in entries(&layout.vms()) {
        match vm_of(&path) {
            Some(id) if ids.contains(&id) => {}
            Some(_) if elsewhere.contains(&path) => {}
            // A layer of its disk lies there that a snapshot or a fork still needs.
            Some(_) if path.join(DATA_DISK).exists() && is_layer(core, &path.join(DATA_DISK)).await => {}
            Some(id) if is_destroyed(core, id).await => remove(core, &path).await,
            _ => keep(core, &path).await,
        }
    }
    core.sweep_snapshots().await;
    for path in entries(&layout.runtime) {
        // Other parts of the daemon keep their sockets here too; ours are directories of twelve hex digits.
        if !runtime.contains(&path) && is_runtime_dir(&path) {
            if holds_nothing(&path) {
                remove(core, &path).await;
            } else {
                keep(core, &path).await;
            }
        }
    }
}

/// The directories above those of every recorded process; `None`: they cannot be told, and nothing is removed.
async fn directories_of_instances(core: &Core) -> Option<HashSet<PathBuf>> {
    let records = core.store.read(|view| {
        view.instances()?.iter().map(|row| row.decode::<InstanceRecord>()).collect::<Result<Vec<_>, _>>()
    });
    match records.await {
        Ok(records) => {
            let dirs = records.into_iter().flat_map(|record| [record.state_dir, record.runtime_dir]);
            Some(dirs.filter_map(|dir| dir.parent().map(Into::into)).collect())
        }
        Err(error) => {
            core.store_failed("list instances", &error);
            None
        }
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|entries| entries.filter_map(Result::ok).map(|e| e.path()).collect())
        .unwrap_or_default()
}

fn vm_of(path: &Path) -> Option<VmId> {
    let name = path.file_name()?.to_str()?;
    let uuid = Uuid::try_parse(name).ok().filter(|uuid| uuid.simple().to_string() == name)?;
    path.is_dir().then(|| VmId::from_uuid(uuid))
}

fn is_runtime_dir(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.len() == RUNTIME_DIGITS && name.bytes().all(|b| b.is_ascii_hexdigit()) && path.is_dir()
}

fn holds_nothing(dir: &Path) -> bool {
    entries(dir).iter().all(|path| path.is_dir() && !path.is_symlink() && holds_nothing(path))
}

async fn is_destroyed(core: &Core, id: VmId) -> bool {
    matches!(core.store.vm(id).await, Ok(Some(row)) if row.state == VmState::Destroyed)
}

async fn is_layer(core: &Core, path: &Path) -> bool {
    let Ok(relative) = path.strip_prefix(&core.layout.state).map(|path| path.display().to_string()) else {
        return false;
    };
    let layers = core.store.read(|view| view.layers()).await;
    // What cannot be told is not removed.
    layers.map_or(true, |layers| layers.iter().any(|layer| layer.path == relative))
}

pub(crate) async fn remove(core: &Core, path: &Path) {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Ok(()) => TraceEvent::StrayRemoved { path: &path.display().to_string() }.emit(&Scope::default()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => keep(core, path).await,
    }
}

pub(crate) async fn keep(core: &Core, path: &Path) {
    let shown = path.display().to_string();
    TraceEvent::StrayKept { path: &shown }.emit(&Scope::default());
    let message = format!("{shown} belongs to no VM of this daemon and was left as it is");
    core.event(Owner::default(), None, EventKind::Warning { message }).await;
}
