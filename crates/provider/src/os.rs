//! The only unsafe code of this crate: what must happen between `fork` and `exec`, descriptors taken over from a parent,
//! one `ioctl`, and two CPU instructions.

#![allow(unsafe_code)]

use std::{
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};
use tokio::io::unix::AsyncFd;

/// The first descriptor number that is free for passing files to a child.
pub(crate) const FIRST_PASSED_FD: RawFd = 3;
/// Descriptors to be passed are moved up here before `fork`, so that none is overwritten by another's number.
const ABOVE_PASSED: RawFd = 64;

/// Makes `command` start in a session of its own with nothing inherited but its standard streams and `passed` as
/// descriptors 3, 4, ... It survives its parent and is not reached by the terminal's Ctrl-C.
pub(crate) fn detach(command: &mut Command, passed: &[BorrowedFd<'_>]) -> io::Result<()> {
    let held = hold(passed)?;
    // SAFETY: only async-signal-safe system calls on plain integers; `held` was allocated before the fork and
    // is only read. The `OwnedFd`s live in the closure, so they are open until the command is dropped.
    unsafe {
        command.pre_exec(move || {
            check(libc::setsid())?;
            place(&held)
        });
    }
    Ok(())
}

/// Duplicates out of the way of the numbers they will get.
fn hold(passed: &[BorrowedFd<'_>]) -> io::Result<Vec<OwnedFd>> {
    passed.iter().map(|fd| Ok(rustix::io::fcntl_dupfd_cloexec(fd, ABOVE_PASSED)?)).collect()
}

/// Between `fork` and `exec`: the numbers from [`FIRST_PASSED_FD`] on are these and nothing else.
fn place(held: &[OwnedFd]) -> io::Result<()> {
    for (index, fd) in held.iter().enumerate() {
        // SAFETY: a plain system call on integers. The number it overwrites is nobody's who runs here: after a fork
        // only this code does.
        check(unsafe { libc::dup2(fd.as_raw_fd(), FIRST_PASSED_FD + index as RawFd) })?;
    }
    close_on_exec_from(FIRST_PASSED_FD + held.len() as RawFd)
}

/// Takes over the descriptors 3, 4, ... that the parent passed by [`detach`]. To be called once, before this process
/// opens anything that it keeps.
pub(crate) fn take_passed(count: usize) -> io::Result<Vec<OwnedFd>> {
    (0..count)
        .map(|index| {
            let number = FIRST_PASSED_FD + index as RawFd;
            // SAFETY: a plain system call on an integer; it fails if there is no such descriptor.
            check(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
            // SAFETY: it is open, as was just seen, and by the contract above nothing else here owns it.
            Ok(unsafe { OwnedFd::from_raw_fd(number) })
        })
        .collect()
}

/// Makes `command` a child that cannot outlive the calling *thread*, in a process group of its own, with
/// `passed` as descriptors 3, 4, ... and nothing else inherited.
///
/// Call it, and spawn, on a thread that lives as long as the child may: the kernel sends the death signal
/// when the thread that forked ends.
pub(crate) fn bind_to_this_thread(command: &mut Command, passed: Vec<OwnedFd>) -> io::Result<()> {
    let held = hold(&passed.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
    let parent = rustix::process::getpid().as_raw_nonzero().get();
    // SAFETY: only async-signal-safe system calls on plain integers; `held` was allocated before the fork and
    // is only read. The `OwnedFd`s live in the closure, so they are open until the command is dropped.
    unsafe {
        command.pre_exec(move || {
            check(libc::setpgid(0, 0))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // The parent may have died before the line above; then the signal will never come.
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            // Huge pages would back the few pages an idle guest touches with all of its memory.
            check(libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0))?;
            // A core dump would write the guest's memory to the host's disk.
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            check(libc::setrlimit(libc::RLIMIT_CORE, &none))?;
            place(&held)
        });
    }
    Ok(())
}

/// Has the host's kernel say to `command`, and to what it starts, that there is no `membarrier`. Programs do without it;
/// `runsc` registers for it whenever it starts itself, seven times for a sandbox, and waits some 10 ms each time.
pub(crate) fn without_membarrier(command: &mut Command) {
    #[cfg(target_arch = "x86_64")]
    const ARCH: u32 = 0xC000_003E;
    #[cfg(target_arch = "aarch64")]
    const ARCH: u32 = 0xC000_00B7;
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset, 0);
    let skip_unless = |value, steps| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, steps);
    let answer = |value| step(libc::BPF_RET | libc::BPF_K, value, 0);
    // `struct seccomp_data`: the call's number at 0, the architecture at 4.
    let mut filter = [
        load(4),
        skip_unless(ARCH, 3),
        load(0),
        skip_unless(libc::SYS_membarrier as u32, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: only system calls that are async-signal-safe; `filter` lives in the closure, and is read while the call lasts.
    unsafe {
        command.pre_exec(move || {
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
            // A kernel without it is a slower start and nothing else.
            let _filtered = libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program);
            Ok(())
        });
    }
}

/// Of a filter of system calls; `otherwise` steps are left out where a comparison fails.
fn step(code: u32, value: u32, otherwise: u8) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: otherwise, k: value }
}

