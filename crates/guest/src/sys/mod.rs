//! System calls that neither `rustix` nor `tokio` offer. All unsafe code of the agent is in this folder.

mod clone;
mod identity;
mod registered;

pub use clone::{Birth, Cloned, clone_and_run};
pub use identity::FileIdentity;
pub use registered::{AsyncFd, Registered, keep_notes, notes_stay};

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::{io, mem::MaybeUninit, time::Duration};
use tokio::io::Interest;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Registers a non-blocking descriptor with the runtime.
pub fn async_fd(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd> {
    // SAFETY: an `OwnedFd` names one open descriptor from here until it is dropped, which deregisters first.
    let registered = unsafe { tokio::io::unix::AsyncFd::register_with_interest(fd, interest) };
    Ok(Registered::new(registered.map_err(io::Error::from)?))
}

/// A child as the kernel reported it, with the times of everything it had waited for.
#[derive(Debug, Clone, Copy)]
pub struct Reaped {
    pub pid: i32,
    /// As `waitpid` gives it.
    pub status: i32,
    pub user: Duration,
    pub system: Duration,
}

/// Reaps any one child that has ended; `None` when none has.
pub fn reap_any() -> io::Result<Option<Reaped>> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: both pointers are to live locals of the right types.
    let pid = unsafe { libc::wait4(-1, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
    if pid == 0 {
        return Ok(None);
    }
    if pid < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: zeroed is a valid `rusage`, and the kernel has filled it.
    let usage = unsafe { usage.assume_init() };
    Ok(Some(Reaped { pid, status, user: duration(usage.ru_utime), system: duration(usage.ru_stime) }))
}

fn duration(time: libc::timeval) -> Duration {
    Duration::from_secs(time.tv_sec.try_into().unwrap_or(0))
        + Duration::from_micros(time.tv_usec.try_into().unwrap_or(0))
}

/// Grows a mounted ext4 to `blocks` blocks.
pub fn ext4_resize(filesystem: impl AsFd, blocks: u64) -> io::Result<()> {
    // `_IOW('f', 16, __u64)`
    const EXT4_IOC_RESIZE_FS: libc::c_ulong = 0x4008_6610;
    // SAFETY: the ioctl reads one u64, which outlives the call.
    check(unsafe { libc::ioctl(filesystem.as_fd().as_raw_fd(), EXT4_IOC_RESIZE_FS, &raw const blocks) })
        .map(drop)
}

/// Stops all writes to a filesystem with its journal empty. Nothing thaws it: power is about to go.
pub fn freeze(filesystem: impl AsFd) -> io::Result<()> {
    // `_IOWR('X', 119, int)`
    const FIFREEZE: libc::c_ulong = 0xC004_5877;
    // SAFETY: the argument is ignored by the kernel.
    check(unsafe { libc::ioctl(filesystem.as_fd().as_raw_fd(), FIFREEZE, 0) }).map(drop)
}

/// Size of a block device in bytes.
pub fn block_device_size(device: impl AsFd) -> io::Result<u64> {
    // `_IOR(0x12, 114, size_t)`
    const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;
    let mut size = 0_u64;
    // SAFETY: the ioctl writes one u64, which outlives the call.
    check(unsafe { libc::ioctl(device.as_fd().as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Sets `IFF_UP` on the loopback interface.
pub fn loopback_up(socket: impl AsFd) -> io::Result<()> {
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the ioctl reads one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) })
        .map(drop)
}

/// Keeps freed memory of a megabyte instead of giving it back and faulting it in again for every process: on an
/// emulated CPU a page fault costs as much as the work on the page. One arena: only one thread allocates much.
pub fn keep_freed_memory() {
    // SAFETY: no memory is passed; called before other threads exist.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1024 * 1024);
        libc::mallopt(libc::M_TOP_PAD, 256 * 1024);
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Lets the kernel gradually move the clock by `offset`; replaces what is left of an earlier request.
pub fn slew_clock(offset_us: i64) -> io::Result<()> {
    // SAFETY: all-zero is a valid `timex`.
    let mut request: libc::timex = unsafe { std::mem::zeroed() };
    request.modes = libc::ADJ_OFFSET_SINGLESHOT;
    request.offset = offset_us;
    // SAFETY: reads and writes one `timex`, which outlives the call.
    check(unsafe { libc::adjtimex(&raw mut request) }).map(drop)
}

/// Mixes `entropy` into the kernel's random pool, credits it, and makes the generator start anew from the pool.
pub fn reseed_kernel(device: impl AsFd, entropy: &[u8; 64]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: libc::c_int,
        size: libc::c_int,
        bytes: [u8; 64],
    }
    // `_IOW('R', 0x03, int[2])` and `_IO('R', 0x07)`
    const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
    const RNDRESEEDCRNG: libc::c_ulong = 0x5207;
    let info = PoolInfo { entropy_bits: 512, size: 64, bytes: *entropy };
    let device = device.as_fd().as_raw_fd();
    // SAFETY: the ioctl reads a `rand_pool_info` with `size` bytes behind it, which outlives the call.
    check(unsafe { libc::ioctl(device, RNDADDENTROPY, &raw const info) })?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::ioctl(device, RNDRESEEDCRNG) }).map(drop)
}

/// Any signal, also a real-time one.
pub fn send_signal(pid: i32, number: i32) -> io::Result<()> {
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: no memory is passed; not a group, not everyone.
    check(unsafe { libc::kill(pid, number) }).map(drop)
}

/// Blocks until what was written to a terminal has left it.
pub fn drain_terminal(terminal: BorrowedFd<'_>) {
    // SAFETY: no memory is passed. A failure (not a terminal) leaves nothing to wait for.
    unsafe { libc::tcdrain(terminal.as_raw_fd()) };
}

#[cfg(test)]
pub fn become_subreaper() {
    // SAFETY: no memory is passed.
    unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
}
