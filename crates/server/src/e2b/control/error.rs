//! How the control plane fails: `{"code": status, "message": sentence}`.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use offshoot_api::v1::InvalidField;
use offshoot_types::{ErrorCode, Failure};
use serde_json::json;

/// Tells clients, which repeat requests by themselves, to do so or not.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("should-retry");
/// Clients look for it: the guest's agent did not answer.
const UNRESPONSIVE: &str = "sandbox_snapshot_guest_agent_unresponsive";

/// A failure on the wire.
#[derive(Debug)]
pub struct Refused {
    failure: Failure,
    status: StatusCode,
    /// The same request again may do twice what is to be done once.
    once: bool,
}

impl Refused {
    /// Says that the request must not be repeated as it is.
    pub fn once(mut self) -> Self {
        self.once = true;
        self
    }

    /// With another status than the code's.
    pub fn with(status: StatusCode, failure: impl Into<Failure>) -> Self {
        Self { failure: failure.into(), status, once: false }
    }

    pub fn is(&self, code: ErrorCode) -> bool {
        self.failure.code == code
    }

    /// On the wire; whoever asks for it says in the log that it was refused.
    pub fn written(self) -> Response {
        let Self { failure, status, once } = self;
        let sentence = match &failure.hint {
            Some(hint) => format!("{}; {hint}", failure.message),
            None => failure.message,
        };
        let mut body = json!({ "code": status.as_u16(), "message": sentence });
        if failure.code == ErrorCode::Guest {
            body["error_code"] = UNRESPONSIVE.into();
        }
        let mut response = (status, Json(body)).into_response();
        let headers = response.headers_mut();
        if once {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        } else if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl<F: Into<Failure>> From<F> for Refused {
    fn from(failure: F) -> Self {
        let failure = failure.into();
        let status = match failure.code {
            // Clients take 409 for "it is so already".
            ErrorCode::Busy | ErrorCode::InTransaction | ErrorCode::Guest | ErrorCode::Timeout => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            // Theirs knows no other.
            ErrorCode::TooLarge => StatusCode::BAD_REQUEST,
            code => StatusCode::from_u16(code.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        Self { failure, status, once: false }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let failure = &self.failure;
        tracing::info!(code = %failure.code, message = failure.message, cause = failure.cause, "request refused");
        self.written()
    }
}

/// A field that cannot be, by name.
pub fn invalid(field: &str, problem: impl std::fmt::Display) -> Refused {
    InvalidField::new(field, problem).into()
}

pub fn not_found(sandbox: &str) -> Failure {
    Failure::new(ErrorCode::NotFound, format!("Sandbox \"{sandbox:.80}\" not found"))
}
