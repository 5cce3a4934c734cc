//! Running one process in a VM.

use super::{InvalidField, Problem, schema};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use offshoot_types::{Bytes, ExecArgv, ExecId, ExecSpec, ExecStatus, OperationId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, time::Duration};
use utoipa::{IntoParams, ToSchema};

/// Arguments, environment and paths together: what still fits one message to the guest.
const MAX_COMMAND_BYTES: usize = 256 * 1024;
const MAX_PTY: u16 = 4096;

/// A process to run. Exactly one of `argv` and `shell` is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Executed as given; the first is looked up in `PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Run by `/bin/bash -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// Added to the guest's default environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Absolute; the user's home directory if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// A name or numeric uid inside the VM; `root` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A pseudo-terminal instead of three pipes; stderr is then part of stdout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pty: Option<PtySize>,
    /// Whether the caller will send stdin; otherwise it is empty.
    #[serde(default)]
    pub stdin: bool,
    #[serde(default)]
    pub limits: ExecLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PtySize {
    pub rows: u16,
    pub cols: u16,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecLimits {
    /// After this the whole process tree is killed inside the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Bytes of stdout and stderr together; the rest is dropped and marked `truncated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_open_files: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_address_space_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_file_size_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cpu_seconds: Option<u64>,
    /// Processes and threads in the tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_processes: Option<u64>,
}

/// A program and its arguments, or a script; exactly one of the two.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CommandLine {
    /// Executed as given; the first is looked up in `PATH`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Run by `/bin/bash -c`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
}

impl TryFrom<CommandLine> for ExecArgv {
    type Error = InvalidField;
    fn try_from(wire: CommandLine) -> Result<Self, InvalidField> {
        match (wire.argv, wire.shell) {
            (Some(argv), None) if argv.first().is_some_and(|program| !program.is_empty()) => {
                no_nul("argv", argv.iter())?;
                within_bounds(argv.iter().map(|arg| arg.len() + 1).sum())?;
                Ok(Self::Argv(argv))
            }
            (Some(_), None) => Err(InvalidField::new("argv", "the program to run is missing")),
            (None, Some(script)) => {
                no_nul("shell", [&script])?;
                within_bounds(script.len())?;
                Ok(Self::Shell(script))
            }
            (None, None) => Err(InvalidField::new("argv", "give either `argv` or `shell`")),
            (Some(_), Some(_)) => Err(InvalidField::new("shell", "give either `argv` or `shell`, not both")),
        }
    }
}

impl TryFrom<ExecRequest> for ExecSpec {
    type Error = InvalidField;
    fn try_from(wire: ExecRequest) -> Result<Self, InvalidField> {
        let argv = CommandLine { argv: wire.argv, shell: wire.shell }.try_into()?;
        check_env("env", &wire.env)?;
        if let Some(cwd) = &wire.cwd {
            super::absolute_path("cwd", cwd)?;
        }
        let user = wire.user.unwrap_or_else(|| "root".into());
        check_user("user", &user)?;
        let spec = ExecSpec {
            argv,
            env: wire.env,
            cwd: wire.cwd,
            user,
            pty: wire.pty.map(|size| size.check().map_err(|e| e.within("pty"))).transpose()?,
            stdin: wire.stdin,
            tag: None,
            limits: limits(wire.limits)?,
        };
        within_bounds(command_bytes(&spec))?;
        Ok(spec)
    }
}

fn within_bounds(bytes: usize) -> Result<(), InvalidField> {
    match bytes <= MAX_COMMAND_BYTES {
        true => Ok(()),
        false => Err(InvalidField::new(
            "argv",
            format!(
                "arguments and environment of {bytes} bytes exceed {MAX_COMMAND_BYTES}; use stdin or a file"
            ),
        )),
    }
}

/// A signal the guest's kernel knows.
pub(super) fn check_signal(signal: i32) -> Result<(), InvalidField> {
    match signal {
        1..=64 => Ok(()),
        _ => Err(InvalidField::new("signal", format!("{signal} is not between 1 and 64"))),
    }
}

impl PtySize {
    pub(super) fn check(self) -> Result<offshoot_types::PtySize, InvalidField> {
        for (field, value) in [("rows", self.rows), ("cols", self.cols)] {
            if !(1..=MAX_PTY).contains(&value) {
                return Err(InvalidField::new(field, format!("{value} is not between 1 and {MAX_PTY}")));
            }
        }
        Ok(offshoot_types::PtySize { rows: self.rows, cols: self.cols })
    }
}

