//! From a resolved command to a process that runs it.
//!
//! ```text
//! setsid -> controlling terminal -> stdin, stdout, stderr -> limits -> groups, gid, uid -> working directory
//! -> default signals -> execve of each candidate in PATH
//! ```
//! Everything is prepared before the child exists; the child only makes system calls (see [`crate::sys`]) and
//! reports the first that fails, so that a program that cannot run is an error and not an exit status.

use super::command::{Command, Directory};
use crate::sys::{self, Birth, Cloned, FileIdentity};
use rustix::{
    fd::{AsRawFd, BorrowedFd},
    io::Errno,
    process::{Gid, Uid},
};
use std::{ffi::CString, io, os::raw::c_char, ptr};

/// What the child becomes. All of it is made before the child, which must not allocate.
#[derive(Debug)]
pub struct Launch<'a> {
    pub command: &'a Command,
    pub identity: &'a FileIdentity,
    pub stdin: BorrowedFd<'a>,
    pub stdout: BorrowedFd<'a>,
    pub stderr: BorrowedFd<'a>,
    /// Further descriptors and the numbers they get, from 3 on. The sources have higher numbers than any of those.
    pub extra: &'a [(BorrowedFd<'a>, i32)],
    /// Stdin is a terminal and shall control the session.
    pub terminal: bool,
    pub birth: Birth<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Cgroup,
    Session,
    Terminal,
    Streams,
    Limits,
    Identity,
    Directory,
    Program,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("make a process")]
    Clone(#[source] io::Error),
    #[error("{step:?}")]
    Child {
        step: Step,
        #[source]
        source: io::Error,
    },
}

impl Launch<'_> {
    /// Makes the process and answers its pid once it runs the program.
    pub fn start(&self) -> Result<i32, LaunchError> {
        let pointers = |strings: &[CString]| -> Vec<*const c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
        };
        let argv = pointers(&self.command.argv);
        let environment = pointers(&self.command.environment);
        let groups: Vec<Gid> = self.identity.groups.iter().copied().map(Gid::from_raw).collect();
        let child = Child { launch: self, argv: &argv, environment: &environment, groups: &groups };
        // SAFETY: `Child::run` keeps to the rules: system calls on prepared memory, ending in execve or _exit;
        // `child` and all it refers to outlive the call.
        let cloned = unsafe { sys::clone_and_run(&child, None, self.birth, Child::run) };
        match cloned.map_err(LaunchError::Clone)? {
            Cloned { report: None, pid } => Ok(pid),
            // Its zombie is an unexpected child, which the reaper takes.
            Cloned { report: Some(Report { step, errno }), .. } => {
                Err(LaunchError::Child { step, source: io::Error::from_raw_os_error(errno) })
            }
        }
    }
}

struct Child<'a> {
    launch: &'a Launch<'a>,
    argv: &'a [*const c_char],
    environment: &'a [*const c_char],
    groups: &'a [Gid],
}

#[derive(Debug)]
struct Report {
    step: Step,
    errno: i32,
}

impl Child<'_> {
    /// # Safety
    /// Only in a child made by [`sys::clone_and_run`].
    unsafe fn run(&self, report: &mut Option<Report>) -> ! {
        // SAFETY: passed on from the caller.
        let (step, errno) = unsafe { self.become_program() };
        *report = Some(Report { step, errno: errno.raw_os_error() });
        // SAFETY: ends this process only; nothing of the parent is run or flushed.
        unsafe { libc::_exit(127) }
    }

    /// Answers only on failure. `rustix` makes these system calls itself: no libc state of the parent is touched.
    ///
    /// # Safety
    /// As [`Self::run`].
    unsafe fn become_program(&self) -> (Step, Errno) {
        if let Err(failed) = self.prepare() {
            return failed;
        }
        let mut denied = false;
        for program in &self.launch.command.programs {
            // SAFETY: both arrays end in a null pointer and point to strings that outlive the call.
            unsafe { libc::execve(program.as_ptr(), self.argv.as_ptr(), self.environment.as_ptr()) };
            // SAFETY: reads this thread's errno, set by the failed call.
            match unsafe { *libc::__errno_location() } {
                libc::ENOENT | libc::ENOTDIR => {}
                // As a shell does: another directory of PATH may hold one we are allowed to run.
                libc::EACCES => denied = true,
                errno => return (Step::Program, Errno::from_raw_os_error(errno)),
            }
        }
        (Step::Program, if denied { Errno::ACCESS } else { Errno::NOENT })
    }

    fn prepare(&self) -> Result<(), (Step, Errno)> {
        let launch = self.launch;
        let at = |step| move |errno| (step, errno);
        if let Birth::Moves(procs) = launch.birth {
            // Handlers first: one of the parent's would run on its memory. None is ours to keep, nor any of a real-time signal.
            for signal in 1..32 {
                // SAFETY: sets a disposition of this process, which shares none with the parent.
                unsafe { libc::signal(signal, libc::SIG_DFL) };
            }
            rustix::io::write(procs, b"0").map_err(at(Step::Cgroup))?;
        }
        rustix::process::setsid().map_err(at(Step::Session))?;
        if launch.terminal {
            rustix::process::ioctl_tiocsctty(launch.stdin).map_err(at(Step::Terminal))?;
        }
        for (stream, target) in [(launch.stdin, 0), (launch.stdout, 1), (launch.stderr, 2)] {
            // SAFETY: no memory is passed. The sources are above 2: those are the agent's own console.
            if unsafe { libc::dup2(stream.as_raw_fd(), target) } < 0 {
                return Err((Step::Streams, Errno::BADF));
            }
        }
        for (source, target) in launch.extra {
            // SAFETY: no memory is passed. Sources lie above all targets, so none was overwritten.
            if unsafe { libc::dup2(source.as_raw_fd(), *target) } < 0 {
                return Err((Step::Streams, Errno::BADF));
            }
        }
        for (resource, limit) in &launch.command.limits {
            rustix::process::setrlimit(*resource, *limit).map_err(at(Step::Limits))?;
        }
        let (uid, gid) = (Uid::from_raw(launch.identity.uid), Gid::from_raw(launch.identity.gid));
        if rustix::process::geteuid().is_root() {
            rustix::thread::set_thread_groups(self.groups).map_err(at(Step::Identity))?;
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(Step::Identity))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(Step::Identity))?;
        } else if rustix::process::geteuid() != uid {
            return Err((Step::Identity, Errno::PERM));
        }
        // After the identity: only where the user may go.
        match &launch.command.directory {
            Directory::Chosen(path) => {
                rustix::process::chdir(path.as_c_str()).map_err(at(Step::Directory))?;
            }
            Directory::Home(path) => rustix::process::chdir(path.as_c_str())
                .or_else(|_| rustix::process::chdir(c"/"))
                .map_err(at(Step::Directory))?,
        }
        // Rust ignores SIGPIPE, and what is ignored stays so across execve. Handlers were cleared before.
        // SAFETY: sets dispositions and masks of this process, which shares none with the parent.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(none.as_mut_ptr());
            libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        }
        Ok(())
    }
}
