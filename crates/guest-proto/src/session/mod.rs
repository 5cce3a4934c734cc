//! Multiplexed streams over the byte stream of one epoch.
//!
//! ```text
//! open() ---command---> Driver (one task, owns the yamux connection) ---incoming---> Incoming::next()
//!                          |
//!                          '-- pipe or peer ends --> CloseReason, all streams end
//! ```
//! Each stream has its own credit (yamux: 256 KiB, more for a fast reader), and the driver takes one frame of each
//! ready stream in turn, so a chatty stream fills its own window and starves nobody.
//!
//! Caps: yamux closes the whole connection when either side exceeds the number of streams, so neither may come near
//! it. The host opens at most [`HOST_STREAMS`], the guest at most [`GUEST_STREAMS`]; excess is refused where it
//! arises, and a guest that opens more is refused by resetting the excess.

mod driver;
mod mux_io;
mod stream;

pub use driver::Driver;
pub use stream::MuxStream;

use crate::resync::{EpochEnd, EpochStream};
use std::sync::Arc;
use stream::Shared;
use tokio::sync::{mpsc, oneshot};

/// Streams the host may have open at once: no more than agents of older images take, which are built for 192 and 32
/// that linger.
pub const HOST_STREAMS: usize = 224;
/// Streams the guest may have open at once.
pub const GUEST_STREAMS: usize = 32;
/// Streams the other end has dropped already and our handlers have not.
const LINGERING: usize = 32;
/// What yamux tolerates: above the sum of both, since a stream lives on until both sides have let go of it.
const MUX_STREAMS: usize = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Host,
    Guest,
}

/// Why a session is over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    #[error(transparent)]
    Epoch(#[from] EpochEnd),
    #[error("the other end closed the session")]
    PeerClosed,
    #[error("this end closed the session")]
    Closed,
    #[error("the other end broke the multiplexer's rules: {problem}")]
    Mux { problem: String },
    #[error("the other end broke the protocol: {problem}")]
    Protocol { problem: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("{limit} streams are open already")]
    TooMany { limit: usize },
    #[error("the session is closed")]
    Closed,
}

#[derive(Debug)]
enum Command {
    Open(oneshot::Sender<MuxStream>, tokio::sync::OwnedSemaphorePermit),
    /// Answered once everything written before it has left for the pipe.
    Flush(oneshot::Sender<()>),
    Close(CloseReason),
}

/// A handle to open streams and to see the end.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
    // Unbounded, but each `Open` holds one of the permits.
    commands: mpsc::UnboundedSender<Command>,
}

/// Streams opened by the other end.
#[derive(Debug)]
pub struct Incoming {
    streams: mpsc::Receiver<MuxStream>,
}

impl Incoming {
    /// The next stream; `None` once the session is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<MuxStream> {
        self.streams.recv().await
    }
}

impl Session {
    /// Starts a session on `stream`. Nothing moves unless the driver is polled (spawned, or selected on).
    pub fn new(stream: EpochStream, side: Side) -> (Self, Incoming, Driver) {
        let (own, peer) = match side {
            Side::Host => (HOST_STREAMS, GUEST_STREAMS),
            Side::Guest => (GUEST_STREAMS, HOST_STREAMS),
        };
        let shared = Arc::new(Shared::new(own, peer + LINGERING));
        let (commands, command_queue) = mpsc::unbounded_channel();
        let (driver, streams) = Driver::new(stream, side, peer + LINGERING, shared.clone(), command_queue);
        (Self { shared, commands }, Incoming { streams }, driver)
    }

    pub async fn open(&self) -> Result<MuxStream, OpenError> {
        let permit = self.shared.permit()?;
        let (answer, stream) = oneshot::channel();
        self.commands.send(Command::Open(answer, permit)).map_err(|_| OpenError::Closed)?;
        stream.await.map_err(|_| OpenError::Closed)
    }

    /// Waits until everything written so far has gone out to the pipe. `Err` if the session is over.
    pub async fn flush(&self) -> Result<(), CloseReason> {
        let (answer, flushed) = oneshot::channel();
        let asked = self.commands.send(Command::Flush(answer)).is_ok();
        if asked && flushed.await.is_ok() { Ok(()) } else { Err(self.closed().await) }
    }

    /// Ends the session at once; the reason is what everyone here sees. The other end is not told: it notices by
    /// the control stream, or by the next epoch.
    pub fn close(&self, reason: CloseReason) {
        // No driver: it is closed already.
        let _gone = self.commands.send(Command::Close(reason));
    }

    pub async fn closed(&self) -> CloseReason {
        self.shared.closed().await
    }

    /// `Some` once the session is over.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.close_reason()
    }
}
