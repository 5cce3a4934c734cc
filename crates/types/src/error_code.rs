//! Stable error codes. Each has one page in `docs/errors/`, one HTTP status and one exit code.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $status:literal, $exit:literal, $retryable:literal;)*) => {
        /// A stable code, the same in every transport.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum ErrorCode { $($(#[$doc])* #[serde(rename = $text)] $variant,)* }
        impl ErrorCode {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            pub const fn as_str(self) -> &'static str { match self { $(Self::$variant => $text,)* } }
            /// HTTP status of the JSON API.
            pub const fn http_status(self) -> u16 { match self { $(Self::$variant => $status,)* } }
            /// Exit code of the CLI (`run` and `exec` use 124 and 125 instead).
            pub const fn exit_code(self) -> u8 { match self { $(Self::$variant => $exit,)* } }
            /// Whether the same request may succeed later without anyone changing it.
            pub const fn retryable(self) -> bool { match self { $(Self::$variant => $retryable,)* } }
        }
    };
}

codes! {
    /// The request is malformed or names an impossible value.
    InvalidArgument = "invalid_argument", 400, 2, false;
    /// The route has no such method.
    MethodNotAllowed = "method_not_allowed", 405, 2, false;
    /// The body is larger than such a request may be.
    TooLarge = "too_large", 413, 2, false;
    /// The body is of a kind that this route does not read.
    UnsupportedMediaType = "unsupported_media_type", 415, 2, false;
    /// The idempotency key was sent with another request before.
    KeyReused = "key_reused", 422, 2, false;
    /// The request was carried out before, with this idempotency key, and its answer was not kept.
    AlreadyDone = "already_done", 409, 4, false;
    /// The daemon ended in the middle of the request, or could not keep its outcome. It is not carried out again.
    OutcomeUnknown = "outcome_unknown", 409, 4, false;
    /// No such VM, operation, image or exec.
    NotFound = "not_found", 404, 3, false;
    /// The name is taken.
    AlreadyExists = "already_exists", 409, 4, false;
    /// The VM's state does not allow the verb.
    WrongState = "wrong_state", 409, 4, false;
    /// The VM moved on since the handle was made.
    StaleGeneration = "stale_generation", 409, 4, false;
    /// Another daemon or operation holds it.
    Busy = "busy", 409, 4, true;
    /// A transaction owns the VM: name it, or wait for its end.
    InTransaction = "in_transaction", 409, 4, true;
    /// Something else still needs it: a snapshot's children, a VM's disk.
    InUse = "in_use", 409, 4, false;
    /// A snapshot's part is missing or does not match its hash.
    Snapshot = "snapshot", 502, 8, false;
    /// The guest did not confirm that it was renewed after a restore; nothing was handed out.
    Thaw = "thaw", 502, 8, true;
    /// Nobody is known by the key that was sent, or none was.
    Unauthenticated = "unauthenticated", 401, 5, false;
    /// Too many requests of this key; try again when the answer says.
    RateLimited = "rate_limited", 429, 7, true;
    /// Policy said no.
    Denied = "denied", 403, 5, false;
    /// A deadline passed.
    Timeout = "timeout", 504, 6, true;
    /// Memory, disk, VM count or another ledger is exhausted, or too much is under way.
    NoResource = "no_resource", 503, 7, true;
    /// The host cannot do this: a missing program, permission or proven isolation class.
    Unavailable = "unavailable", 503, 8, false;
    /// The VMM failed.
    Backend = "backend", 502, 8, true;
    /// The image is missing parts, or they do not match their digests.
    Image = "image", 502, 8, false;
    /// The guest does not answer, or answers nonsense.
    Guest = "guest", 502, 8, true;
    /// The program to run is not in the VM, or cannot be executed there (`run` and `exec` exit with 127).
    ExecFailed = "exec_failed", 400, 8, false;
    /// Not built yet, or not possible with this provider.
    Unsupported = "unsupported", 501, 8, false;
    /// The caller or a signal ended it.
    Interrupted = "interrupted", 499, 130, true;
    /// A defect of ours. Please report it.
    Internal = "internal", 500, 8, false;
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A failure as it is stored, sent and printed. `message` and `hint` are for callers; `cause` is the chain of
/// underlying errors, already free of secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub code: ErrorCode,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None, hint: None }
    }
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Records the chain of `error` and its sources, outermost first.
    pub fn caused_by(mut self, error: &(dyn std::error::Error + 'static)) -> Self {
        let chain: Vec<String> =
            std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect();
        self.cause = Some(chain.join(": "));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::ErrorCode;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_serialise_as_their_text() {
        let texts: HashSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
            assert!((400..600).contains(&code.http_status()), "{code}");
        }
    }
}
