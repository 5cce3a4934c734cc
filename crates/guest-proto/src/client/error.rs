//! What can go wrong between the host and a guest, as seen by the host.

use crate::{
    codec::CodecError,
    message::{GuestError, PROTOCOL_VERSION},
    resync::SyncError,
    session::CloseReason,
};
use std::time::Duration;

/// No session came about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the host's random source failed")]
    Random(#[source] getrandom::Error),
    #[error("the channel to the guest agent could not be synchronised")]
    Sync(#[from] SyncError),
    #[error("the guest agent did not complete the handshake within {after:?}")]
    Deadline { after: Duration },
    /// It will not be another one as long as this VM runs.
    #[error("the guest agent speaks protocol version {guest}, this host speaks {PROTOCOL_VERSION}")]
    Version { guest: u16 },
    #[error("the guest agent answered for another epoch than the one begun")]
    Epoch,
    #[error("the guest agent refused the handshake")]
    Refused(#[source] GuestError),
    #[error("the handshake failed")]
    Handshake(#[source] ClientError),
}

impl ConnectError {
    /// What to do, where another attempt is of no use.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Version { .. } => Some(
                "build its image once more with `offshoot image build NAME` and make the VM anew; \
                VMs and snapshots of before cannot be continued",
            ),
            _ => None,
        }
    }
}

/// An operation in the guest failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The guest's own answer.
    #[error(transparent)]
    Guest(GuestError),
    /// The session is over: the operation may or may not have happened.
    #[error("the connection to the guest agent is closed")]
    Closed {
        #[source]
        reason: CloseReason,
    },
    #[error("the guest agent did not answer {operation} within {after:?}")]
    Timeout { operation: &'static str, after: Duration },
    /// The guest said something it must not say. Nothing of this answer was used.
    #[error("the guest agent broke the protocol in {operation}: {problem}")]
    Protocol { operation: &'static str, problem: String },
    #[error("too many operations are under way in this VM (at most {limit})")]
    TooManyStreams { limit: usize },
    /// The request itself cannot be sent.
    #[error("{operation} cannot be sent to the guest agent")]
    Request {
        operation: &'static str,
        #[source]
        source: CodecError,
    },
}

impl ClientError {
    pub(crate) fn protocol(operation: &'static str, problem: impl Into<String>) -> Self {
        Self::Protocol { operation, problem: problem.into() }
    }
}
