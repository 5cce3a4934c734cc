//! Layers of data disks as files: made below a VM, handed to its VMM as a stack, removed when nobody needs them.
//!
//! ```text
//! record (store)                       disks/<layer>.qcow2
//! chain of a VM, newest first   --->   DiskStack { layers, template }      never read from the files' headers
//! unused                        --->   removed, then forgotten
//! ```
//! A file is made before the record says that a VM writes to it, and removed before the record forgets it: a crash
//! leaves an empty file nobody knows, which [`crate::strays`] removes, or a record whose file is gone already.

use crate::{
    core::Core,
    machine::io_failure,
    state_dir::{DATA_DISK, Layout},
    trace::{Scope, TraceEvent},
};
use offshoot_provider::{
    DiskStack, Durability,
    disk::{self, DiskError},
};
use offshoot_store::{LayerRecord, NewLayer};
use offshoot_types::{DiskMib, ErrorCode, Failure, LayerId, NodeName, OperationId, Owner, VmName, VmSpec};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// An empty layer is four clusters of 64 KiB; one cluster of data takes at least two more. Layers of disks beyond
/// 512 GiB are larger and count as written to.
const EMPTY: u64 = 4 << 16;

/// A layer over `parent`, or over the template of the VM's image.
pub(crate) fn new_layer(
    id: LayerId,
    owner: &Owner,
    node: &NodeName,
    spec: &VmSpec,
    parent: Option<LayerId>,
    operation: OperationId,
) -> NewLayer {
    NewLayer {
        id,
        owner: owner.clone(),
        node: node.clone(),
        parent,
        image: spec.image_digest.clone(),
        path: Layout::layer_name(id),
        size: spec.disk,
        operation: Some(operation),
    }
}

/// What a VMM is told of a disk.
pub(crate) fn stack(layout: &Layout, chain: &[LayerRecord], template: PathBuf) -> DiskStack {
    DiskStack { layers: chain.iter().map(|layer| layout.state.join(&layer.path)).collect(), template }
}

/// Makes the empty file of a layer. One that is there is an earlier run's of this step: it appears complete or not at
/// all. Blocks.
pub(crate) fn make(
    path: &Path,
    below: Option<&Path>,
    template: &Path,
    size: DiskMib,
    durability: Durability,
    vm: &VmName,
) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let made = match below {
        None => disk::create_overlay(template, size, path, durability),
        Some(below) => disk::create_layer(below, size, path, durability),
    };
    made.map_err(|error| disk_failure(vm, path, &error))
}

/// Makes the empty file of a layer in place of whatever a VM that is gone wrote to it. Blocks.
pub(crate) fn make_again(
    path: &Path,
    below: &Path,
    size: DiskMib,
    durability: Durability,
    vm: &VmName,
) -> Result<(), Failure> {
    remove_file(path)?;
    disk::create_layer(below, size, path, durability).map_err(|error| disk_failure(vm, path, &error))
}

fn disk_failure(vm: &VmName, path: &Path, error: &DiskError) -> Failure {
    match error {
        DiskError::SmallerThanTemplate { template, .. } => Failure::new(
            ErrorCode::InvalidArgument,
            format!("the data disk of VM `{vm}` was not made: {error}"),
        )
        .hint(format!("ask for a disk of at least {template}")),
        DiskError::Io { source, .. } => io_failure("make the disk layer", path, source),
        other => Failure::new(ErrorCode::Internal, format!("the data disk of VM `{vm}` was not made"))
            .caused_by(other),
    }
}

pub(crate) fn remove_file(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_failure("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Whether it is a layer that nobody has written to.
pub(crate) fn is_empty(path: &Path) -> bool {
    let half_made = path.extension().is_some_and(|extension| extension == "new");
    half_made || (disk::inspect(path).is_ok() && fs::metadata(path).is_ok_and(|file| file.len() <= EMPTY))
}

impl Core {
    /// Removes every layer that neither a VM nor a snapshot needs. What cannot be removed now is tried again by the
    /// next call: after a destroy or a removed snapshot, hourly, and at every start.
    pub async fn collect_layers(&self) {
        // What is being read is waited for: by whoever removes it, and by nobody who only collects layers.
        self.drop_left_over().await;
        // One at a time: two would remove the same files.
        let _alone = self.collecting.lock().await;
        let unused = match self.store.read(|view| view.unused_layers()).await {
            Ok(unused) => unused,
            Err(error) => return self.store_failed("list unused disk layers", &error),
        };
        for layer in unused {
            let path = self.layout.state.join(&layer.path);
            let removed = offshoot_store::blocking({
                let path = path.clone();
                move || {
                    remove_file(&path)?;
                    // A disk in its VM's own directory: that goes with it, if nothing else is left there.
                    if path.file_name().is_some_and(|name| name == DATA_DISK)
                        && let Some(parent) = path.parent()
                    {
                        let _not_empty = fs::remove_dir(parent);
                    }
                    Ok::<_, Failure>(())
                }
            })
            .await;
            let shown = path.display().to_string();
            match removed {
                Ok(Ok(())) => TraceEvent::LayerRemoved { path: &shown }.emit(&Scope::default()),
                Ok(Err(failure)) => {
                    return TraceEvent::NotCollected { path: &shown, error: &failure.message }
                        .emit(&Scope::default());
                }
                // The engine ends.
                Err(_cancelled) => return,
            }
            let id = layer.id;
            if let Err(error) = self.store.transaction(move |tx| tx.forget_layer(id)).await {
                return self.store_failed("forget a disk layer", &error);
            }
        }
    }
}
