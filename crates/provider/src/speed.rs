//! How fast programs compute in a VM, beside this host.
//!
//! The same program does the same work on the host and in a VM, one right after the other. What is found is remembered until
//! the host boots again or what was measured changes.

use crate::{
    keeper::files::{read_json, write_json},
    os, process,
};
use offshoot_guest_proto::compute;
use serde::{Deserialize, Serialize};
use std::{
    fmt, fs, io,
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc::{self, RecvTimeoutError},
    time::Duration,
};

/// A VM that has not computed anything by then is not waited for.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Rounds of the same work in a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speed {
    pub host: u64,
    pub vm: u64,
}

impl Speed {
    /// How many times as long a program takes that only computes.
    pub fn slowdown(self) -> f64 {
        self.host as f64 / self.vm.max(1) as f64
    }
}

impl fmt::Display for Speed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.slowdown() {
            factor if factor < 1.15 => f.write_str("programs compute as fast as on this host"),
            factor if factor < 3.0 => {
                write!(f, "programs compute {factor:.1} times slower than on this host")
            }
            factor => write!(f, "programs compute {factor:.0} times slower than on this host"),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    of: String,
    speed: Speed,
}

/// What is known of `of`, or the agent's rate here beside that which `in_vm` finds. Blocks; what it starts dies with the
/// calling thread.
pub(crate) fn measured(
    cache: &Path,
    file: &str,
    of: &str,
    agent: &Path,
    in_vm: impl FnOnce() -> io::Result<Option<u64>>,
) -> Result<Speed, String> {
    let failed = |error: io::Error| format!("how fast programs compute was not measured: {error}");
    let boot_id = process::boot_id().map_err(failed)?;
    let path = cache.join(file);
    if let Ok(Some(known)) = read_json::<Remembered>(&path)
        && (known.boot_id.as_str(), known.of.as_str()) == (&boot_id, of)
    {
        return Ok(known.speed);
    }
    let mut command = Command::new(agent);
    command.arg(compute::ARGUMENT).env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    let here = output_within(command, DEADLINE).map_err(failed)?;
    let here = here.and_then(|output| compute::rate(&output.stderr));
    let host =
        here.ok_or("how fast programs compute was not measured: the agent does not run on this host")?;
    let vm = in_vm().map_err(failed)?;
    let vm = vm.ok_or(
        "how fast programs compute is not known: the image's agent does not tell; build it once more",
    )?;
    let speed = Speed { host, vm };
    let remembered = Remembered { boot_id, of: of.into(), speed };
    let written = fs::create_dir_all(cache).and_then(|()| write_json(&path, &remembered, false));
    if let Err(error) = written {
        // It is measured again: slower, not wrong.
        tracing::warn!(path = %path.display(), %error, "how fast programs compute is not remembered");
    }
    Ok(speed)
}

/// What a program says and how it ends; `None` if that takes longer, and it is killed. Its standard error is taken too.
pub(crate) fn output_within(mut command: Command, deadline: Duration) -> io::Result<Option<Output>> {
    command.stderr(Stdio::piped());
    os::bind_to_this_thread(&mut command, Vec::new())?;
    let child = command.spawn()?;
    let id = process::ProcessId::of(i32::try_from(child.id()).map_err(io::Error::other)?)?;
    let (tell, told) = mpsc::channel();
    std::thread::Builder::new().name("probe-wait".into()).spawn(move || {
        let _late = tell.send(child.wait_with_output());
    })?;
    match told.recv_timeout(deadline) {
        Ok(output) => output.map(Some),
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            if let Some(process) = id.find()? {
                process.signal(rustix::process::Signal::KILL)?;
            }
            // Its processes die with it; only then may their files go.
            let _ended = told.recv_timeout(deadline);
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_speed_says_what_it_means_for_programs() {
        for (host, vm, said) in [
            (100, 100, "programs compute as fast as on this host"),
            (100, 140, "programs compute as fast as on this host"),
            (150, 100, "programs compute 1.5 times slower than on this host"),
            (1150, 100, "programs compute 12 times slower than on this host"),
            (100, 0, "programs compute 100 times slower than on this host"),
        ] {
            assert_eq!(Speed { host, vm }.to_string(), said);
        }
    }

    #[test]
    fn a_rate_is_measured_once_for_what_it_is_of_and_an_agent_that_says_nothing_is_told_of() {
        let directory = tempfile::tempdir().unwrap();
        let agent = directory.path().join("agent");
        fs::write(&agent, format!("#!/bin/sh\necho 'agent: {}40' >&2\n", compute::SAYS)).unwrap();
        fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
        let measure = |of: &str, vm| measured(directory.path(), "speed.json", of, &agent, || Ok(vm));
        assert!(measure("a", None).unwrap_err().contains("build it once more"));
        assert_eq!(measure("a", Some(4)), Ok(Speed { host: 40, vm: 4 }));
        assert_eq!(measure("a", Some(8)), Ok(Speed { host: 40, vm: 4 }), "remembered");
        assert_eq!(measure("b", Some(8)), Ok(Speed { host: 40, vm: 8 }));
        let none = measured(directory.path(), "other.json", "a", Path::new("/no/agent"), || Ok(Some(1)));
        assert!(none.unwrap_err().contains("not measured"));
    }

    #[test]
    fn a_program_that_hangs_is_ended() {
        let mut command = Command::new("sleep");
        command.arg("1000");
        assert!(output_within(command, Duration::from_millis(50)).unwrap().is_none());
    }
}
