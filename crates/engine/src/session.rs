//! The caller's end of one exec: input, and a bounded stream of events.
//!
//! ```text
//! caller --ExecInput--> [bounded] --> exec pump --> guest
//! caller <--ExecEvents-- [bounded] <-- exec pump <-- guest        (Ended or Failed is always the last event)
//! ```
//! A caller that reads slowly slows the process down, nothing else: the pump stops reading the guest's stream
//! when the buffer is full, and flow control does the rest. Loss of the guest channel is repaired by the pump
//! (reconnect, attach at the next offset) and not seen here.

use bytes::Bytes;
use offshoot_types::{ExecId, ExecStatus, Failure, OperationId, PtySize, VmId};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Events buffered between the pump and a caller; each holds at most one chunk of the guest protocol.
const EVENT_DEPTH: usize = 16;
/// Inputs buffered between a caller and the pump.
const INPUT_DEPTH: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

/// How a process ended, with what it used; times as measured in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExecEnd {
    pub status: ExecStatus,
    /// Output beyond the limit was dropped.
    pub truncated: bool,
    pub wall: Duration,
    pub user: Duration,
    pub system: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub enum ExecEvent {
    Started {
        pid: u32,
    },
    Output {
        stream: OutputStream,
        /// Bytes of this stream before `data`.
        offset: u64,
        data: Bytes,
    },
    /// This many bytes were overwritten in the guest's ring before anyone read them.
    Lost {
        stream: OutputStream,
        bytes: u64,
    },
    /// Another caller attached and has the streams now. The last event of this session, not of the process.
    Detached,
    /// The last event: the process and its whole tree are gone.
    Ended(ExecEnd),
    /// The last event: it never ran, or how it ended cannot be known.
    Failed(Failure),
}

#[derive(Debug)]
pub(crate) enum Input {
    Stdin(Bytes),
    StdinEnd,
}

/// Overtakes input: a process that reads nothing can still be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    Resize(PtySize),
    Signal(i32),
    Kill,
}

/// What becomes of a process when the caller's session is dropped before the process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDrop {
    /// Killed with its tree: nobody is left who wants it. The default of a session made by `exec`.
    Kill,
    /// Runs on, attachable by its id. The default of a session made by `attach`.
    Detach,
}

/// The process ended or the session was taken over; nothing more can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the process has ended or the session was taken over")]
pub struct SessionClosed;

/// One process in a VM, as seen by the caller who started it or attached to it.
#[derive(Debug)]
pub struct ExecSession {
    pub vm: VmId,
    pub exec: ExecId,
    pub operation: OperationId,
    input: ExecInput,
    events: ExecEvents,
}

impl ExecSession {
    /// A session, and the pump's end of it.
    pub(crate) fn new(vm: VmId, exec: ExecId, operation: OperationId, on_drop: OnDrop) -> (Self, Sink) {
        let (input, events, sink) = channels(on_drop);
        (Self::of(vm, exec, operation, input, events), sink)
    }

    /// A session from its ends.
    pub(crate) fn of(
        vm: VmId,
        exec: ExecId,
        operation: OperationId,
        input: ExecInput,
        events: ExecEvents,
    ) -> Self {
        Self { vm, exec, operation, input, events }
    }

    pub fn split(self) -> (ExecInput, ExecEvents) {
        (self.input, self.events)
    }
    pub fn input(&self) -> &ExecInput {
        &self.input
    }
    /// `None` after the last event. Cancel-safe.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        self.events.next().await
    }
    /// Lets the process run on without us; it stays attachable by its id.
    pub fn detach(self) {
        self.events.on_drop(OnDrop::Detach);
    }
}

/// A caller's two ends, and the pump's.
pub(crate) fn channels(on_drop: OnDrop) -> (ExecInput, ExecEvents, Sink) {
    let (event_sender, events) = mpsc::channel(EVENT_DEPTH);
    let (data, input) = mpsc::channel(INPUT_DEPTH);
    let (control_sender, control) = mpsc::channel(INPUT_DEPTH);
    let (on_drop, on_drop_receiver) = watch::channel(on_drop);
    let sink = Sink { events: event_sender, input, control, on_drop: on_drop_receiver };
    (ExecInput { data, control: control_sender }, ExecEvents { events, on_drop }, sink)
}

/// A way to give a process input that is nobody's session, and the pump's end of it.
pub(crate) fn door() -> (ExecInput, Door) {
    let (data, input) = mpsc::channel(INPUT_DEPTH);
    let (control_sender, control) = mpsc::channel(INPUT_DEPTH);
    (ExecInput { data, control: control_sender }, Door { input, control })
}

/// The pump's end of it.
#[derive(Debug)]
pub(crate) struct Door {
    pub input: mpsc::Receiver<Input>,
    pub control: mpsc::Receiver<Control>,
}

/// The pump's end of a session.
#[derive(Debug)]
pub(crate) struct Sink {
    pub events: mpsc::Sender<ExecEvent>,
    pub input: mpsc::Receiver<Input>,
    pub control: mpsc::Receiver<Control>,
    pub on_drop: watch::Receiver<OnDrop>,
}

/// Sends to the process; clones share bounded buffers. Dropping it ends nothing: stdin is closed by
/// [`end_stdin`](Self::end_stdin) only.
#[derive(Debug, Clone)]
pub struct ExecInput {
    data: mpsc::Sender<Input>,
    control: mpsc::Sender<Control>,
}

impl ExecInput {
    /// Waits while the process does not read.
    pub async fn stdin(&self, data: Bytes) -> Result<(), SessionClosed> {
        self.data.send(Input::Stdin(data)).await.map_err(|_| SessionClosed)
    }
    pub async fn end_stdin(&self) -> Result<(), SessionClosed> {
        self.data.send(Input::StdinEnd).await.map_err(|_| SessionClosed)
    }
    pub async fn resize(&self, size: PtySize) -> Result<(), SessionClosed> {
        self.control(Control::Resize(size)).await
    }
    /// To the process group in the foreground.
    pub async fn signal(&self, signal: i32) -> Result<(), SessionClosed> {
        self.control(Control::Signal(signal)).await
    }
    /// SIGKILL to the whole tree.
    pub async fn kill(&self) -> Result<(), SessionClosed> {
        self.control(Control::Kill).await
    }
    /// Returns once nothing more can be sent: the process has ended, or the session was taken over.
    pub async fn closed(&self) {
        self.control.closed().await;
    }
    async fn control(&self, control: Control) -> Result<(), SessionClosed> {
        self.control.send(control).await.map_err(|_| SessionClosed)
    }
}

/// Receives from the process. Dropping it decides the process's fate by [`OnDrop`].
#[derive(Debug)]
pub struct ExecEvents {
    events: mpsc::Receiver<ExecEvent>,
    on_drop: watch::Sender<OnDrop>,
}

impl ExecEvents {
    /// `None` after the last event. Cancel-safe.
    pub async fn next(&mut self) -> Option<ExecEvent> {
        self.events.recv().await
    }
    pub fn on_drop(&self, what: OnDrop) {
        self.on_drop.send_replace(what);
    }
}
