//! What goes wrong in a store, and what callers are told about it.

use crate::{BlobDigest, InitramfsError, ManifestError};
use offshoot_types::{ErrorCode, Failure, ImageDigest, ImageRef};
use std::{fmt, io, path::Path, path::PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot tell where images are kept: neither OFFSHOOT_IMAGES nor HOME is set")]
    NoRoot,
    #[error("no image is called `{image}`")]
    NotFound { image: ImageRef },
    #[error("the image `{image}` is used by {users} VM image reference(s)")]
    InUse { image: ImageRef, users: usize },
    #[error("{part} of the image is missing: `{}`, expected {expected}", path.display())]
    Missing { part: String, path: PathBuf, expected: BlobDigest },
    #[error("{part} of the image is damaged: `{}` has digest {actual}, expected {expected}", path.display())]
    Mismatch { part: String, path: PathBuf, expected: BlobDigest, actual: BlobDigest },
    #[error("`{}` changed while it was read", path.display())]
    Unsteady { path: PathBuf },
    #[error("the manifest of image {digest} cannot be used")]
    Manifest { digest: ImageDigest, source: ManifestError },
    #[error("the tag file `{}` does not hold a digest", path.display())]
    Tag { path: PathBuf },
    #[error("the initramfs of image {digest} cannot be read")]
    Initramfs { digest: ImageDigest, source: InitramfsError },
    #[error("cancelled while another build was making the same part")]
    Cancelled,
    #[error("{action} `{}`", path.display())]
    Io { action: At, path: PathBuf, source: io::Error },
}

/// What was being done to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Create,
    List,
    Lock,
    Open,
    Publish,
    Read,
    Remove,
    Write,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::List => "list",
            Self::Lock => "lock",
            Self::Open => "open",
            Self::Publish => "move into place",
            Self::Read => "read",
            Self::Remove => "remove",
            Self::Write => "write",
        })
    }
}

/// Names the operation and the file an I/O error came from.
pub(crate) trait IoAt<T> {
    fn at(self, action: At, path: &Path) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> IoAt<T> for Result<T, E> {
    fn at(self, action: At, path: &Path) -> Result<T, StoreError> {
        self.map_err(|e| StoreError::Io { action, path: path.to_owned(), source: e.into() })
    }
}

impl StoreError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::InUse { .. } => ErrorCode::WrongState,
            Self::Cancelled => ErrorCode::Interrupted,
            Self::NoRoot => ErrorCode::Unavailable,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorCode::NoResource,
                _ => ErrorCode::Image,
            },
            Self::Missing { .. }
            | Self::Mismatch { .. }
            | Self::Unsteady { .. }
            | Self::Manifest { .. }
            | Self::Tag { .. }
            | Self::Initramfs { .. } => ErrorCode::Image,
        }
    }

    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoRoot => "set OFFSHOOT_IMAGES to the directory that shall hold images".into(),
            Self::NotFound { image: ImageRef::Tag(tag) } => {
                format!("build it with `offshoot image build {tag}`, or see `offshoot image list`")
            }
            Self::NotFound { .. } => "see `offshoot image list`".into(),
            Self::InUse { .. } => "destroy those VMs first; `offshoot list` shows them".into(),
            Self::Missing { .. } | Self::Mismatch { .. } => {
                "remove the image with `offshoot image rm` and build it again".into()
            }
            Self::Manifest { source: ManifestError::Format { .. }, .. } => {
                "the image was built by another version of offshoot: build it again".into()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some disk space, or set OFFSHOOT_IMAGES to a larger disk".into()
            }
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "set OFFSHOOT_IMAGES to a directory you may write to".into()
            }
            Self::Tag { path } => format!("remove `{}` and build the image again", path.display()),
            Self::Unsteady { .. } | Self::Manifest { .. } | Self::Initramfs { .. } | Self::Cancelled => {
                return None;
            }
            Self::Io { .. } => return None,
        })
    }

    /// As it is stored, sent and printed.
    pub fn failure(&self) -> Failure {
        let failure = Failure::new(self.code(), self.to_string());
        let failure = match std::error::Error::source(self) {
            Some(source) => failure.caused_by(source),
            None => failure,
        };
        match self.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}
