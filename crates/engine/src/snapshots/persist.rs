//! Making a snapshot durable, while its VM runs on.
//!
//! ```text
//! .new-<id>/device.state     written by the VMM       hash, flush
//! .new-<id>/ram.delta        from memory              write, hash, flush
//! disks/<layer>.qcow2        frozen                   flush, hash; those below: hashed by an earlier snapshot
//! .new-<id>/manifest.json    authenticated            write, flush
//! rename to <id>, flush      the files are complete
//! record: durable            and the operation may end
//! ```
//! Whatever fails on the way takes all of it back: either there is the snapshot, or nothing.

use super::{
    Manifest,
    manifest::{DEVICE_STATE, FILE, LayerPart, RAM_DELTA},
};
use crate::{
    core::Core,
    machine::io_failure,
    tasks::TaskKind,
    trace::{Scope, TraceEvent},
};
use offshoot_provider::{
    disk::{self, DiskError},
    facts::Facts,
    memory::Delta,
    parts::{Part, PartError, Trusted, hash_file},
};
use offshoot_store::{LayerRecord, SnapshotRecord, StoreError, VmRecord};
use offshoot_types::{
    Actor, Bytes, ErrorCode, Failure, LayerId, SnapshotId, SnapshotKind, SnapshotState, VmId,
};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// What is to be written, read from the record beforehand.
struct Job {
    snapshot: SnapshotRecord,
    vm: VmRecord,
    chain: Vec<LayerRecord>,
    /// Of layers that an earlier snapshot hashed.
    known: HashMap<LayerId, Part>,
    machine: Option<Facts>,
    delta: Option<Arc<Delta>>,
    dir: PathBuf,
    state: PathBuf,
    trusted: Arc<Trusted>,
}

impl Core {
    /// Writes a snapshot in the background; how that ended is told by the record.
    pub fn persist_later(self: &Arc<Self>, id: SnapshotId) {
        let core = self.clone();
        self.tasks.spawn(TaskKind::Persister, Scope::default(), async move {
            if let Err(failure) = core.persist(id).await {
                let event = TraceEvent::NotPersisted { snapshot: &id.to_string(), error: &failure.message };
                event.emit(&Scope::default());
            }
            core.collect_layers().await;
        });
    }

    /// Writes a snapshot that was just taken. On failure it is taken back, or marked as damaged if somebody continues
    /// from it already. Must not be called twice for one snapshot.
    pub async fn persist(&self, id: SnapshotId) -> Result<(), Failure> {
        let Some(volatile) = self.snapshots.volatile(id) else { return Ok(()) };
        let written = match self.write_snapshot(id).await {
            Ok(vm) => {
                if let Some(delta) = &volatile.delta {
                    // Whoever restores from it next does so soon.
                    self.snapshots.memories.keep_delta(id, delta);
                }
                self.snapshots.grown.add(vm);
                Ok(())
            }
            Err(failure) => {
                self.discard(id).await;
                Err(failure)
            }
        };
        self.snapshots.end_volatile(id);
        volatile.written.send_replace(Some(written.clone()));
        written
    }

    /// Returns whose it is.
    async fn write_snapshot(&self, id: SnapshotId) -> Result<VmId, Failure> {
        let volatile = self.snapshots.volatile(id).ok_or_else(|| super::source::not_found(id))?;
        // A snapshot is worth nothing without the one its pages are a difference to.
        let job = self.job(id, volatile.delta.clone()).await?;
        if let Some(below) = job.snapshot.memory_base.and_then(|below| self.snapshots.volatile(below)) {
            below.written().await?;
        }
        self.host_key().await?;
        let vm = job.vm.id;
        let (manifest, size) = blocking(move || job.write()).await?;
        let signed = manifest.sign(self.host_key().await?)?;
        let (new, done, all) =
            (self.layout.new_snapshot(id), self.layout.snapshot(id), self.layout.snapshots());
        let files = volatile.files.clone().write_owned().await;
        blocking(move || {
            let _nobody_opens_them_now = files;
            write_file(&new.join(FILE), &signed)?;
            flush(&new)?;
            fs::rename(&new, &done).map_err(|error| io_failure("rename", &new, &error))?;
            flush(&all)
        })
        .await?;
        let kept = manifest.as_value()?;
        self.store.transaction(move |tx| tx.snapshot_durable(id, &kept, size)).await?;
        Ok(vm)
    }

    async fn job(&self, id: SnapshotId, delta: Option<Arc<Delta>>) -> Result<Job, Failure> {
        let (snapshot, vm, chain, known) = self
            .store
            .read(move |view| {
                let Some(snapshot) = view.snapshot(id)? else {
                    return Err(StoreError::NotFound { what: "snapshot", id: id.to_string() });
                };
                let Some(vm) = view.vm(snapshot.vm)? else {
                    return Err(StoreError::NotFound { what: "VM", id: snapshot.vm.to_string() });
                };
                let chain = view.layer_chain(snapshot.layer)?;
                let mut known = HashMap::new();
                // A base has no parent, and the same layers as the state its VM came to last.
                let parent = match snapshot.parent.or(vm.position) {
                    Some(parent) => view.snapshot(parent)?,
                    None => None,
                };
                if let Some(parent) = parent.filter(|parent| parent.state == SnapshotState::Durable) {
                    known = layers_of(&parent.manifest);
                }
                Ok((snapshot, vm, chain, known))
            })
            .await?;
        let machine = match snapshot.kind {
            SnapshotKind::DiskOnly => None,
            SnapshotKind::Full => Some(self.machine_facts(vm.provider).await?),
        };
        let (dir, state) = (self.layout.new_snapshot(id), self.layout.state.clone());
        let trusted = self.snapshots.trusted.clone();
        Ok(Job { snapshot, vm, chain, known, machine, delta, dir, state, trusted })
    }

