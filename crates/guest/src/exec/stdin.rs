//! The writing end of a process' stdin.

use crate::sys::AsyncFd;
use offshoot_guest_proto::message::CHUNK;
use rustix::io::Errno;
use std::sync::Arc;
use tokio::sync::{Mutex, watch};

/// End of input on a terminal: what Ctrl-D sends.
const END_OF_TRANSMISSION: &[u8] = &[4];

#[derive(Debug)]
pub struct Stdin {
    end: Mutex<End>,
    closed: watch::Sender<bool>,
}

#[derive(Debug)]
enum End {
    /// `/dev/null`, or ended.
    None,
    Pipe(AsyncFd),
    Terminal(Arc<AsyncFd>),
}

impl Stdin {
    fn new(end: End) -> Self {
        Self { end: Mutex::new(end), closed: watch::Sender::new(false) }
    }

    pub fn none() -> Self {
        Self::new(End::None)
    }

    pub fn pipe(fd: AsyncFd) -> Self {
        Self::new(End::Pipe(fd))
    }

    pub fn terminal(fd: Arc<AsyncFd>) -> Self {
        Self::new(End::Terminal(fd))
    }

    /// The process has ended: whoever writes stops waiting, and the descriptor is released.
    pub fn close(&self) {
        self.closed.send_replace(true);
        // Held: by a writer, who now fails and releases it.
        if let Ok(mut end) = self.end.try_lock() {
            *end = End::None;
        }
    }

    /// Waits until the process has taken all of `data`. Input for a process that does not read any more is
    /// dropped, as a shell's pipe would. Not cancel-safe: part of `data` may have been written.
    pub async fn write(&self, data: &[u8]) {
        let mut end = self.end.lock().await;
        let mut closed = self.closed.subscribe();
        let outcome = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(Errno::PIPE),
            outcome = end.write(data) => outcome,
        };
        if outcome.is_err() {
            *end = End::None;
        }
    }

    pub async fn end(&self) {
        let is_terminal = matches!(*self.end.lock().await, End::Terminal(_));
        if is_terminal {
            self.write(END_OF_TRANSMISSION).await;
        } else {
            *self.end.lock().await = End::None;
        }
    }
}

impl End {
    async fn write(&self, data: &[u8]) -> Result<(), Errno> {
        let fd = match self {
            Self::None => return Ok(()),
            Self::Pipe(fd) => fd,
            Self::Terminal(fd) => fd,
        };
        let mut rest = data;
        while !rest.is_empty() {
            let mut ready = fd.writable().await.map_err(|_| Errno::IO)?;
            match rustix::io::write(fd, &rest[..rest.len().min(CHUNK)]) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}
