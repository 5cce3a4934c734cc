//! Cheap proof that a file is the one that was hashed: the kernel changes a file's ctime with every write, rename,
//! chmod or link, and nobody can set it back. So equal (device, inode, size, mtime, ctime) means equal bytes, except
//! for a write within the same tick of the kernel's clock; a file that fresh is therefore not remembered, and hashed
//! once more next time.

use super::Store;
use crate::BlobDigest;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Longer than a tick of any kernel (HZ=100), with room for coarse file systems.
const SETTLED: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Identity {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let ns =
            |seconds: i64, nanoseconds: i64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_ns: ns(metadata.mtime(), metadata.mtime_nsec()),
            changed_ns: ns(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    pub(super) fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i128;
        self.changed_ns + (SETTLED.as_nanos() as i128) < now
    }
}

impl Store {
    fn identity_path(&self, digest: BlobDigest) -> PathBuf {
        self.root.join("verified").join(digest.hex())
    }

    pub(super) fn verified_identity(&self, digest: BlobDigest) -> Option<Identity> {
        let bytes = fs::read(self.identity_path(digest)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Failing to remember costs time, not correctness: a store may be read-only for us.
    pub(super) fn remember_identity(&self, digest: BlobDigest, identity: &Identity) {
        if !identity.is_settled(SystemTime::now()) {
            return;
        }
        let written = self.scratch().map_err(io::Error::other).and_then(|scratch| {
            let path = scratch.join("identity");
            fs::write(&path, serde_json::to_vec(identity)?)?;
            fs::rename(&path, self.identity_path(digest))
        });
        if let Err(error) = written {
            tracing::debug!(blob = %digest, %error, "could not remember a verified file");
        }
    }

    pub(super) fn forget_identity(&self, digest: BlobDigest) {
        // Absent already, or not ours to change: an identity that no longer matches is useless anyway.
        let _ = fs::remove_file(self.identity_path(digest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_changed_just_now_is_not_settled() {
        let file = tempfile::tempfile().unwrap();
        let identity = Identity::of(&file).unwrap();
        let changed = UNIX_EPOCH + Duration::from_nanos(identity.changed_ns as u64);
        assert!(!identity.is_settled(changed));
        assert!(!identity.is_settled(changed + SETTLED));
        assert!(identity.is_settled(changed + SETTLED + Duration::from_nanos(1)));
    }
}
