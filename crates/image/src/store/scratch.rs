//! Temporary directories with an owner. As long as the owner lives it holds the lock inside; a directory whose lock is
//! free belongs to nobody and is removed.

use super::{
    FileLock, Store, StoreError,
    error::{At, IoAt},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A directory below `tmp/`, removed with everything in it when dropped.
#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
    _owner: FileLock,
}

impl Store {
    pub(crate) fn scratch(&self) -> Result<Scratch, StoreError> {
        let tmp = self.root.join("tmp");
        // Between making the directory and locking it a sweep could take it for abandoned.
        let gate = tmp.join("gate");
        let _gate = FileLock::exclusive(&gate).at(At::Lock, &gate)?;
        let path = tmp.join(uuid::Uuid::now_v7().simple().to_string());
        fs::create_dir(&path).at(At::Create, &path)?;
        let lock = path.join("lock");
        let owner = FileLock::exclusive(&lock).at(At::Lock, &lock)?;
        Ok(Scratch { path, _owner: owner })
    }

    /// Removes directories of dead owners. Never fails the caller: a store may be read-only for us, and whatever stays
    /// is tried again next time.
    pub(super) fn sweep(&self) {
        if let Err(error) = self.try_sweep() {
            tracing::debug!(store = %self.root.display(), %error, "could not look for abandoned build directories");
        }
    }

    fn try_sweep(&self) -> io::Result<()> {
        let tmp = self.root.join("tmp");
        let Some(_gate) = FileLock::try_exclusive(&tmp.join("gate"))? else {
            return Ok(()); // Someone makes or sweeps directories at this moment.
        };
        for entry in fs::read_dir(&tmp)? {
            let path = entry?.path();
            if !path.is_dir() {
                continue;
            }
            match FileLock::try_exclusive(&path.join("lock")) {
                Ok(Some(_abandoned)) if has_mounts_below(&path)? => {
                    tracing::warn!(path = %path.display(), "an abandoned build directory has mounts in it and is left alone");
                }
                Ok(Some(_abandoned)) => match fs::remove_dir_all(&path) {
                    Ok(()) => tracing::info!(path = %path.display(), "removed an abandoned build directory"),
                    Err(error) => {
                        tracing::warn!(path = %path.display(), %error, "could not remove an abandoned build directory")
                    }
                },
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "could not tell whether a build directory is in use")
                }
            }
        }
        Ok(())
    }
}

/// Removing a tree that something is mounted in would remove what is mounted.
fn has_mounts_below(path: &Path) -> io::Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let path = escaped(&path.canonicalize()?);
    // The fifth field is the mount point.
    Ok(mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .any(|point| Path::new(point).starts_with(&path)))
}

/// The path as `mountinfo` writes it.
fn escaped(path: &Path) -> String {
    let text = path.to_string_lossy();
    text.replace('\\', r"\134").replace(' ', r"\040").replace('\t', r"\011").replace('\n', r"\012")
}

impl Scratch {
    /// A name for a file or directory inside; the caller makes it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove a build directory; the next build will");
        }
    }
}
