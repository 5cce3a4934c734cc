//! The outward face of [`super`]: a pipe that outlives its epochs, and the byte stream of one of them.

use super::{
    EpochEnd, Pipe, SyncError,
    chunk::Epoch,
    link::{Link, Role},
};
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, timeout, timeout_at},
};

/// A guest that was just restored takes 50 ms to answer under an emulator. A repeat comes with 32 KiB of padding, which
/// costs such a guest 10 ms, so impatience makes it slower.
const FIRST_REPEAT: Duration = Duration::from_millis(100);
const SLOWEST_REPEAT: Duration = Duration::from_millis(250);

/// One pipe. It keeps the bytes read ahead, so the next epoch begins where the last one stopped reading.
#[derive(Debug, Clone)]
pub struct Resync {
    // Never contended: an epoch's stream and the wait for the next epoch take turns.
    link: Arc<Mutex<Link>>,
}

impl Resync {
    pub fn host(pipe: impl Pipe + 'static) -> Self {
        Self::new(Box::new(pipe), Role::Host)
    }

    pub fn guest(pipe: impl Pipe + 'static) -> Self {
        Self::new(Box::new(pipe), Role::Guest)
    }

    fn new(pipe: Box<dyn Pipe>, role: Role) -> Self {
        Self { link: Arc::new(Mutex::new(Link::new(pipe, role))) }
    }

    fn lock(&self) -> MutexGuard<'_, Link> {
        // Nothing is left half-changed by a panic of the pipe itself.
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Host: begins `epoch` and waits until the guest follows. An earlier epoch of this pipe ends.
    pub async fn connect(&self, epoch: Epoch, deadline: Duration) -> Result<EpochStream, SyncError> {
        self.lock().begin_sync(epoch);
        let until = Instant::now() + deadline;
        let synced = timeout_at(until, async {
            let mut pause = FIRST_REPEAT;
            loop {
                let echo = poll_fn(|cx| self.lock().poll_echo(cx, epoch));
                match timeout(pause, echo).await {
                    Ok(echoed) => return echoed,
                    Err(_elapsed) => self.lock().repeat_sync(epoch),
                }
                pause = (pause * 2).min(SLOWEST_REPEAT);
            }
        });
        match synced.await {
            Ok(Ok(())) => Ok(self.stream(epoch)),
            Ok(Err(end)) => Err(SyncError::Ended(end)),
            Err(_elapsed) => Err(SyncError::Deadline { after: deadline }),
        }
    }

    /// Guest: waits for the next epoch. Cancel-safe. The stream of an earlier epoch ends.
    pub async fn accept(&self) -> Result<EpochStream, EpochEnd> {
        let epoch = poll_fn(|cx| self.lock().poll_accept(cx)).await?;
        Ok(self.stream(epoch))
    }

    fn stream(&self, epoch: Epoch) -> EpochStream {
        EpochStream { resync: self.clone(), epoch }
    }
}

/// The bytes of one epoch. Reading and writing fail with an [`EpochEnd`] inside the `io::Error` once it is over.
///
/// Reading also pushes out what was written, so both are to be done by one task: the pipe wakes only the task that
/// polled it last.
#[derive(Debug)]
pub struct EpochStream {
    resync: Resync,
    epoch: Epoch,
}

impl EpochStream {
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    pub(crate) fn status(&self) -> EpochStatus {
        EpochStatus { resync: self.resync.clone(), epoch: self.epoch }
    }
}

/// Tells how an epoch stands, to whoever no longer holds its stream.
#[derive(Debug, Clone)]
pub(crate) struct EpochStatus {
    resync: Resync,
    epoch: Epoch,
}

impl EpochStatus {
    pub(crate) fn end(&self) -> Option<EpochEnd> {
        self.resync.lock().end_of(self.epoch)
    }

    pub(crate) fn unsent(&self) -> usize {
        self.resync.lock().unsent()
    }
}

impl AsyncRead for EpochStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        self.resync.lock().poll_read(cx, self.epoch, into).map_err(Into::into)
    }
}

impl AsyncWrite for EpochStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.resync.lock().poll_write(cx, self.epoch, bytes).map_err(Into::into)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.resync.lock().poll_flush(cx, self.epoch).map_err(Into::into)
    }

    /// The pipe stays open for the next epoch.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
