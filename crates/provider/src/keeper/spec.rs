//! What a keeper is told to run: written by the daemon before the keeper starts, read once.

use crate::{DiskStack, Durability};
use offshoot_types::{Bytes, CpuCount, Generation, SnapshotId, VmId, VmName};
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
/// A saved device state, where there is one to continue from.
pub(crate) const DEVICE_STATE_FD: RawFd = 6;
/// The complete memory to be mapped privately, if it is not zeros. Only beside a device state.
pub(crate) const MEMORY_BASE_FD: RawFd = 7;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spec {
    pub vm: VmId,
    pub name: VmName,
    pub generation: Generation,
    pub state_dir: PathBuf,
    pub runtime_dir: PathBuf,
    pub monitor: Monitor,
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// What the VMM prints on every start and means nothing by.
    pub harmless_stderr: Vec<String>,
    /// Its first layer is locked by the keeper for as long as the VMM may write to it.
    pub disk: DiskStack,
    pub durability: Durability,
    /// Of the guest.
    pub memory: Bytes,
    /// The snapshot whose complete memory the VMM maps; it is passed as the keeper's first descriptor.
    pub memory_base: Option<SnapshotId>,
    pub restore: Option<Restore>,
    pub limits: Limits,
    /// From the VMM's start to its first answer.
    pub start_deadline: Duration,
}

/// How the program is spoken to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Monitor {
    /// By QMP, and it gets the descriptors above.
    Qemu,
    /// `runsc` runs it, and its kernel is asked at the socket that `runsc` made.
    Sandbox {
        /// The OCI bundle to run.
        bundle: PathBuf,
    },
}

/// What a VM continues from instead of booting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restore {
    pub device_state: PathBuf,
    /// The number of runs in the delta, which is passed as the keeper's last descriptor.
    pub delta_runs: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Of the VMM.
    pub memory: Bytes,
    pub processes: u32,
    pub cpus: CpuCount,
}

impl Spec {
    /// How many descriptors come with it.
    pub fn passed(&self) -> usize {
        let delta = self.restore.as_ref().is_some_and(|restore| restore.delta_runs.is_some());
        usize::from(self.memory_base.is_some()) + usize::from(delta)
    }

    pub fn read(path: &Path) -> io::Result<Self> {
        let mut text = Vec::new();
        File::open(path)?.take(MAX).read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}
