//! What a keeper is told to run: written by the daemon before the keeper starts, read once.

use crate::Durability;
use offshoot_types::{Bytes, CpuCount, Generation, VmId, VmName};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    os::fd::RawFd,
    path::{Path, PathBuf},
    time::Duration,
};

/// A specification is read whole; none is near this.
const MAX: u64 = 256 * 1024;

/// The descriptors the VMM gets, in this order, from [`crate::os::FIRST_PASSED_FD`] on.
pub(crate) const QMP_FD: RawFd = 3;
pub(crate) const CONSOLE_FD: RawFd = 4;
/// A listening socket: the VMM accepts one connection at a time, which the keeper makes.
pub(crate) const CHANNEL_FD: RawFd = 5;
/// The data disk's first layer when the VMM starts, as the VMM knows it.
pub(crate) const DISK_NODE: &str = "data";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    pub vm: VmId,
    pub name: VmName,
    pub generation: Generation,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// What the VMM prints on every start and means nothing by.
    pub harmless_stderr: Vec<String>,
    /// Locked by the keeper for as long as the VMM may write to it.
    pub data_disk: PathBuf,
    pub durability: Durability,
    pub limits: Limits,
    /// From the VMM's start to its first answer.
    pub start_deadline: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Of the VMM and the keeper together.
    pub memory: Bytes,
    pub processes: u32,
    pub cpus: CpuCount,
}

impl Spec {
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        File::open(path)?.take(MAX).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}
