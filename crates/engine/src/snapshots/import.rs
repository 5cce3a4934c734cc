//! The files of a snapshot that comes from elsewhere: read, compared, written, sealed with our own key.

use super::{
    Manifest,
    manifest::{DEVICE_STATE, FILE, LayerPart, RAM_DELTA},
    persist::{allocated, blocking, flush, write_file},
};
use crate::{
    core::Core,
    machine::io_failure,
    saga::create::remove_tree,
    state_dir::{Layout, make_private_dir},
};
use offshoot_provider::{
    archive::{self, ArchiveError, Contents, PartName, Reader},
    parts::Hash,
};
use offshoot_store::{StoreError, Tx};
use offshoot_types::{
    Bytes, ErrorCode, Failure, LayerId, OperationId, ProviderKind, SnapshotId, SnapshotKind, VmId,
};
use serde_json::Value;
use std::{fs, io::Read};

/// An exported snapshot of which the header was read.
pub(crate) struct Incoming(Reader<Box<dyn Read + Send>>);

/// What it becomes here.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    pub id: SnapshotId,
    pub vm: VmId,
    pub kind: SnapshotKind,
    pub provider: ProviderKind,
    /// Newest first.
    pub layers: Vec<LayerId>,
}

/// Its files are there, flushed; nobody sees them yet.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub manifest: Value,
    pub size: Bytes,
}

impl Incoming {
    /// Waits for the header, on a thread of its own.
    pub async fn open(from: impl Read + Send + 'static) -> Result<Self, Failure> {
        let from: Box<dyn Read + Send> = Box::new(from);
        blocking(move || Reader::open(from).map(Self).map_err(|error| refused(&error))).await
    }

    pub fn contents(&self) -> &Contents {
        self.0.contents()
    }

    pub fn hash(&self) -> Hash {
        self.0.hash()
    }
}

/// A snapshot is the operation that made it.
pub(crate) const fn snapshot_of_import(operation: OperationId) -> SnapshotId {
    SnapshotId::from_uuid(*operation.as_uuid())
}

impl Core {
    /// Writes the files: the layers where the record says that they will be, the others beside their place.
    pub async fn unpack(&self, incoming: Incoming, arrival: &Arrival) -> Result<Arrived, Failure> {
        let (layout, key) = (self.layout.clone(), self.host_key().await?);
        let beside = layout.merged_snapshot(arrival.id);
        let unpacked = blocking({
            let (arrival, beside) = (arrival.clone(), beside.clone());
            move || {
                remove_tree(&beside)?;
                make_private_dir(&beside).map_err(|error| io_failure("make directory", &beside, &error))?;
                let full = arrival.kind == SnapshotKind::Full;
                let path = |name| match name {
                    PartName::DeviceState => full.then(|| beside.join(DEVICE_STATE)),
                    PartName::Memory => full.then(|| beside.join(RAM_DELTA)),
                    PartName::Layer(number) => {
                        let layer = arrival.layers.get(number)?;
                        Some(layout.state.join(Layout::layer_name(*layer)))
                    }
                };
                let contents = archive::unpack(incoming.0, path).map_err(|error| refused(&error))?;
                let manifest = manifest(&arrival, contents);
                let mut size = 0;
                for layer in &manifest.layers {
                    size += allocated(&layout.state.join(&layer.path))?;
                }
                for (name, part) in [(DEVICE_STATE, &manifest.device_state), (RAM_DELTA, &manifest.ram_delta)]
                {
                    if part.is_some() {
                        size += allocated(&beside.join(name))?;
                    }
                }
                flush(&layout.disks())?;
                Ok((manifest, Bytes(size)))
            }
        });
        let (manifest, size) = unpacked.await?;
        let signed = manifest.sign(key)?;
        let all = self.layout.snapshots();
        blocking(move || {
            write_file(&beside.join(FILE), &signed)?;
            flush(&beside)?;
            flush(&all)
        })
        .await?;
        Ok(Arrived { manifest: manifest.as_value()?, size })
    }

    /// Writes it down with `write`, then puts the files in their place: from the record on the snapshot is there, and a
    /// start after a crash in between does the rest.
    pub async fn settle_import<T: Send + 'static>(
        &self,
        id: SnapshotId,
        write: impl Fn(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Failure> {
        let _alone = self.snapshots.uses.alone(&[id]).await?;
        let written = self.store.transaction(write).await?;
        let (beside, place, all) =
            (self.layout.merged_snapshot(id), self.layout.snapshot(id), self.layout.snapshots());
        blocking(move || {
            fs::rename(&beside, &place).map_err(|error| io_failure("rename", &beside, &error))?;
            flush(&all)
        })
        .await
        .map_err(|failure| {
            failure.hint("the snapshot is whole: the next start of the daemon puts it in its place")
        })?;
        Ok(written)
    }

    /// Removes what an import that failed has written of the snapshot; its layers go as any that nobody needs.
    pub async fn forget_import(&self, id: SnapshotId) {
        self.unstage(&[id]).await;
    }
}

fn manifest(arrival: &Arrival, contents: Contents) -> Manifest {
    let full = arrival.kind == SnapshotKind::Full;
    let layers = arrival.layers.iter().zip(contents.layers);
    Manifest {
        format: Manifest::FORMAT,
        id: arrival.id,
        vm: arrival.vm,
        parent: None,
        kind: arrival.kind,
        provider: arrival.provider,
        machine: contents.machine.filter(|_| full),
        image: contents.image,
        memory: contents.memory,
        memory_base: None,
        cpus: contents.cpus,
        disk: contents.disk,
        layers: layers
            .map(|(layer, part)| LayerPart { layer: *layer, path: Layout::layer_name(*layer), part })
            .collect(),
        device_state: contents.device_state.filter(|_| full),
        ram_delta: contents.ram.filter(|_| full),
    }
}

fn refused(error: &ArchiveError) -> Failure {
    match error {
        ArchiveError::File { operation, path, source } => io_failure(operation, path, source),
        ArchiveError::Read(source) => {
            Failure::new(ErrorCode::Interrupted, "what was handed over broke off").caused_by(source)
        }
        // What was sent is the caller's, and so is what is wrong with it.
        other => Failure::new(
            ErrorCode::InvalidArgument,
            format!("what was handed over cannot be imported: {}", crate::link::chain(other)),
        )
        .hint("export it again; nothing of it was kept"),
    }
}