fn limits(wire: ExecLimits) -> Result<offshoot_types::ExecLimits, InvalidField> {
    let positive = |field: &str, value: Option<u64>| match value {
        Some(0) => Err(InvalidField::new(format!("limits.{field}"), "0 allows nothing at all; leave it out")),
        other => Ok(other),
    };
    Ok(offshoot_types::ExecLimits {
        timeout: positive("timeout_ms", wire.timeout_ms)?.map(Duration::from_millis),
        max_output: wire.max_output_bytes.map(Bytes),
        max_open_files: positive("max_open_files", wire.max_open_files)?,
        max_address_space: positive("max_address_space_bytes", wire.max_address_space_bytes)?.map(Bytes),
        max_file_size: wire.max_file_size_bytes.map(Bytes),
        max_cpu_seconds: positive("max_cpu_seconds", wire.max_cpu_seconds)?,
        max_processes: positive("max_processes", wire.max_processes)?,
    })
}

pub(super) fn check_env(field: &'static str, env: &BTreeMap<String, String>) -> Result<(), InvalidField> {
    no_nul(field, env.iter().flat_map(|(key, value)| [key, value]))?;
    match env.keys().find(|key| key.is_empty() || key.contains('=')) {
        Some(key) => Err(InvalidField::new(field, format!("`{key:.40}` cannot be a variable's name"))),
        None => Ok(()),
    }
}

/// A user name or uid as it may stand in `/etc/passwd`.
pub(super) fn check_user(field: &str, user: &str) -> Result<(), InvalidField> {
    let valid = !user.is_empty()
        && user.len() <= 64
        && !user.starts_with('-')
        && user.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'$'));
    if valid {
        Ok(())
    } else {
        Err(InvalidField::new(field, format!("`{user:.64}` is not a user name or uid")))
    }
}

fn no_nul<'a>(field: &str, texts: impl IntoIterator<Item = &'a String>) -> Result<(), InvalidField> {
    match texts.into_iter().any(|text| text.contains('\0')) {
        true => Err(InvalidField::new(field, "a NUL byte cannot be passed to a program")),
        false => Ok(()),
    }
}

fn command_bytes(spec: &ExecSpec) -> usize {
    let argv: usize = match &spec.argv {
        ExecArgv::Argv(argv) => argv.iter().map(|arg| arg.len() + 1).sum(),
        ExecArgv::Shell(script) => script.len(),
    };
    argv + spec.env.iter().map(|(key, value)| key.len() + value.len() + 2).sum::<usize>()
}

/// Run a process and collect what it prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectRequest {
    /// `stdin` and `pty` are for the WebSocket form and refused here.
    pub exec: ExecRequest,
    /// Text for the process's stdin; empty if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
}

/// A checked [`CollectRequest`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewCollect {
    pub exec: ExecSpec,
    pub input: Option<String>,
}

