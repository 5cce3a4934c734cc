//! PID 1 of a gVisor sandbox: its kernel comes with root, /proc, /sys, /dev, /tmp and /run mounted as the host said, and
//! with the loopback interface up, and without devices, modules or disks.

use super::{Booted, CommandLine, DataDisk, InitError, Step, identity, take_on_identity};
use crate::port::Way;
use rustix::mount::mount_bind;
use std::{fs::Permissions, os::unix::fs::PermissionsExt};

const SHARED_MEMORY: &str = "/dev/shm";
const CGROUPS: &str = "/sys/fs/cgroup";
/// One of the hierarchies of the first generation that gVisor mounts.
const PROCESSES: &str = "/sys/fs/cgroup/pids";

/// Adds what is missing. Called once, by PID 1, before any thread or runtime exists.
pub fn enter(given: &CommandLine) -> Result<Booted, InitError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    // The hierarchy that limits and lists processes, where the unified one is elsewhere.
    mount_bind(PROCESSES, CGROUPS).step("mount", CGROUPS)?;
    std::fs::create_dir_all(SHARED_MEMORY).step("create", SHARED_MEMORY)?;
    // As on any other machine: everybody's, and nobody removes what another put there.
    std::fs::set_permissions(SHARED_MEMORY, Permissions::from_mode(0o1777)).step("open", SHARED_MEMORY)?;
    identity::files_in_memory()?;
    take_on_identity(given)?;
    Ok(Booted { data: DataDisk::Kernel, image: None, port: Way::StandardInput })
}
