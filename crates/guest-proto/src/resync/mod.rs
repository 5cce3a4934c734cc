//! A clean byte stream per *epoch* over a pipe that may lose bytes, start in the middle of a frame, or be
//! reopened at any moment.
//!
//! ```text
//! host   connect(E):  Syncing --echo(E) seen--> InEpoch(E) --gap | flood | pipe ends--> Ended(reason)
//!                     sends sync(E), again and again with back-off; drops all else it reads
//!
//! guest  accept():    Hunting --sync(E)--> InEpoch(E) --sync(F)--> Ended(NewEpoch), and F is accepted next
//!                        ^    sends echo(E)     |
//!                        '---- Ended(Gap) <-----'
//! ```
//! While syncing the host looks for the 40 bytes of its own echo and for nothing else: the token is random, so
//! nothing older in the pipe can contain it. In an epoch both sides read aligned chunks; bytes that form none are
//! skipped, repeated chunks and chunks of other epochs are dropped, and a missing one ends the epoch.
//!
//! A guest that was cut off inside a chunk waits for the rest of it and would swallow the sync. So from the second
//! attempt on the host sends one chunk's worth of padding first: whatever chunk was open is then complete, its CRC
//! is wrong, and the search goes on behind its magic. Scanning inside an open chunk instead would let the *content*
//! of a file or a program's output start an epoch.
//!
//! Writes are collected in one chunk, which goes out when it is full, when it is flushed, and whenever the reader
//! is about to ask the pipe for more input: a request and its answer cost one write each.
//!
//! **End of input** means the pipe is gone for good. A virtio-serial port reads 0 bytes while the host's side is
//! closed; whoever opens the port hides that (waits for the next edge), since the host will come back.

mod chunk;
mod link;
mod stream;
#[cfg(test)]
mod tests;

pub use chunk::{Chunk, Decoded, Epoch, MAX_CHUNK, decode};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use chunk::{echo as echo_chunk, sync as sync_chunk};
pub(crate) use stream::EpochStatus;
pub use stream::{EpochStream, Resync};

use std::{io, time::Duration};
use tokio::io::{AsyncRead, AsyncWrite};

/// What carries the bytes.
pub trait Pipe: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Pipe for T {}

/// Why the byte stream of an epoch ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EpochEnd {
    #[error("the host began a new epoch")]
    NewEpoch,
    #[error("bytes were lost in the channel: chunk {expected} was due, {got} came")]
    Gap { expected: u32, got: u32 },
    #[error("the peer sent more than {limit} bytes that form no chunk")]
    Garbage { limit: usize },
    #[error("the channel was closed by the other end")]
    PipeClosed,
    #[error("the channel failed: {message}")]
    Pipe { kind: io::ErrorKind, message: String },
}

impl From<EpochEnd> for io::Error {
    fn from(end: EpochEnd) -> Self {
        let kind = match &end {
            EpochEnd::NewEpoch => io::ErrorKind::ConnectionReset,
            EpochEnd::Gap { .. } | EpochEnd::Garbage { .. } => io::ErrorKind::InvalidData,
            EpochEnd::PipeClosed => io::ErrorKind::UnexpectedEof,
            EpochEnd::Pipe { kind, .. } => *kind,
        };
        Self::new(kind, end)
    }
}

/// The guest did not follow into the new epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SyncError {
    #[error("the guest agent did not answer on its channel within {after:?}")]
    Deadline { after: Duration },
    #[error("the channel ended before the guest agent answered")]
    Ended(#[source] EpochEnd),
}
