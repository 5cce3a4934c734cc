//! One process run in a VM.

use crate::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};

/// What to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExecArgv {
    /// Executed as given; `argv[0]` is looked up in `PATH`. Never empty.
    Argv(Vec<String>),
    /// Run by `/bin/bash -c`.
    Shell(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    pub argv: ExecArgv,
    /// Added to the guest's default environment.
    pub env: BTreeMap<String, String>,
    /// Defaults to the user's home directory.
    pub cwd: Option<String>,
    /// A name in the guest's `/etc/passwd`, or a numeric uid.
    pub user: String,
    /// A pseudo-terminal of this size instead of three pipes; stderr is then part of stdout.
    pub pty: Option<PtySize>,
    /// Whether the caller will write to stdin; otherwise it is empty.
    pub stdin: bool,
    /// A name by which it is found as long as it runs; several may have the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    pub limits: ExecLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PtySize {
    pub rows: u16,
    pub cols: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecLimits {
    /// After this the guest kills the whole process tree.
    pub timeout: Option<Duration>,
    /// Bytes of stdout and stderr together that are passed on; the rest is dropped and marked `truncated`.
    pub max_output: Option<Bytes>,
    /// `RLIMIT_NOFILE`.
    pub max_open_files: Option<u64>,
    /// `RLIMIT_AS`.
    pub max_address_space: Option<Bytes>,
    /// `RLIMIT_FSIZE`.
    pub max_file_size: Option<Bytes>,
    /// `RLIMIT_CPU`, seconds.
    pub max_cpu_seconds: Option<u64>,
    /// Processes and threads in the tree (cgroup `pids.max`).
    pub max_processes: Option<u64>,
}

/// How a process ended. `Exited(0)` alone is success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", content = "value", rename_all = "kebab-case")]
pub enum ExecStatus {
    Exited(i32),
    /// Ended by this signal, not sent by the time limit.
    Signaled(i32),
    /// Killed, with its whole tree, because its time was up.
    TimedOut,
}

impl ExecStatus {
    pub const fn success(self) -> bool {
        matches!(self, Self::Exited(0))
    }

    /// The status a shell would report: 128 + signal, 124 for a timeout.
    pub const fn shell_status(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
            Self::TimedOut => 124,
        }
    }
}