/// Marks rather than closes: the standard library still needs its own pipe to report a failed `exec`.
fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: a plain system call on integers.
    let result =
        unsafe { libc::syscall(libc::SYS_close_range, first as u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Waits for a descriptor with the runtime.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the value owns its descriptor: the same one stays open until the registration, which holds the
    // value and gives no mutable access to it here, is dropped.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// A stretch of addresses, as the kernel reports it: `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PageRegion {
    pub start: u64,
    /// Behind its last byte.
    pub end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    regions_length: u64,
    max_pages: u64,
    inverted: u64,
    all_of: u64,
    any_of: u64,
    reported: u64,
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_ZERO_PAGE: u64 = 1 << 5;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// Asks the kernel (6.7 or later, else `ENOTTY`) which pages in `start..end` are a process's own: present or swapped
/// out, and neither a file's nor the shared page of zeros. Returns how many regions were found and up to where it
/// looked: call it again from there until that is `end`.
pub(crate) fn own_pages(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    regions: &mut [PageRegion],
) -> io::Result<(usize, u64)> {
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        flags: 0,
        start,
        end,
        walk_end: start,
        regions: regions.as_mut_ptr() as u64,
        regions_length: regions.len() as u64,
        max_pages: 0,
        inverted: PAGE_IS_FILE | PAGE_IS_ZERO_PAGE,
        all_of: PAGE_IS_FILE | PAGE_IS_ZERO_PAGE,
        any_of: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        // One that is the same for all that match, so that neighbours are one region.
        reported: PAGE_IS_FILE,
    };
    // SAFETY: the kernel reads and writes `arguments`, whose size it is told, and writes at most `regions_length`
    // regions, of a layout that any bytes are valid for, to memory that is borrowed mutably here.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as libc::Ioctl, &raw mut arguments) };
    check(found)?;
    Ok((found as usize, arguments.walk_end))
}

fn check(result: i32) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One CPUID leaf as `[eax, ebx, ecx, edx]`, or `None` where the CPU has no such leaf.
#[cfg(target_arch = "x86_64")]
pub(crate) fn cpuid(leaf: u32) -> Option<[u32; 4]> {
    #[allow(
        unused_unsafe,
        reason = "these became safe functions in newer compilers than the oldest we support"
    )]
    // SAFETY: every x86-64 CPU has CPUID; a leaf above the reported maximum is not asked for.
    let (maximum, result) = unsafe {
        use std::arch::x86_64::__cpuid;
        (__cpuid(leaf & 0xffff_0000).eax, __cpuid(leaf))
    };
    (leaf <= maximum).then_some([result.eax, result.ebx, result.ecx, result.edx])
}

/// The CPU's time-stamp counter.
#[cfg(target_arch = "x86_64")]
pub(crate) fn time_stamp_counter() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and Linux leaves it enabled in user space.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Write, process::Stdio};

    /// Prints the descriptors below 10 that the shell has. Built in: nothing is opened or forked for it.
    const LIST: &str = "for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && printf '%s ' $n; done; ";

    #[test]
    fn a_bound_child_gets_exactly_the_files_it_was_passed_and_dies_with_its_parent_thread() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"passed\n").unwrap();
        drop(writer);
        let leaked = rustix::io::dup(io::stderr().as_fd()).unwrap(); // not close-on-exec
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{LIST} cat <&3")]).stdout(Stdio::piped());
        bind_to_this_thread(&mut command, vec![reader.into()]).unwrap();
        let output = command.output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "0 1 2 3 passed\n");
        drop(leaked);

        let child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            command.arg("1000");
            bind_to_this_thread(&mut command, Vec::new()).unwrap();
            command.spawn().unwrap()
        });
        let status = child.join().unwrap().wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    #[test]
    fn a_detached_child_leads_its_own_session_and_inherits_only_its_streams() {
        let leaked = rustix::io::dup(io::stderr().as_fd()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{LIST} cut -d' ' -f6 /proc/$$/stat; echo $$")]);
        detach(&mut command, &[]).unwrap();
        let output = command.stdout(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let (fds, session) = lines[0].rsplit_once(' ').unwrap();
        assert_eq!(fds, "0 1 2");
        assert_eq!(session, lines[1], "session id is the process's own id");
        drop(leaked);
    }

    #[test]
    fn a_child_without_membarrier_has_every_other_call() {
        let code = format!(
            "import ctypes, os\nc = ctypes.CDLL(None, use_errno=True)\n\
             print(c.syscall({}, 0, 0, 0), ctypes.get_errno(), c.syscall({}) == os.getpid())",
            libc::SYS_membarrier,
            libc::SYS_getpid
        );
        let mut command = Command::new("python3");
        command.args(["-c", &code]);
        without_membarrier(&mut command);
        let output = command.output().unwrap();
        let expected = format!("-1 {} True\n", libc::ENOSYS);
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    }
}
