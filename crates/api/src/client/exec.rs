//! The streams of one process, as typed events.

use super::{
    Client, ClientError,
    connection::query,
    conversation::{Frame, Hearing, Speaking},
};
use crate::v1::{
    AttachQuery, ClientMessage, Ended, ExecRequest, Lost, RunRequest, ServerMessage, Started, StepProgress,
    Stream, TryInput, decode_output, encode_stdin,
};
use bytes::Bytes;
use offshoot_types::{ExecId, VmRef};
use serde::Serialize;

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
}

/// What the caller says to a process.
#[derive(Debug)]
pub struct ExecInput(pub(super) Speaking);

impl ExecInput {
    /// Waits while the guest is slower than the caller.
    pub async fn stdin(&mut self, mut data: Bytes) -> Result<(), ClientError> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(CHUNK));
            self.0.bytes(encode_stdin(&chunk)).await?;
        }
        Ok(())
    }

    pub async fn stdin_end(&mut self) -> Result<(), ClientError> {
        self.0.say(&ClientMessage::StdinEnd).await
    }

    pub async fn resize(&mut self, rows: u16, cols: u16) -> Result<(), ClientError> {
        self.0.say(&ClientMessage::Resize { rows, cols }).await
    }

    pub async fn signal(&mut self, signal: i32) -> Result<(), ClientError> {
        self.0.say(&ClientMessage::Signal { signal }).await
    }

    pub async fn kill(&mut self) -> Result<(), ClientError> {
        self.0.say(&ClientMessage::Kill).await
    }

    /// Only for `try`: gives it up. What the VM is then comes as its last event.
    pub async fn roll_back(&mut self) -> Result<(), ClientError> {
        self.0.say(&TryInput::RollBack).await
    }

    /// Leaves the process running; it can be attached again by its id. Only for `exec` and `attach`.
    pub async fn detach(&mut self) -> Result<(), ClientError> {
        self.0.say(&ClientMessage::Detach).await
    }

    /// Leaves: the process is killed, on `run` its VM is destroyed, on `try` what it did is undone.
    pub async fn close(self) -> Result<(), ClientError> {
        self.0.close().await
    }
}

/// What a process says to the caller.
#[derive(Debug)]
pub struct ExecEvents(Hearing);

impl ExecEvents {
    /// The next event; `None` once all is over. Cancel-safe. An error is final.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, ClientError> {
        let message = match self.0.next().await? {
            None => return Ok(None),
            Some(Frame::Bytes(frame)) => {
                let (stream, data) = self.0.decode(decode_output(frame))?;
                return Ok(Some(ExecEvent::Output(stream, data)));
            }
            Some(Frame::Message(message)) => message,
        };
        Ok(Some(match message {
            ServerMessage::Progress(step) => ExecEvent::Progress(step),
            ServerMessage::Started(started) => ExecEvent::Started(started),
            ServerMessage::Lost(lost) => ExecEvent::Lost(lost),
            ServerMessage::Detached => {
                self.0.told();
                ExecEvent::Detached
            }
            ServerMessage::Ended(ended) => {
                self.0.told();
                ExecEvent::Ended(ended)
            }
            ServerMessage::Failed { error } => return Err(self.0.failed(error)),
        }))
    }
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
        let (input, events) = self.converse("exec", path, first).await?;
        Ok(ExecConnection { input: ExecInput(input), events: ExecEvents(events) })
    }
}
