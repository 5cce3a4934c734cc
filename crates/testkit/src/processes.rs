//! Finding processes by what their command line mentions, and ending them safely.

use rustix::process::{Pid, PidfdFlags, Signal};
use std::fs;

/// A live process whose command line was read from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    /// Arguments joined by blanks.
    pub command_line: String,
}

impl Process {
    /// SIGKILL by pidfd: the command line is read again through the same pid after the descriptor is open, so a
    /// recycled pid is never signalled. Returns whether it was still the same process.
    pub fn kill(&self) -> bool {
        let Some(pid) = Pid::from_raw(self.pid) else { return false };
        let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
        if command_line(self.pid).as_ref() != Some(&self.command_line) {
            return false;
        }
        rustix::process::pidfd_send_signal(&handle, Signal::KILL).is_ok()
    }

    pub fn is_alive(&self) -> bool {
        command_line(self.pid).as_ref() == Some(&self.command_line)
    }
}

/// Every process but our own whose command line contains `needle`. Zombies have none and are not counted.
pub fn processes_mentioning(needle: &str) -> Vec<Process> {
    let own = std::process::id() as i32;
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| Some(Process { pid, command_line: command_line(pid)? }))
        .filter(|process| process.command_line.contains(needle))
        .collect()
}

fn command_line(pid: i32) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let text = String::from_utf8_lossy(&raw).replace('\0', " ").trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}
