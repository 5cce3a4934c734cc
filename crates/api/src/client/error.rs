//! What can go wrong between a caller and the daemon.

use crate::v1::ErrorBody;
use offshoot_types::{ErrorCode, Failure};
use std::{io, path::PathBuf, time::Duration};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens: the socket is absent, or nobody accepts.
    #[error("no daemon listens at {}", socket.display())]
    NotRunning {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Somebody else listens where our daemon should: nothing was said to it.
    #[error("the daemon at {} belongs to user {owner}, not to user {uid}", socket.display())]
    Foreign { socket: PathBuf, owner: u32, uid: u32 },
    /// There is no way to a daemon, in the words of who looked for one.
    #[error("{}", .0.message)]
    Unreachable(Box<Failure>),
    /// The daemon answered, with an error.
    #[error("{0}")]
    Api(Box<ErrorBody>),
    /// The connection broke.
    #[error("{operation} failed: the connection to the daemon broke")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    /// The daemon answered something this client does not understand.
    #[error("{operation} got an answer that makes no sense: {message}")]
    Protocol { operation: &'static str, message: String },
    /// What was waited for did not happen in time.
    #[error("{operation} did not end within {after:?}")]
    Timeout { operation: &'static str, after: Duration },
}

impl ClientError {
    pub(super) fn protocol(operation: &'static str, message: impl ToString) -> Self {
        Self::Protocol { operation, message: message.to_string() }
    }

    pub(super) fn io(
        operation: &'static str,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Io { operation, source: io::Error::other(source) }
    }

    /// The stable code that fits, for exit codes and machine-readable output.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotRunning { .. } | Self::Io { .. } => ErrorCode::Unavailable,
            Self::Foreign { .. } => ErrorCode::Denied,
            Self::Unreachable(failure) => failure.code,
            Self::Api(body) => body.code,
            Self::Protocol { .. } => ErrorCode::Internal,
            Self::Timeout { .. } => ErrorCode::Timeout,
        }
    }

    /// The one error shape, for printing.
    pub fn into_failure(self) -> Failure {
        match self {
            Self::Api(body) => (*body).into(),
            Self::Unreachable(failure) => *failure,
            other => {
                let mut failure = Failure::new(other.code(), other.to_string());
                if let Self::Foreign { owner, .. } = other {
                    failure = failure
                        .hint(format!("run the command as user {owner}, or use a --state-dir of your own"));
                }
                match std::error::Error::source(&other) {
                    Some(source) => failure.caused_by(source),
                    None => failure,
                }
            }
        }
    }
}
