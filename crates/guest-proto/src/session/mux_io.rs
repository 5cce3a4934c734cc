//! Between yamux and the epoch's byte stream: when to flush, when to let others run, and when the peer has gone
//! too far.
//!
//! yamux answers a broken rule (a stream that overruns its window, an impossible id) with a GoAway frame, drops
//! what broke it, and goes on. An honest peer never gets one, so sending it is where we stop: a hostile guest would
//! otherwise keep the host busy for ever.

use crate::resync::EpochStream;
use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read in one go before other tasks get their turn: their windows are full long before.
const READ_BUDGET: usize = 256 * 1024;

#[derive(Debug)]
pub(super) struct MuxIo {
    stream: EpochStream,
    read: usize,
    written: Frames,
    /// Our own multiplexer has told the peer off.
    violated: bool,
}

impl MuxIo {
    pub(super) fn new(stream: EpochStream) -> Self {
        Self { stream, read: 0, written: Frames::default(), violated: false }
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
        let this = &mut *self;
        if !this.violated {
            let polled = Pin::new(&mut this.stream).poll_write(cx, bytes);
            let Poll::Ready(Ok(count)) = polled else { return polled };
            this.written.feed(&bytes[..count], |header| this.violated |= header.is_reproach());
            if !this.violated {
                return Poll::Ready(Ok(count));
            }
        }
        let problem = "a window overrun, or a stream that cannot be";
        Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)))
    }

    /// yamux flushes after every frame. The epoch's stream does so once, before it waits for more input, which is
    /// the last thing yamux does in every poll.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
}

const HEADER: usize = 12;
const DATA: u8 = 0;
const GO_AWAY: u8 = 3;

/// Finds the frame headers in a stream of yamux frames, however it is cut.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    have: usize,
    body: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: u8,
    length: u32,
}

impl Header {
    /// A GoAway whose code is not "normal".
    fn is_reproach(self) -> bool {
        self.kind == GO_AWAY && self.length != 0
    }
}

impl Frames {
    fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(Header)) {
        while !bytes.is_empty() {
            let skipped = self.body.min(bytes.len());
            self.body -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have == HEADER {
                let [_version, kind, .., l0, l1, l2, l3] = self.header;
                let header = Header { kind, length: u32::from_be_bytes([l0, l1, l2, l3]) };
                self.have = 0;
                self.body = if kind == DATA { header.length as usize } else { 0 };
                found(header);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: u32, body: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, kind, 0, 0, 0, 0, 0, 1];
        frame.extend(length.to_be_bytes());
        frame.extend(body);
        frame
    }

    #[test]
    fn headers_are_found_however_the_stream_is_cut() {
        // Bodies that look like reproaches are not looked at.
        let decoy = frame(GO_AWAY, 1, &[]);
        let wire =
            [frame(DATA, 12, &decoy), frame(1, 7, &[]), frame(GO_AWAY, 2, &[]), frame(DATA, 0, &[])].concat();
        for piece in 1..wire.len() {
            let mut frames = Frames::default();
            let mut found = Vec::new();
            wire.chunks(piece).for_each(|part| frames.feed(part, |header| found.push(header)));
            let expected = [(DATA, 12), (1, 7), (GO_AWAY, 2), (DATA, 0)];
            assert_eq!(found, expected.map(|(kind, length)| Header { kind, length }), "pieces of {piece}");
            let reproaches: Vec<_> = found.into_iter().filter(|header| header.is_reproach()).collect();
            assert_eq!(reproaches, [Header { kind: GO_AWAY, length: 2 }]);
        }
    }
}
