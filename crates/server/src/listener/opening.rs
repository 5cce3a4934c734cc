//! A stream whose other end has to begin to speak.
//!
//! Which version of HTTP it speaks is read off its first bytes, and nothing else bounds how long those take: whoever
//! connected and said nothing would keep a place among the connections for ever.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// What the preface of HTTP/2 takes, which is compared to the first bytes (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// How long they may take.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Opening<S> {
    stream: S,
    /// Bytes to come until it has begun.
    missing: usize,
    until: Pin<Box<Sleep>>,
}

impl<S> Opening<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, missing: PREFACE, until: Box::pin(tokio::time::sleep(SILENCE)) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Opening<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Ready(read) => {
                self.missing = self.missing.saturating_sub(buf.filled().len() - before);
                Poll::Ready(read)
            }
            Poll::Pending if self.missing > 0 => {
                ready!(self.until.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "it did not begin to speak")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Opening<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_or_next_to_nothing_is_hung_up_on() {
        for said in [&b""[..], b"PRI"] {
            let (mut theirs, ours) = duplex(64);
            let mut ours = Opening::new(ours);
            theirs.write_all(said).await.unwrap();
            let mut heard = vec![0; said.len()];
            ours.read_exact(&mut heard).await.unwrap();
            let silent = ours.read_u8().await.unwrap_err();
            assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_begun_may_take_its_time() {
        let (mut theirs, ours) = duplex(64);
        let mut ours = Opening::new(ours);
        theirs.write_all(&[b'x'; PREFACE]).await.unwrap();
        ours.read_exact(&mut [0; PREFACE]).await.unwrap();
        let long = tokio::time::timeout(100 * SILENCE, ours.read_u8()).await;
        assert!(long.is_err(), "it waits");
        ours.write_all(b"answer").await.unwrap();
        theirs.read_exact(&mut [0; 6]).await.unwrap();
    }
}
