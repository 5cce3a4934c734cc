//! A snapshot with all it needs, as one stream: complete memory, device state, the layers of its disk.

use super::{
    manifest::{DEVICE_STATE, RAM_DELTA},
    persist::blocking,
    source::memory_failure,
};
use crate::{core::Core, machine::io_failure};
use offshoot_provider::{
    archive::{self, ArchiveError, Contents, Origin, PartName},
    memory::Delta,
    parts::Hash,
};
use offshoot_store::{SnapshotRecord, VmRecord};
use offshoot_types::{ErrorCode, Failure, SnapshotState};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    path::PathBuf,
};

/// A snapshot about to be written somewhere. Its files are open: it can be removed meanwhile.
#[derive(Debug)]
pub struct Export {
    contents: Contents,
    hash: Hash,
    parts: HashMap<PartName, From>,
}

#[derive(Debug)]
enum From {
    File(File),
    Memory(Delta),
}

impl Export {
    /// Of everything in it, known before the first byte is written.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Of all parts together, uncompressed.
    pub fn bytes(&self) -> u64 {
        self.contents.bytes()
    }

    /// Writes it. Every byte is compared with its hash on the way; if one differs the stream breaks off, and nobody can
    /// import it. Blocks for as long as that takes.
    pub fn write(mut self, to: impl Write) -> Result<(), Failure> {
        let open = |name| match self.parts.remove(&name) {
            Some(From::File(file)) => Ok(Box::new(file) as Box<dyn Read>),
            Some(From::Memory(delta)) => Ok(Box::new(delta.reader()) as Box<dyn Read>),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        };
        archive::write(&self.contents, open, to).map(drop).map_err(|error| {
            let id = self.contents.origin.snapshot;
            let code = match &error {
                ArchiveError::Write(_) => ErrorCode::Interrupted,
                _ => ErrorCode::Snapshot,
            };
            Failure::new(code, format!("snapshot {id} was not exported")).caused_by(&error)
        })
    }
}

impl Core {
    /// Opens what is to be exported. Only what is on the disk, whole, is.
    pub async fn export(&self, snapshot: &SnapshotRecord) -> Result<Export, Failure> {
        let id = snapshot.id;
        if let Some(volatile) = self.snapshots.volatile(id) {
            volatile.written().await?;
        }
        let _reading = self.snapshots.uses.read(id).await;
        let read = self.store.read(move |view| {
            let snapshot = view.snapshot(id)?;
            let vm = match &snapshot {
                Some(snapshot) => view.vm(snapshot.vm)?,
                None => None,
            };
            Ok(snapshot.zip(vm))
        });
        let (snapshot, vm) = read.await?.ok_or_else(|| super::not_found(id))?;
        if snapshot.state != SnapshotState::Durable {
            let message = format!("snapshot {id} is {}, and only a durable one is exported", snapshot.state);
            return Err(Failure::new(ErrorCode::Snapshot, message)
                .hint("`offshoot snapshot verify` says what is wrong with it"));
        }
        let manifest = self.manifest(&snapshot).await?;
        let mut paths: Vec<(PartName, PathBuf)> = Vec::new();
        for (number, layer) in manifest.layers.iter().enumerate() {
            paths.push((PartName::Layer(number), self.layout.state.join(&layer.path)));
        }
        let dir = self.layout.snapshot(id);
        paths.extend(manifest.device_state.iter().map(|_| (PartName::DeviceState, dir.join(DEVICE_STATE))));
        let (mut ram, mut memory) = (manifest.ram_delta.clone(), None);
        match snapshot.memory_base {
            Some(_) => {
                let whole = self.memory_against_zeros(&snapshot).await?;
                let (whole, part) = blocking(move || {
                    let part = archive::hash_memory(&whole)
                        .map_err(|error| io_failure("read", "the memory of a snapshot".as_ref(), &error))?;
                    Ok((whole, part))
                })
                .await?;
                (ram, memory) = (Some(part), Some(whole));
            }
            None => paths.extend(ram.iter().map(|_| (PartName::Memory, dir.join(RAM_DELTA)))),
        }
        let mut parts = blocking(move || {
            let open = |(name, path): (PartName, PathBuf)| match File::open(&path) {
                Ok(file) => Ok((name, From::File(file))),
                Err(error) => Err(io_failure("open", &path, &error)),
            };
            paths.into_iter().map(open).collect::<Result<HashMap<_, _>, Failure>>()
        })
        .await?;
        parts.extend(memory.map(|whole| (PartName::Memory, From::Memory(whole))));
        let contents = Contents {
            origin: origin(&snapshot, &vm),
            kind: snapshot.kind,
            quiesced: snapshot.quiesced,
            provider: manifest.provider,
            machine: manifest.machine,
            image: manifest.image,
            memory: manifest.memory,
            cpus: manifest.cpus,
            disk: manifest.disk,
            device_state: manifest.device_state,
            ram,
            layers: manifest.layers.into_iter().map(|layer| layer.part).collect(),
        };
        let (_, hash) = contents.to_bytes().map_err(|error| {
            Failure::new(ErrorCode::Snapshot, format!("snapshot {id} cannot be exported")).caused_by(&error)
        })?;
        Ok(Export { contents, hash, parts })
    }

    /// All pages of a snapshot, whatever it and those below it differ from.
    async fn memory_against_zeros(&self, snapshot: &SnapshotRecord) -> Result<Delta, Failure> {
        let mut chain = vec![(snapshot.id, self.delta(snapshot).await?)];
        let (mut below, mut readings) = (snapshot.memory_base, Vec::new());
        while let Some(id) = below {
            readings.push(self.snapshots.uses.read(id).await);
            let found = self.store.read(move |view| view.snapshot(id)).await?;
            let found = found.ok_or_else(|| super::not_found(id))?;
            chain.push((id, self.delta(&found).await?));
            below = found.memory_base;
        }
        let id = snapshot.id;
        blocking(move || {
            let mut chain = chain.into_iter().rev();
            let Some((mut lower, first)) = chain.next() else { return Err(super::not_found(id)) };
            let mut whole = (*first).clone();
            for (upper, delta) in chain {
                whole = Delta::merge(&whole, lower, &delta).map_err(|error| memory_failure(upper, &error))?;
                lower = upper;
            }
            Ok(whole)
        })
        .await
    }
}

fn origin(snapshot: &SnapshotRecord, vm: &VmRecord) -> Origin {
    Origin {
        snapshot: snapshot.id,
        vm: vm.name.clone(),
        name: snapshot.name.clone(),
        note: snapshot.note.clone(),
        image: vm.spec.image.clone(),
    }
}
