//! Programs of this host that VMs are run by: where they are, and which they are.

use crate::parts::{Hash, Identity};
use std::{
    fs::File,
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};
use tokio::sync::Mutex;

pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(program)).find(|candidate| {
        candidate.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

/// Cheap, and different after any change anyone makes in good faith.
pub(crate) fn identity(path: &Path) -> io::Result<String> {
    let file = path.metadata()?;
    Ok(format!("{}:{}:{}:{}.{}", path.display(), file.ino(), file.len(), file.mtime(), file.mtime_nsec()))
}

/// The digest of a program, found once per change of its file.
#[derive(Debug, Default)]
pub(crate) struct Digest {
    known: Mutex<Option<(Identity, Hash)>>,
}

impl Digest {
    pub async fn of(&self, program: &Path) -> Result<Hash, String> {
        let mut known = self.known.lock().await;
        let (path, before) = (program.to_owned(), known.clone());
        let hashing = tokio::task::spawn_blocking(move || hash(&path, before));
        let found = hashing.await.map_err(io::Error::other).and_then(|found| found);
        let found = found.map_err(|error| format!("cannot read `{}`: {error}", program.display()))?;
        *known = Some(found.clone());
        Ok(found.1)
    }
}

fn hash(path: &Path, known: Option<(Identity, Hash)>) -> io::Result<(Identity, Hash)> {
    let file = File::open(path)?;
    let identity = Identity::of(&file)?;
    if let Some(known) = known.filter(|(same, _)| *same == identity) {
        return Ok(known);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file)?;
    Ok((identity, hasher.finalize().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_is_hashed_again_only_when_its_file_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmm");
        std::fs::write(&path, "one").unwrap();
        let digest = Digest::default();
        let first = digest.of(&path).await.unwrap();
        assert_eq!(first, blake3::hash(b"one").into());
        let known = digest.known.lock().await.clone();
        assert_eq!(hash(&path, known.clone()).unwrap(), known.unwrap());
        std::fs::write(&path, "other").unwrap();
        assert_eq!(digest.of(&path).await.unwrap(), blake3::hash(b"other").into());
        assert!(digest.of(Path::new("/no/such/vmm")).await.unwrap_err().contains("/no/such/vmm"));
    }
}
