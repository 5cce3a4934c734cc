//! The fake's `device.state`: little, but as strict about what it is loaded into as the real one.

use crate::DiskStack;
use offshoot_types::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    fs, io,
    path::{Path, PathBuf},
};

const FILE: &str = "device.state";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Devices {
    pub memory: Bytes,
    /// Name of the newest layer that was frozen with it.
    pub layer: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DevicesError {
    #[error("the device state `{}` cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is no device state: {source}", path.display())]
    Invalid { path: PathBuf, source: serde_json::Error },
    #[error("the device state is of a memory of {found}, this one has {expected}")]
    Memory { expected: Bytes, found: Bytes },
    #[error("the device state belongs to the disk layer {expected:?}, the disk given lies over {found:?}")]
    Layer { expected: Option<String>, found: Option<String> },
}

pub(super) fn file_name(path: &Path) -> Option<String> {
    path.file_name().map(|name| name.to_string_lossy().into_owned())
}

impl Devices {
    pub fn write(&self, directory: &Path) -> io::Result<Bytes> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        fs::write(directory.join(FILE), &text)?;
        Ok(Bytes(text.len() as u64))
    }

    pub fn read(path: &Path) -> Result<Self, DevicesError> {
        let text = fs::read(path).map_err(|source| DevicesError::Read { path: path.to_owned(), source })?;
        serde_json::from_slice(&text)
            .map_err(|source| DevicesError::Invalid { path: path.to_owned(), source })
    }

    /// A real guest whose disk is not the one its caches are of destroys it without a word; this one refuses. Layers that
    /// were never `written` to may lie in between: they change nothing.
    pub fn fit(
        &self,
        memory: Bytes,
        disk: &DiskStack,
        written: impl Fn(&Path) -> bool,
    ) -> Result<(), DevicesError> {
        if self.memory != memory {
            return Err(DevicesError::Memory { expected: memory, found: self.memory });
        }
        let below = disk.layers.get(1..).unwrap_or_default();
        let found = below.iter().find(|path| file_name(path) == self.layer || written(path));
        let found = found.and_then(|path| file_name(path));
        if self.layer != found {
            return Err(DevicesError::Layer { expected: self.layer.clone(), found });
        }
        Ok(())
    }
}
