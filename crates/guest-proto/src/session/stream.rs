//! One stream of a session, and what all parts of a session share.

use super::{CloseReason, OpenError};
use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_util::compat::Compat;

#[derive(Debug)]
pub(super) struct Shared {
    own: Arc<Semaphore>,
    own_limit: usize,
    peer: Arc<Semaphore>,
    closed: watch::Sender<Option<CloseReason>>,
}

impl Shared {
    pub(super) fn new(own_limit: usize, peer_limit: usize) -> Self {
        Self {
            own: Arc::new(Semaphore::new(own_limit)),
            own_limit,
            peer: Arc::new(Semaphore::new(peer_limit)),
            closed: watch::Sender::new(None),
        }
    }

    /// A place for a stream the peer opened, unless it has too many.
    pub(super) fn peer_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.peer.clone().try_acquire_owned().ok()
    }

    pub(super) fn permit(&self) -> Result<OwnedSemaphorePermit, OpenError> {
        self.own.clone().try_acquire_owned().map_err(|_| OpenError::TooMany { limit: self.own_limit })
    }

    /// The first reason stays.
    pub(super) fn close(&self, reason: CloseReason) {
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(reason);
            }
            first
        });
    }

    pub(super) fn close_reason(&self) -> Option<CloseReason> {
        self.closed.borrow().clone()
    }

    pub(super) async fn closed(&self) -> CloseReason {
        let mut closed = self.closed.subscribe();
        match closed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(CloseReason::Closed),
            // `self` holds the sender.
            Err(_) => CloseReason::Closed,
        }
    }
}

/// A bidirectional stream with its own flow control.
///
/// Reading returns 0 bytes once the other end dropped its stream or the session is over. There is no half-close:
/// `shutdown` only flushes, and dropping the stream tells the other end. What was written before the drop still
/// arrives.
#[derive(Debug)]
pub struct MuxStream {
    inner: Compat<yamux::Stream>,
    /// The stream's place among those its opener may have; given back with it.
    _permit: OwnedSemaphorePermit,
}

impl MuxStream {
    pub(super) fn new(inner: Compat<yamux::Stream>, permit: OwnedSemaphorePermit) -> Self {
        Self { inner, _permit: permit }
    }
}

impl AsyncRead for MuxStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, into).map_err(ended)
    }
}

impl AsyncWrite for MuxStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes).map_err(ended)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(ended)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// yamux says `WriteZero` for a stream that is gone.
fn ended(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WriteZero => io::Error::new(io::ErrorKind::BrokenPipe, error),
        _ => error,
    }
}
