//! What a device state of this QEMU is bound to.

use super::{command_line::Accelerator, host::Qemu, tsc};
use crate::{
    facts::Facts,
    parts::{Hash, Identity},
};
use std::{fs::File, io, path::Path};
use tokio::sync::Mutex;

/// The digest of the VMM's program, found once per change of its file.
#[derive(Debug, Default)]
pub(super) struct Digest {
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

pub(super) fn facts(qemu: &Qemu, digest: Hash, accelerator: Accelerator) -> Facts {
    Facts {
        arch: std::env::consts::ARCH.into(),
        vmm: qemu.version.clone(),
        vmm_digest: digest,
        isolation: accelerator.isolation(),
        machine: accelerator.machine().into(),
        cpu: accelerator.cpu().into(),
        tsc_khz: tsc::frequency_khz(),
    }
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
