//! What runs in the VM, as its `/proc` tells.

use crate::{fault::Context, users::Users};
use offshoot_guest_proto::message::{GuestError, MAX_SURVEY_COMMAND, ProcessInfo};
use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
};

/// `PF_KTHREAD` of the kernel's `sched.h`.
const KERNEL_THREAD: u64 = 0x0020_0000;

/// Every process but the kernel's own, the agent, and those that have ended. One that ends meanwhile is left out.
pub fn list(proc: &Path, agent: u32, users: &Users) -> Result<Vec<ProcessInfo>, GuestError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).context("list", proc.display())? {
        let entry = entry.context("list", proc.display())?;
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|pid| *pid != agent) {
            found.extend(process(&entry.path(), pid, users));
        }
    }
    found.sort_by_key(|process: &ProcessInfo| process.pid);
    Ok(found)
}

fn process(directory: &Path, pid: u32, users: &Users) -> Option<ProcessInfo> {
    let stat = fs::read(directory.join("stat")).ok()?;
    let Stat { name, state, parent, flags } = Stat::parse(&stat)?;
    if flags & KERNEL_THREAD != 0 || matches!(state, b"Z" | b"X") {
        return None;
    }
    let uid = fs::metadata(directory).ok()?.uid();
    Some(ProcessInfo { pid, parent, user: users.name_of(uid), command: command(directory, name) })
}

/// Its words, or its name in brackets. A process may write whatever it likes there.
fn command(directory: &Path, name: &[u8]) -> Vec<u8> {
    let mut line = Vec::new();
    if let Ok(file) = File::open(directory.join("cmdline")) {
        // Ended meanwhile: it is known by its name.
        drop(file.take(MAX_SURVEY_COMMAND as u64).read_to_end(&mut line));
    }
    while line.last() == Some(&0) {
        line.pop();
    }
    if line.is_empty() {
        return [b"[", name, b"]"].concat();
    }
    line.iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = b' ');
    line
}

/// The fields of `/proc/PID/stat` that are of interest.
struct Stat<'a> {
    name: &'a [u8],
    state: &'a [u8],
    parent: u32,
    flags: u64,
}

impl<'a> Stat<'a> {
    /// `pid (name) state ppid pgrp session tty tpgid flags ...`; the name may hold anything, brackets too.
    fn parse(text: &'a [u8]) -> Option<Self> {
        let (open, close) = (text.iter().position(|&b| b == b'(')?, text.iter().rposition(|&b| b == b')')?);
        let name = text.get(open + 1..close)?;
        let mut fields = text.get(close + 2..)?.split(|&b| b == b' ');
        let state = fields.next()?;
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u64>().ok();
        let parent = u32::try_from(number(fields.next()?)?).ok()?;
        let flags = number(fields.nth(4)?)?;
        Some(Self { name, state, parent, flags })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        process::{Command, Stdio},
    };

    fn users() -> (tempfile::TempDir, Users) {
        let etc = tempfile::tempdir().unwrap();
        fs::write(etc.path().join("passwd"), "root:x:0:0::/root:/bin/sh\n").unwrap();
        let users = Users::new(etc.path());
        (etc, users)
    }

    #[test]
    fn a_running_process_is_listed_by_its_words_and_the_agent_is_not() {
        let (_etc, users) = users();
        let mut child =
            Command::new("cat").arg("-u").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        // A program has its words a moment after it is begun; one that answers has them.
        child.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let found = list(Path::new("/proc"), std::process::id(), &users).unwrap();
        let one = found.iter().find(|process| process.pid == child.id()).cloned();
        child.kill().unwrap();
        child.wait().unwrap();
        let one = one.expect("the child is listed");
        assert_eq!((one.command.as_slice(), one.parent), (b"cat -u".as_slice(), std::process::id()));
        assert!(found.iter().all(|process| process.pid != std::process::id()));
    }

    #[test]
    fn kernel_threads_and_the_dead_are_no_processes_and_odd_names_are_read() {
        let (_etc, users) = users();
        let proc = tempfile::tempdir().unwrap();
        let put = |pid: u32, stat: &str, cmdline: &[u8]| {
            let directory = proc.path().join(pid.to_string());
            fs::create_dir(&directory).unwrap();
            fs::write(directory.join("stat"), stat).unwrap();
            fs::write(directory.join("cmdline"), cmdline).unwrap();
        };
        put(1, "1 (offshoot-guest) S 0 1 1 0 -1 4194560 0", b"/init\0");
        put(2, "2 (kthreadd) S 0 0 0 0 -1 2129984 0", b"");
        put(7, "7 (a) b) (c) R 1 7 7 0 -1 4194304 0", b"");
        put(8, "8 (gone) Z 1 8 8 0 -1 4194304 0", b"");
        put(9, "9 (long) S 7 9 9 0 -1 4194304 0", &[b'x'; MAX_SURVEY_COMMAND + 9]);
        put(10, "nonsense", b"");
        fs::create_dir(proc.path().join("sys")).unwrap();
        let found = list(proc.path(), 1, &users).unwrap();
        let seen: Vec<_> = found.iter().map(|process| (process.pid, process.parent)).collect();
        assert_eq!(seen, [(7, 1), (9, 7)]);
        assert_eq!(found[0].command, b"[a) b) (c]");
        assert_eq!(found[1].command.len(), MAX_SURVEY_COMMAND);
    }
}
