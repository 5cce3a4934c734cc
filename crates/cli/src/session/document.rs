//! What `run --json` and `exec --json` print: one document about one process.

use super::{Finished, output::Text};
use crate::exit_code::Status;
use offshoot_api::v1::{Durations, ExitStatus};
use offshoot_types::{ExecId, IsolationClass, OperationId, ProviderKind, VmId};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Program {
    /// This program's own exit status.
    pub status: u8,
    /// How the process ended.
    pub exit: ExitStatus,
    pub stdout: String,
    /// `utf-8`, or `base64` for output that is not text.
    pub stdout_encoding: &'static str,
    pub stderr: String,
    pub stderr_encoding: &'static str,
    /// Output beyond the limit was dropped.
    pub truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm: Option<Vm>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// `run` only: whether the VM was left running.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<bool>,
    pub provider: ProviderKind,
    pub isolation: IsolationClass,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_kernel: Option<String>,
    pub timings: Durations,
}

#[derive(Debug, Serialize)]
pub struct Vm {
    pub id: VmId,
    pub name: String,
}

impl Program {
    pub fn new(finished: Finished, status: Status) -> Self {
        let Finished { started, ended, captured } = finished;
        let Text { data: stdout, encoding: stdout_encoding } = captured.stdout.into();
        let Text { data: stderr, encoding: stderr_encoding } = captured.stderr.into();
        Self {
            status: status.number(),
            exit: ended.status,
            stdout,
            stdout_encoding,
            stderr,
            stderr_encoding,
            truncated: ended.truncated,
            vm: started.as_ref().map(|started| Vm { id: started.vm, name: started.vm_name.to_string() }),
            exec: started.as_ref().map(|started| started.exec),
            operation: started.as_ref().map(|started| started.operation),
            kept: None,
            provider: ended.provider,
            isolation: ended.isolation,
            guest_kernel: ended.guest_kernel,
            timings: ended.durations,
        }
    }
}
