//! Raw bytes both ways on one stream, each direction with an end of its own.
//!
//! ```text
//! length (u32 BE, 1..=CHUNK) block ... length block ... 0
//! ```
//! The end is a block of length 0 rather than the multiplexer's half-close, see the crate's documentation. A
//! stream that ends without it was cut: reading fails with `ConnectionReset`.

use crate::{message::CHUNK, session::MuxStream};
use bytes::{Buf as _, BytesMut};
use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
};

/// One write becomes one block of at most this size: one frame of the multiplexer.
const BLOCK: usize = 16 * 1024 - PREFIX;
const PREFIX: usize = 4;

#[derive(Debug)]
pub struct Tunnel<S = MuxStream> {
    stream: S,
    /// Read ahead by the codec, before this became a tunnel.
    ahead: BytesMut,
    read: Read,
    out: Vec<u8>,
    sent: usize,
    end_queued: bool,
    /// Its place among the tunnels of its session, where those are counted.
    _place: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
enum Read {
    Prefix { bytes: [u8; PREFIX], have: usize },
    Block { left: usize },
    Ended,
}

impl<S> Tunnel<S> {
    pub(crate) fn new(stream: S, ahead: BytesMut) -> Self {
        Self {
            stream,
            ahead,
            read: Read::Prefix { bytes: [0; PREFIX], have: 0 },
            out: Vec::new(),
            sent: 0,
            end_queued: false,
            _place: None,
        }
    }

    pub(crate) fn at(self, place: OwnedSemaphorePermit) -> Self {
        Self { _place: Some(place), ..self }
    }
}

impl<S: AsyncRead + Unpin> Tunnel<S> {
    fn poll_raw(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let count = self.ahead.len().min(into.remaining());
        into.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tunnel<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if into.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            match this.read {
                Read::Ended => return Poll::Ready(Ok(())),
                Read::Prefix { bytes, have: PREFIX } => {
                    let left = u32::from_be_bytes(bytes) as usize;
                    this.read = match left {
                        0 => Read::Ended,
                        left if left <= CHUNK => Read::Block { left },
                        left => {
                            return Poll::Ready(Err(io::Error::new(
                                io::ErrorKind::InvalidData,
                                format!("a block of {left} bytes exceeds the limit of {CHUNK}"),
                            )));
                        }
                    };
                }
                Read::Prefix { mut bytes, have } => {
                    let mut rest = ReadBuf::new(&mut bytes[have..]);
                    ready!(this.poll_raw(cx, &mut rest))?;
                    let count = rest.filled().len();
                    if count == 0 {
                        return Poll::Ready(Err(cut()));
                    }
                    this.read = Read::Prefix { bytes, have: have + count };
                }
                Read::Block { left } => {
                    let mut part = ReadBuf::new(into.initialize_unfilled_to(left.min(into.remaining())));
                    ready!(this.poll_raw(cx, &mut part))?;
                    let count = part.filled().len();
                    if count == 0 {
                        return Poll::Ready(Err(cut()));
                    }
                    into.advance(count);
                    this.read = if left == count {
                        Read::Prefix { bytes: [0; PREFIX], have: 0 }
                    } else {
                        Read::Block { left: left - count }
                    };
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the other end left before the end of the data")
}

impl<S: AsyncWrite + Unpin> Tunnel<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.out.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.out[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        self.out.clear();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tunnel<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.end_queued {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_drain(cx))?;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let block = &bytes[..bytes.len().min(BLOCK)];
        let length = u32::try_from(block.len()).expect("BLOCK fits 32 bits");
        this.out.extend_from_slice(&length.to_be_bytes());
        this.out.extend_from_slice(block);
        // The block is ours now; if the stream has no credit the next call waits for it.
        if let Poll::Ready(Err(error)) = this.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(block.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    /// Ends this direction; the other one goes on.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.end_queued {
            ready!(this.poll_drain(cx))?;
            this.out.extend_from_slice(&[0; PREFIX]);
            this.end_queued = true;
        }
        ready!(this.poll_drain(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    fn pair(capacity: usize) -> (Tunnel<DuplexStream>, Tunnel<DuplexStream>) {
        let (near, far) = duplex(capacity);
        (Tunnel::new(near, BytesMut::new()), Tunnel::new(far, BytesMut::new()))
    }

    #[tokio::test]
    async fn one_direction_ends_while_the_other_goes_on() {
        let (mut near, mut far) = pair(64);
        let payload: Vec<u8> = (0..100_000_u32).map(|n| n as u8).collect();
        let ask = async {
            near.write_all(&payload).await.unwrap();
            near.shutdown().await.unwrap();
            let mut answer = Vec::new();
            near.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answer = async {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            far.write_all(&got).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (answer, ()) = tokio::join!(ask, answer);
        assert!(answer == payload);
    }

    #[tokio::test]
    async fn a_cut_is_not_taken_for_an_end() {
        let (mut near, mut far) = pair(64);
        near.write_all(b"half").await.unwrap();
        near.flush().await.unwrap();
        drop(near);
        let mut got = Vec::new();
        let error = far.read_to_end(&mut got).await.unwrap_err();
        assert_eq!((got.as_slice(), error.kind()), (&b"half"[..], io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn bytes_read_ahead_of_the_handshake_are_not_lost() {
        let (near, mut far) = duplex(64);
        let ahead = BytesMut::from(&b"\0\0\0\x05he"[..]);
        far.write_all(b"llo\0\0\0\0").await.unwrap();
        let mut got = String::new();
        Tunnel::new(near, ahead).read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "hello");
    }

    #[tokio::test]
    async fn an_oversized_block_is_refused() {
        let (near, mut far) = duplex(64);
        far.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let error = Tunnel::new(near, BytesMut::new()).read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
