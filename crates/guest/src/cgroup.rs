//! What is done to all processes of a cgroup, on kernels that do it themselves and on those that do not.
//!
//! ```text
//! /sys/fs/cgroup       Linux: the unified hierarchy.   gVisor: the hierarchy of `pids`, of the first generation
//!   offshoot/{user,contexts,hooks}/<name>              the same tree on both
//! ```

use crate::kernel::Kernel;
use rustix::process::{Pid, Signal, kill_process};
use std::{collections::BTreeSet, fs, io, path::Path};

/// Rounds of looking for processes that were made while others were killed: a fork bomb ends in a few.
const ROUNDS: usize = 1000;

/// The processes in a cgroup and in those below it.
pub fn processes_below(cgroup: &Path) -> Vec<Pid> {
    let mut found = Vec::new();
    let mut pending = vec![cgroup.to_owned()];
    while let Some(directory) = pending.pop() {
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
        if let Ok(entries) = fs::read_dir(&directory) {
            let directories =
                entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            pending.extend(directories.map(|entry| entry.path()));
        }
    }
    found
}

/// Whether any process is in a cgroup or below it.
pub fn is_populated(kernel: Kernel, cgroup: &Path) -> io::Result<bool> {
    match kernel {
        Kernel::Linux => {
            let events = fs::read_to_string(cgroup.join("cgroup.events"))?;
            Ok(events.lines().any(|line| line == "populated 1"))
        }
        Kernel::Gvisor => Ok(!processes_below(cgroup).is_empty()),
    }
}

/// SIGKILL to every process in a cgroup and below it.
pub fn kill(kernel: Kernel, cgroup: &Path) -> io::Result<()> {
    match kernel {
        Kernel::Linux => fs::write(cgroup.join("cgroup.kill"), "1"),
        Kernel::Gvisor => {
            let mut killed = BTreeSet::new();
            for _ in 0..ROUNDS {
                // What was killed makes no more processes; what it had made by then is seen in the next round.
                let found = processes_below(cgroup);
                let new: Vec<Pid> = found.into_iter().filter(|pid| killed.insert(pid.as_raw_pid())).collect();
                if new.is_empty() {
                    return Ok(());
                }
                for pid in new {
                    // Gone meanwhile: as wanted.
                    let _gone = kill_process(pid, Signal::KILL);
                }
            }
            Err(io::Error::other(format!("{}: processes are made faster than killed", cgroup.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_found_in_all_cgroups_below() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("a/b")).unwrap();
        fs::write(top.path().join("cgroup.procs"), "").unwrap();
        assert!(!is_populated(Kernel::Gvisor, top.path()).unwrap());
        fs::write(top.path().join("a/cgroup.procs"), "7\n").unwrap();
        fs::write(top.path().join("a/b/cgroup.procs"), "9\n11\n").unwrap();
        let mut found: Vec<i32> = processes_below(top.path()).iter().map(|pid| pid.as_raw_pid()).collect();
        found.sort_unstable();
        assert_eq!(found, [7, 9, 11]);
        assert!(is_populated(Kernel::Gvisor, top.path()).unwrap());
    }

    #[test]
    fn killing_by_hand_reaches_every_process_once() {
        let top = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(top.path().join("cgroup.procs"), format!("{}\n", child.id())).unwrap();
        kill(Kernel::Gvisor, top.path()).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }
}
