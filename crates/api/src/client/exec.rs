//! The streams of one process, as typed events.

use super::{Client, ClientError, connection::Socket, connection::query};
use crate::v1::{
    AttachQuery, ClientMessage, Ended, ExecRequest, Lost, RunRequest, ServerMessage, Started, StepProgress,
    Stream, decode_output, encode_stdin,
};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use offshoot_types::{ExecId, VmRef};
use serde::Serialize;
use tokio_tungstenite::tungstenite::{Error as SocketError, Message};

/// Bytes of stdin in one frame.
const CHUNK: usize = 128 * 1024;

/// What happens to a process. A failure is an `Err` of [`ExecEvents::next`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    Progress(StepProgress),
    Started(Started),
    Output(Stream, Bytes),
    Lost(Lost),
    /// Another caller has the streams now, or we gave the process up; it runs on.
    Detached,
    /// The process is gone. On `run`, [`ExecEvents::next`] answers `None` once its VM is gone too.
    Ended(Ended),
}

/// Both directions of one process; dropping it closes the socket.
#[derive(Debug)]
pub struct ExecConnection {
    pub input: ExecInput,
    pub events: ExecEvents,
}

impl ExecConnection {
    pub fn split(self) -> (ExecInput, ExecEvents) {
        (self.input, self.events)
    }

    fn new(socket: Socket) -> Self {
        let (sink, stream) = socket.split();
        Self { input: ExecInput { sink }, events: ExecEvents { stream, state: State::Following } }
    }
}

/// What the caller says to a process.
#[derive(Debug)]
pub struct ExecInput {
    sink: SplitSink<Socket, Message>,
}

impl ExecInput {
    /// Waits while the guest is slower than the caller.
    pub async fn stdin(&mut self, mut data: Bytes) -> Result<(), ClientError> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            self.send(Message::Binary(encode_stdin(&chunk))).await?;
        }
        Ok(())
    }

    pub async fn stdin_end(&mut self) -> Result<(), ClientError> {
        self.say(&ClientMessage::StdinEnd).await
    }

    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), ClientError> {
        self.say(&ClientMessage::Resize { rows, cols }).await
    }

    pub async fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.say(&ClientMessage::Signal { signal }).await
    }

    pub async fn kill(&mut self) -> Result<(), ClientError> {
        self.say(&ClientMessage::Kill).await
    }

    /// Leaves the process running; it can be attached again by its id. Not for `run`.
    pub async fn detach(&mut self) -> Result<(), ClientError> {
        self.say(&ClientMessage::Detach).await
    }

    /// Leaves: the process is killed, and on `run` its VM destroyed.
    pub async fn close(mut self) -> Result<(), ClientError> {
        self.send(Message::Close(None)).await
    }

    async fn say(&mut self, message: &impl Serialize) -> Result<(), ClientError> {
        let text = serde_json::to_string(message).map_err(|error| ClientError::protocol("exec", error))?;
        self.send(Message::text(text)).await
    }

    async fn send(&mut self, message: Message) -> Result<(), ClientError> {
        self.sink.send(message).await.map_err(broken)
    }
}

/// What a process says to the caller.
#[derive(Debug)]
pub struct ExecEvents {
    stream: SplitStream<Socket>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Following,
    /// The last event was told; the daemon closes when it has tidied up.
    Told,
    Over,
}

impl ExecEvents {
    /// The next event; `None` once all is over. Cancel-safe. An error is final.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, ClientError> {
        while self.state != State::Over {
            let event = match self.stream.next().await {
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Ok(Message::Binary(frame))) => decode_output(frame)
                    .map(|(stream, data)| ExecEvent::Output(stream, data))
                    .map_err(|error| ClientError::protocol("exec", error)),
                Some(Ok(Message::Text(text))) => self.told(&text),
                Some(Ok(Message::Close(_))) | None if self.state == State::Told => break,
                Some(Ok(Message::Close(_))) | None => Err(early_close()),
                Some(Err(error)) => Err(broken(error)),
            };
            if event.is_err() {
                self.state = State::Over;
            }
            return event.map(Some);
        }
        self.state = State::Over;
        Ok(None)
    }

    fn told(&mut self, text: &str) -> Result<ExecEvent, ClientError> {
        let message = serde_json::from_str(text).map_err(|error| ClientError::protocol("exec", error))?;
        Ok(match message {
            ServerMessage::Progress(step) => ExecEvent::Progress(step),
            ServerMessage::Started(started) => ExecEvent::Started(started),
            ServerMessage::Lost(lost) => ExecEvent::Lost(lost),
            ServerMessage::Detached => {
                self.state = State::Told;
                ExecEvent::Detached
            }
            ServerMessage::Ended(ended) => {
                self.state = State::Told;
                ExecEvent::Ended(ended)
            }
            ServerMessage::Failed { error } => return Err(ClientError::Api(Box::new(error))),
        })
    }
}

fn broken(error: SocketError) -> ClientError {
    match error {
        SocketError::Io(source) => ClientError::Io { operation: "exec", source },
        SocketError::ConnectionClosed | SocketError::AlreadyClosed => early_close(),
        other => ClientError::protocol("exec", other),
    }
}

fn early_close() -> ClientError {
    ClientError::io("exec", "the daemon closed it before the process ended")
}

impl Client {
    /// Runs a process in a running VM.
    pub async fn exec(&self, vm: &VmRef, request: &ExecRequest) -> Result<ExecConnection, ClientError> {
        self.open(&format!("/v1/vms/{vm}/exec"), Some(request)).await
    }

    /// Takes up the streams of a process that runs or has lately ended.
    pub async fn attach(
        &self,
        vm: &VmRef,
        exec: ExecId,
        from: &AttachQuery,
    ) -> Result<ExecConnection, ClientError> {
        let path = query(&format!("/v1/vms/{vm}/execs/{exec}/attach"), from);
        self.open(&path, None::<&()>).await
    }

    /// Runs a process in a fresh VM, which lives no longer than the connection unless the request keeps it.
    pub async fn run(&self, request: &RunRequest) -> Result<ExecConnection, ClientError> {
        self.open("/v1/run", Some(request)).await
    }

    async fn open(&self, path: &str, first: Option<&impl Serialize>) -> Result<ExecConnection, ClientError> {
        let mut connection = ExecConnection::new(self.websocket(path).await?);
        if let Some(request) = first {
            connection.input.say(request).await?;
        }
        Ok(connection)
    }
}
