//! The VM's disks, told apart by the serial the host gave them: `root` (erofs, shared by every VM of the image,
//! read-only) and `data` (ext4, this VM's own writes). Letters like `vda` follow probe order and mean nothing.

use super::{InitError, Step, ext4, mounts};
use crate::sys;
use rustix::{
    fd::OwnedFd,
    fs::{CWD, Mode, OFlags, openat},
    mount::{MountFlags, mount, mount_remount},
};
use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

pub(super) const LOWER: &str = "/lower";
pub(super) const DATA: &str = "/data";

/// The filesystem below the overlay's upper layer.
#[derive(Debug)]
pub enum DataDisk {
    /// The data disk's ext4, by its root directory: after the root switch no path leads to it.
    Ext4(OwnedFd),
    /// No disk: writes live in memory and end with the VM.
    Memory(OwnedFd),
    /// As [`Self::Memory`], in a sandbox: carried out by the agent before it ends.
    Sandbox(SandboxDisk),
}

/// What a sandbox's programs have written.
#[derive(Debug)]
pub struct SandboxDisk {
    /// What lies over the image, as an overlay keeps it.
    pub upper: OwnedFd,
    /// The root without what is mounted in it.
    pub root: OwnedFd,
}

impl DataDisk {
    /// Returns once the disk holds what programs had written when it was called.
    pub fn flush(&self) -> io::Result<()> {
        match self {
            Self::Ext4(directory) => Ok(rustix::fs::syncfs(directory)?),
            Self::Memory(_) | Self::Sandbox(_) => Ok(()),
        }
    }

    /// Its root directory, where the survey can look at it.
    pub fn directory(&self) -> Option<&OwnedFd> {
        match self {
            Self::Ext4(directory) | Self::Memory(directory) => Some(directory),
            Self::Sandbox(_) => None,
        }
    }

    /// Leaves nothing in the journal: the next mount, here or in a fork, finds a clean filesystem.
    pub fn make_clean(&self) -> io::Result<()> {
        let Self::Ext4(directory) = self else { return Ok(()) };
        self.flush()?;
        // The overlay first: it holds the disk for writing.
        let overlay = mount_remount("/", MountFlags::RDONLY, "");
        let own_path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        match overlay.and_then(|()| mount_remount(own_path, MountFlags::RDONLY, "")) {
            Ok(()) => Ok(()),
            // A process that cannot be killed (stuck in the kernel) keeps a file open for writing. Freezing
            // empties the journal all the same.
            Err(_) => sys::freeze(directory),
        }
    }
}

/// The device node of the disk with this serial.
pub fn find(serial: &str) -> Result<Option<PathBuf>, InitError> {
    for entry in fs::read_dir("/sys/block").step("list", "/sys/block")? {
        let entry = entry.step("list", "/sys/block")?;
        // Disks without a serial, and those that vanish, are not ours.
        let Ok(found) = fs::read_to_string(entry.path().join("serial")) else { continue };
        if found.trim_end_matches(['\n', '\0']) == serial {
            let node = Path::new("/dev").join(entry.file_name());
            return Ok(node.exists().then_some(node));
        }
    }
    Ok(None)
}

/// Mounts the root disk; returns its root directory, which no path leads to after the root switch.
pub fn mount_root(device: &Path) -> Result<OwnedFd, InitError> {
    fs::create_dir_all(LOWER).step("create", LOWER)?;
    mount(device, LOWER, "erofs", MountFlags::RDONLY | MountFlags::NOATIME, None)
        .step("mount root disk", device.display())?;
    open_directory(LOWER)
}

pub(super) fn open_directory(path: &'static str) -> Result<OwnedFd, InitError> {
    openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step("open", path)
}

/// Mounts the data disk, grown to the device's size, or memory when there is none.
pub fn mount_data(device: Option<&Path>) -> Result<DataDisk, InitError> {
    fs::create_dir_all(DATA).step("create", DATA)?;
    let Some(device) = device else {
        mounts::mount_tmpfs(DATA, c"mode=0700")?;
        return Ok(DataDisk::Memory(open_directory(DATA)?));
    };
    mount(device, DATA, "ext4", MountFlags::NOATIME, Some(c"errors=remount-ro"))
        .step("mount data disk", device.display())?;
    let directory = open_directory(DATA)?;
    ext4::grow(device, &directory)?;
    Ok(DataDisk::Ext4(directory))
}
