//! What a restore needs of a snapshot, checked before a CPU runs.

use super::{
    Held, Manifest, Volatile,
    manifest::{DEVICE_STATE, FILE, RAM_DELTA},
};
use crate::{core::Core, host_key::HostKey, machine::io_failure, state_dir::SNAPSHOTS_KEY};
use offshoot_provider::{
    facts::Facts,
    memory::{Base, Delta, Memory, MemoryError},
    parts::{PartError, Trusted},
};
use offshoot_store::{LayerRecord, SnapshotRecord};
use offshoot_types::{
    Bytes, ErrorCode, Failure, MemMib, ProviderKind, SnapshotId, SnapshotKind, SnapshotState,
};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::OwnedRwLockReadGuard;

/// A delta larger than this is not copied into each restored process, but once into a memory they all map.
const COPIED_AT_MOST: Bytes = Bytes(32 << 20);

/// A checked snapshot. As long as it is held, its files stay where they are.
#[derive(Debug)]
pub(crate) struct Source {
    pub snapshot: SnapshotRecord,
    /// Of its disk, newest first; all of them frozen.
    pub chain: Vec<LayerRecord>,
    /// `None`: disk only.
    pub memory: Option<SourceMemory>,
    /// It, and the one whose memory is mapped.
    _held: Vec<Held>,
}

#[derive(Debug)]
pub(crate) struct SourceMemory {
    pub memory: Memory,
    pub device_state: PathBuf,
    _files: Option<OwnedRwLockReadGuard<()>>,
}

impl Source {
    /// The snapshot whose complete memory a process restored from this maps.
    pub fn memory_base(&self) -> Option<SnapshotId> {
        self.memory.as_ref().and_then(|memory| memory.memory.base_id())
    }
}

impl Core {
    /// Checks a snapshot and makes ready what `copies` processes restore from. A durable one is read and hashed unless
    /// its files are those that were hashed before.
    pub async fn source(&self, id: SnapshotId, copies: usize) -> Result<Source, Failure> {
        let reading = self.snapshots.uses.read(id).await;
        // Before the record is read: what is not volatile any more is durable there.
        let volatile = self.snapshots.volatile(id);
        let (snapshot, chain) = self
            .store
            .read(move |view| {
                let snapshot = view.snapshot(id)?;
                let chain = match &snapshot {
                    Some(snapshot) => view.layer_chain(snapshot.layer)?,
                    None => Vec::new(),
                };
                Ok((snapshot, chain))
            })
            .await?;
        let snapshot = snapshot.ok_or_else(|| not_found(id))?;
        if snapshot.state == SnapshotState::Damaged {
            return Err(damaged(id, "it was found damaged before"));
        }
        let size = self.memory_of_vm(&snapshot).await?;
        let memory = match (snapshot.kind, volatile) {
            (SnapshotKind::DiskOnly, Some(_)) => None,
            (SnapshotKind::DiskOnly, None) => {
                self.check(&snapshot, &chain).await?;
                None
            }
            (SnapshotKind::Full, Some(volatile)) => {
                let files = volatile.files.clone().read_owned().await;
                let memory = self.memory(&snapshot, copies, size).await?;
                // It may have become durable while the lock was waited for.
                let dir = self.layout.new_snapshot(id);
                let dir = if dir.is_dir() { dir } else { self.layout.snapshot(id) };
                Some(SourceMemory { memory, device_state: dir.join(DEVICE_STATE), _files: Some(files) })
            }
            (SnapshotKind::Full, None) => {
                self.check(&snapshot, &chain).await?;
                let memory = self.memory(&snapshot, copies, size).await?;
                let device_state = self.layout.snapshot(id).join(DEVICE_STATE);
                Some(SourceMemory { memory, device_state, _files: None })
            }
        };
        let mut held = vec![reading.hold()];
        let mapped = memory.as_ref().and_then(|memory: &SourceMemory| memory.memory.base_id());
        if let Some(mapped) = mapped.filter(|mapped| *mapped != id) {
            // It is there: as long as this one is read it differs from that one.
            held.push(self.snapshots.uses.read(mapped).await.hold());
        }
        Ok(Source { snapshot, chain, memory, _held: held })
    }

    async fn memory_of_vm(&self, snapshot: &SnapshotRecord) -> Result<MemMib, Failure> {
        let vm = self.store.vm(snapshot.vm).await?;
        // The row of a destroyed VM stays while a snapshot refers to it.
        vm.map(|vm| vm.spec.memory)
            .ok_or_else(|| Failure::new(ErrorCode::Internal, "a snapshot's VM is not in the record"))
    }