    /// Takes back a snapshot that could not be written.
    pub(crate) async fn discard(&self, id: SnapshotId) {
        self.snapshots.give_up(id);
        let forgotten = self.store.transaction(move |tx| {
            let Some(snapshot) = tx.snapshot(id)? else { return Ok(true) };
            match tx.remove_snapshot(id, snapshot.operation, &Actor::Daemon) {
                Ok(_) => Ok(true),
                // It is whole, and somebody goes on from it.
                Err(StoreError::InUse { .. }) if snapshot.state == SnapshotState::Durable => Ok(false),
                // Forks run from it: what they map stays, but nobody can continue from it any more.
                Err(StoreError::InUse { .. }) => tx.snapshot_damaged(id).map(|()| true),
                Err(error) => Err(error),
            }
        });
        match forgotten.await {
            Ok(true) => self.remove_snapshot_files(id).await,
            Ok(false) => {}
            // The next start takes back what the record says is not complete.
            Err(error) => self.store_failed("take back a snapshot", &error),
        }
    }
}

impl super::Snapshots {
    fn end_volatile(&self, id: SnapshotId) {
        crate::sync::lock(&self.volatile).remove(&id);
    }
}

fn layers_of(manifest: &Value) -> HashMap<LayerId, Part> {
    let manifest: Option<Manifest> = serde_json::from_value(manifest.clone()).ok();
    manifest.into_iter().flat_map(|m| m.layers).map(|layer| (layer.layer, layer.part)).collect()
}

impl Job {
    /// Blocks for as long as the disk and the hashing take.
    fn write(self) -> Result<(Manifest, Bytes), Failure> {
        let mut size = 0;
        let mut layers = Vec::new();
        for (position, layer) in self.chain.iter().enumerate() {
            let path = self.state.join(&layer.path);
            let known = self.known.get(&layer.id).filter(|part| self.trusted.identity(&path, part).is_some());
            let part = match known {
                Some(part) => part.clone(),
                None => {
                    disk::freeze(&path).map_err(|error| disk_failure(&path, &error))?;
                    hash(&path)?
                }
            };
            if position == 0 {
                size += allocated(&path)?;
            }
            layers.push(LayerPart { layer: layer.id, path: layer.path.clone(), part });
        }
        let (mut device_state, mut ram_delta) = (None, None);
        if self.snapshot.kind == SnapshotKind::Full {
            let path = self.dir.join(DEVICE_STATE);
            flush(&path)?;
            device_state = Some(hash(&path)?);
            size += allocated(&path)?;
            let delta = self.delta.as_ref().ok_or_else(|| {
                Failure::new(ErrorCode::Internal, "a full snapshot was taken without its memory")
            })?;
            let path = self.dir.join(RAM_DELTA);
            let part = delta.write(&path).map_err(|error| memory_failure(&path, &error))?;
            ram_delta = Some(part);
            size += allocated(&path)?;
        }
        let spec = &self.vm.spec;
        let manifest = Manifest {
            format: Manifest::FORMAT,
            id: self.snapshot.id,
            vm: self.vm.id,
            parent: self.snapshot.parent,
            kind: self.snapshot.kind,
            provider: self.vm.provider,
            machine: self.machine,
            image: spec.image_digest.clone(),
            memory: spec.memory,
            memory_base: self.snapshot.memory_base,
            cpus: spec.cpus,
            disk: spec.disk,
            layers,
            device_state,
            ram_delta,
        };
        Ok((manifest, Bytes(size)))
    }
}

pub(super) fn hash(path: &Path) -> Result<Part, Failure> {
    hash_file(path).map_err(|error| part_failure(path, &error))
}

pub(super) fn part_failure(path: &Path, error: &PartError) -> Failure {
    match error {
        PartError::Io { operation, source, .. } => io_failure(operation, path, source),
        other => {
            Failure::new(ErrorCode::Internal, format!("cannot hash {}", path.display())).caused_by(other)
        }
    }
}

fn disk_failure(path: &Path, error: &DiskError) -> Failure {
    match error {
        DiskError::Io { operation, source, .. } => io_failure(operation, path, source),
        other => {
            Failure::new(ErrorCode::Internal, format!("cannot freeze {}", path.display())).caused_by(other)
        }
    }
}

pub(super) fn memory_failure(path: &Path, error: &offshoot_provider::memory::MemoryError) -> Failure {
    use std::error::Error;
    // A full disk is told as such, however deep it lies.
    let mut source: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            return io_failure("write", path, io);
        }
        source = cause.source();
    }
    Failure::new(ErrorCode::Internal, format!("cannot write {}", path.display())).caused_by(error)
}

/// What a file takes on the disk.
pub(super) fn allocated(path: &Path) -> Result<u64, Failure> {
    let metadata = fs::metadata(path).map_err(|error| io_failure("look at", path, &error))?;
    Ok(metadata.blocks() * 512)
}

pub(super) fn flush(path: &Path) -> Result<(), Failure> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|error| io_failure("flush", path, &error))
}

pub(super) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error: io::Error| io_failure("write", path, &error))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match offshoot_store::blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(crate::error::shutting_down()),
    }
}
