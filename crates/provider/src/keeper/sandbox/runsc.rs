//! `runsc` as a command: what is run, and what it wrote down of the sandbox.

use crate::keeper::{files, machine::CallError, spec::Spec};
use serde::Deserialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

/// A command takes a fiftieth of a second and waits for the guest's processes to stand still.
const CALL: Duration = Duration::from_secs(10);
/// A checkpoint writes all of the guest's memory.
const CHECKPOINT: Duration = Duration::from_secs(100);

/// As in the state file of `runsc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

#[derive(Debug, Deserialize)]
struct State {
    status: Status,
}

#[derive(Debug)]
pub(super) struct Runsc {
    program: PathBuf,
    /// Before any verb.
    arguments: Vec<String>,
    /// Where it keeps the files by which one run of it finds what another made.
    root: PathBuf,
    bundle: PathBuf,
    /// The sandbox, in lists of processes too.
    id: String,
}

impl Runsc {
    pub fn new(spec: &Spec, bundle: &Path) -> Self {
        Self {
            program: spec.program.clone(),
            arguments: spec.arguments.clone(),
            root: spec.runtime_dir.join(files::SANDBOX),
            bundle: bundle.to_owned(),
            // Short, for it is part of a socket's path.
            id: format!("{}-g{}", &spec.vm.simple()[20..], spec.generation.0),
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(&self.arguments).arg(verb);
        command
    }

    /// What runs the sandbox, for as long as it lives: from the bundle, or from a saved state.
    pub fn start(&self, image: Option<&Path>) -> Command {
        let mut command = match image {
            None => self.command("run"),
            Some(image) => {
                let mut command = self.command("restore");
                command.arg("-image-path").arg(image);
                command
            }
        };
        command.arg("-bundle").arg(&self.bundle).arg(&self.id);
        command
    }

    /// `None` until there is a sandbox. What was written half is read again.
    pub fn status(&self) -> io::Result<Option<Status>> {
        let path = self.root.join(format!("{id}_sandbox:{id}.state", id = self.id));
        match fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice::<State>(&text).ok().map(|state| state.status)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn pause(&self) -> Result<(), CallError> {
        self.tell("pause the sandbox", CALL, self.command("pause")).await
    }

    pub async fn resume(&self) -> Result<(), CallError> {
        self.tell("resume the sandbox", CALL, self.command("resume")).await
    }

    /// SIGKILL to PID 1, by the sandbox's own kernel.
    pub async fn kill(&self) -> Result<(), CallError> {
        let mut command = self.command("kill");
        command.arg(&self.id).arg("KILL");
        run("end the sandbox", CALL, command).await
    }

    /// Writes the state to files in `directory`. The sandbox stays as it is.
    pub async fn checkpoint(&self, directory: &Path) -> Result<(), CallError> {
        let mut command = self.command("checkpoint");
        command.args(["-leave-running", "-compression", "none", "-image-path"]).arg(directory);
        self.tell("save the sandbox's state", CHECKPOINT, command).await
    }

    async fn tell(&self, what: &str, limit: Duration, mut command: Command) -> Result<(), CallError> {
        command.arg(&self.id);
        run(what, limit, command).await
    }
}

async fn run(what: &str, limit: Duration, mut command: Command) -> Result<(), CallError> {
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut command = tokio::process::Command::from(command);
    command.kill_on_drop(true);
    let output = match tokio::time::timeout(limit, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(CallError::failed(what, &error)),
        Err(_elapsed) => return Err(CallError::Late { after: limit }),
    };
    if output.status.success() {
        return Ok(());
    }
    Err(CallError::Failed(format!("cannot {what}: {}", last_words(&output))))
}

fn last_words(output: &Output) -> String {
    let lines = crate::keeper::last_lines(&output.stderr);
    lines.last().cloned().unwrap_or_else(|| format!("`runsc` ended with {}", output.status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_tells_the_status_and_half_of_one_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let runsc = Runsc {
            program: "/bin/false".into(),
            arguments: Vec::new(),
            root: directory.path().to_owned(),
            bundle: PathBuf::new(),
            id: "x-g1".into(),
        };
        assert_eq!(runsc.status().unwrap(), None);
        let path = directory.path().join("x-g1_sandbox:x-g1.state");
        fs::write(&path, r#"{"id":"x-g1","spec":{},"status":"paused","sandbox":{}}"#).unwrap();
        assert_eq!(runsc.status().unwrap(), Some(Status::Paused));
        fs::write(&path, r#"{"id":"x-g1","sp"#).unwrap();
        assert_eq!(runsc.status().unwrap(), None);
    }

    #[tokio::test]
    async fn a_command_that_fails_is_quoted_and_one_that_hangs_is_ended() {
        let shell = |script: &str| {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            command
        };
        let limit = Duration::from_secs(10);
        let failed = run("try", limit, shell("echo no such sandbox >&2; exit 1")).await.unwrap_err();
        assert_eq!(failed.to_string(), "cannot try: no such sandbox");
        let late = run("try", Duration::from_millis(50), shell("exec sleep 1000")).await.unwrap_err();
        assert!(matches!(late, CallError::Late { .. }), "{late:?}");
    }
}
