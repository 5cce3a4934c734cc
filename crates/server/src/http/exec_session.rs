//! One process on one WebSocket.
//!
//! ```text
//! request --> [progress]* --> started --> (output | lost)* --> ended | detached | failed --> close
//!                                ^ stdin, resize, signal, kill, detach
//! ```
//! Nothing is buffered here beyond one frame each way: a caller that reads slowly slows the process, a process
//! that does not read stops the caller's stdin. A caller that vanishes is noticed by its closed socket, at the
//! latest when the next ping cannot be written.

use super::{request::Call, vms::stopping};
use axum::extract::ws::{Message, WebSocket};
use bytes::Bytes;
use futures::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use offshoot_api::v1::{
    ClientMessage, Durations, Ended, ErrorBody, Lost, ServerMessage, Started, Stream, decode_stdin,
    encode_output,
};
use offshoot_engine::{ExecEnd, ExecEvent, ExecEvents, ExecInput, ExecSession, OnDrop, OutputStream, VmView};
use offshoot_types::{
    ErrorCode, ExecId, Failure, IsolationClass, OperationId, ProviderKind, PtySize, VmId, VmName,
};
use serde::de::DeserializeOwned;
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// How long a caller may take from the upgrade to its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How often a silent caller's socket is tried.
const PING: Duration = Duration::from_secs(2);
/// Frames a caller may send ahead of the process's start.
const MAX_AHEAD: usize = 8;
/// How long the closing handshake may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a session ended before its process did.
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

/// The caller's end of a session.
#[derive(Debug)]
pub struct Channel {
    sink: SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
    /// Frames that came before anyone was there to take them; at most [`MAX_AHEAD`].
    ahead: VecDeque<Message>,
}

impl Channel {
    pub fn new(socket: WebSocket) -> Self {
        let (sink, stream) = socket.split();
        Self { sink, stream, ahead: VecDeque::new() }
    }

    /// The caller's request: the first text frame.
    pub async fn request<T: DeserializeOwned>(&mut self) -> Result<T, Left> {
        let invalid = |message: &str| Failure::new(ErrorCode::InvalidArgument, message);
        let first = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Binary(_))) => {
                        return Err(Left::Failed(invalid("the first frame is the request, as text")));
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(Left::Gone),
                }
            }
        };
        let text = timeout(REQUEST_DEADLINE, first)
            .await
            .map_err(|_| invalid("no request came on the WebSocket"))??;
        Ok(super::extract::parse_json(text.as_bytes())?)
    }

    pub async fn say(&mut self, message: &ServerMessage) -> Result<(), Left> {
        say(&mut self.sink, message).await
    }

    /// Does `work`, unless the caller leaves first.
    pub async fn while_connected<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Left> {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = self.left() => Err(Left::Gone),
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

    /// Tells the caller how it ended, if that is not known yet, and closes.
    pub async fn close(mut self, call: &Call, outcome: Result<(), Left>) {
        if let Err(Left::Failed(failure)) = outcome {
            tracing::info!(code = %failure.code, message = failure.message, "session failed");
            let error = ErrorBody::new(failure, call.id);
            // A caller that has gone in the meantime misses nothing it would read.
            let _gone = self.say(&ServerMessage::Failed { error }).await;
        }
        let farewell = async {
            self.sink.close().await?;
            while let Some(Ok(_)) = self.stream.next().await {}
            Ok::<(), axum::Error>(())
        };
        let _closed_or_not = timeout(CLOSE_DEADLINE, farewell).await;
    }
}

async fn say(sink: &mut SplitSink<WebSocket, Message>, message: &ServerMessage) -> Result<(), Left> {
    let text = serde_json::to_string(message).expect("messages are plain data");
    sink.send(Message::text(text)).await.map_err(|_| Left::Gone)
}

/// What every message about a process repeats of its VM.
#[derive(Debug, Clone)]
pub struct About {
    pub vm: VmId,
    name: VmName,
    provider: ProviderKind,
    isolation: IsolationClass,
    kernel: Option<String>,
}

impl From<VmView> for About {
    fn from(view: VmView) -> Self {
        Self {
            vm: view.id,
            name: view.name,
            provider: view.provider,
            isolation: view.isolation,
            kernel: view.guest.map(|guest| guest.kernel),
        }
    }
}

impl About {
    fn started(&self, exec: ExecId, operation: OperationId, pid: u32) -> ServerMessage {
        ServerMessage::Started(Started {
            vm: self.vm,
            vm_name: self.name.clone(),
            exec,
            operation,
            pid,
            provider: self.provider,
            isolation: self.isolation,
            guest_kernel: self.kernel.clone(),
        })
    }

    fn ended(&self, end: ExecEnd, durations: Durations) -> ServerMessage {
        ServerMessage::Ended(Ended {
            status: end.status.into(),
            truncated: end.truncated,
            durations: Durations {
                guest_wall_us: end.wall.as_micros() as u64,
                guest_user_us: end.user.as_micros() as u64,
                guest_system_us: end.system.as_micros() as u64,
                ..durations
            },
            provider: self.provider,
            isolation: self.isolation,
            guest_kernel: self.kernel.clone(),
        })
    }
}

/// As [`follow`], for a process that runs already: its start is told first, since nobody else will.
pub async fn take_up(
    call: &Call,
    channel: &mut Channel,
    session: ExecSession,
    about: &About,
    pid: Option<u32>,
) -> Result<(), Left> {
    if let Some(pid) = pid {
        channel.say(&about.started(session.exec, session.operation, pid)).await?;
    }
    let announced = pid.is_some();
    follow_from(call, channel, session, about, Durations::default(), announced).await
}

