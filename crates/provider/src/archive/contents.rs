//! The header: what the state is of, and the hashes of its parts.

use super::{ArchiveError, FIXED, MAGIC, MAX_HEADER, VERSION};
use crate::{
    disk::MAX_LAYERS,
    facts::Facts,
    parts::{Hash, Part},
};
use offshoot_types::{
    CpuCount, DiskMib, ImageDigest, ImageRef, MemMib, ProviderKind, SnapshotId, SnapshotKind, SnapshotName,
    VmName,
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// So that this hash is never the hash of something else.
const CONTEXT: &str = "offshoot 2026 exported state: header";
/// A device state is a few dozen KiB; of a machine with very many devices some MiB.
const MAX_DEVICE_STATE: u64 = 64 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    pub origin: Origin,
    pub kind: SnapshotKind,
    /// Whether the guest's processes stood still for it.
    pub quiesced: bool,
    pub provider: ProviderKind,
    /// What memory and device state are bound to; `None` for a disk alone.
    pub machine: Option<Facts>,
    /// Below the last layer lies its disk template.
    pub image: ImageDigest,
    pub memory: MemMib,
    pub cpus: CpuCount,
    pub disk: DiskMib,
    /// Both or, for a disk alone, neither.
    pub device_state: Option<Part>,
    /// Complete: against zeros.
    pub ram: Option<Part>,
    /// Newest first.
    pub layers: Vec<Part>,
}

/// What the state was called where it comes from. Nothing depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    pub snapshot: SnapshotId,
    pub vm: VmName,
    pub name: Option<SnapshotName>,
    pub note: Option<String>,
    /// As the VM's maker called the image.
    pub image: ImageRef,
}

/// One of the parts, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PartName {
    DeviceState,
    Memory,
    /// From the newest, 0, down.
    Layer(usize),
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceState => f.write_str("the device state"),
            Self::Memory => f.write_str("the memory"),
            Self::Layer(number) => write!(f, "disk layer {number}"),
        }
    }
}

impl Contents {
    /// In the order in which they lie in the stream.
    pub fn parts(&self) -> impl Iterator<Item = (PartName, &Part)> {
        let memory = self.device_state.iter().map(|part| (PartName::DeviceState, part));
        let memory = memory.chain(self.ram.iter().map(|part| (PartName::Memory, part)));
        memory.chain(self.layers.iter().enumerate().map(|(number, part)| (PartName::Layer(number), part)))
    }

    /// Of all parts together, uncompressed.
    pub fn bytes(&self) -> u64 {
        self.parts().map(|(_, part)| part.length).sum()
    }

    /// Everything before the first part, and the hash of the header.
    pub fn to_bytes(&self) -> Result<(Vec<u8>, Hash), ArchiveError> {
        self.check()?;
        let header = serde_json::to_vec(self).map_err(|error| ArchiveError::invalid(error.to_string()))?;
        if header.len() > MAX_HEADER {
            return Err(ArchiveError::invalid("the state is too large to be exported"));
        }
        let hash = hash(&header);
        let mut bytes = Vec::with_capacity(FIXED + header.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(hash.as_bytes());
        bytes.extend(header);
        Ok((bytes, hash))
    }

    /// Of a header that was read and is not believed.
    pub(super) fn from_header(header: &[u8], said: &[u8; 32]) -> Result<(Self, Hash), ArchiveError> {
        let hash = hash(header);
        if hash.as_bytes() != said {
            return Err(ArchiveError::invalid("its header is damaged"));
        }
        let contents: Self = serde_json::from_slice(header)
            .map_err(|error| ArchiveError::invalid(format!("its header is none: {error}")))?;
        contents.check()?;
        Ok((contents, hash))
    }

    /// That the parts fit each other and none is larger than it can be.
    fn check(&self) -> Result<(), ArchiveError> {
        let full = self.kind == SnapshotKind::Full;
        let has = [self.device_state.is_some(), self.ram.is_some(), self.machine.is_some()];
        if has != [full; 3] {
            let why =
                "a state with memory has a device state, pages and a machine, and a disk alone has none";
            return Err(ArchiveError::invalid(why));
        }
        // Whoever goes on from it puts layers of its own above.
        if self.layers.is_empty() || self.layers.len() > MAX_LAYERS - 2 {
            let why = format!("a disk of {} layers is not supported", self.layers.len());
            return Err(ArchiveError::invalid(why));
        }
        for (name, part) in self.parts() {
            let most = match name {
                PartName::DeviceState => MAX_DEVICE_STATE,
                // Every page, and in the worst case a run for every other one.
                PartName::Memory => self.memory.bytes().0 / 4096 * (4096 + 8) + 8192,
                // What a disk that was written to everywhere takes, and as much again that was freed.
                PartName::Layer(_) => self.disk.bytes().0.saturating_mul(2).saturating_add(16 << 20),
            };
            if part.length == 0 || part.length > most {
                let why = format!("{name} of {} bytes is not supported: at most {most}", part.length);
                return Err(ArchiveError::invalid(why));
            }
            if !part.is_consistent() {
                return Err(ArchiveError::invalid(format!("the hashes of {name} contradict each other")));
            }
        }
        Ok(())
    }
}

pub(super) fn hash(header: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
    hasher.update(header);
    hasher.finalize().into()
}