impl TryFrom<CollectRequest> for NewCollect {
    type Error = InvalidField;
    fn try_from(wire: CollectRequest) -> Result<Self, InvalidField> {
        for (field, set) in [("exec.stdin", wire.exec.stdin), ("exec.pty", wire.exec.pty.is_some())] {
            if set {
                return Err(InvalidField::new(field, "only the WebSocket form of exec streams; use `input`"));
            }
        }
        let mut exec = ExecSpec::try_from(wire.exec).map_err(|error| error.within("exec"))?;
        exec.stdin = wire.input.is_some();
        Ok(Self { exec, input: wire.input })
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ExitStatus {
    Exited {
        code: i32,
    },
    Signaled {
        signal: i32,
    },
    /// Killed, with its whole tree, because its time was up.
    TimedOut,
}

impl From<ExecStatus> for ExitStatus {
    fn from(status: ExecStatus) -> Self {
        match status {
            ExecStatus::Exited(code) => Self::Exited { code },
            ExecStatus::Signaled(signal) => Self::Signaled { signal },
            ExecStatus::TimedOut => Self::TimedOut,
        }
    }
}
impl From<ExitStatus> for ExecStatus {
    fn from(status: ExitStatus) -> Self {
        match status {
            ExitStatus::Exited { code } => Self::Exited(code),
            ExitStatus::Signaled { signal } => Self::Signaled(signal),
            ExitStatus::TimedOut => Self::TimedOut,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecResult {
    #[schema(schema_with = schema::uuid)]
    pub exec: ExecId,
    #[schema(schema_with = schema::uuid)]
    pub operation: OperationId,
    pub status: ExitStatus,
    pub stdout: Output,
    pub stderr: Output,
    /// Output beyond the limit was dropped.
    pub truncated: bool,
    pub exec_ms: u64,
}

/// Bytes of a program: text if they are UTF-8, else base64.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "encoding", content = "data", rename_all = "kebab-case")]
pub enum Output {
    Utf8(String),
    Base64(String),
}

impl Output {
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        String::from_utf8(bytes)
            .map_or_else(|error| Self::Base64(STANDARD.encode(error.as_bytes())), Self::Utf8)
    }

    /// `None` if the base64 is not valid.
    pub fn into_bytes(self) -> Option<Vec<u8>> {
        match self {
            Self::Utf8(text) => Some(text.into_bytes()),
            Self::Base64(text) => STANDARD.decode(text).ok(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Where to take up the streams of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct AttachQuery {
    /// Bytes of stdout the caller has already.
    #[serde(default)]
    pub stdout_offset: u64,
    /// Bytes of stderr the caller has already.
    #[serde(default)]
    pub stderr_offset: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecList {
    pub execs: Vec<ExecSummary>,
    /// Of the next page, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// A process that runs or has lately ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecSummary {
    #[schema(schema_with = schema::uuid)]
    pub exec: ExecId,
    #[schema(schema_with = schema::uuid)]
    pub operation: OperationId,
    /// The program and its arguments, or the shell script as one element.
    pub command: Vec<String>,
    pub user: String,
    /// Inside the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[schema(schema_with = schema::timestamp)]
    pub started: Timestamp,
    pub state: ExecStateName,
    /// Once `ended`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ExitStatus>,
    /// Once `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ExecStateName {
    Running,
    Ended,
    /// It never ran.
    Failed,
    /// The daemon or the VM went away, and how it ended is not known.
    Interrupted,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(wire: ExecRequest) -> String {
        ExecSpec::try_from(wire).expect_err("must be refused").field
    }

    #[test]
    fn a_request_names_exactly_one_program_and_every_bad_field_is_named() {
        let good = ExecRequest { argv: Some(vec!["true".into()]), ..ExecRequest::default() };
        assert_eq!(ExecSpec::try_from(good.clone()).unwrap().user, "root");
        assert_eq!(refused(ExecRequest { shell: Some("true".into()), ..good.clone() }), "shell");
        assert_eq!(refused(ExecRequest::default()), "argv");
        assert_eq!(refused(ExecRequest { argv: Some(vec![]), ..ExecRequest::default() }), "argv");
        assert_eq!(refused(ExecRequest { argv: Some(vec!["a\0".into()]), ..ExecRequest::default() }), "argv");
        assert_eq!(refused(ExecRequest { cwd: Some("tmp".into()), ..good.clone() }), "cwd");
        assert_eq!(refused(ExecRequest { user: Some("a:b".into()), ..good.clone() }), "user");
        let env = [("A=B".to_owned(), String::new())].into();
        assert_eq!(refused(ExecRequest { env, ..good.clone() }), "env");
        let pty = Some(PtySize { rows: 0, cols: 80 });
        assert_eq!(refused(ExecRequest { pty, ..good.clone() }), "pty.rows");
        let limits = ExecLimits { timeout_ms: Some(0), ..ExecLimits::default() };
        assert_eq!(refused(ExecRequest { limits, ..good.clone() }), "limits.timeout_ms");
        let argv = Some(vec!["echo".into(), "x".repeat(MAX_COMMAND_BYTES)]);
        assert_eq!(refused(ExecRequest { argv, ..good }), "argv");
    }

    #[test]
    fn output_that_is_not_text_survives_as_base64() {
        for bytes in [b"hello".to_vec(), vec![0xff, 0x00, 0xfe], Vec::new()] {
            assert_eq!(Output::from_bytes(bytes.clone()).into_bytes(), Some(bytes));
        }
    }
}
