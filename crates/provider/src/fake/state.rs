//! The fake guest's memory: all it is, as bytes at the beginning of a guest memory like any other.
//!
//! ```text
//! 0        8                      8 + length             size of the memory
//! | length | JSON of [`Stored`]   | whatever was there before, or zeros |
//! ```
//! So a fake checkpoint is a delta over the base its machine maps, and a fake restore reads base and delta: what is above
//! the provider goes the same road as with a real VM.

use super::{contexts::StoredContext, files::Tree, process::StoredProcess, world::Random};
use crate::memory::{Base, Delta, DeltaWriter, Memory, MemoryError, PAGE};
use offshoot_types::Bytes;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, io};

const LENGTH: usize = 8;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Stored {
    pub boot_id: String,
    pub hostname: String,
    pub random: Random,
    pub frozen: bool,
    /// The guest's clock at that moment, nanoseconds since 1970.
    pub clock_ns: u64,
    pub uptime_ms: u64,
    pub files: Tree,
    pub execs: BTreeMap<String, StoredProcess>,
    pub contexts: BTreeMap<String, StoredContext>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum StateError {
    #[error("the fake guest's state of {length} bytes does not fit into its memory of {size}")]
    TooLarge { length: usize, size: Bytes },
    #[error("the memory does not hold a fake guest")]
    NoGuest(#[source] serde_json::Error),
    #[error("the memory cannot be read")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl Stored {
    /// The pages in which a memory that holds this differs from `base`.
    pub fn delta(&self, base: Option<&Base>, size: Bytes) -> Result<Delta, StateError> {
        let state = serde_json::to_vec(self).map_err(StateError::NoGuest)?;
        let mut image = (state.len() as u64).to_le_bytes().to_vec();
        image.extend(state);
        image.resize(image.len().next_multiple_of(PAGE as usize), 0);
        if image.len() as u64 > size.0 {
            return Err(StateError::TooLarge { length: image.len(), size });
        }
        let mut writer = DeltaWriter::new(base.map(Base::id), size)?;
        let mut below = vec![0; PAGE as usize];
        for (page, data) in image.chunks(PAGE as usize).enumerate() {
            let page = page as u64;
            if let Some(base) = base {
                base.read_at(page * PAGE, &mut below).map_err(StateError::Read)?;
            }
            if data != below {
                writer.append(page, data)?;
            }
        }
        Ok(writer.finish()?)
    }

    pub fn read(memory: &Memory, size: Bytes) -> Result<Self, StateError> {
        memory.check(size)?;
        let mut length = [0; LENGTH];
        memory.read_at(0, &mut length).map_err(StateError::Read)?;
        let length = u64::from_le_bytes(length);
        // No longer than the memory, so no more is taken than the memory was to have.
        let held = size.0.saturating_sub(LENGTH as u64);
        let length = usize::try_from(length.min(held)).unwrap_or(usize::MAX);
        let mut state = vec![0; length];
        memory.read_at(LENGTH as u64, &mut state).map_err(StateError::Read)?;
        serde_json::from_slice(&state).map_err(StateError::NoGuest)
    }
}
