//! What a fake guest has on its disk: in the layer's own file, behind the clusters that are there for the VMM, so that it
//! goes wherever the file goes.
//!
//! ```text
//! | an empty layer, as for a real VM | JSON of [`Written`] | u64 its length | magic |
//! ```
//! A layer that has been written to holds all of the guest's files: those below it do not count.

use super::files::Tree;
use crate::disk::{self, DiskError};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

const MAGIC: &[u8; 8] = b"fakedisk";
const TAIL: u64 = 16;

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    /// Of these bytes, as they were first written: a copy has the same.
    pub stamp: String,
    pub files: Tree,
}

/// The host's disks. A test of the provider alone may name layers that are no files: those are remembered here.
#[derive(Debug, Clone, Default)]
pub(super) struct Disks(Arc<Mutex<HashMap<PathBuf, Written>>>);

impl Disks {
    fn nameless(&self) -> MutexGuard<'_, HashMap<PathBuf, Written>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self, layer: &Path, files: Tree) -> io::Result<()> {
        let text = serde_json::to_vec(&files).map_err(io::Error::other)?;
        let name = layer.file_name().unwrap_or_default();
        let stamp = blake3::Hasher::new().update(name.as_encoded_bytes()).update(&text).finalize();
        let written = Written { stamp: stamp.to_hex().to_string(), files };
        let file = match File::options().read(true).write(true).open(layer) {
            Ok(file) => file,
            // What was removed under a machine goes on under it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.nameless().insert(layer.to_owned(), written);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let begin = held(&file)?.map_or(file.metadata()?.len(), |(begin, _)| begin);
        let mut bytes = serde_json::to_vec(&written).map_err(io::Error::other)?;
        bytes.extend((bytes.len() as u64).to_le_bytes());
        bytes.extend(MAGIC);
        file.set_len(begin)?;
        file.write_all_at(&bytes, begin)
    }

    /// What was written to a layer, if anything was.
    pub fn written(&self, layer: &Path) -> Option<Written> {
        match File::open(layer) {
            Ok(file) => held(&file).ok().flatten().map(|(_, written)| written),
            Err(_) => self.nameless().get(layer).cloned(),
        }
    }

    /// One layer of several: what the newest of them holds that holds anything is all there is.
    pub fn merge(&self, layers: &[PathBuf], to: &Path) -> Result<(), DiskError> {
        let Some(first) = layers.first() else { return Err(DiskError::Layers { layers: 0 }) };
        let newest = layers.iter().find(|layer| self.written(layer).is_some()).unwrap_or(first);
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| DiskError::Io { operation, path, source }
        };
        let bytes = std::fs::read(newest).map_err(failed("read", newest))?;
        let mut file = File::options().write(true).create_new(true).open(to).map_err(failed("create", to))?;
        file.write_all(&bytes).map_err(failed("write", to))?;
        disk::freeze(to)
    }

    /// Of a stack of layers: that of the newest that was written to.
    pub fn newest(&self, layers: &[PathBuf]) -> Option<Written> {
        layers.iter().find_map(|layer| self.written(layer))
    }
}

/// Where what was written begins, and what it is.
fn held(file: &File) -> io::Result<Option<(u64, Written)>> {
    let length = file.metadata()?.len();
    let Some(tail_at) = length.checked_sub(TAIL) else { return Ok(None) };
    let mut tail = [0; TAIL as usize];
    file.read_exact_at(&mut tail, tail_at)?;
    let (size, magic) = tail.split_at(8);
    let size = size.iter().rev().fold(0_u64, |size, byte| size << 8 | u64::from(*byte));
    let Some(begin) = tail_at.checked_sub(size).filter(|_| magic == MAGIC) else { return Ok(None) };
    let mut text = vec![0; size as usize];
    file.read_exact_at(&mut text, begin)?;
    Ok(Some((begin, serde_json::from_slice(&text).map_err(io::Error::other)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_goes_with_the_file_and_is_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, copy) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&layer, [1; 5000]).unwrap();
        let disks = Disks::default();
        assert!(disks.written(&layer).is_none(), "it is as it was made");
        disks.write(&layer, Tree::default()).unwrap();
        disks.write(&layer, Tree::default()).unwrap();
        std::fs::copy(&layer, &copy).unwrap();
        let other = Disks::default();
        let (one, two) =
            (other.written(&layer).unwrap(), other.newest(&[dir.path().join("none"), copy]).unwrap());
        assert_eq!(one.stamp, two.stamp);
        assert_eq!(std::fs::read(&layer).unwrap()[..5000], [1; 5000]);
        disks.write(&dir.path().join("none"), Tree::default()).unwrap();
        assert!(disks.written(&dir.path().join("none")).is_some());
    }
}
