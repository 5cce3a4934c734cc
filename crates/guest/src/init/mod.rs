//! PID 1 of the initramfs: from the kernel's hand-over to a VM in which programs can run.
//!
//! ```text
//! /proc /sys /dev -> modules -> disks by serial -> erofs root (read-only)  \
//!                                             `-> ext4 data disk, or tmpfs  > overlay -> switch root
//! -> /dev/pts /dev/shm /run cgroup2 -> loopback, hostname, machine id -> ready
//! ```
//! Any failure is final: [`crate::fatal`] says why on the console and powers off, so that the host sees an end
//! with a reason instead of a VM that never answers.

mod cmdline;
mod disks;
mod ext4;
mod identity;
mod modules;
mod mounts;
mod sandbox;
mod uevents;

pub use disks::{DataDisk, SandboxDisk};
pub use identity::{MACHINE_ID, set_hostname, set_machine_id};
pub use uevents::Uevents;

pub use cmdline::CommandLine;
use rustix::fd::OwnedFd;
pub use sandbox::enter as enter_sandbox;
use std::{
    fmt, io,
    time::{Duration, Instant},
};

/// How long a device may take to appear. Generous: an emulated CPU on a busy host is slow, and the host has a
/// boot deadline of its own.
const DEVICE_DEADLINE: Duration = Duration::from_secs(20);

/// One step of bringing the VM up failed.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("{operation} {operand}")]
    Io {
        operation: &'static str,
        operand: String,
        #[source]
        source: io::Error,
    },
    #[error("no {what} appeared within {} s", .after.as_secs())]
    Missing { what: String, after: Duration },
    #[error("{what}: {why}")]
    Invalid { what: String, why: &'static str },
}

/// Attaches operation and operand to a failed system call.
trait Step<T> {
    fn step(self, operation: &'static str, operand: impl fmt::Display) -> Result<T, InitError>;
}

impl<T, E: Into<io::Error>> Step<T> for Result<T, E> {
    fn step(self, operation: &'static str, operand: impl fmt::Display) -> Result<T, InitError> {
        self.map_err(|source| InitError::Io {
            operation,
            operand: operand.to_string(),
            source: source.into(),
        })
    }
}

/// What the rest of the agent needs to know of the VM it was brought up in.
#[derive(Debug)]
pub struct Booted {
    /// Where writes go. Its filesystem is hidden from the VM's own processes and outlives the root switch.
    pub data: DataDisk,
    /// The image's root directory, which lies below that, where it can be looked at apart.
    pub image: Option<OwnedFd>,
    /// The way to the host.
    pub port: crate::port::Way,
}

/// Brings the VM up. Called once, by PID 1, before any thread or runtime exists.
pub fn bring_up(port_name: &str) -> Result<Booted, InitError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    mounts::kernel_interfaces()?;
    // Bound before the first module: no device can appear unnoticed.
    let uevents = Uevents::open()?;
    let deadline = Instant::now() + DEVICE_DEADLINE;
    modules::load_all()?;
    let root = uevents.wait_for("disk with serial `root`", deadline, || disks::find("root"))?;
    let image = disks::mount_root(&root)?;
    // The kernel probes the disks of one bus in one go: with `root` here, a missing `data` does not exist.
    let data = disks::mount_data(disks::find("data")?.as_deref())?;
    mounts::overlay_and_switch_root()?;
    mounts::runtime_filesystems()?;
    identity::loopback_up()?;
    identity::files_in_memory()?;
    take_on_identity(&CommandLine::read()?)?;
    let what = format!("virtio port `{port_name}`");
    let port = uevents.wait_for(&what, deadline, || crate::port::find(port_name))?;
    Ok(Booted { data, image: Some(image), port: crate::port::Way::Device(port) })
}

fn take_on_identity(given: &CommandLine) -> Result<(), InitError> {
    if let Some(hostname) = given.value("offshoot.hostname") {
        identity::set_hostname(hostname)?;
    }
    if let Some(machine_id) = given.value("systemd.machine_id") {
        identity::set_machine_id(machine_id)?;
    }
    Ok(())
}
