//! Making a child the cheap way: `clone3` with `CLONE_VM | CLONE_VFORK`.
//!
//! ```text
//! parent   block signals --- clone3 ---(suspended)------------------ unblock signals --> pid, report
//! child                        `-- run(report) on its own stack --> execve | write report, _exit
//! ```
//! A plain fork copies page tables and then takes a copy-on-write fault for every page either side touches:
//! milliseconds on an emulated CPU. Here the child borrows the parent's memory until it executes the program,
//! is born inside its cgroup (`CLONE_INTO_CGROUP`; migrating a process later waits for an RCU grace period),
//! and with all signal handlers cleared.
//!
//! The price: the calling thread stands still until the child's `execve` returns.

use rustix::fd::{AsRawFd, BorrowedFd};
use std::{ffi::c_void, io, mem::MaybeUninit, ptr};

/// Stack of the child until it executes. It runs a few system calls; 64 KiB leave room for unoptimised builds.
const STACK: usize = 64 * 1024;

// `libc` declares these two as `int`, which they overflow.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A child that was made. It has executed its program, or has failed to and is about to be a zombie.
#[derive(Debug)]
pub struct Cloned<R> {
    pub pid: i32,
    /// What the child wrote before it gave up; untouched when it executed its program.
    pub report: R,
}

/// Where a child is born.
#[derive(Debug, Clone, Copy)]
pub enum Birth<'a> {
    /// Where its parent is.
    #[cfg(test)]
    Beside,
    /// In this cgroup, by its open directory.
    In(BorrowedFd<'a>),
    /// Where its parent is, on a kernel that makes no child in a cgroup and clears no handlers: the child does both
    /// itself, before anything else, and moves by this `cgroup.procs`.
    Moves(BorrowedFd<'a>),
}

/// Makes a child that calls `run`, and waits until it has executed a program or ended.
///
/// # Safety
/// `run` is called in a child that shares this process' memory while the calling thread is suspended. It may
/// only make async-signal-safe calls, must not allocate, lock, panic or return, and must end in `execve` or
/// `_exit`, and where it is born by [`Birth::Moves`] it must see to both first. `C` must stay valid and unchanged for the duration of the call.
pub unsafe fn clone_and_run<C, R>(
    context: &C,
    report: R,
    birth: Birth<'_>,
    run: unsafe fn(&C, &mut R) -> !,
) -> io::Result<Cloned<R>> {
    let mut start = Start { context: ptr::from_ref(context), report, run };
    let mut stack: Vec<MaybeUninit<u8>> = Vec::with_capacity(STACK);
    let base = stack.as_mut_ptr() as u64;
    let top = (base + STACK as u64) & !15;

    // SAFETY: all-zero is a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (libc::CLONE_VM | libc::CLONE_VFORK) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.stack = base;
    arguments.stack_size = top - base;
    match birth {
        #[cfg(test)]
        Birth::Beside => arguments.flags |= CLONE_CLEAR_SIGHAND,
        Birth::In(cgroup) => {
            arguments.flags |= CLONE_CLEAR_SIGHAND | CLONE_INTO_CGROUP;
            arguments.cgroup = cgroup.as_raw_fd() as u64;
        }
        Birth::Moves(_) => {}
    }

    let blocked = BlockedSignals::block()?;
    // SAFETY: the child gets its own stack, and `trampoline` never returns on it. The parent is suspended by
    // CLONE_VFORK until the child is gone from this memory, so `start` and `stack` outlive its use of them.
    let result = unsafe { clone3(&raw const arguments, trampoline::<C, R>, (&raw mut start).cast()) };
    drop(blocked);
    if result < 0 {
        return Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL)));
    }
    Ok(Cloned { pid: i32::try_from(result).map_err(io::Error::other)?, report: start.report })
}

struct Start<C, R> {
    context: *const C,
    report: R,
    run: unsafe fn(&C, &mut R) -> !,
}

unsafe extern "C" fn trampoline<C, R>(start: *mut c_void) -> ! {
    // SAFETY: `clone_and_run` passed a pointer to its own `Start<C, R>`, which nobody else uses meanwhile.
    unsafe {
        let start = &mut *start.cast::<Start<C, R>>();
        (start.run)(&*start.context, &mut start.report)
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn clone3(
    arguments: *const libc::clone_args,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    data: *mut c_void,
) -> i64 {
    let result: i64;
    // SAFETY: in the parent only rax, rcx and r11 change. The child starts at the instruction after `syscall`
    // with rsp at the top of its own stack and calls `entry`, which does not return.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {data}",
            "call {entry}",
            "ud2",
            "2:",
            entry = in(reg) entry,
            data = in(reg) data,
            inout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") std::mem::size_of::<libc::clone_args>(),
            out("rcx") _,
            out("r11") _,
        );
    }
    result
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the agent's clone3 trampoline is written for x86_64 only");

/// A handler running in the child would run on the parent's memory: no signal may arrive before it is cleared.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn block() -> io::Result<Self> {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        let mut before = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: both sets are live; `sigfillset` and `pthread_sigmask` initialise them.
        unsafe {
            libc::sigfillset(all.as_mut_ptr());
            match libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) {
                0 => Ok(Self(before.assume_init())),
                error => Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set came from the kernel.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}
