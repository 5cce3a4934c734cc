//! `runsc` as a command: what runs a sandbox, and what it wrote down of it.

use super::control::Control;
use crate::keeper::{files, spec::Spec};
use serde::Deserialize;
use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

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
    sandbox: Kernel,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kernel {
    control_socket_path: PathBuf,
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
        Ok(self.state()?.map(|state| state.status))
    }

    /// The way to the kernel of a sandbox that was started.
    pub fn control(&self) -> io::Result<Control> {
        let state = self.state()?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Control::new(state.sandbox.control_socket_path, self.id.clone()))
    }

    fn state(&self) -> io::Result<Option<State>> {
        let path = self.root.join(format!("{id}_sandbox:{id}.state", id = self.id));
        match fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
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
        assert!(runsc.control().is_err());
        let state = r#"{"id":"x-g1","spec":{},"status":"running","sandbox":{"controlSocketPath":"/x"}}"#;
        fs::write(&path, state).unwrap();
        assert_eq!(runsc.status().unwrap(), Some(Status::Running));
        runsc.control().unwrap();
        fs::write(&path, r#"{"id":"x-g1","sp"#).unwrap();
        assert_eq!(runsc.status().unwrap(), None);
    }
}