    /// That every byte of a durable snapshot is what was written, and that it fits this host.
    async fn check(&self, snapshot: &SnapshotRecord, chain: &[LayerRecord]) -> Result<(), Failure> {
        let manifest = self.manifest(snapshot).await?;
        if let Some(saved) = &manifest.machine {
            let differs = saved.mismatches(&self.machine_facts(manifest.provider).await?);
            if !differs.is_empty() {
                let differs: Vec<String> = differs.iter().map(ToString::to_string).collect();
                return Err(Failure::new(
                    ErrorCode::Snapshot,
                    format!("snapshot {} is of another machine: {}", snapshot.id, differs.join(", ")),
                )
                .hint("a memory loads only into the machine that saved it; its disk is intact"));
            }
        }
        let expected: Vec<_> = chain.iter().map(|layer| layer.id).collect();
        let listed: Vec<_> = manifest.layers.iter().map(|layer| layer.layer).collect();
        if expected != listed {
            return Err(damaged(snapshot.id, "its manifest lists other disk layers than the record"));
        }
        let checked = self.verify_parts(snapshot.id, manifest, Some(self.snapshots.trusted.clone())).await?;
        match checked.into_iter().find_map(|(_, checked)| checked.err()) {
            None => Ok(()),
            Some(error) => Err(self.found_damaged(snapshot.id, &crate::link::chain(&error)).await),
        }
    }

    /// What a state saved here is bound to.
    pub async fn machine_facts(&self, provider: ProviderKind) -> Result<Facts, Failure> {
        self.provider(provider)?.facts().await.map_err(|why| {
            Failure::new(ErrorCode::Unavailable, format!("provider `{provider}` does not work here: {why}"))
                .hint("`offshoot doctor` says what is missing and how to get it")
        })
    }

