//! Whether `runsc` works here, shown by running a program in a sandbox.
//!
//! A `runsc` that is installed may still hang or be refused: by a seccomp filter above us, a host without user namespaces,
//! a platform the processor does not do. The answer is remembered until the host boots again or `runsc` changes.

use super::{
    bundle::{self, Contents, Root, Writes},
    host::Runsc,
};
use crate::{
    keeper::{
        files::{read_json, write_json},
        last_lines,
    },
    process,
    program::{self, on_path},
    speed::{self, Speed},
};
use offshoot_guest_proto::compute;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

const CACHE_FILE: &str = "gvisor-probe.json";
const SPEED_FILE: &str = "gvisor-speed.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Verdict {
    Works,
    /// One sentence for `doctor`.
    Fails(String),
}

#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    runsc: String,
    verdict: Verdict,
}

/// Blocks for up to the deadline. What it starts dies with the calling thread.
pub(super) fn probe(cache: &Path, runsc: &Runsc, deadline: Duration) -> Verdict {
    if !rustix::process::geteuid().is_root() {
        let why = "gVisor is not used: sandboxes of other users than root are not supported yet";
        return Verdict::Fails(why.into());
    }
    let path = cache.join(CACHE_FILE);
    let boot_id = match process::boot_id() {
        Ok(boot_id) => boot_id,
        Err(error) => return Verdict::Fails(format!("gVisor was not tried: {error}")),
    };
    if let Ok(Some(known)) = read_json::<Remembered>(&path)
        && (&known.boot_id, &known.runsc) == (&boot_id, &runsc.identity)
    {
        return known.verdict;
    }
    let verdict = match run(runsc, deadline) {
        Ok(verdict) => verdict,
        Err(error) => return Verdict::Fails(format!("gVisor was not tried: {error}")),
    };
    let remembered = Remembered { boot_id, runsc: runsc.identity.clone(), verdict: verdict.clone() };
    let written = fs::create_dir_all(cache).and_then(|()| write_json(&path, &remembered, false));
    if let Err(error) = written {
        // The next daemon tries again: slower, not wrong.
        tracing::warn!(path = %path.display(), %error, "the result of the gVisor probe is not remembered");
    }
    verdict
}

fn run(runsc: &Runsc, deadline: Duration) -> io::Result<Verdict> {
    let missing = || io::Error::new(io::ErrorKind::NotFound, "this host has no program `true` to run");
    let program = on_path("true").ok_or_else(missing)?;
    Ok(match in_sandbox(runsc, vec![program.display().to_string()], deadline)? {
        Some(output) => judge(&runsc.version, &output),
        None => Verdict::Fails(format!(
            "gVisor does not work here: no program had run in a sandbox after {deadline:?}"
        )),
    })
}

/// How fast programs compute in a sandbox. Blocks, as [`probe`] does.
pub(super) fn speed(cache: &Path, runsc: &Runsc, agent: &Path) -> Result<Speed, String> {
    let found = program::identity(agent).map_err(|error| format!("{}: {error}", agent.display()))?;
    let of = format!("{} {found}", runsc.identity);
    speed::measured(cache, SPEED_FILE, &of, agent, || {
        let arguments = vec![agent.display().to_string(), compute::ARGUMENT.into()];
        let output = in_sandbox(runsc, arguments, speed::DEADLINE)?;
        Ok(output.and_then(|output| compute::rate(&output.stderr)))
    })
}

/// A program of the host's in a sandbox that sees the host's files; `None` if it takes longer.
fn in_sandbox(runsc: &Runsc, arguments: Vec<String>, deadline: Duration) -> io::Result<Option<Output>> {
    let place = Place::make()?;
    let root = Root::Directory(Path::new("/"));
    let writes = Writes::Kernel;
    Contents { hostname: "probe", root, arguments, mounts: Vec::new(), writes }
        .write(&place.0.join("bundle"))?;
    let mut command = Command::new(&runsc.program);
    command
        .arg("--root")
        .arg(place.0.join("run"))
        .args(bundle::arguments(writes))
        .args(["run", "-bundle"])
        .arg(place.0.join("bundle"))
        .arg("probe")
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    speed::output_within(command, deadline)
}

fn judge(version: &str, output: &Output) -> Verdict {
    if output.status.success() {
        return Verdict::Works;
    }
    let said = last_lines(&output.stderr).pop().unwrap_or_else(|| format!("it ended with {}", output.status));
    Verdict::Fails(format!("gVisor does not work here: {version}: {said}"))
}

/// A directory for one probe; gone with this value.
struct Place(std::path::PathBuf);

impl Place {
    fn make() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("offshoot-probe-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Small, and in a directory that is emptied by others, too.
        let _left = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(script: &str) -> Output {
        Command::new("sh").args(["-c", script]).output().unwrap()
    }

    #[test]
    fn only_a_program_that_ran_is_proof_and_a_refusal_is_quoted() {
        assert_eq!(judge("runsc 20240729", &ended("true")), Verdict::Works);
        let Verdict::Fails(why) = judge("runsc 20240729", &ended("echo no ptrace >&2; exit 128")) else {
            panic!("it works");
        };
        assert_eq!(why, "gVisor does not work here: runsc 20240729: no ptrace");
    }

    #[test]
    fn a_runsc_that_hangs_is_ended_and_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root runs sandboxes");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("runsc");
        fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let runsc = Runsc { program, version: "runsc 20240729".into(), identity: "x".into() };
        let verdict = probe(directory.path(), &runsc, Duration::from_millis(200));
        assert!(matches!(&verdict, Verdict::Fails(why) if why.contains("200ms")), "{verdict:?}");
        // Remembered: asked again, nothing is run.
        let gone = Runsc { program: "/no/such/runsc".into(), ..runsc };
        assert_eq!(probe(directory.path(), &gone, Duration::from_millis(200)), verdict);
    }
}
