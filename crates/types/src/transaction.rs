//! Actions that are undone when they fail.

use crate::{ExecArgv, ExecSpec};
use serde::{Deserialize, Serialize};
use std::{fmt, time::Duration};

/// One exec as a transaction: snapshot, run, check, then keep or undo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrySpec {
    pub exec: ExecSpec,
    /// Run after a successful exec; must exit with 0.
    pub check: Option<ExecArgv>,
    /// Of exec and check together.
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransactionState {
    Open,
    Committed,
    RolledBack,
    /// It is to be rolled back and that has not succeeded yet: it is tried again.
    RollingBack,
}

/// Why a transaction was undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "kebab-case")]
pub enum RollbackCause {
    Asked,
    /// The exec did not exit with 0.
    Failed {
        status: i32,
    },
    CheckFailed {
        status: i32,
    },
    Deadline,
    Denied,
    GuestCrashed,
    /// The caller went away in the middle.
    CallerLeft,
    /// The daemon died in the middle; its next start rolled back.
    DaemonDied,
}

impl fmt::Display for RollbackCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("rollback was asked for"),
            Self::Failed { status } => write!(f, "the command exited with {status}"),
            Self::CheckFailed { status } => write!(f, "the check exited with {status}"),
            Self::Deadline => f.write_str("its time was up"),
            Self::Denied => f.write_str("policy denied a command in it"),
            Self::GuestCrashed => f.write_str("the guest crashed"),
            Self::CallerLeft => f.write_str("the caller went away"),
            Self::DaemonDied => f.write_str("the daemon ended in the middle of it"),
        }
    }
}

/// How a transaction ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "kebab-case")]
pub enum TransactionEnd {
    Committed,
    RolledBack {
        #[serde(flatten)]
        cause: RollbackCause,
    },
}