    /// Of a durable snapshot, authenticated.
    pub(super) async fn manifest(&self, snapshot: &SnapshotRecord) -> Result<Manifest, Failure> {
        if snapshot.state == SnapshotState::Volatile {
            return Err(Failure::new(
                ErrorCode::Snapshot,
                format!("snapshot {} was not written completely before the daemon ended", snapshot.id),
            )
            .hint("`offshoot snapshot rm` removes it"));
        }
        self.host_key().await?;
        let id = snapshot.id;
        let path = self.layout.snapshot(id).join(FILE);
        let read = offshoot_store::blocking({
            let path = path.clone();
            move || fs::read(&path)
        });
        let bytes = match read.await {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(self.found_damaged(id, &format!("`{}` is missing", path.display())).await);
            }
            Ok(Err(error)) => return Err(io_failure("read", &path, &error)),
            Err(_cancelled) => return Err(crate::error::shutting_down()),
        };
        let manifest = Manifest::open(&path, &bytes, id, self.host_key().await?);
        if let Err(failure) = &manifest {
            return Err(self.found_damaged(id, &failure.message).await);
        }
        manifest
    }

    pub(super) async fn host_key(&self) -> Result<&HostKey, Failure> {
        let dir = self.layout.keys();
        let load = async {
            match offshoot_store::blocking(move || HostKey::load(&dir, SNAPSHOTS_KEY)).await {
                Ok(loaded) => loaded,
                Err(_cancelled) => Err(crate::error::shutting_down()),
            }
        };
        self.snapshots.key.get_or_try_init(|| load).await
    }

    /// Verifies each part of a durable snapshot but the pages, which are verified as they are read; without `trusted`
    /// the pages too, and every byte is read.
    pub(super) async fn verify_parts(
        &self,
        id: SnapshotId,
        manifest: Manifest,
        trusted: Option<Arc<Trusted>>,
    ) -> Result<Vec<(PathBuf, Result<(), PartError>)>, Failure> {
        let (dir, state) = (self.layout.snapshot(id), self.layout.state.clone());
        let work = move || {
            let mut parts: Vec<_> =
                manifest.layers.into_iter().map(|layer| (state.join(layer.path), layer.part)).collect();
            parts.extend(manifest.device_state.map(|part| (dir.join(DEVICE_STATE), part)));
            if trusted.is_none() {
                parts.extend(manifest.ram_delta.map(|part| (dir.join(RAM_DELTA), part)));
            }
            let verify = |path: &Path, part: &_| match &trusted {
                Some(trusted) => trusted.verify(path, part),
                None => offshoot_provider::parts::verify_file(path, part, None).map(drop),
            };
            parts.into_iter().map(|(path, part)| (path.clone(), verify(&path, &part))).collect()
        };
        offshoot_store::blocking(work).await.map_err(|_| crate::error::shutting_down())
    }

    /// Writes down that a snapshot is damaged, so that nothing continues from it any more.
    pub(super) async fn found_damaged(&self, id: SnapshotId, what: &str) -> Failure {
        if let Err(error) = self.store.transaction(move |tx| tx.snapshot_damaged(id)).await {
            self.store_failed("mark a snapshot as damaged", &error);
        }
        damaged(id, what)
    }

    /// The memory that `copies` processes restore from.
    async fn memory(
        &self,
        snapshot: &SnapshotRecord,
        copies: usize,
        size: MemMib,
    ) -> Result<Memory, Failure> {
        let id = snapshot.id;
        if let Some(base) = self.snapshots.memories.base(id) {
            return Ok(Memory { base: Some(base), delta: None });
        }
        let delta = self.delta(snapshot).await?;
        delta.check(snapshot.memory_base, size.bytes()).map_err(|error| memory_failure(id, &error))?;
        let below = match snapshot.memory_base {
            // The delta over zeros is the memory: nothing is copied.
            None => None,
            Some(below) => {
                let below = self.complete_memory(below).await?;
                if copies < 2 && delta.bytes() <= COPIED_AT_MOST {
                    return Ok(Memory { base: Some(below), delta: Some(delta) });
                }
                Some(below)
            }
        };
        let base = self.build(id, below, delta).await?;
        Ok(Memory { base: Some(base), delta: None })
    }

    async fn complete_memory(&self, id: SnapshotId) -> Result<Arc<Base>, Failure> {
        if let Some(base) = self.snapshots.memories.base(id) {
            return Ok(base);
        }
        // From the one over zeros upwards; each but the last is let go as soon as the next one is built on it.
        let mut missing = Vec::new();
        let (mut below, mut next) = (None, Some(id));
        while let Some(id) = next {
            if let Some(base) = self.snapshots.memories.base(id) {
                below = Some(base);
                break;
            }
            let reading = self.snapshots.uses.read(id).await;
            let snapshot =
                self.store.read(move |view| view.snapshot(id)).await?.ok_or_else(|| not_found(id))?;
            next = snapshot.memory_base;
            missing.push((snapshot, reading));
        }
        for (snapshot, _reading) in missing.into_iter().rev() {
            let delta = self.delta(&snapshot).await?;
            below = Some(self.build(snapshot.id, below, delta).await?);
        }
        below.ok_or_else(|| not_found(id))
    }

    async fn build(
        &self,
        id: SnapshotId,
        below: Option<Arc<Base>>,
        delta: Arc<Delta>,
    ) -> Result<Arc<Base>, Failure> {
        let built = offshoot_store::blocking(move || Base::build(id, below.as_deref(), &delta)).await;
        let base = built.map_err(|_| crate::error::shutting_down())?;
        let base = Arc::new(base.map_err(|error| memory_failure(id, &error))?);
        self.snapshots.memories.keep_base(id, &base);
        Ok(base)
    }

    /// The pages of a snapshot that is being restored from.
    pub async fn own_pages(&self, snapshot: &SnapshotRecord) -> Result<Arc<Delta>, Failure> {
        self.delta(snapshot).await
    }

    /// The pages of a snapshot, verified as they are read.
    pub(super) async fn delta(&self, snapshot: &SnapshotRecord) -> Result<Arc<Delta>, Failure> {
        let id = snapshot.id;
        if let Some(delta) =
            self.snapshots.volatile(id).and_then(|volatile: Arc<Volatile>| volatile.delta.clone())
        {
            return Ok(delta);
        }
        if let Some(delta) = self.snapshots.memories.delta(id) {
            return Ok(delta);
        }
        let manifest = self.manifest(snapshot).await?;
        let Some(part) = manifest.ram_delta else {
            return Err(damaged(id, "it holds no memory"));
        };
        let path = self.layout.snapshot(id).join(RAM_DELTA);
        let trusted = self.snapshots.trusted.clone();
        let read = offshoot_store::blocking(move || {
            let known = trusted.identity(&path, &part);
            let (delta, identity) = Delta::read(&path, &part, known.as_ref())?;
            trusted.remember(&path, &part, identity);
            Ok::<_, MemoryError>(delta)
        });
        match read.await {
            Ok(Ok(delta)) => {
                let delta = Arc::new(delta);
                self.snapshots.memories.keep_delta(id, &delta);
                Ok(delta)
            }
            Ok(Err(error)) => Err(self.found_damaged(id, &chain(&error)).await),
            Err(_cancelled) => Err(crate::error::shutting_down()),
        }
    }
}

fn chain(error: &MemoryError) -> String {
    crate::link::chain(error)
}

pub(crate) fn memory_failure(id: SnapshotId, error: &MemoryError) -> Failure {
    Failure::new(ErrorCode::Snapshot, format!("the memory of snapshot {id} cannot be put together: {error}"))
        .caused_by(error)
}

pub(crate) fn not_found(id: SnapshotId) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("there is no snapshot {id}"))
        .hint("`offshoot snapshot list` shows the snapshots there are")
}

fn damaged(id: SnapshotId, why: &str) -> Failure {
    Failure::new(ErrorCode::Snapshot, format!("snapshot {id} is damaged: {why}"))
        .hint("go on from another one; `offshoot snapshot list` shows them")
}
