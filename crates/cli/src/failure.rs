//! Why a verb did not do what it was asked, in the one shape that is printed.
//!
//! ```text
//! ClientError, StoreError, BuildError, io::Error ... -> Failure {code, message, cause, hint} -> printer
//!                                                    -> exit status (`exit_code`)
//! ```

use crate::{exit_code::ExitCode, hints};
use offshoot_api::ClientError;
use offshoot_types::{ErrorCode, Failure};
use serde::Serialize;
use std::{error::Error, fmt::Display, io, path::Path};

/// Why a verb ends early.
#[derive(Debug)]
pub enum Stop {
    Failed(Box<Report>),
    /// As `Failed`, but of the guest's program: with the status a shell would report for it.
    Program(Box<Report>, ExitCode),
    /// Whoever read our output has had enough: not an error.
    BrokenPipe,
    /// By Ctrl-C, SIGTERM, SIGHUP or the escape keys; what was begun has been taken back.
    Interrupted,
}

pub type Result<T = (), E = Stop> = std::result::Result<T, E>;

/// A failure with what the API adds to it. With `--json` this is the document on standard output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub failure: Failure,
    /// Names the request in the daemon's log; absent if the daemon was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    pub retryable: bool,
}

impl From<Failure> for Report {
    fn from(failure: Failure) -> Self {
        let retryable = failure.code.retryable();
        Self { failure: hints::complete(failure), request_id: None, retryable }
    }
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(Box::new(failure.into()))
    }
}

impl Stop {
    pub fn program(error: ClientError, status: ExitCode) -> Self {
        match error.into() {
            Self::Failed(report) => Self::Program(report, status),
            other => other,
        }
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        let request_id = match &error {
            ClientError::Api(body) => Some(body.request_id.clone()),
            _ => None,
        };
        Self::Failed(Box::new(Report { request_id, ..error.into_failure().into() }))
    }
}

impl From<offshoot_image::StoreError> for Stop {
    fn from(error: offshoot_image::StoreError) -> Self {
        error.failure().into()
    }
}

/// A request that cannot be, found before anything was done.
pub fn usage(message: impl Into<String>) -> Failure {
    Failure::new(ErrorCode::InvalidArgument, message)
}

/// A failed operation on a local file. `operation` and `path` make the message, `error` the cause.
pub fn file(operation: &str, path: &Path, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    let code = match error.kind() {
        io::ErrorKind::NotFound => ErrorCode::NotFound,
        io::ErrorKind::AlreadyExists => ErrorCode::AlreadyExists,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoResource,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorCode::Denied,
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => ErrorCode::InvalidArgument,
        _ => ErrorCode::Unavailable,
    };
    let failure = Failure::new(code, format!("cannot {operation} `{}`", path.display())).caused_by(&error);
    match code {
        // What helps with VMs would mislead here.
        ErrorCode::NotFound => failure.hint("check the path"),
        ErrorCode::NoResource => failure.hint("make room where it is written"),
        ErrorCode::Denied => failure.hint("check whose it is and its mode, or choose another place"),
        _ => failure,
    }
}

/// A failure of the host's, such as a missing program or a terminal that cannot be set.
pub fn host(message: impl Display, error: &(dyn Error + 'static)) -> Failure {
    Failure::new(ErrorCode::Unavailable, message.to_string()).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_api::v1::ErrorBody;
    use offshoot_types::RequestId;

    #[test]
    fn an_error_of_the_daemon_keeps_its_request_id_and_words() {
        let request = RequestId::new();
        let failure = Failure::new(ErrorCode::Busy, "another daemon runs").hint("stop it");
        let error = ClientError::Api(Box::new(ErrorBody::new(failure.clone(), request)));
        let Stop::Failed(report) = Stop::from(error) else { panic!("a failure stays one") };
        assert_eq!(report.failure, failure);
        assert_eq!(report.request_id, Some(request.to_string()));
        assert!(report.retryable);
    }

    #[test]
    fn the_document_of_a_failure_is_flat() {
        let report = Report::from(usage("`x` cannot be").hint("say y"));
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "code": "invalid_argument", "message": "`x` cannot be", "hint": "say y", "retryable": false
            })
        );
    }

    #[test]
    fn a_full_disk_is_no_resource_and_a_missing_file_is_not_found() {
        let full = file("write", Path::new("/x"), io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.code, ErrorCode::NoResource);
        let absent = file("open", Path::new("/x"), io::Error::from(io::ErrorKind::NotFound));
        assert_eq!((absent.code, absent.message.as_str()), (ErrorCode::NotFound, "cannot open `/x`"));
        let denied = file("open", Path::new("/x"), io::Error::from(io::ErrorKind::PermissionDenied));
        assert_eq!(denied.code, ErrorCode::Denied);
        for failure in [full, absent, denied] {
            let hint = failure.hint.unwrap();
            assert!(!hint.contains("offshoot"), "a local file is no matter of VMs: {hint}");
        }
    }
}
