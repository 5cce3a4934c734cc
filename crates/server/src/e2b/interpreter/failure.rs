//! How the interpreter says no: a status and a sentence, which clients pass on as they are.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use offshoot_types::{ErrorCode, Failure};

#[derive(Debug)]
pub struct Refused(Failure);

impl Refused {
    pub fn invalid(message: impl Into<String>) -> Self {
        Self(Failure::new(ErrorCode::InvalidArgument, message))
    }
    pub fn no_context(id: &str) -> Self {
        Self(Failure::new(ErrorCode::NotFound, format!("Context {id} not found")))
    }
}

impl<F: Into<Failure>> From<F> for Refused {
    fn from(failure: F) -> Self {
        Self(failure.into())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(failure) = self;
        tracing::info!(code = %failure.code, error = %failure.message, "the interpreter refused");
        let status =
            StatusCode::from_u16(failure.code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = match &failure.hint {
            Some(hint) => format!("{}: {hint}", failure.message),
            None => failure.message,
        };
        (status, text).into_response()
    }
}
