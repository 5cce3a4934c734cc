//! Keys of this host, one for each purpose: what was made with one is told apart from what others made.

use crate::{machine::io_failure, state_dir::make_private_dir};
use offshoot_provider::parts::Hash;
use offshoot_types::{ErrorCode, Failure};
use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

const LENGTH: usize = 32;

/// Never shown.
pub struct HostKey([u8; LENGTH]);

impl fmt::Debug for HostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HostKey(..)")
    }
}

impl HostKey {
    /// Reads the one in this file of the directory of keys, or makes it the first time. Blocks.
    pub fn load(dir: &Path, file: &str) -> Result<Self, Failure> {
        let path = dir.join(file);
        make_private_dir(dir).map_err(|error| io_failure("make directory", dir, &error))?;
        match fs::read(&path) {
            Ok(bytes) => <[u8; LENGTH]>::try_from(bytes.as_slice()).map(Self).map_err(|_| {
                Failure::new(
                    ErrorCode::Snapshot,
                    format!("{} is no key: it has {} bytes instead of {LENGTH}", path.display(), bytes.len()),
                )
                .hint("put the key back from a backup; without it nothing that was made with it is trusted")
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::make(dir, &path),
            Err(error) => Err(io_failure("read", &path, &error)),
        }
    }

    fn make(dir: &Path, path: &Path) -> Result<Self, Failure> {
        let mut key = [0; LENGTH];
        random(&mut key)?;
        let temporary = path.with_extension("new");
        let written = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(&key)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            fs::File::open(dir)?.sync_all()
        };
        written().map_err(|error: io::Error| io_failure("write", path, &error))?;
        Ok(Self(key))
    }

    pub fn authenticate(&self, bytes: &[u8]) -> Hash {
        blake3::keyed_hash(&self.0, bytes).into()
    }

    /// Takes the same time whatever differs.
    pub fn is_ours(&self, bytes: &[u8], tag: &Hash) -> bool {
        blake3::keyed_hash(&self.0, bytes) == *tag.as_bytes()
    }
}

/// Fills `bytes` from the kernel's generator.
pub(crate) fn random(bytes: &mut [u8]) -> Result<(), Failure> {
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Failure::new(ErrorCode::Internal, "the kernel gave no random bytes")
                    .caused_by(&io::Error::from(errno)));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const FILE: &str = "snapshots.key";

    #[test]
    fn the_key_is_made_once_private_and_tells_foreign_bytes_apart() {
        let dir = tempfile::tempdir().unwrap();
        let key = HostKey::load(dir.path(), FILE).unwrap();
        let tag = key.authenticate(b"manifest");
        let again = HostKey::load(dir.path(), FILE).unwrap();
        assert!(again.is_ours(b"manifest", &tag) && !again.is_ours(b"manifesT", &tag));
        let path = dir.path().join(FILE);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, b"short").unwrap();
        assert_eq!(HostKey::load(dir.path(), FILE).unwrap_err().code, ErrorCode::Snapshot);
    }
}
