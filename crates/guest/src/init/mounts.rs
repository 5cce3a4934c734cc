//! Mounts of the initramfs, the switch to the VM's root, and the filesystems programs expect there.

use super::{InitError, Step, disks};
use rustix::{
    fs::{Mode, mkdirat},
    io::Errno,
    mount::{MountFlags, mount, mount_move},
};
use std::{ffi::CStr, fs, os::unix::fs::symlink};

const NEW_ROOT: &str = "/newroot";
const NO_EXEC: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

fn mount_new(
    kind: &'static str,
    target: &'static str,
    flags: MountFlags,
    data: Option<&CStr>,
) -> Result<(), InitError> {
    fs::create_dir_all(target).step("create", target)?;
    mount(kind, target, kind, flags, data).step("mount", target)
}

pub(super) fn mount_tmpfs(target: &'static str, data: &CStr) -> Result<(), InitError> {
    mount_new("tmpfs", target, MountFlags::NOSUID | MountFlags::NODEV, Some(data))
}

pub fn kernel_interfaces() -> Result<(), InitError> {
    mount_new("proc", "/proc", NO_EXEC, None)?;
    mount_new("sysfs", "/sys", NO_EXEC, None)?;
    mount_new("devtmpfs", "/dev", MountFlags::NOSUID, Some(c"mode=0755"))
}

/// Lays the data disk over the root disk and makes that the root of everything.
pub fn overlay_and_switch_root() -> Result<(), InitError> {
    for directory in ["upper", "work"] {
        let path = format!("{}/{directory}", disks::DATA);
        match mkdirat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).step("create", path),
        }
    }
    fs::create_dir_all(NEW_ROOT).step("create", NEW_ROOT)?;
    debug_assert_eq!((disks::LOWER, disks::DATA), ("/lower", "/data"));
    // `redirect_dir`: without it a directory of the image cannot be renamed.
    let layers = c"lowerdir=/lower,upperdir=/data/upper,workdir=/data/work,redirect_dir=on";
    mount("overlay", NEW_ROOT, "overlay", MountFlags::empty(), Some(layers))
        .step("mount overlay", NEW_ROOT)?;
    for interface in ["proc", "sys", "dev"] {
        let target = format!("{NEW_ROOT}/{interface}");
        fs::create_dir_all(&target).step("create", &target)?;
        mount_move(format!("/{interface}"), &target).step("move mount to", &target)?;
    }
    rustix::process::chdir(NEW_ROOT).step("enter", NEW_ROOT)?;
    mount_move(".", "/").step("move mount to", "/")?;
    rustix::process::chroot(".").step("change root to", NEW_ROOT)?;
    rustix::process::chdir("/").step("enter", "/")
}

pub fn runtime_filesystems() -> Result<(), InitError> {
    mount_new(
        "devpts",
        "/dev/pts",
        MountFlags::NOSUID | MountFlags::NOEXEC,
        Some(c"gid=5,mode=0620,ptmxmode=0666"),
    )?;
    mount_tmpfs("/dev/shm", c"mode=1777")?;
    mount_tmpfs("/run", c"mode=0755")?;
    mount_new("cgroup2", "/sys/fs/cgroup", NO_EXEC, None)?;
    // devtmpfs makes device nodes only; shells and scripts rely on these names.
    for (name, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        match symlink(target, name) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).step("link", name),
        }
    }
    Ok(())
}
