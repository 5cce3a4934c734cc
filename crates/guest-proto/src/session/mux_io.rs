//! Between yamux and the epoch's byte stream: when to flush, and when to let others run.

use crate::resync::EpochStream;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read in one go before other tasks get their turn: their windows are full long before.
const READ_BUDGET: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct MuxIo {
    stream: EpochStream,
    read: usize,
}

impl MuxIo {
    pub(super) fn new(stream: EpochStream) -> Self {
        Self { stream, read: 0 }
    }
}

impl AsyncRead for MuxIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read >= READ_BUDGET {
            self.read = 0;
            if let Poll::Ready(Err(error)) = Pin::new(&mut self.stream).poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = into.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, into);
        match &polled {
            Poll::Ready(_) => self.read += into.filled().len() - before,
            Poll::Pending => self.read = 0,
        }
        polled
    }
}

impl AsyncWrite for MuxIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    /// yamux flushes after every frame. The epoch's stream does so once, before it waits for more input, which is
    /// the last thing yamux does in every poll.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(()))
    }
}
