//! Everything anyone can ask for, as one closed enum.
//!
//! Each transport converts to a [`Command`]; policy decides it; only an authorised command reaches the engine.
//! Adding a variant does not compile until [`Command::action`] and [`Command::target`] say how it is judged.

use crate::{ExecSpec, OperationId, VmId, VmName, VmSpec};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// How a caller names a VM: ids are tried first, then names of the caller's owner.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum VmRef {
    Id(VmId),
    Name(VmName),
}

impl FromStr for VmRef {
    type Err = crate::InvalidName;
    fn from_str(text: &str) -> Result<Self, crate::InvalidName> {
        // A bare 32-digit hex string is a valid name; only the dashed form is an id.
        match text.parse() {
            Ok(id) if text.len() == 36 => Ok(Self::Id(id)),
            _ => text.parse().map(Self::Name),
        }
    }
}
impl TryFrom<String> for VmRef {
    type Error = crate::InvalidName;
    fn try_from(text: String) -> Result<Self, crate::InvalidName> {
        text.parse()
    }
}
impl From<VmRef> for String {
    fn from(vm: VmRef) -> String {
        vm.to_string()
    }
}
impl fmt::Display for VmRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Define a VM; it is `Stopped` afterwards.
    Create {
        spec: Box<VmSpec>,
    },
    /// `Stopped`, `Suspended` or `Failed` to `Running`.
    Start {
        vm: VmRef,
    },
    /// `Running` or `Paused` to `Stopped`, by the ladder guest shutdown, QMP quit, TERM, KILL.
    Stop {
        vm: VmRef,
        grace: Duration,
    },
    /// Stop, then start: same id, disk kept, memory fresh.
    Restart {
        vm: VmRef,
        grace: Duration,
    },
    Pause {
        vm: VmRef,
    },
    Resume {
        vm: VmRef,
    },
    /// From any state but `Migrating`; removes everything but the audit.
    Destroy {
        vm: VmRef,
    },
    /// Run a process in a `Running` VM.
    Exec {
        vm: VmRef,
        spec: Box<ExecSpec>,
    },
    /// Reattach to the streams of a process that runs or has lately ended.
    Attach {
        vm: VmRef,
        exec: crate::ExecId,
    },
    /// Read or change files in a `Running` VM.
    Files {
        vm: VmRef,
        access: FileAccess,
        path: String,
    },
    /// Open a TCP connection to a port inside a `Running` VM.
    Connect {
        vm: VmRef,
        port: u16,
    },
    /// Read records: VMs, operations, events, logs.
    Inspect {
        vm: Option<VmRef>,
    },
    /// Read one operation.
    InspectOperation {
        id: OperationId,
    },
    /// Build or remove an image.
    ManageImage {
        image: String,
    },
    /// End the daemon.
    StopDaemon {
        vms: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileAccess {
    Read,
    Write,
}

/// The verb policy rules name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Create,
    Start,
    Stop,
    Restart,
    Pause,
    Resume,
    Destroy,
    Exec,
    ReadFiles,
    WriteFiles,
    Connect,
    Inspect,
    ManageImage,
    StopDaemon,
}

impl Action {
    pub const ALL: [Self; 14] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::Restart,
        Self::Pause,
        Self::Resume,
        Self::Destroy,
        Self::Exec,
        Self::ReadFiles,
        Self::WriteFiles,
        Self::Connect,
        Self::Inspect,
        Self::ManageImage,
        Self::StopDaemon,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Destroy => "destroy",
            Self::Exec => "exec",
            Self::ReadFiles => "read-files",
            Self::WriteFiles => "write-files",
            Self::Connect => "connect",
            Self::Inspect => "inspect",
            Self::ManageImage => "manage-image",
            Self::StopDaemon => "stop-daemon",
        }
    }
}
impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a command acts on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Vm(VmRef),
    NewVm(VmName),
    Image(String),
    Operation(OperationId),
    Daemon,
}

impl Command {
    pub fn action(&self) -> Action {
        match self {
            Self::Create { .. } => Action::Create,
            Self::Start { .. } => Action::Start,
            Self::Stop { .. } => Action::Stop,
            Self::Restart { .. } => Action::Restart,
            Self::Pause { .. } => Action::Pause,
            Self::Resume { .. } => Action::Resume,
            Self::Destroy { .. } => Action::Destroy,
            Self::Exec { .. } | Self::Attach { .. } => Action::Exec,
            Self::Files { access: FileAccess::Read, .. } => Action::ReadFiles,
            Self::Files { access: FileAccess::Write, .. } => Action::WriteFiles,
            Self::Connect { .. } => Action::Connect,
            Self::Inspect { .. } | Self::InspectOperation { .. } => Action::Inspect,
            Self::ManageImage { .. } => Action::ManageImage,
            Self::StopDaemon { .. } => Action::StopDaemon,
        }
    }

    pub fn target(&self) -> Target {
        match self {
            Self::Create { spec } => Target::NewVm(spec.name.clone()),
            Self::Start { vm }
            | Self::Stop { vm, .. }
            | Self::Restart { vm, .. }
            | Self::Pause { vm }
            | Self::Resume { vm }
            | Self::Destroy { vm }
            | Self::Exec { vm, .. }
            | Self::Attach { vm, .. }
            | Self::Files { vm, .. }
            | Self::Connect { vm, .. }
            | Self::Inspect { vm: Some(vm) } => Target::Vm(vm.clone()),
            Self::InspectOperation { id } => Target::Operation(*id),
            Self::ManageImage { image } => Target::Image(image.clone()),
            Self::Inspect { vm: None } | Self::StopDaemon { .. } => Target::Daemon,
        }
    }
}
