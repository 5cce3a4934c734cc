//! Processes named so that they cannot be mistaken: a pid alone may have been given to a stranger since.

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fd::{AsFd, OwnedFd},
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};
use std::{
    io,
    time::{Duration, Instant},
};

/// One process of one boot of this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessId {
    pub pid: i32,
    /// Clock ticks from boot to its start: the second half of its identity.
    pub start_time: u64,
    pub boot_id: String,
}

/// A living process that was proven to be the one meant; signals through it reach no other.
#[derive(Debug)]
pub struct Process {
    id: ProcessId,
    fd: OwnedFd,
}

/// The fields of `/proc/PID/stat` used here.
struct Stat {
    parent: i32,
    start_time: u64,
    cpu_ticks: u64,
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may itself hold parentheses and blanks: count from its end.
    let fields: Vec<&str> = text.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let field = |number: usize| {
        let value = fields.get(number - 3).and_then(|field| field.parse::<u64>().ok());
        value.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat: field {number}"))
        })
    };
    let parent = fields.get(1).and_then(|field| field.parse().ok()).unwrap_or_default();
    Ok(Stat { parent, start_time: field(22)?, cpu_ticks: field(14)? + field(15)? })
}

/// This boot of the host.
pub fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl ProcessId {
    pub fn of(pid: i32) -> io::Result<Self> {
        Ok(Self { pid, start_time: stat(pid)?.start_time, boot_id: boot_id()? })
    }

    pub fn of_self() -> io::Result<Self> {
        Self::of(rustix::process::getpid().as_raw_nonzero().get())
    }

    /// The process if it still lives; `None` if it is gone, whoever has its pid now.
    pub fn find(&self) -> io::Result<Option<Process>> {
        let positive = Some(self.pid).filter(|pid| *pid > 0);
        let Some(pid) = positive.and_then(Pid::from_raw) else { return Ok(None) };
        if self.boot_id != boot_id()? {
            return Ok(None);
        }
        let fd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Read after the descriptor was opened: if the pid was reused before that, the start time differs; it
        // cannot be reused afterwards without the descriptor showing the end.
        match stat(self.pid) {
            Ok(stat) if stat.start_time == self.start_time => {
                let process = Process { id: self.clone(), fd };
                Ok((!process.has_ended()).then_some(process))
            }
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Process {
    pub fn id(&self) -> &ProcessId {
        &self.id
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Ended, reaped or not.
    pub fn has_ended(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Blocks until it has ended; `false` if it has not within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}

impl AsFd for Process {
    fn as_fd(&self) -> rustix::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The living children of a process.
pub(crate) fn children(parent: i32) -> io::Result<Vec<Process>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that ended meanwhile is no child any more.
        if stat(pid).is_ok_and(|stat| stat.parent == parent)
            && let Ok(id) = ProcessId::of(pid)
        {
            found.extend(id.find()?);
        }
    }
    Ok(found)
}

/// Processor time used so far by all threads of a process.
pub(crate) fn cpu_time(pid: i32) -> io::Result<Duration> {
    let ticks = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_millis(stat(pid)?.cpu_ticks * 1000 / ticks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_living_process_is_found_and_signalled_only_by_its_full_identity() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        let found = id.find().unwrap().expect("it lives");

        let later = ProcessId { start_time: id.start_time + 1, ..id.clone() };
        assert!(later.find().unwrap().is_none(), "same pid, other start");
        let other_boot = ProcessId { boot_id: "another".into(), start_time: id.start_time, pid: id.pid };
        assert!(other_boot.find().unwrap().is_none(), "same pid, other boot");

        assert!(!found.has_ended());
        found.signal(Signal::KILL).unwrap();
        assert!(found.wait(Duration::from_secs(5)));
        assert!(id.find().unwrap().is_none(), "a zombie has ended");
        child.wait().unwrap();
        found.signal(Signal::KILL).unwrap();
        assert!(id.find().unwrap().is_none());
    }

    #[test]
    fn children_are_found_while_they_live() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        let found = |id: &ProcessId| children(me).unwrap().iter().any(|child| child.id() == id);
        assert!(found(&id));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!found(&id));
    }

    #[test]
    fn nonsense_pids_are_nobody() {
        let me = ProcessId::of_self().unwrap();
        assert!(me.find().unwrap().is_some());
        for pid in [0, -1, i32::MIN, i32::MAX] {
            assert!(ProcessId { pid, ..me.clone() }.find().unwrap().is_none(), "{pid}");
        }
    }
}
