//! One process on one WebSocket.
//!
//! ```text
//! request --> [progress]* --> started --> (output | lost)* --> ended | detached | failed --> close
//!                                ^ stdin, resize, signal, kill, detach
//! ```
//! A process that does not read stops the caller's stdin.

use super::{
    channel::{Channel, Heard, Left, Sink, Source, pings, wire},
    request::Call,
    vms::stopping,
};
use bytes::Bytes;
use offshoot_api::v1::{
    ClientMessage, Durations, Ended, Lost, ServerMessage, Started, decode_stdin, encode_output,
};
use offshoot_engine::{ExecEnd, ExecEvent, ExecEvents, ExecInput, ExecSession, OnDrop, VmView};
use offshoot_types::{
    ErrorCode, ExecId, Failure, IsolationClass, OperationId, ProviderKind, PtySize, VmId, VmName,
};
use std::time::Instant;

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
        channel.sink.say(&about.started(session.exec, session.operation, pid)).await?;
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
    let Channel { sink, source } = channel;
    let teller = Teller { about, exec, operation, durations, begun: Instant::now(), announced };
    let detached = tokio::select! {
        told = teller.tell(sink, &mut events) => return told,
        heard = listen(source, &input) => heard?,
        () = call.app.shutdown.expired() => {
            events.on_drop(OnDrop::Detach);
            let hint = format!("the process runs on: `offshoot exec --attach {exec}` takes it up again");
            return Err(stopping().hint(hint).into());
        }
    };
    let Detached = detached;
    events.on_drop(OnDrop::Detach);
    sink.say(&ServerMessage::Detached).await
}

/// The caller asked to leave the process running.
#[derive(Debug)]
struct Detached;

/// Takes the caller's frames until it detaches or leaves.
async fn listen(source: &mut Source, input: &ExecInput) -> Result<Detached, Left> {
    loop {
        match source.next().await? {
            Heard::Binary(frame) => stdin(input, frame).await?,
            Heard::Text(text) => {
                let message: ClientMessage = super::extract::parse_json(text.as_bytes())?;
                if let Some(detached) = control(input, message.check()?).await {
                    return Ok(detached);
                }
            }
        }
    }
}

/// Passes a binary frame on to the process.
pub async fn stdin(input: &ExecInput, frame: Bytes) -> Result<(), Left> {
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
    async fn tell(&self, sink: &mut Sink, events: &mut ExecEvents) -> Result<(), Left> {
        let mut pings = pings();
        loop {
            let event = tokio::select! {
                biased;
                event = events.next() => event,
                _ = pings.tick() => {
                    sink.ping().await?;
                    continue;
                }
            };
            let message = match event {
                Some(ExecEvent::Output { stream, data, .. }) => {
                    let frame = encode_output(wire(stream), &data);
                    sink.bytes(frame).await?;
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
            sink.say(&message).await?;
            if matches!(message, ServerMessage::Ended(_) | ServerMessage::Detached) {
                return Ok(());
            }
        }
    }
}
