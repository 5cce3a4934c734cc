//! The caller's end of a WebSocket session.
//!
//! ```text
//! request (text) --> Source: what the caller says --> session --> Sink: messages (text), output (binary) --> close
//! ```
//! Nothing is buffered here beyond one frame each way: a caller that reads slowly slows what it listens to. A caller
//! that vanishes is noticed by its closed socket, at the latest when the next ping cannot be written. Every protocol
//! ends a failed session with the same message, `{"event":"failed","error":..}`.

use super::request::Call;
use axum::extract::ws::{Message, Utf8Bytes, WebSocket};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use offshoot_api::v1::{ErrorBody, ServerMessage, Stream};
use offshoot_engine::OutputStream;
use offshoot_types::{ErrorCode, Failure};
use serde::{Serialize, de::DeserializeOwned};
use std::{collections::VecDeque, time::Duration};
use tokio::time::{Interval, MissedTickBehavior, interval, timeout};

/// How long a caller may take from the upgrade to its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How often a silent caller's socket is tried.
const PING: Duration = Duration::from_secs(2);
/// Frames a caller may send before anyone takes them.
const MAX_AHEAD: usize = 8;
/// How long the closing handshake may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a session ended early.
#[derive(Debug)]
pub enum Left {
    /// The caller is no longer there to be told anything.
    Gone,
    Failed(Failure),
}

impl<F: Into<Failure>> From<F> for Left {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

#[derive(Debug)]
pub struct Channel {
    pub sink: Sink,
    pub source: Source,
}

impl Channel {
    pub fn new(socket: WebSocket) -> Self {
        let (sink, stream) = socket.split();
        Self { sink: Sink(sink), source: Source { stream, ahead: VecDeque::new() } }
    }

    /// The caller's request: the first text frame.
    pub async fn request<T: DeserializeOwned>(&mut self) -> Result<T, Left> {
        let invalid = |message: &str| Failure::new(ErrorCode::InvalidArgument, message);
        let first = timeout(REQUEST_DEADLINE, self.source.next());
        match first.await.map_err(|_| invalid("no request came on the WebSocket"))?? {
            Heard::Text(text) => Ok(super::extract::parse_json(text.as_bytes())?),
            Heard::Binary(_) => Err(invalid("the first frame is the request, as text").into()),
        }
    }

    /// Does `work`, unless the caller leaves first.
    pub async fn while_connected<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Left> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.source.left() => Err(Left::Gone),
        }
    }

    /// Tells the caller how it ended, if that is not known yet, and closes.
    pub async fn close(mut self, call: &Call, outcome: Result<(), Left>) {
        if let Err(Left::Failed(failure)) = outcome {
            tracing::info!(code = %failure.code, message = failure.message, "session failed");
            let error = ErrorBody::new(failure, call.id);
            // A caller that has gone in the meantime misses nothing it would read.
            let _gone = self.sink.say(&ServerMessage::Failed { error }).await;
        }
        let farewell = async {
            self.sink.0.close().await?;
            while let Some(Ok(_)) = self.source.stream.next().await {}
            Ok::<(), axum::Error>(())
        };
        let _closed_or_not = timeout(CLOSE_DEADLINE, farewell).await;
    }
}

/// The direction to the caller.
#[derive(Debug)]
pub struct Sink(SplitSink<WebSocket, Message>);

impl Sink {
    pub async fn say(&mut self, message: &impl Serialize) -> Result<(), Left> {
        let text = serde_json::to_string(message).expect("messages are plain data");
        self.send(Message::text(text)).await
    }

    pub async fn bytes(&mut self, frame: Bytes) -> Result<(), Left> {
        self.send(Message::Binary(frame)).await
    }

    /// Tries whether the caller is still there.
    pub async fn ping(&mut self) -> Result<(), Left> {
        self.send(Message::Ping(Bytes::new())).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Left> {
        self.0.send(message).await.map_err(|_| Left::Gone)
    }
}

/// When to [`Sink::ping`].
pub fn pings() -> Interval {
    let mut pings = interval(PING);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pings
}

/// The direction from the caller.
#[derive(Debug)]
pub struct Source {
    stream: SplitStream<WebSocket>,
    /// Frames that came before anyone was there to take them; at most [`MAX_AHEAD`].
    ahead: VecDeque<Message>,
}

/// A frame that means something.
#[derive(Debug)]
pub enum Heard {
    Text(Utf8Bytes),
    Binary(Bytes),
}

impl Source {
    /// The next frame. Cancel-safe.
    pub async fn next(&mut self) -> Result<Heard, Left> {
        loop {
            let message = match self.ahead.pop_front() {
                Some(message) => message,
                None => match self.stream.next().await {
                    Some(Ok(message)) => message,
                    Some(Err(_)) | None => return Err(Left::Gone),
                },
            };
            match message {
                Message::Text(text) => return Ok(Heard::Text(text)),
                Message::Binary(frame) => return Ok(Heard::Binary(frame)),
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Close(_) => return Err(Left::Gone),
            }
        }
    }

    /// Returns when the caller is gone; what it sends meanwhile is kept, within bounds.
    async fn left(&mut self) {
        while self.ahead.len() < MAX_AHEAD {
            match self.stream.next().await {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(message)) => self.ahead.push_back(message),
            }
        }
        // Further frames wait in the socket; the caller's end shows at the next write.
        std::future::pending().await
    }
}

/// A stream of a process as the wire names it.
pub fn wire(stream: OutputStream) -> Stream {
    match stream {
        OutputStream::Stdout => Stream::Stdout,
        OutputStream::Stderr => Stream::Stderr,
    }
}
