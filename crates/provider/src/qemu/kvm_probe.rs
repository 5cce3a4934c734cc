//! Whether KVM works here, shown by booting a real kernel.
//!
//! `/dev/kvm` may open, make machines and processors, and still never get a kernel to user space (nested
//! virtualisation can be like that). So: no device, no permission, or no `init` within the deadline means no.
//! The answer is remembered until the host boots again, or QEMU or the kernel changes.

use super::{ProbeImage, command_line, host::Qemu};
use crate::{
    keeper::files::{read_json, write_json},
    os, process,
    program::identity,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::{ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

/// The agent begins every console line of its own with this; a kernel does not.
const USER_SPACE: &[u8] = b"offshoot-guest:";
/// A boot with every message is a fifth of this.
const MAX_CONSOLE: usize = 256 * 1024;
const CACHE_FILE: &str = "kvm-probe.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    Works,
    /// One sentence for `doctor`.
    Fails(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    qemu: String,
    kernel: String,
    verdict: Verdict,
}

/// Cheap reasons why not, or `None`: then only a boot can tell.
pub(super) fn device_verdict() -> Option<Verdict> {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => None,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Some(Verdict::Fails("KVM is not there: this host has no /dev/kvm".into()))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Some(Verdict::Fails(
            "KVM may not be used: no permission for /dev/kvm (join the group `kvm`)".into(),
        )),
        Err(error) => Some(Verdict::Fails(format!("KVM cannot be used: /dev/kvm: {error}"))),
    }
}

/// Blocks for up to the deadline. The VMM it starts dies with the calling thread.
pub(super) fn probe(cache: &Path, qemu: &Qemu, image: &ProbeImage, deadline: Duration) -> Verdict {
    if let Some(verdict) = device_verdict() {
        return verdict;
    }
    let path = cache.join(CACHE_FILE);
    let key = process::boot_id().and_then(|boot_id| Ok((boot_id, identity(&image.kernel)?)));
    let (boot_id, kernel) = match key {
        Ok(key) => key,
        Err(error) => {
            return Verdict::Fails(format!("KVM was not tried: {}: {error}", image.kernel.display()));
        }
    };
    if let Ok(Some(known)) = read_json::<Remembered>(&path)
        && (&known.boot_id, &known.qemu, &known.kernel) == (&boot_id, &qemu.identity, &kernel)
    {
        return known.verdict;
    }
    let verdict = match boot(qemu, image, deadline) {
        Ok(verdict) => verdict,
        Err(error) => return Verdict::Fails(format!("KVM was not tried: {error}")),
    };
    let remembered = Remembered { boot_id, qemu: qemu.identity.clone(), kernel, verdict: verdict.clone() };
    let written = std::fs::create_dir_all(cache).and_then(|()| write_json(&path, &remembered, false));
    if let Err(error) = written {
        // The next daemon tries again: slower, not wrong.
        tracing::warn!(path = %path.display(), %error, "the result of the KVM probe is not remembered");
    }
    verdict
}

fn boot(qemu: &Qemu, image: &ProbeImage, deadline: Duration) -> io::Result<Verdict> {
    let mut command = Command::new(&qemu.program);
    command
        .args(command_line::build_probe(&image.kernel, &image.initramfs))
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    os::bind_to_this_thread(&mut command, Vec::new())?;
    let mut child = command.spawn()?;
    let seen = child.stdout.take().map_or(Ok(Seen::End), |console| watch(console, deadline));
    // It may have ended by itself.
    let killed = child.kill();
    let status = child.wait()?;
    Ok(match seen? {
        Seen::UserSpace => Verdict::Works,
        Seen::Nothing => {
            killed?;
            Verdict::Fails(format!(
                "KVM opens but does not work here: a kernel booted under it was not in user space after {deadline:?}"
            ))
        }
        Seen::End => Verdict::Fails(format!("KVM does not work here: {} ended with {status}", qemu.version)),
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    UserSpace,
    /// The deadline passed.
    Nothing,
    End,
}

fn watch(mut console: ChildStdout, limit: Duration) -> io::Result<Seen> {
    let until = Instant::now() + limit;
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut fds = [PollFd::new(&console, PollFlags::IN)];
        if rustix::event::poll(&mut fds, Some(&timeout))? == 0 {
            return Ok(Seen::Nothing);
        }
        let length = console.read(&mut buffer)?;
        if length == 0 || seen.len() > MAX_CONSOLE {
            return Ok(Seen::End);
        }
        seen.extend_from_slice(&buffer[..length]);
        if seen.windows(USER_SPACE.len()).any(|window| window == USER_SPACE) {
            return Ok(Seen::UserSpace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of a machine that is a script.
    fn seen(script: &str, limit: Duration) -> Seen {
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let seen = watch(child.stdout.take().unwrap(), limit).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        seen
    }

    #[test]
    fn only_a_line_from_user_space_is_proof() {
        let limit = Duration::from_secs(5);
        assert_eq!(seen("echo 'Run /init as init process'", limit), Seen::End);
        let fatal = "printf 'x\\noffshoot-'; printf 'guest: fatal: no disk'; exec sleep 60";
        assert_eq!(seen(fatal, limit), Seen::UserSpace);
        assert_eq!(seen("echo early; exec sleep 60", Duration::from_millis(50)), Seen::Nothing);
    }
}