/// Passes everything between caller and process until one of them ends. Whatever ends it, the caller was told
/// unless it is gone; the session's [`OnDrop`] decides about a process that is left behind.
pub async fn follow(
    call: &Call,
    channel: &mut Channel,
    session: ExecSession,
    about: &About,
    durations: Durations,
) -> Result<(), Left> {
    follow_from(call, channel, session, about, durations, false).await
}

async fn follow_from(
    call: &Call,
    channel: &mut Channel,
    session: ExecSession,
    about: &About,
    durations: Durations,
    announced: bool,
) -> Result<(), Left> {
    let (exec, operation) = (session.exec, session.operation);
    let (input, mut events) = session.split();
    let Channel { sink, stream, ahead } = channel;
    let teller = Teller { about, exec, operation, durations, begun: Instant::now(), announced };
    let detached = tokio::select! {
        told = teller.tell(sink, &mut events) => return told,
        heard = listen(stream, ahead, &input) => heard?,
        () = call.app.shutdown.expired() => {
            events.on_drop(OnDrop::Detach);
            let hint = format!("the process runs on: `offshoot exec --attach {exec}` takes it up again");
            return Err(stopping().hint(hint).into());
        }
    };
    let Detached = detached;
    events.on_drop(OnDrop::Detach);
    say(sink, &ServerMessage::Detached).await
}

/// The caller asked to leave the process running.
#[derive(Debug)]
struct Detached;

/// Takes the caller's frames until it detaches or leaves.
async fn listen(
    stream: &mut SplitStream<WebSocket>,
    ahead: &mut VecDeque<Message>,
    input: &ExecInput,
) -> Result<Detached, Left> {
    loop {
        let message = match ahead.pop_front() {
            Some(message) => message,
            None => match stream.next().await {
                Some(Ok(message)) => message,
                Some(Err(_)) | None => return Err(Left::Gone),
            },
        };
        match message {
            Message::Binary(frame) => stdin(input, frame).await?,
            Message::Text(text) => {
                let message: ClientMessage = super::extract::parse_json(text.as_bytes())?;
                if let Some(detached) = control(input, message.check()?).await {
                    return Ok(detached);
                }
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(_) => return Err(Left::Gone),
        }
    }
}

async fn stdin(input: &ExecInput, frame: Bytes) -> Result<(), Left> {
    let data = decode_stdin(frame).map_err(|error| {
        Failure::new(ErrorCode::InvalidArgument, "a binary frame is not stdin").caused_by(&error)
    })?;
    // A process that has ended reads nothing any more; how it ended is on its way to the caller.
    let _ended = input.stdin(data).await;
    Ok(())
}

async fn control(input: &ExecInput, message: ClientMessage) -> Option<Detached> {
    let _ended = match message {
        ClientMessage::StdinEnd => input.end_stdin().await,
        ClientMessage::Resize { rows, cols } => input.resize(PtySize { rows, cols }).await,
        ClientMessage::Signal { signal } => input.signal(signal).await,
        ClientMessage::Kill => input.kill().await,
        ClientMessage::Detach => return Some(Detached),
    };
    None
}

/// Turns the process's events into frames.
struct Teller<'a> {
    about: &'a About,
    exec: ExecId,
    operation: OperationId,
    durations: Durations,
    begun: Instant,
    /// The caller knows already that the process runs.
    announced: bool,
}

impl Teller<'_> {
    /// Returns when the last event was told, or could not be.
    async fn tell(
        &self,
        sink: &mut SplitSink<WebSocket, Message>,
        events: &mut ExecEvents,
    ) -> Result<(), Left> {
        let mut ping = interval(PING);
        ping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                _ = ping.tick() => {
                    sink.send(Message::Ping(Bytes::new())).await.map_err(|_| Left::Gone)?;
                    continue;
                }
            };
            let message = match event {
                Some(ExecEvent::Output { stream, data, .. }) => {
                    let frame = encode_output(wire(stream), &data);
                    sink.send(Message::Binary(frame)).await.map_err(|_| Left::Gone)?;
                    continue;
                }
                Some(ExecEvent::Started { .. }) if self.announced => continue,
                Some(ExecEvent::Started { pid }) => self.about.started(self.exec, self.operation, pid),
                Some(ExecEvent::Lost { stream, bytes }) => {
                    ServerMessage::Lost(Lost { stream: wire(stream), bytes })
                }
                Some(ExecEvent::Detached) => ServerMessage::Detached,
                Some(ExecEvent::Ended(end)) => {
                    let exec_ms = self.begun.elapsed().as_millis() as u64;
                    self.about.ended(end, Durations { exec_ms, ..self.durations })
                }
                Some(ExecEvent::Failed(failure)) => return Err(failure.into()),
                None => return Err(Failure::new(ErrorCode::Internal, "the exec ended without an end").into()),
            };
            say(sink, &message).await?;
            if matches!(message, ServerMessage::Ended(_) | ServerMessage::Detached) {
                return Ok(());
            }
        }
    }
}

fn wire(stream: OutputStream) -> Stream {
    match stream {
        OutputStream::Stdout => Stream::Stdout,
        OutputStream::Stderr => Stream::Stderr,
    }
}
