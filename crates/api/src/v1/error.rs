//! The one shape of every error.

use super::schema;
use offshoot_types::{ErrorCode, Failure, RequestId};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// What every failed request answers, whatever the route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{message}")]
pub struct ErrorBody {
    /// Stable; one page each in `docs/errors/`.
    #[serde(deserialize_with = "known_or_internal")]
    #[schema(schema_with = schema::error_code)]
    pub code: ErrorCode,
    /// What went wrong, for people.
    pub message: String,
    /// The chain of underlying errors, outermost first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Names this request in the daemon's log; also in the `x-request-id` header.
    pub request_id: String,
    /// Whether the same request may succeed later without anyone changing it.
    pub retryable: bool,
}

impl ErrorBody {
    pub fn new(failure: Failure, request: RequestId) -> Self {
        let Failure { code, message, cause, hint } = failure;
        Self { code, message, cause, hint, request_id: request.to_string(), retryable: code.retryable() }
    }
}

impl From<ErrorBody> for Failure {
    fn from(body: ErrorBody) -> Self {
        Failure { code: body.code, message: body.message, cause: body.cause, hint: body.hint }
    }
}

/// A code this client does not know yet must not hide the message that came with it.
fn known_or_internal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ErrorCode, D::Error> {
    let text = String::deserialize(deserializer)?;
    Ok(ErrorCode::ALL.iter().copied().find(|code| code.as_str() == text).unwrap_or(ErrorCode::Internal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_words_and_a_code_from_the_future_keeps_its_message() {
        let body = ErrorBody::new(
            Failure::new(ErrorCode::Busy, "another daemon runs").hint("stop it"),
            RequestId::new(),
        );
        let json = serde_json::to_string(&body).unwrap();
        assert_eq!(serde_json::from_str::<ErrorBody>(&json).unwrap(), body);
        let newer = json.replace("\"busy\"", "\"exhausted_by_moonlight\"");
        let read = serde_json::from_str::<ErrorBody>(&newer).unwrap();
        assert_eq!((read.code, read.message.as_str()), (ErrorCode::Internal, "another daemon runs"));
    }
}
