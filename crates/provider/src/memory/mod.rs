//! Guest memory apart from a VM: complete ones that VMs map privately, and the pages in which one differs.
//!
//! ```text
//!   Base (complete, sealed memory file)  <--maps privately-- VMM     clean pages are shared by all VMs of a base
//!        ^                                     |
//!        |  Base::build                        |  checkpoint: the pages it wrote since it was started
//!        +-------------- Delta <---------------+            (in memory first, then as one file)
//! ```
//! A delta names the snapshot it is against and is applied to no other. Nobody writes to a base or a delta once it
//! exists: both are memory files under the kernel's seals, so not even a VMM that a guest has broken into can.

mod base;
mod delta;
mod file;
mod pages;
mod sealed;
mod since;

pub use base::Base;
pub use delta::{Delta, DeltaWriter};
pub use pages::{PAGE, Run};

use crate::parts::{HasChanged, PartError};
use offshoot_types::{Bytes, SnapshotId};
use std::{io, path::PathBuf, sync::Arc};

/// What a delta is against when it is against no snapshot.
const ZEROS: &str = "zeros";

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("cannot {operation}")]
    Io {
        operation: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("these pages are against {}, not against {}", named(.found), named(.expected))]
    WrongBase { expected: Option<SnapshotId>, found: Option<SnapshotId> },
    #[error(
        "these pages are of a memory of {found}, this one has {expected}: memory neither grows nor shrinks"
    )]
    Size { expected: Bytes, found: Bytes },
    #[error("a memory of {0} bytes is none: it must be whole pages, at least one and at most 16 TiB")]
    NoMemory(u64),
    #[error("page {page} is not in a memory of {size}, or not after the page before it")]
    Page { page: u64, size: Bytes },
    #[error("`{}` is no memory delta: {reason}", path.display())]
    Invalid { path: PathBuf, reason: &'static str },
    #[error("the file passed as memory is none: {0}")]
    Passed(&'static str),
    #[error(transparent)]
    Part(#[from] PartError),
}

impl HasChanged for MemoryError {
    fn has_changed(&self) -> bool {
        matches!(self, Self::Part(error) if error.has_changed())
    }
}

impl MemoryError {
    fn io(operation: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { operation, source }
    }
}

fn named(base: &Option<SnapshotId>) -> String {
    base.map_or_else(|| ZEROS.to_owned(), |id| format!("snapshot {id}"))
}

/// A guest memory as a restore needs it: the delta's pages over the base's, zeros where neither has one.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// What the VMM will map. `None`: zeros.
    pub base: Option<Arc<Base>>,
    /// Copied into the VMM's memory before it runs.
    pub delta: Option<Arc<Delta>>,
}

impl Memory {
    /// The snapshot whose complete memory the VMM will map: the base of its next checkpoint's delta.
    pub fn base_id(&self) -> Option<SnapshotId> {
        self.base.as_ref().map(|base| base.id())
    }

    /// That the delta is against this base, and that both are of a memory of `size`.
    pub fn check(&self, size: Bytes) -> Result<(), MemoryError> {
        if let Some(base) = &self.base
            && base.size() != size
        {
            return Err(MemoryError::Size { expected: size, found: base.size() });
        }
        match &self.delta {
            Some(delta) => delta.check(self.base_id(), size),
            None => Ok(()),
        }
    }

    /// Reads as the restored guest would; `offset` and `buffer` within the memory.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.base {
            Some(base) => base.read_at(offset, buffer)?,
            None => buffer.fill(0),
        }
        match &self.delta {
            Some(delta) => delta.overlay(offset, buffer),
            None => Ok(()),
        }
    }
}
