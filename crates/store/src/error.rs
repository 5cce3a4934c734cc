//! What can go wrong, by what the caller can do about it.

use crate::LedgerExceeded;
use jiff::Timestamp;
use offshoot_types::{
    ErrorCode, Failure, Generation, IllegalMove, KeyId, KeyName, OperationId, Owner, SnapshotId,
    SnapshotName, TransactionId, VmId, VmName, VmStateName,
};
use std::path::PathBuf;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why the record was not opened. The file is left exactly as it was found.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(
        "{} was written by a newer version of offshoot (schema {found}, this one knows up to {known})",
        path.display()
    )]
    NewerVersion { path: PathBuf, found: u32, known: u32 },
    #[error("{} is damaged: {detail}", path.display())]
    Corrupt { path: PathBuf, detail: String },
    #[error("{} is a database of another program", path.display())]
    Foreign { path: PathBuf },
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: Source,
    },
}

impl From<&OpenError> for Failure {
    fn from(error: &OpenError) -> Self {
        let failure = |code| Failure::new(code, error.to_string());
        match error {
            OpenError::NewerVersion { .. } => failure(ErrorCode::Unavailable)
                .hint("use the newer offshoot, or another --state-dir; there is no way back to an older schema"),
            OpenError::Corrupt { path, .. } => failure(ErrorCode::Unavailable).hint(format!(
                "nothing was changed; restore {} with its -wal file from a backup, or move both away to start empty",
                path.display()
            )),
            OpenError::Foreign { .. } => failure(ErrorCode::Unavailable).hint("choose another --state-dir"),
            OpenError::Io { .. } => failure(ErrorCode::Unavailable).caused_by(error),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no {what} `{id}`")]
    NotFound { what: &'static str, id: String },
    #[error("the name `{name}` is taken by VM {by} of owner `{owner}`")]
    NameTaken { name: VmName, owner: Owner, by: VmId },
    #[error(transparent)]
    Ledger(#[from] LedgerExceeded),
    #[error("VM {vm} is at generation {found}, not {expected}: it has moved on")]
    StaleGeneration { vm: VmId, expected: Generation, found: Generation },
    #[error("VM {vm} was not moved")]
    IllegalMove {
        vm: VmId,
        #[source]
        source: IllegalMove,
    },
    #[error("VM {vm} is {state}, which has no process to record")]
    NoProcessInState { vm: VmId, state: VmStateName },
    #[error("VM {vm} cannot be destroyed while an instance of generation {generation} is recorded")]
    InstanceRecorded { vm: VmId, generation: Generation },
    #[error("VM {vm} has a snapshot `{name}` already ({by})")]
    SnapshotNameTaken { vm: VmId, name: SnapshotName, by: SnapshotId },
    #[error("the name `{name}` is taken by API key {by}")]
    KeyNameTaken { name: KeyName, by: KeyId },
    #[error("snapshot {snapshot} is damaged: a part of it is missing or does not match its hash")]
    SnapshotDamaged { snapshot: SnapshotId },
    #[error("{what} is needed by {}", by.join(", "))]
    InUse { what: String, by: Vec<String> },
    #[error("transaction {transaction} owns VM {vm} until it ends, {deadline} at the latest")]
    InTransaction { vm: VmId, transaction: TransactionId, deadline: Timestamp },
    #[error("transaction {transaction} has ended")]
    TransactionEnded { transaction: TransactionId },
    #[error("operation {operation} has ended")]
    OperationEnded { operation: OperationId },
    #[error("step {position} of operation {operation} is {found}, so it cannot become {to}")]
    StepOrder { operation: OperationId, position: u32, found: String, to: &'static str },
    #[error("the request key `{key}` was used for another request (operation {operation})")]
    KeyReused { key: String, operation: OperationId },
    #[error("invalid {what}: {detail}")]
    Invalid { what: &'static str, detail: String },
    #[error("the disk that holds {} is full: {operation} was not done", path.display())]
    Full { operation: &'static str, path: PathBuf },
    #[error("{} is damaged, found during {operation}", path.display())]
    Corrupt {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: Source,
    },
    #[error("{operation} failed in {}", path.display())]
    Database {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: Source,
    },
    /// After a failed fsync nobody knows what is on disk until the file is read afresh.
    #[error("{} takes no more writes: the disk failed to keep an earlier one", path.display())]
    WriterFailed { path: PathBuf },
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::NameTaken { .. } => ErrorCode::AlreadyExists,
            Self::Ledger(_) | Self::Full { .. } => ErrorCode::NoResource,
            Self::StaleGeneration { .. } => ErrorCode::StaleGeneration,
            Self::IllegalMove { .. } | Self::NoProcessInState { .. } => ErrorCode::WrongState,
            Self::InstanceRecorded { .. } => ErrorCode::Busy,
            Self::KeyReused { .. } | Self::SnapshotNameTaken { .. } | Self::KeyNameTaken { .. } => {
                ErrorCode::AlreadyExists
            }
            Self::SnapshotDamaged { .. } => ErrorCode::Snapshot,
            Self::InUse { .. } => ErrorCode::InUse,
            Self::InTransaction { .. } => ErrorCode::InTransaction,
            Self::TransactionEnded { .. } => ErrorCode::WrongState,
            Self::Invalid { .. } => ErrorCode::InvalidArgument,
            Self::Corrupt { .. } | Self::WriterFailed { .. } | Self::Closed => ErrorCode::Unavailable,
            Self::OperationEnded { .. } | Self::StepOrder { .. } | Self::Database { .. } => {
                ErrorCode::Internal
            }
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NameTaken { name, .. } => {
                format!("choose another name, or destroy it first: offshoot destroy {name}")
            }
            Self::Ledger(exceeded) => exceeded.hint().to_owned(),
            Self::Full { path, .. } => format!("free space on the filesystem of {}", path.display()),
            Self::Corrupt { .. } => "stop the daemon and restore the file from a backup".to_owned(),
            Self::WriterFailed { .. } => "check the disk (dmesg), then restart the daemon".to_owned(),
            Self::SnapshotNameTaken { name, .. } => {
                format!("choose another name, or remove `{name}` first with `offshoot snapshot rm`")
            }
            Self::KeyNameTaken { name, .. } => {
                format!("choose another name, or remove `{name}` first with `offshoot key rm`")
            }
            Self::InUse { .. } => "remove what needs it first, or merge it with `--prune`".to_owned(),
            Self::InTransaction { .. } => "carry its id, or wait for its end".to_owned(),
            Self::KeyReused { .. } => "use a new key for a new request".to_owned(),
            _ => return None,
        })
    }
}

impl From<&StoreError> for Failure {
    fn from(error: &StoreError) -> Self {
        let mut failure = Failure::new(error.code(), error.to_string());
        failure.hint = error.hint();
        if std::error::Error::source(error).is_some() { failure.caused_by(error) } else { failure }
    }
}
impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}
impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        Self::from(&error)
    }
}
