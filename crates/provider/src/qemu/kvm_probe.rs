//! Whether KVM works here, shown by booting a real kernel; and how fast programs compute in a VM.
//!
//! `/dev/kvm` may open, make machines and processors, and still never get a kernel to user space (nested
//! virtualisation can be like that). So: no device, no permission, or no `init` within the deadline means no.
//! The answer is remembered until the host boots again, or QEMU or the kernel changes.

use super::{
    ProbeImage,
    command_line::{self, Accelerator},
    host::Qemu,
};
use crate::{
    keeper::files::{read_json, write_json},
    os, process,
    program::identity,
    speed::{self, Speed},
};
use offshoot_guest_proto::compute;
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};
use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    process::{ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

/// The agent begins every console line of its own with this; a kernel does not.
const USER_SPACE: &[u8] = b"offshoot-guest:";
/// A boot with every message is a fifth of this.
const MAX_CONSOLE: usize = 256 * 1024;
const CACHE_FILE: &str = "kvm-probe.json";
const SPEED_FILE: &str = "qemu-speed.json";

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
    let arguments = command_line::build_probe(Accelerator::Kvm, image, "");
    let (seen, status) = console(qemu, arguments, deadline, user_space)?;
    Ok(match seen {
        Seen::Said(()) => Verdict::Works,
        Seen::Nothing => Verdict::Fails(format!(
            "KVM opens but does not work here: a kernel booted under it was not in user space after {deadline:?}"
        )),
        Seen::End => Verdict::Fails(format!("KVM does not work here: {} ended with {status}", qemu.version)),
    })
}

/// How fast programs compute in a VM, by an agent that is booted for that alone. Blocks, as [`probe`] does.
pub(super) fn speed(
    cache: &Path,
    qemu: &Qemu,
    accelerator: Accelerator,
    image: &ProbeImage,
    agent: &Path,
) -> Result<Speed, String> {
    let known = |path: &Path| identity(path).map_err(|error| format!("{}: {error}", path.display()));
    let class = accelerator.isolation();
    let of = format!("{} {class} {} {}", qemu.identity, known(&image.kernel)?, known(&image.initramfs)?);
    speed::measured(cache, SPEED_FILE, &of, agent, || {
        let arguments = command_line::build_probe(accelerator, image, &format!(" -- {}", compute::ARGUMENT));
        Ok(match console(qemu, arguments, speed::DEADLINE, compute::rate)?.0 {
            Seen::Said(rate) => Some(rate),
            Seen::Nothing | Seen::End => None,
        })
    })
}

/// Boots, until `find` finds something on the console.
fn console<T>(
    qemu: &Qemu,
    arguments: Vec<String>,
    deadline: Duration,
    find: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<(Seen<T>, ExitStatus)> {
    let mut command = Command::new(&qemu.program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    os::bind_to_this_thread(&mut command, Vec::new())?;
    let mut child = command.spawn()?;
    let seen = child.stdout.take().map_or(Ok(Seen::End), |console| watch(console, deadline, find));
    // It may have ended by itself.
    let killed = child.kill();
    let status = child.wait()?;
    let seen = seen?;
    if matches!(seen, Seen::Nothing) {
        killed?;
    }
    Ok((seen, status))
}

fn user_space(said: &[u8]) -> Option<()> {
    said.windows(USER_SPACE.len()).any(|window| window == USER_SPACE).then_some(())
}

#[derive(Debug, PartialEq, Eq)]
enum Seen<T> {
    Said(T),
    /// The deadline passed.
    Nothing,
    End,
}

fn watch<T>(
    mut console: ChildStdout,
    limit: Duration,
    find: impl Fn(&[u8]) -> Option<T>,
) -> io::Result<Seen<T>> {
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
        if let Some(found) = find(&seen) {
            return Ok(Seen::Said(found));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is seen of a machine that is a script.
    fn seen(script: &str, limit: Duration) -> Seen<()> {
        let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
        let seen = watch(child.stdout.take().unwrap(), limit, user_space).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        seen
    }

    #[test]
    fn only_a_line_from_user_space_is_proof() {
        let limit = Duration::from_secs(5);
        assert_eq!(seen("echo 'Run /init as init process'", limit), Seen::End);
        let fatal = "printf 'x\\noffshoot-'; printf 'guest: fatal: no disk'; exec sleep 60";
        assert_eq!(seen(fatal, limit), Seen::Said(()));
        assert_eq!(seen("echo early; exec sleep 60", Duration::from_millis(50)), Seen::Nothing);
    }
}
