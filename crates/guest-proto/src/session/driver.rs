//! The task that moves a session's bytes.

use super::{CloseReason, Command, MUX_STREAMS, MuxStream, Side, mux_io::MuxIo, stream::Shared};
use crate::resync::{EpochStatus, EpochStream};
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};

/// Guaranteed to every stream by the yamux specification.
const WINDOW: usize = 256 * 1024;
/// Shared by streams whose reader keeps up and which yamux therefore grants more.
const EXTRA_WINDOWS: usize = 8 * 1024 * 1024;
/// Largest frame: several fit one chunk, so small frames do not wait long behind one.
const FRAME: usize = 16 * 1024;
/// Streams refused before the peer counts as hostile: an honest one keeps to its share.
const REFUSALS: usize = 256;

/// Completes with the reason once the session is over.
#[derive(Debug)]
#[must_use = "nothing moves unless the driver is polled"]
pub struct Driver {
    connection: yamux::Connection<Compat<MuxIo>>,
    epoch: EpochStatus,
    shared: Arc<Shared>,
    commands: mpsc::UnboundedReceiver<Command>,
    incoming: mpsc::Sender<MuxStream>,
    flushes: Vec<oneshot::Sender<()>>,
    refused: usize,
}

impl Driver {
    pub(super) fn new(
        stream: EpochStream,
        side: Side,
        backlog: usize,
        shared: Arc<Shared>,
        commands: mpsc::UnboundedReceiver<Command>,
    ) -> (Self, mpsc::Receiver<MuxStream>) {
        let mut config = yamux::Config::default();
        // In this order: each setter checks against the other's present value.
        config.set_max_num_streams(MUX_STREAMS);
        config.set_max_connection_receive_window(Some(MUX_STREAMS * WINDOW + EXTRA_WINDOWS));
        config.set_split_send_size(FRAME);
        let mode = match side {
            Side::Host => yamux::Mode::Client,
            Side::Guest => yamux::Mode::Server,
        };
        let epoch = stream.status();
        let connection = yamux::Connection::new(MuxIo::new(stream).compat(), config, mode);
        let (incoming, streams) = mpsc::channel(backlog);
        let driver = Self { connection, epoch, shared, commands, incoming, flushes: Vec::new(), refused: 0 };
        (driver, streams)
    }

    fn poll_session(&mut self, cx: &mut Context<'_>) -> Poll<CloseReason> {
        while let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) {
            match command {
                Command::Open(answer, permit) => match self.connection.poll_new_outbound(cx) {
                    // A caller that no longer waits drops the stream: nothing was sent for it.
                    Poll::Ready(Ok(stream)) => {
                        let _unwanted = answer.send(MuxStream::new(stream.compat(), permit));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(self.reason(error)),
                    // Only beyond 256 unacknowledged streams, which the permits prevent.
                    Poll::Pending => {}
                },
                Command::Flush(answer) => self.flushes.push(answer),
                // Not yamux's own close: it says goodbye first, which may take for ever, and forgets to wake
                // those who read. Dropping the connection wakes them.
                Command::Close(reason) => return Poll::Ready(reason),
            }
        }
        loop {
            match self.connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => {
                    if let Some(permit) = self.shared.peer_permit() {
                        // There is room for as many as there are permits. Nobody listening is a refusal as well.
                        let _unwanted = self.incoming.try_send(MuxStream::new(stream.compat(), permit));
                    } else {
                        // More than it may. Dropping the stream resets it.
                        drop(stream);
                        self.refused += 1;
                        if self.refused > REFUSALS {
                            let problem = format!("it opened {} streams more than it may", self.refused);
                            return Poll::Ready(CloseReason::Protocol { problem });
                        }
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(self.reason(error)),
                Poll::Ready(None) => return Poll::Ready(self.epoch_end().unwrap_or(CloseReason::PeerClosed)),
                Poll::Pending => break,
            }
        }
        if !self.flushes.is_empty() && self.epoch.unsent() == 0 {
            for flushed in self.flushes.drain(..) {
                let _no_longer_waiting = flushed.send(());
            }
        }
        Poll::Pending
    }

    fn epoch_end(&self) -> Option<CloseReason> {
        self.epoch.end().map(CloseReason::Epoch)
    }

    fn reason(&self, error: yamux::ConnectionError) -> CloseReason {
        match (self.epoch_end(), error) {
            (Some(end), _) => end,
            (None, yamux::ConnectionError::Closed) => CloseReason::PeerClosed,
            (None, error) => CloseReason::Mux { problem: error.to_string() },
        }
    }
}

impl Future for Driver {
    type Output = CloseReason;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CloseReason> {
        let polled = self.poll_session(cx);
        if let Poll::Ready(reason) = &polled {
            self.shared.close(reason.clone());
        }
        polled
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Dropped before it was done: nobody may wait for ever.
        self.shared.close(CloseReason::Closed);
    }
}
