//! Why a build ended without an image.

use super::{Stage, tools::MissingTool};
use crate::{KernelError, StoreError};
use offshoot_types::{ErrorCode, Failure};
use std::{io, path::Path, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("images can be built on x86_64 only, this machine is {arch}")]
    Architecture { arch: &'static str },
    #[error("programs needed to build images are missing: {}", tools.iter().map(|tool| tool.program).collect::<Vec<_>>().join(", "))]
    MissingTools { tools: Vec<MissingTool> },
    #[error("the image build was cancelled")]
    Cancelled,
    /// `tail` holds the last lines it printed; the log holds all.
    #[error("`{program}` failed ({status}) while {}", stage.describe())]
    Failed { stage: Stage, program: String, status: String, tail: Vec<String>, log: PathBuf },
    #[error("run `{program}`")]
    Run { program: String, source: io::Error },
    #[error("{}: unexpected result of `{program}`: {reason}", stage.describe())]
    Unexpected { stage: Stage, program: &'static str, reason: String },
    #[error("the kernel package cannot be used")]
    Kernel(#[from] KernelError),
    #[error("the stage `{stage}` left out a part of its result")]
    Incomplete { stage: Stage },
    #[error("the image store failed")]
    Store(#[from] StoreError),
    #[error("prepare for being cancelled")]
    Cancellation(#[source] io::Error),
    #[error("{action} `{}`", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

pub(super) trait IoFor<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, BuildError>;
}
impl<T> IoFor<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, BuildError> {
        self.map_err(|source| BuildError::Io { action, path: path.to_owned(), source })
    }
}

impl BuildError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Architecture { .. } => ErrorCode::Unsupported,
            Self::MissingTools { .. } => ErrorCode::Unavailable,
            Self::Cancelled => ErrorCode::Interrupted,
            Self::Store(error) => error.code(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorCode::NoResource,
            Self::Failed { .. }
            | Self::Run { .. }
            | Self::Unexpected { .. }
            | Self::Kernel(_)
            | Self::Incomplete { .. }
            | Self::Cancellation(_)
            | Self::Io { .. } => ErrorCode::Image,
        }
    }

    pub fn hint(&self) -> Option<String> {
        match self {
            Self::MissingTools { tools } => Some(MissingTool::install(tools)),
            Self::Failed { tail, log, .. } => {
                let last = tail.iter().map(|line| format!("  {line}\n")).collect::<String>();
                Some(format!("its last words were:\n{last}everything it said is in `{}`", log.display()))
            }
            Self::Store(error) => error.hint(),
            _ => None,
        }
    }

    /// As it is stored, sent and printed.
    pub fn failure(&self) -> Failure {
        let failure = Failure::new(self.code(), self.to_string());
        let failure = match std::error::Error::source(self) {
            Some(source) => failure.caused_by(source),
            None => failure,
        };
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
