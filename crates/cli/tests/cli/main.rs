//! The real binary by itself: what it says and refuses, and how it starts and ends its daemon.

mod autostart;
mod help;
mod refusals;
mod without_daemon;

use std::{
    path::PathBuf,
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// A home of its own and nothing else of ours in the environment.
struct Home {
    dir: TempDir,
}

/// What one command came to.
struct Ended {
    status: i32,
    stdout: String,
    stderr: String,
}

impl Home {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("make a directory for the test") }
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_offshoot"));
        command
            .args(words)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path().join("run"))
            .env("OFFSHOOT_HOME", self.state_dir())
            .env("OFFSHOOT_IMAGES", self.dir.path().join("images"))
            .env("OFFSHOOT_POOL", "0")
            .env("COLUMNS", "100")
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Ended {
        Self::end(self.command(words))
    }

    fn end(mut command: Command) -> Ended {
        let output = command.output().expect("the binary starts");
        Ended {
            status: output.status.code().expect("it ends by itself"),
            stdout: String::from_utf8(output.stdout).expect("it speaks UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("it speaks UTF-8"),
        }
    }

    /// The text without what differs from test to test.
    fn redact(&self, text: &str) -> String {
        text.replace(&self.dir.path().display().to_string(), "[HOME]")
    }
}

impl Ended {
    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON document ({error}): {:?}", self.stdout))
    }
}
