//! Failures as the host is told: a kind to act on, and `operation operand: reason`.

use offshoot_guest_proto::message::{GuestError, GuestErrorKind};
use std::{fmt, io};

pub fn fault(kind: GuestErrorKind, message: impl Into<String>) -> GuestError {
    GuestError { kind, message: message.into() }
}

pub fn invalid(message: impl Into<String>) -> GuestError {
    fault(GuestErrorKind::InvalidArgument, message)
}

/// Names operation and operand of a failed system call.
pub trait Context<T> {
    fn context(self, operation: &str, operand: impl fmt::Display) -> Result<T, GuestError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, operation: &str, operand: impl fmt::Display) -> Result<T, GuestError> {
        self.map_err(|error| {
            let error = error.into();
            fault(kind_of(&error), format!("{operation} {operand}: {}", reason(&error)))
        })
    }
}

/// The kernel's words without Rust's `(os error N)`.
pub fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    match text.rfind(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

pub fn kind_of(error: &io::Error) -> GuestErrorKind {
    use GuestErrorKind as Kind;
    match error.raw_os_error() {
        Some(libc::ENOENT) => Kind::NotFound,
        Some(libc::EEXIST) => Kind::AlreadyExists,
        // Busy: a mount point, or a program that runs.
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::EBUSY | libc::ETXTBSY) => {
            Kind::PermissionDenied
        }
        Some(libc::ENOTDIR) => Kind::NotADirectory,
        Some(libc::EISDIR) => Kind::IsADirectory,
        Some(libc::ENOTEMPTY) => Kind::NotEmpty,
        Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Kind::NoSpace,
        Some(libc::EINVAL | libc::ENAMETOOLONG | libc::ELOOP | libc::EXDEV) => Kind::InvalidArgument,
        Some(libc::ECONNREFUSED) => Kind::ConnectionRefused,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EAGAIN) => Kind::Exhausted,
        Some(libc::ENOSYS | libc::EOPNOTSUPP) => Kind::Unsupported,
        _ => match error.kind() {
            io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
            io::ErrorKind::InvalidInput => Kind::InvalidArgument,
            _ => Kind::Other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_operation_operand_and_reason() {
        let failed: io::Result<()> = Err(io::Error::from_raw_os_error(libc::EACCES));
        let error = failed.context("open", "/etc/shadow").unwrap_err();
        assert_eq!(error.kind, GuestErrorKind::PermissionDenied);
        assert_eq!(error.message, "open /etc/shadow: Permission denied");
        // As for a file of ours that is mounted over the image's.
        assert_eq!(kind_of(&io::Error::from_raw_os_error(libc::EBUSY)), GuestErrorKind::PermissionDenied);
    }
}
