//! PID 1 of a gVisor sandbox: its kernel comes with /proc, /sys, /dev and /run mounted as the host said, and with the loopback
//! interface up, and without devices, modules or disks.
//!
//! ```text
//! image (erofs, read-only) --below--> overlay, the root of everything <--above-- upper, in a tmpfs that no path leads to
//! ```
//! The root is laid over the image here and not by the sandbox's kernel, which would not show what was written: so the agent
//! can carry it out when the VM is stopped.

use super::{
    Booted, CommandLine, DataDisk, InitError, Step,
    disks::{SandboxDisk, open_directory},
    identity,
    mounts::mount_tmpfs,
    take_on_identity,
};
use crate::port::Way;
use rustix::{
    fs::Mode,
    mount::{MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, unmount},
    process::{chdir, pivot_root},
};
use std::{fs::Permissions, os::unix::fs::PermissionsExt};

const SHARED_MEMORY: &str = "/dev/shm";
const CGROUPS: &str = "/sys/fs/cgroup";
/// One of the hierarchies of the first generation that gVisor mounts.
const PROCESSES: &str = "/sys/fs/cgroup/pids";
/// Where the new root is put together: a directory that every image has, of the root that is left.
const PLACE: &str = "/tmp";
/// What goes along into the new root.
const MOUNTED: [&str; 4] = ["proc", "sys", "dev", "run"];
/// Where the root that is left is for a moment.
const LEFT: &str = "/run/offshoot-left";

/// Adds what is missing. Called once, by PID 1, before any thread or runtime exists.
pub fn enter(given: &CommandLine) -> Result<Booted, InitError> {
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let data = DataDisk::Sandbox(own_root()?);
    // The hierarchy that limits and lists processes, where the unified one is elsewhere.
    mount_bind(PROCESSES, CGROUPS).step("mount", CGROUPS)?;
    std::fs::create_dir_all(SHARED_MEMORY).step("create", SHARED_MEMORY)?;
    // As on any other machine: everybody's, and nobody removes what another put there.
    std::fs::set_permissions(SHARED_MEMORY, Permissions::from_mode(0o1777)).step("open", SHARED_MEMORY)?;
    identity::files_in_memory()?;
    take_on_identity(given)?;
    Ok(Booted { data, image: None, port: Way::StandardInput })
}

/// Lays memory over the image and makes that the root.
fn own_root() -> Result<SandboxDisk, InitError> {
    mount_tmpfs(PLACE, c"mode=0700")?;
    for name in ["upper", "work", "root", "bare"] {
        std::fs::create_dir(format!("{PLACE}/{name}")).step("create", format!("{PLACE}/{name}"))?;
    }
    debug_assert_eq!(PLACE, "/tmp");
    let layers = c"lowerdir=/,upperdir=/tmp/upper,workdir=/tmp/work";
    mount("overlay", "/tmp/root", "overlay", MountFlags::empty(), Some(layers)).step("mount", "/tmp/root")?;
    mount_bind("/tmp/root", "/tmp/bare").step("mount", "/tmp/bare")?;
    let disk = SandboxDisk { upper: open_directory("/tmp/upper")?, root: open_directory("/tmp/bare")? };
    chdir("/tmp/root").step("enter", "/tmp/root")?;
    for name in MOUNTED {
        std::fs::create_dir_all(name).step("create", format!("/{name}"))?;
        mount_bind_recursive(format!("/{name}"), name).step("mount", format!("/{name}"))?;
    }
    std::fs::create_dir_all(LEFT).step("create", LEFT)?;
    pivot_root(".", LEFT.trim_start_matches('/')).step("change root to", "/tmp/root")?;
    chdir("/").step("enter", "/")?;
    unmount(LEFT, UnmountFlags::DETACH).step("unmount", LEFT)?;
    std::fs::remove_dir(LEFT).step("remove", LEFT)?;
    Ok(disk)
}
