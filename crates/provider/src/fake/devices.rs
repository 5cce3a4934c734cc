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
    /// Of what is on the disk's newest layer that was frozen with it and holds anything.
    pub disk: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum DevicesError {
    #[error("the device state `{}` cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("`{}` is no device state: {source}", path.display())]
    Invalid { path: PathBuf, source: serde_json::Error },
    #[error("the device state is of a memory of {found}, this one has {expected}")]
    Memory { expected: Bytes, found: Bytes },
    #[error("the device state belongs to the disk {expected:?}, the one given is {found:?}")]
    Disk { expected: Option<String>, found: Option<String> },
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
    /// were never written to may lie in between: they change nothing, and so does what the files are called.
    pub fn fit(
        &self,
        memory: Bytes,
        disk: &DiskStack,
        stamp: impl Fn(&[PathBuf]) -> Option<String>,
    ) -> Result<(), DevicesError> {
        if self.memory != memory {
            return Err(DevicesError::Memory { expected: memory, found: self.memory });
        }
        let found = stamp(disk.layers.get(1..).unwrap_or_default());
        if self.disk != found {
            return Err(DevicesError::Disk { expected: self.disk.clone(), found });
        }
        Ok(())
    }
}
