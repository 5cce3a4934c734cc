//! Blobs: files named by the SHA-256 of their bytes.

use super::{
    Scratch, Store, StoreError,
    error::{At, IoAt},
    identity::Identity,
    sync_directory,
};
use crate::{BlobDigest, Part};
use std::{
    fs::{self, File, Permissions},
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// How sure a check shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thoroughness {
    /// Hash unless the file is the very one that was hashed before.
    ByIdentity,
    /// Always hash.
    ByContent,
}

impl Store {
    pub(crate) fn blob(&self, digest: BlobDigest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Takes bytes in. The caller holds [`Store::builder`] until an image or stage names the blob.
    pub(crate) fn add_bytes(&self, scratch: &Scratch, bytes: &[u8]) -> Result<Part, StoreError> {
        let digest = BlobDigest::of(bytes);
        let part = Part { digest, size: bytes.len() as u64 };
        if !self.holds(part) {
            let path = scratch.join(&digest.hex());
            File::create(&path).and_then(|mut file| file.write_all(bytes)).at(At::Write, &path)?;
            self.publish_blob(&path, digest)?;
        }
        Ok(part)
    }

    /// Takes over a file made in the scratch directory, holes and all.
    pub(crate) fn add_file(&self, path: &Path) -> Result<Part, StoreError> {
        let (digest, size) = File::open(path).and_then(BlobDigest::read).at(At::Read, path)?;
        let part = Part { digest, size };
        if !self.holds(part) {
            self.publish_blob(path, digest)?;
        }
        Ok(part)
    }

    /// Whether the blob is there and good. A damaged one counts as absent, so that it is replaced.
    pub(super) fn holds(&self, part: Part) -> bool {
        self.check_blob("blob", part, Thoroughness::ByIdentity).is_ok()
    }

    fn publish_blob(&self, from: &Path, digest: BlobDigest) -> Result<(), StoreError> {
        let to = self.blob(digest);
        let file = File::open(from).at(At::Open, from)?;
        file.set_permissions(Permissions::from_mode(0o444)).at(At::Write, from)?;
        file.sync_all().at(At::Write, from)?;
        fs::rename(from, &to).at(At::Publish, &to)?;
        let directory = self.root.join("blobs/sha256");
        sync_directory(&directory).at(At::Write, &directory)
    }

    pub(super) fn check_blob(
        &self,
        what: &str,
        part: Part,
        thoroughness: Thoroughness,
    ) -> Result<(), StoreError> {
        let path = self.blob(part.digest);
        let expected = part.digest;
        let file = match File::open(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::Missing { part: what.into(), path, expected });
            }
            opened => opened.at(At::Open, &path)?,
        };
        let before = Identity::of(&file).at(At::Read, &path)?;
        if thoroughness == Thoroughness::ByIdentity
            && before.size == part.size
            && self.verified_identity(expected).as_ref() == Some(&before)
        {
            return Ok(());
        }
        let (actual, _) = BlobDigest::read(&file).at(At::Read, &path)?;
        if actual != expected {
            self.forget_identity(expected);
            return Err(StoreError::Mismatch { part: what.into(), path, expected, actual });
        }
        // Whoever writes while we read gets neither approval nor a lasting record of one.
        if Identity::of(&file).at(At::Read, &path)? != before {
            return Err(StoreError::Unsteady { path });
        }
        self.remember_identity(expected, &before);
        Ok(())
    }
}
