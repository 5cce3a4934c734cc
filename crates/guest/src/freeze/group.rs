//! The processes of one cgroup, made to stand still.
//!
//! Linux freezes a cgroup. gVisor's kernel does not: there every process is stopped by SIGSTOP, and those that were
//! stopped by it, no others, go on by SIGCONT. Children go on before their parents, so that a shell which looks after its
//! jobs does not find one stopped.

use crate::{cgroup::processes_below, fault::Context, kernel::Kernel};
use offshoot_guest_proto::message::GuestError;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    means: Means,
}

#[derive(Debug)]
enum Means {
    Freezer,
    /// Holds the pids that were stopped.
    Signals(Mutex<BTreeSet<i32>>),
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Observed {
    Running,
    Stopped,
    /// Ended, reaped or not.
    Ended,
}

impl Group {
    pub fn new(kernel: Kernel, path: PathBuf) -> Self {
        let means = match kernel {
            Kernel::Linux => Means::Freezer,
            Kernel::Gvisor => Means::Signals(Mutex::default()),
        };
        Self { path, means }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Orders it to stand still, or to run; [`Self::stands_still`] says when it does.
    pub fn set(&self, frozen: bool) -> Result<(), GuestError> {
        match &self.means {
            Means::Freezer => {
                let path = self.path.join("cgroup.freeze");
                fs::write(&path, if frozen { "1" } else { "0" }).context("write", path.display())
            }
            Means::Signals(stopped) if frozen => self.stop_running(&mut lock(stopped)).map(drop),
            Means::Signals(stopped) => {
                // A child's pid is larger than its parent's.
                for pid in std::mem::take(&mut *lock(stopped)).into_iter().rev().filter_map(Pid::from_raw) {
                    // Gone meanwhile: nothing is left to go on.
                    let _gone = kill_process(pid, Signal::CONT);
                }
                Ok(())
            }
        }
    }

    pub fn stands_still(&self) -> Result<bool, GuestError> {
        match &self.means {
            Means::Freezer => {
                let path = self.path.join("cgroup.events");
                let events = fs::read_to_string(&path).context("read", path.display())?;
                Ok(events.lines().any(|line| line == "frozen 1"))
            }
            // Those that were made while others were stopped are found now.
            Means::Signals(stopped) => self.stop_running(&mut lock(stopped)),
        }
    }

    /// How many processes there are in it.
    pub fn processes(&self) -> usize {
        processes_below(&self.path).len()
    }

    /// Processes and threads, where the kernel counts both.
    pub fn threads(&self) -> Result<u32, GuestError> {
        match &self.means {
            Means::Freezer => {
                let path = self.path.join("pids.current");
                let text = fs::read_to_string(&path).context("read", path.display())?;
                Ok(text.trim().parse().unwrap_or(0))
            }
            Means::Signals(_) => Ok(u32::try_from(self.processes()).unwrap_or(u32::MAX)),
        }
    }

    /// Signals whatever runs; whether nothing did.
    fn stop_running(&self, stopped: &mut BTreeSet<i32>) -> Result<bool, GuestError> {
        let mut all_stand = true;
        for pid in processes_below(&self.path) {
            match observe(pid) {
                // By us, or by a user's own SIGSTOP, which is not ours to undo.
                Observed::Stopped | Observed::Ended => {}
                Observed::Running => {
                    all_stand = false;
                    stopped.insert(pid.as_raw_pid());
                    match kill_process(pid, Signal::STOP) {
                        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                        Err(errno) => return Err(errno).context("stop process", pid.as_raw_pid()),
                    }
                }
            }
        }
        Ok(all_stand)
    }
}

fn lock(stopped: &Mutex<BTreeSet<i32>>) -> MutexGuard<'_, BTreeSet<i32>> {
    stopped.lock().unwrap_or_else(PoisonError::into_inner)
}

fn observe(pid: Pid) -> Observed {
    let Ok(text) = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())) else {
        return Observed::Ended;
    };
    // The name in parentheses may itself hold parentheses and blanks: look behind its end.
    match text.rsplit_once(')').and_then(|(_, rest)| rest.split_ascii_whitespace().next()) {
        Some("T" | "t") => Observed::Stopped,
        Some("Z" | "X") | None => Observed::Ended,
        Some(_) => Observed::Running,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        process::{Child, Command},
        time::{Duration, Instant},
    };

    struct Sleeper(Child);

    impl Sleeper {
        fn start() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }

        fn becomes(&self, wanted: Observed) {
            let until = Instant::now() + Duration::from_secs(10);
            while observe(self.pid()) != wanted {
                assert!(Instant::now() < until, "it is {:?}", observe(self.pid()));
                std::thread::yield_now();
            }
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            drop(self.0.kill());
            drop(self.0.wait());
        }
    }

    #[test]
    fn signals_stop_what_runs_and_leave_what_a_user_had_stopped() {
        let directory = tempfile::tempdir().unwrap();
        let (runs, stands) = (Sleeper::start(), Sleeper::start());
        kill_process(stands.pid(), Signal::STOP).unwrap();
        stands.becomes(Observed::Stopped);
        let pids = format!("{}\n{}\n", runs.0.id(), stands.0.id());
        fs::write(directory.path().join("cgroup.procs"), pids).unwrap();
        let group = Group::new(Kernel::Gvisor, directory.path().into());

        group.set(true).unwrap();
        let until = Instant::now() + Duration::from_secs(10);
        while !group.stands_still().unwrap() {
            assert!(Instant::now() < until);
        }
        assert_eq!((observe(runs.pid()), group.threads().unwrap()), (Observed::Stopped, 2));
        group.set(false).unwrap();
        runs.becomes(Observed::Running);
        assert_eq!(observe(stands.pid()), Observed::Stopped);
    }
}
