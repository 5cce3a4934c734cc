//! The image store: content-addressed, shared, never half written.
//!
//! ```text
//! $OFFSHOOT_IMAGES/
//!   blobs/sha256/<hex>   parts and manifests, 0444, complete or absent
//!   images/<hex>         empty; its existence makes that manifest an image (the commit point of a build)
//!   tags/<name>          the digest a tag means now
//!   stages/<key>         what a finished build stage produced: lets the next build go on where one ended
//!   verified/<hex>       identity a blob's file had when its bytes were last hashed
//!   tmp/<id>/            work of one living process, which holds a lock on `tmp/<id>/lock`
//!   logs/                output of builds
//!   lock, builders, stages/<key>.lock
//! ```
//!
//! A write is: temporary file in `tmp`, fsync, rename, fsync of the directory. Killed anywhere, a process leaves at
//! most blobs that no image names (the next collection removes them) and a directory in `tmp` whose lock is free
//! (the next opening removes it). Order of locks: `builders`, then `stages/<key>.lock`, then
//! `lock`, then `tmp/gate`; a collection only tries `builders`.

mod blob;
mod collect;
mod derive;
mod error;
mod identity;
mod image;
mod lock;
mod scratch;
mod stage;
#[cfg(test)]
mod tests;

pub use collect::{Collected, Removed};
pub use error::StoreError;
pub use image::{Image, Listing};
pub(crate) use lock::FileLock;
pub(crate) use scratch::Scratch;
pub(crate) use stage::{StageKey, StageRecord};

use error::{At, IoAt};
use std::{
    env, fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

/// An open image store. Cheap to clone; holds no lock between calls.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and removes what dead processes left in it.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let root = root.into();
        let root = std::path::absolute(&root).at(At::Open, &root)?;
        let store = Self { root };
        for directory in ["blobs/sha256", "images", "tags", "stages", "verified", "tmp", "logs"] {
            let path = store.root.join(directory);
            match fs::DirBuilder::new().recursive(true).mode(0o755).create(&path) {
                Err(e) if !path.is_dir() => return Err(e).at(At::Create, &path),
                _ => {}
            }
        }
        store.sweep();
        Ok(store)
    }

    /// `$OFFSHOOT_IMAGES`, else `$XDG_CACHE_HOME/offshoot/images`, else `~/.cache/offshoot/images`.
    pub fn default_root() -> Result<PathBuf, StoreError> {
        let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        set("OFFSHOOT_IMAGES")
            .or_else(|| Some(set("XDG_CACHE_HOME")?.join("offshoot/images")))
            .or_else(|| Some(set("HOME")?.join(".cache/offshoot/images")))
            .ok_or(StoreError::NoRoot)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where builds keep their output.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Serialises changes of tags and images. Held for milliseconds.
    fn lock(&self) -> Result<FileLock, StoreError> {
        let path = self.root.join("lock");
        FileLock::exclusive(&path).at(At::Lock, &path)
    }

    /// Held by whoever writes blobs that no image names yet, so that no collection takes them away.
    pub(crate) fn builder(&self) -> Result<FileLock, StoreError> {
        let path = self.root.join("builders");
        FileLock::shared(&path).at(At::Lock, &path)
    }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path)?.sync_all()
}
