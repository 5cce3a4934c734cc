//! Cheap proof that a file is the one that was verified: the kernel changes a file's ctime with every write, rename,
//! chmod or link, and nobody can set it back. So equal (device, inode, size, mtime, ctime) means equal bytes, except
//! for a write within the same tick of the kernel's clock; a file that fresh is therefore not remembered.

use super::{Hash, Part, PartError, verify_file};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Longer than a tick of any kernel (HZ=100), with room for coarse file systems.
const SETTLED: Duration = Duration::from_millis(100);

/// Equal for the same bytes in the same place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

impl Identity {
    pub fn of(file: &File) -> io::Result<Self> {
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

    /// In bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Whether it is the same file, perhaps by another name or with other rights.
    pub(super) fn is_unwritten_since(&self, before: &Self) -> bool {
        *self == Self { changed_ns: self.changed_ns, ..before.clone() }
    }

    /// Whether a later write would show.
    pub fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as i128;
        self.changed_ns + (SETTLED.as_nanos() as i128) < now
    }
}

/// The files this process has verified.
#[derive(Debug, Default)]
pub struct Trusted {
    files: Mutex<HashMap<PathBuf, (Hash, Identity)>>,
}

impl Trusted {
    /// The identity under which `path` was verified to be `part`.
    pub fn identity(&self, path: &Path, part: &Part) -> Option<Identity> {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.get(path).filter(|(root, _)| *root == part.root).map(|(_, identity)| identity.clone())
    }

    /// After a verification. A file changed a moment ago is not remembered: it is hashed once more next time.
    pub fn remember(&self, path: &Path, part: &Part, identity: Identity) {
        if identity.is_settled(SystemTime::now()) {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            files.insert(path.to_owned(), (part.root, identity));
        }
    }

    pub fn forget(&self, path: &Path) {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
    }

    /// [`verify_file`], once per file and change.
    pub fn verify(&self, path: &Path, part: &Part) -> Result<(), PartError> {
        let known = self.identity(path, part);
        match verify_file(path, part, known.as_ref()) {
            Ok(identity) => {
                self.remember(path, part, identity);
                Ok(())
            }
            Err(error) => {
                self.forget(path);
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::hash_file;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_changed_just_now_is_not_settled() {
        let file = tempfile::tempfile().unwrap();
        let identity = Identity::of(&file).unwrap();
        let changed = UNIX_EPOCH + Duration::from_nanos(identity.changed_ns as u64);
        assert!(!identity.is_settled(changed));
        assert!(!identity.is_settled(changed + SETTLED));
        assert!(identity.is_settled(changed + SETTLED + Duration::from_nanos(1)));
    }

    #[test]
    fn a_known_file_is_trusted_until_it_changes_and_a_fresh_one_never() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("part");
        std::fs::write(&path, b"bytes").unwrap();
        let part = hash_file(&path).unwrap();
        let trusted = Trusted::default();
        trusted.verify(&path, &part).unwrap();
        assert_eq!(trusted.identity(&path, &part), None, "it was written a moment ago");

        let old = Identity { changed_ns: 0, ..Identity::of(&File::open(&path).unwrap()).unwrap() };
        trusted.remember(&path, &part, old.clone());
        assert_eq!(trusted.identity(&path, &part), Some(old));
        assert_eq!(trusted.identity(&path, &Part::of(b"other")), None, "trusted to be something else");

        // Its identity is another now, so it is read, and found to be damaged.
        File::options().write(true).open(&path).unwrap().write_all_at(b"B", 0).unwrap();
        assert!(matches!(trusted.verify(&path, &part), Err(PartError::Damaged { offset: 0, length: 5, .. })));
        assert_eq!(trusted.identity(&path, &part), None);
    }
}
