//! A WebSocket as a conversation: text frames are messages, binary frames are bytes of processes.
//!
//! ```text
//! request --> Speaking (messages, bytes) ------> daemon
//!             Hearing  (messages, bytes)  <------ daemon, until `told` (the last message) or `failed`
//! ```

use super::{Client, ClientError, connection::Socket};
use crate::v1::{ErrorBody, InvalidFrame};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio_tungstenite::tungstenite::{Error as SocketError, Message, error::ProtocolError};

/// The direction to the daemon.
#[derive(Debug)]
pub struct Speaking {
    sink: SplitSink<Socket, Message>,
    operation: &'static str,
}

impl Speaking {
    pub async fn say(&mut self, message: &impl Serialize) -> Result<(), ClientError> {
        let text =
            serde_json::to_string(message).map_err(|error| ClientError::protocol(self.operation, error))?;
        self.send(Message::text(text)).await
    }

    pub async fn bytes(&mut self, frame: Bytes) -> Result<(), ClientError> {
        self.send(Message::Binary(frame)).await
    }

    /// Leaves; what that means is for the daemon to say.
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.send(Message::Close(None)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.sink.send(message).await.map_err(|error| broken(self.operation, error))
    }
}

/// The direction from the daemon.
#[derive(Debug)]
pub struct Hearing {
    stream: SplitStream<Socket>,
    operation: &'static str,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Following,
    /// The last message was told; the daemon closes when it has tidied up.
    Told,
    Over,
}

#[derive(Debug)]
pub enum Frame<M> {
    Message(M),
    Bytes(Bytes),
}

impl Hearing {
    /// The next frame; `None` once all is over. Cancel-safe. An error is final.
    pub async fn next<M: DeserializeOwned>(&mut self) -> Result<Option<Frame<M>>, ClientError> {
        while self.state != State::Over {
            let frame = match self.stream.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Binary(frame))) => Ok(Frame::Bytes(frame)),
                Some(Ok(Message::Text(text))) => serde_json::from_str(&text)
                    .map(Frame::Message)
                    .map_err(|error| ClientError::protocol(self.operation, error)),
                Some(Ok(Message::Close(_))) | None if self.state == State::Told => break,
                Some(Ok(Message::Close(_))) | None => Err(early_close(self.operation)),
                Some(Err(error)) => Err(broken(self.operation, error)),
            };
            if frame.is_err() {
                self.state = State::Over;
            }
            return frame.map(Some);
        }
        self.state = State::Over;
        Ok(None)
    }

    /// That was the last message.
    pub fn told(&mut self) {
        self.state = State::Told;
    }

    /// That was the last message, and a failure.
    pub fn failed(&mut self, error: ErrorBody) -> ClientError {
        self.state = State::Over;
        ClientError::Api(Box::new(error))
    }

    /// What a binary frame holds; one that makes no sense ends the conversation.
    pub fn decode<T>(&mut self, decoded: Result<T, InvalidFrame>) -> Result<T, ClientError> {
        decoded.map_err(|error| {
            self.state = State::Over;
            ClientError::protocol(self.operation, error)
        })
    }
}

fn broken(operation: &'static str, error: SocketError) -> ClientError {
    match error {
        SocketError::Io(source) => ClientError::Io { operation, source },
        // The last is what the death of a daemon looks like.
        SocketError::ConnectionClosed
        | SocketError::AlreadyClosed
        | SocketError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => early_close(operation),
        other => ClientError::protocol(operation, other),
    }
}

fn early_close(operation: &'static str) -> ClientError {
    ClientError::io(operation, "the daemon closed it before its end was told")
}

impl Client {
    /// Opens the WebSocket at `path` and says `first` if there is anything to say.
    pub(super) async fn converse(
        &self,
        operation: &'static str,
        path: &str,
        first: Option<&impl Serialize>,
    ) -> Result<(Speaking, Hearing), ClientError> {
        let (sink, stream) = self.websocket(path).await?.split();
        let mut speaking = Speaking { sink, operation };
        if let Some(request) = first {
            speaking.say(request).await?;
        }
        Ok((speaking, Hearing { stream, operation, state: State::Following }))
    }
}
