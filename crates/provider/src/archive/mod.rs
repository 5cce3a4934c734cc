//! A whole saved state as one stream of bytes, to be taken to another place or host.
//!
//! ```text
//!  0  "offshoot-state\0\0"
//! 16  u32 version (1), u32 length of the header                                  little endian
//! 24  32 bytes: BLAKE3 of the header: the name of all that follows
//! 56  header: JSON of [`Contents`], with the hashes of every part
//!     per 2 MiB of each part, in order: u32 length, then that many bytes: one zstd frame
//! ```
//! Device state, memory (a delta against zeros) and disk layers, newest first, follow each other in this order and have
//! no names, so that no file's name ever comes from the stream and none can come twice. What one hash covers is what one
//! frame holds: a reader decompresses no more than 2 MiB before it has compared, and never more than the header says.
//! Whoever knows the hash of the header beforehand knows that every byte is what was written.

mod contents;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod reader;
#[cfg(test)]
mod tests;
#[cfg(any(test, feature = "fuzzing"))]
mod tests_support;
mod unpack;
mod writer;

pub use contents::{Contents, Origin, PartName};
pub use reader::Reader;
pub use unpack::unpack;
pub use writer::{hash_memory, write};

use crate::{disk::DiskError, memory::MemoryError};
use std::{io, path::PathBuf};

const MAGIC: &[u8; 16] = b"offshoot-state\0\0";
const VERSION: u32 = 1;
/// Magic, version, length, hash.
const FIXED: usize = 56;
/// Of the hashes of about 480 GiB.
const MAX_HEADER: usize = 16 << 20;
/// Of one frame: 2 MiB that cannot be compressed, and what surrounds them.
const MAX_FRAME: usize = (2 << 20) + (64 << 10);

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("{0}")]
    Invalid(String),
    #[error("it ends in the middle of {0}")]
    Truncated(String),
    #[error("{part} is damaged: the {length} bytes from {offset} on are not what the header says")]
    Damaged { part: PartName, offset: u64, length: u64 },
    #[error("something follows the last part")]
    Trailing,
    #[error("cannot read the stream")]
    Read(#[source] io::Error),
    #[error("cannot write the stream")]
    Write(#[source] io::Error),
    #[error("cannot {operation} `{}`", path.display())]
    File {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} is not what it should be")]
    Memory(PartName, #[source] MemoryError),
    #[error("{0} is not what it should be")]
    Disk(PartName, #[source] DiskError),
}

impl ArchiveError {
    fn invalid(why: impl Into<String>) -> Self {
        Self::Invalid(why.into())
    }
}
