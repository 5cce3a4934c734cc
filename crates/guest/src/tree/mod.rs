//! What lies over the image, as one stream: out of a sandbox before it ends, and into the next one.
//!
//! ```text
//! upper layer --pack--> records --> host, which keeps them as they are --> records --unpack--> the new sandbox's root
//! ```
//! Only agents read it. The tree is told from the top down, by names and not by paths, so that its depth is bounded by
//! nothing but open files:
//!
//! | record | fields |
//! |---|---|
//! | directory | name, attributes, whether it hides the image's of that name; its entries follow, then `Leave` |
//! | file | name, attributes, size, its blocks that are not all zeros, each with its offset; the last one is empty |
//! | symlink | name, attributes, target |
//! | node | name, attributes, type and device number of a pipe, socket or device |
//! | link | name, attributes, path from the root of the first name of the same file |
//! | gone | name: the image's is deleted |
//! | end | how many records there were |
//!
//! Unpacking changes the root as programs would: what the overlay makes of that is its own affair.

mod pack;
mod record;
#[cfg(test)]
mod tests;
mod unpack;

pub use pack::pack;
pub use unpack::unpack;

/// Set on a directory of the upper layer that hides the image's of that name.
pub const OPAQUE: &str = "trusted.overlay.opaque";
/// What an overlay sets for itself.
const OVERLAY: &[u8] = b"trusted.overlay.";

use crate::fault::{Context, fault};
use offshoot_guest_proto::message::{GuestError, GuestErrorKind};
use std::io::{self, Read, Write};
use tokio::sync::mpsc;

/// Chunks between the thread that works on files and the host.
const AHEAD: usize = 4;

/// The writing end of a pipe of chunks, for a thread that may wait.
#[derive(Debug)]
pub struct Chunks {
    to: mpsc::Sender<Vec<u8>>,
    size: usize,
    filling: Vec<u8>,
}

/// The reading end.
#[derive(Debug)]
pub struct Unchunked {
    from: mpsc::Receiver<Vec<u8>>,
    left: io::Cursor<Vec<u8>>,
}

/// Chunks of at most `size` bytes on their way out.
pub fn outgoing(size: usize) -> (Chunks, mpsc::Receiver<Vec<u8>>) {
    let (to, from) = mpsc::channel(AHEAD);
    (Chunks { to, size, filling: Vec::with_capacity(size) }, from)
}

/// Chunks on their way in.
pub fn incoming() -> (mpsc::Sender<Vec<u8>>, Unchunked) {
    let (to, from) = mpsc::channel(AHEAD);
    (to, Unchunked { from, left: io::Cursor::default() })
}

impl Write for Chunks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.size - self.filling.len());
        self.filling.extend_from_slice(&bytes[..taken]);
        if self.filling.len() == self.size {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.filling.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.filling, Vec::with_capacity(self.size));
        self.to.blocking_send(chunk).map_err(|_left| io::ErrorKind::BrokenPipe.into())
    }
}

impl Read for Unchunked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = self.left.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match self.from.blocking_recv() {
                Some(chunk) => self.left = io::Cursor::new(chunk),
                None => return Ok(0),
            }
        }
    }
}

/// Runs `work` on a thread of its own kind; its failure as the host is told.
pub async fn on_thread(
    operation: &'static str,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), GuestError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.context(operation, "the disk"),
        Err(error) => Err(fault(GuestErrorKind::Other, format!("{operation} the disk: {error}"))),
    }
}
