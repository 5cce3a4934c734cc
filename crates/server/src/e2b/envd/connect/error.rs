//! Failures in the words of the protocol.

use crate::{e2b::envd::guest::Fault, http::Unread};
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use offshoot_guest_proto::message::GuestErrorKind;
use offshoot_types::{ErrorCode, Failure};
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    Unimplemented,
    Internal,
    Unavailable,
    Unauthenticated,
}

impl Code {
    /// Of a call that is not a stream.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => StatusCode::BAD_REQUEST,
            Self::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::AlreadyExists | Self::Aborted => StatusCode::CONFLICT,
            Self::PermissionDenied => StatusCode::FORBIDDEN,
            Self::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Self::Unimplemented => StatusCode::NOT_IMPLEMENTED,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
        }
    }
}

/// The body of a failed call, and what ends a failed stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectError {
    pub code: Code,
    pub message: String,
}

impl ConnectError {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
}

impl IntoResponse for ConnectError {
    fn into_response(self) -> Response {
        tracing::debug!(code = ?self.code, message = self.message, "call failed");
        (self.code.status(), Json(self)).into_response()
    }
}

impl From<Failure> for ConnectError {
    fn from(failure: Failure) -> Self {
        let code = match failure.code {
            ErrorCode::InvalidArgument
            | ErrorCode::MethodNotAllowed
            | ErrorCode::TooLarge
            | ErrorCode::UnsupportedMediaType
            | ErrorCode::KeyReused
            | ErrorCode::ExecFailed => Code::InvalidArgument,
            ErrorCode::NotFound => Code::NotFound,
            ErrorCode::AlreadyExists => Code::AlreadyExists,
            ErrorCode::Unauthenticated => Code::Unauthenticated,
            ErrorCode::Denied => Code::PermissionDenied,
            ErrorCode::Timeout => Code::DeadlineExceeded,
            ErrorCode::NoResource | ErrorCode::RateLimited | ErrorCode::Busy => Code::ResourceExhausted,
            ErrorCode::InTransaction | ErrorCode::InUse => Code::FailedPrecondition,
            ErrorCode::StaleGeneration | ErrorCode::AlreadyDone | ErrorCode::OutcomeUnknown => Code::Aborted,
            ErrorCode::Unsupported => Code::Unimplemented,
            // It does not run, or does not answer: clients look at its health then.
            ErrorCode::WrongState
            | ErrorCode::Snapshot
            | ErrorCode::Thaw
            | ErrorCode::Unavailable
            | ErrorCode::Backend
            | ErrorCode::Image
            | ErrorCode::Guest
            | ErrorCode::Interrupted => Code::Unavailable,
            ErrorCode::Internal => {
                tracing::error!(message = failure.message, cause = failure.cause, "request failed");
                Code::Internal
            }
        };
        let message = match failure.cause {
            Some(cause) => format!("{}: {cause}", failure.message),
            None => failure.message,
        };
        Self { code, message }
    }
}

impl From<Unread> for ConnectError {
    fn from(unread: Unread) -> Self {
        let code = match unread {
            Unread::TooLarge(_) => Code::ResourceExhausted,
            Unread::BrokenOff(_) => Code::Unavailable,
            Unread::Late => Code::DeadlineExceeded,
        };
        Self { code, ..Failure::from(unread).into() }
    }
}

impl From<Fault> for ConnectError {
    fn from(fault: Fault) -> Self {
        let refused = match fault {
            Fault::Guest(refused) => refused,
            Fault::Failed(failure) => return failure.into(),
        };
        let code = match refused.kind {
            GuestErrorKind::NotFound => Code::NotFound,
            GuestErrorKind::AlreadyExists => Code::AlreadyExists,
            GuestErrorKind::UnknownUser => Code::Unauthenticated,
            GuestErrorKind::PermissionDenied => Code::PermissionDenied,
            GuestErrorKind::NotADirectory
            | GuestErrorKind::IsADirectory
            | GuestErrorKind::NotEmpty
            | GuestErrorKind::InvalidArgument
            | GuestErrorKind::ExecFailed => Code::InvalidArgument,
            GuestErrorKind::NoSpace | GuestErrorKind::Exhausted => Code::ResourceExhausted,
            GuestErrorKind::Unsupported => Code::Unimplemented,
            GuestErrorKind::ConnectionRefused => Code::Unavailable,
            GuestErrorKind::Other => Code::Internal,
        };
        Self { code, message: refused.message }
    }
}
