//! Everything anyone can ask for, as one closed enum.
//!
//! Each transport converts to a [`Command`]; policy decides it; only an authorised command reaches the engine.
//! Adding a variant does not compile until [`Command::action`] and [`Command::target`] say how it is judged.

use crate::{
    ContextCode, ContextName, Environment, ExecArgv, ExecSpec, ForkSource, KeyId, KeyLimits, KeyName, Labels,
    LifeChange, OnTimeout, OperationId, RollbackTo, SnapshotKind, SnapshotName, SnapshotPolicyChange,
    SnapshotRef, TransactionId, TrySpec, VmId, VmName, VmSpec,
};
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
    /// Keep a VM's present state.
    Snapshot {
        vm: VmRef,
        name: Option<SnapshotName>,
        kind: SnapshotKind,
        note: Option<String>,
    },
    RemoveSnapshot {
        snapshot: SnapshotRef,
        /// Merge it into what depends on it rather than refuse.
        prune: bool,
    },
    /// Read every byte of a snapshot and compare.
    VerifySnapshot {
        snapshot: SnapshotRef,
    },
    /// New VMs that continue from a VM's present state or from a snapshot.
    Fork {
        source: ForkSource,
        /// `None`: the next free `VM-1`, `VM-2`, ...
        name: Option<VmName>,
        count: u32,
    },
    /// The VM continues from an earlier state; what it leaves can be gone back to by `Undo`.
    Rollback {
        vm: VmRef,
        to: RollbackTo,
    },
    /// Takes back the last rollback, commit or race.
    Undo {
        vm: VmRef,
    },
    /// `Running` or `Paused` to `Suspended`: memory on disk, no process.
    Suspend {
        vm: VmRef,
    },
    /// Opens a transaction, or a savepoint within the one that is open.
    Begin {
        vm: VmRef,
        parent: Option<TransactionId>,
        deadline: Duration,
    },
    Commit {
        vm: VmRef,
        transaction: TransactionId,
    },
    RollbackTransaction {
        vm: VmRef,
        transaction: TransactionId,
    },
    /// One exec as a transaction.
    Try {
        vm: VmRef,
        spec: Box<TrySpec>,
    },
    /// Run something in several forks; the VM continues as the winner.
    Race {
        vm: VmRef,
        count: u32,
        spec: Box<ExecSpec>,
        /// Prints a number; the highest wins. Without it the first success does.
        score: Option<ExecArgv>,
    },
    /// Run code in a live interpreter.
    RunCode {
        vm: VmRef,
        code: Box<ContextCode>,
    },
    RemoveContext {
        vm: VmRef,
        context: ContextName,
    },
    RestartContext {
        vm: VmRef,
        context: ContextName,
    },
    /// When snapshots of a VM are taken without being asked for, and what a failed exec does.
    SetPolicy {
        vm: VmRef,
        policy: SnapshotPolicyChange,
    },
    /// When a VM rests by itself, and when its time is up.
    SetLife {
        vm: VmRef,
        life: LifeChange,
    },
    /// What a VM is found by, and what its processes find in their environment; what is `None` stays.
    Describe {
        vm: VmRef,
        labels: Option<Labels>,
        env: Option<Environment>,
    },
    /// Write a snapshot with all it needs as one file: whoever has that has all there was in the VM.
    ExportSnapshot {
        snapshot: SnapshotRef,
    },
    /// Make a VM of such a file.
    ImportSnapshot {
        /// Of the VM; without one, as the one it was exported from or the next free name after that.
        name: Option<VmName>,
    },
    /// What differs between two states: files, packages, processes.
    Diff {
        from: ForkSource,
        to: ForkSource,
    },
    /// Read records of snapshots.
    InspectSnapshot {
        snapshot: SnapshotRef,
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
    /// Hand out what opens the VM to whoever holds it: to exec, files, ports and contexts.
    Admit {
        vm: VmRef,
    },
    /// Make an API key.
    CreateKey {
        name: KeyName,
        limits: Box<KeyLimits>,
    },
    ListKeys,
    /// Remove an API key, and those that were made with it.
    RemoveKey {
        key: KeyId,
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
    Snapshot,
    RemoveSnapshot,
    Fork,
    Rollback,
    Suspend,
    /// Begin, commit or roll back a transaction, with what a rollback of it may do.
    Transact,
    Inspect,
    /// Hand out a VM's access token.
    Admit,
    ManageImage,
    ManageKeys,
    StopDaemon,
}

impl Action {
    pub const ALL: [Self; 22] = [
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
        Self::Snapshot,
        Self::RemoveSnapshot,
        Self::Fork,
        Self::Rollback,
        Self::Suspend,
        Self::Transact,
        Self::Inspect,
        Self::Admit,
        Self::ManageImage,
        Self::ManageKeys,
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
            Self::Snapshot => "snapshot",
            Self::RemoveSnapshot => "remove-snapshot",
            Self::Fork => "fork",
            Self::Rollback => "rollback",
            Self::Suspend => "suspend",
            Self::Transact => "transact",
            Self::Inspect => "inspect",
            Self::Admit => "admit",
            Self::ManageImage => "manage-image",
            Self::ManageKeys => "manage-keys",
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
    Snapshot(SnapshotRef),
    Daemon,
}

impl Command {
    /// Whether it needs a VM that runs: one that is suspended has to continue for it.
    pub const fn needs_guest(&self) -> bool {
        matches!(
            self,
            Self::Exec { .. }
                | Self::Attach { .. }
                | Self::Files { .. }
                | Self::Connect { .. }
                | Self::Snapshot { .. }
                | Self::Begin { .. }
                | Self::Try { .. }
                | Self::Race { .. }
                | Self::RunCode { .. }
                | Self::RemoveContext { .. }
                | Self::RestartContext { .. }
        )
    }

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
            // It decides on snapshots to come.
            Self::Snapshot { .. } | Self::SetPolicy { .. } => Action::Snapshot,
            Self::RemoveSnapshot { .. } => Action::RemoveSnapshot,
            Self::Fork { .. } => Action::Fork,
            Self::Rollback { .. } | Self::Undo { .. } => Action::Rollback,
            Self::Suspend { .. } => Action::Suspend,
            // It may end the VM, disk and all, when its time is up.
            Self::SetLife { life: LifeChange { on_timeout: Some(OnTimeout::Destroy), .. }, .. } => {
                Action::Destroy
            }
            // It decides on suspensions to come.
            Self::SetLife { .. } => Action::Suspend,
            Self::Begin { .. } | Self::Commit { .. } | Self::RollbackTransaction { .. } => Action::Transact,
            // A transaction runs what it is given: whoever may not exec may not try either.
            Self::Try { .. }
            | Self::Race { .. }
            | Self::RunCode { .. }
            | Self::RemoveContext { .. }
            | Self::RestartContext { .. } => Action::Exec,
            Self::Inspect { .. }
            | Self::InspectOperation { .. }
            | Self::InspectSnapshot { .. }
            | Self::VerifySnapshot { .. } => Action::Inspect,
            // They read the files of a VM.
            Self::Diff { .. } | Self::ExportSnapshot { .. } => Action::ReadFiles,
            // A VM with other labels is another one to whoever judges by them.
            Self::ImportSnapshot { .. } | Self::Describe { .. } => Action::Create,
            Self::Admit { .. } => Action::Admit,
            Self::ManageImage { .. } => Action::ManageImage,
            Self::CreateKey { .. } | Self::ListKeys | Self::RemoveKey { .. } => Action::ManageKeys,
            Self::StopDaemon { .. } => Action::StopDaemon,
        }
    }

    /// The other thing it names, which may be part of another VM than its target is.
    pub fn beside(&self) -> Option<Target> {
        match self {
            Self::Diff { to: ForkSource::Vm(vm), .. } => Some(Target::Vm(vm.clone())),
            Self::Diff { to: ForkSource::Snapshot(snapshot), .. }
            | Self::Rollback { to: RollbackTo::Snapshot(snapshot), .. } => {
                Some(Target::Snapshot(snapshot.clone()))
            }
            _ => None,
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
            | Self::Snapshot { vm, .. }
            | Self::Rollback { vm, .. }
            | Self::Undo { vm }
            | Self::Suspend { vm }
            | Self::Begin { vm, .. }
            | Self::Commit { vm, .. }
            | Self::RollbackTransaction { vm, .. }
            | Self::Try { vm, .. }
            | Self::Race { vm, .. }
            | Self::RunCode { vm, .. }
            | Self::RemoveContext { vm, .. }
            | Self::RestartContext { vm, .. }
            | Self::SetPolicy { vm, .. }
            | Self::SetLife { vm, .. }
            | Self::Describe { vm, .. }
            | Self::Admit { vm }
            | Self::Fork { source: ForkSource::Vm(vm), .. }
            | Self::Diff { from: ForkSource::Vm(vm), .. }
            | Self::Inspect { vm: Some(vm) } => Target::Vm(vm.clone()),
            Self::RemoveSnapshot { snapshot, .. }
            | Self::VerifySnapshot { snapshot }
            | Self::InspectSnapshot { snapshot }
            | Self::ExportSnapshot { snapshot }
            | Self::Fork { source: ForkSource::Snapshot(snapshot), .. }
            | Self::Diff { from: ForkSource::Snapshot(snapshot), .. } => Target::Snapshot(snapshot.clone()),
            Self::InspectOperation { id } => Target::Operation(*id),
            Self::ManageImage { image } => Target::Image(image.clone()),
            Self::ImportSnapshot { name: Some(name) } => Target::NewVm(name.clone()),
            Self::ImportSnapshot { name: None }
            | Self::Inspect { vm: None }
            | Self::CreateKey { .. }
            | Self::ListKeys
            | Self::RemoveKey { .. }
            | Self::StopDaemon { .. } => Target::Daemon,
        }
    }
}
