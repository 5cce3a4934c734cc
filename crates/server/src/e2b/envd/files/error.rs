//! Failures of plain HTTP: `{"code": .., "message": ..}`.

use crate::e2b::envd::guest::Fault;
use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use offshoot_guest_proto::message::GuestErrorKind;
use offshoot_types::Failure;
use serde_json::json;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpError {
    pub status: StatusCode,
    message: String,
}

impl HttpError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let Self { status, message } = self;
        tracing::debug!(%status, message, "request refused");
        (status, Json(json!({ "code": status.as_u16(), "message": message }))).into_response()
    }
}

impl From<Failure> for HttpError {
    fn from(failure: Failure) -> Self {
        let status =
            StatusCode::from_u16(failure.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let message = match failure.cause {
            Some(cause) => format!("{}: {cause}", failure.message),
            None => failure.message,
        };
        Self { status, message }
    }
}

impl From<Fault> for HttpError {
    fn from(fault: Fault) -> Self {
        let refused = match fault {
            Fault::Guest(refused) => refused,
            Fault::Failed(failure) => return failure.into(),
        };
        let status = match refused.kind {
            GuestErrorKind::NotFound => StatusCode::NOT_FOUND,
            GuestErrorKind::UnknownUser => StatusCode::UNAUTHORIZED,
            GuestErrorKind::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            GuestErrorKind::PermissionDenied => StatusCode::FORBIDDEN,
            GuestErrorKind::AlreadyExists => StatusCode::CONFLICT,
            GuestErrorKind::IsADirectory
            | GuestErrorKind::NotADirectory
            | GuestErrorKind::NotEmpty
            | GuestErrorKind::InvalidArgument
            // A file system that keeps no metadata.
            | GuestErrorKind::Unsupported => StatusCode::BAD_REQUEST,
            GuestErrorKind::Exhausted => StatusCode::TOO_MANY_REQUESTS,
            GuestErrorKind::ExecFailed | GuestErrorKind::ConnectionRefused | GuestErrorKind::Other => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self { status, message: refused.message }
    }
}
