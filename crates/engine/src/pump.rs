//! Moves the streams of one exec between the guest and whoever holds its session, and records how it ended.
//!
//! ```text
//!            open                     streams
//! Opening --exec--> (guest) --> select: takeover, session dropped, controls, input, output, time, link
//!    ^                                |            |                        |
//!    |   attach at the next offsets   |            +-- nobody reads: drain  +-- Ended / Failed --> record
//!    +--- channel lost, takeover <----+
//! ```
//! The process belongs to the guest, not to the connection: a lost channel is attached to again where the
//! streams stood, and the caller sees nothing. One session at a time has the streams; with none the output is
//! drained, so that the outcome is known all the same.

use crate::{
    ExecEnd, ExecEvent, ExecState, OnDrop, OutputStream,
    branch::transactions::Opening as BeginGuard,
    core::Core,
    error,
    execs::{Takeover, WaysIn},
    history::Capture,
    link::{GuestLink, NoClient},
    operations::Ticket,
    session::{Control, Input, Sink},
    shared::VmShared,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use offshoot_guest_proto::{
    client::{ClientError, ExecEvents, ExecHandle, ExecSender},
    message::{self as wire, ExecAttach, ExecStart, GuestErrorKind},
};
use offshoot_store::{Durable, HistoryEnd};
use offshoot_types::{ExecId, ExecStatus, Failure, OperationOutcome, VmName};
use serde_json::json;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{
        mpsc::{self, OwnedPermit},
        watch,
    },
    time::Instant,
};

/// A lost guest is waited for this long before its exec is given up.
const GUEST_LOST: Duration = Duration::from_secs(60);
/// Input that the process does not read holds up a signal no longer than this.
const INPUT_STUCK: Duration = Duration::from_millis(200);
/// How long a guest that overran an exec's timeout may take to say that it still lives.
const PROBE: Duration = Duration::from_secs(1);
/// A guest that lives but does not end the process after its timeout is given up after this.
const OVERRUN: Duration = Duration::from_secs(30);

pub(crate) struct Pump {
    pub core: Arc<Core>,
    pub vm: VmName,
    pub shared: Arc<VmShared>,
    pub link: GuestLink,
    pub exec: ExecId,
    /// `None` for an exec whose operation has ended: nothing is left to record.
    pub ticket: Option<Ticket>,
    /// That its beginning is on disk, before which nobody hears of it.
    pub durable: Option<Durable>,
    pub ways: WaysIn,
    /// It is the one pump by which the exec is known; others only read along.
    pub keeps: bool,
    pub sink: Option<Sink>,
    /// Where the streams stand.
    pub stdout: u64,
    pub stderr: u64,
    pub timeout: Option<Duration>,
    pub pty: bool,
    /// The journaled spec, completed by the status at the end.
    pub detail: serde_json::Value,
    /// What the history gets, of the one pump by which the exec is known.
    pub capture: Option<Capture>,
    /// Until the process has begun, no transaction does.
    pub opening: Option<BeginGuard>,
}

/// How the pump gets at the process.
pub(crate) enum Opening {
    Start(Box<ExecStart>),
    Attach,
}

/// What became of the process.
enum End {
    Ended(ExecEnd),
    Failed(Failure),
    /// It cannot be told: the daemon that ran it died, and the guest does not know it any more.
    Unknown,
}

/// Why one attachment to the process ended.
enum Break {
    End(End),
    /// The channel was lost.
    Lost,
    /// The streams are wanted from other offsets, or a control must overtake stuck input.
    Reattach,
}

/// One attachment.
struct Attachment {
    /// `None` while something is being sent.
    sender: Option<ExecSender>,
    sending: Option<BoxFuture<'static, (ExecSender, Result<(), ClientError>)>>,
    sending_since: Instant,
    events: ExecEvents,
    permit: Option<OwnedPermit<ExecEvent>>,
    sent_input: bool,
}

impl Pump {
    pub async fn run(mut self, opening: Opening) {
        let mut controls = VecDeque::new();
        let closing = self.core.closing.clone();
        tokio::select! {
            biased;
            end = self.pump(opening, &mut controls) => {
                // Whoever wants the streams from here on asks the guest anew; see `Core::attach`.
                self.ways.takeovers.close();
                self.conclude(end).await;
                self.keeps = false;
            }
            // The process runs on in its VM; the next engine takes it up by its unfinished operation.
            () = closing.cancelled() => return,
        }
        // Those who asked before that get what the guest still holds.
        while let Some(takeover) = self.ways.takeovers.recv().await {
            self.take_over(takeover);
            let end = self.pump(Opening::Attach, &mut VecDeque::new()).await;
            self.conclude(end).await;
        }
    }

    async fn pump(&mut self, mut opening: Opening, controls: &mut VecDeque<Control>) -> End {
        let mut started = false;
        let mut begun = None;
        loop {
            let handle = match self.open(&mut opening, started).await {
                Ok(handle) => handle,
                Err(end) => return end,
            };
            opening = Opening::Attach;
            let begun = *begun.get_or_insert_with(Instant::now);
            if let Some(durable) = self.durable.take()
                && let Err(error) = durable.wait().await
            {
                // Nobody would know of it after a crash of the host, so nobody gets to know it now.
                let (mut sender, _) = handle.split();
                let _gone = sender.kill().await;
                return End::Failed(error.into());
            }
            if !started {
                started = true;
                let pid = handle.pid();
                if self.keeps {
                    self.shared.execs.update(self.exec, |view| view.pid = Some(pid));
                }
                self.opening = None;
                if let Some(sink) = &self.sink {
                    // A session that is gone is noticed below.
                    let _ = sink.events.send(ExecEvent::Started { pid }).await;
                }
            }
            match self.streams(handle, controls, begun).await {
                Break::End(end) => return end,
                Break::Lost | Break::Reattach => {}
            }
        }
    }

    /// Starts the process or attaches to it, across lost channels.
    async fn open(&mut self, opening: &mut Opening, started: bool) -> Result<ExecHandle, End> {
        let until = Instant::now() + GUEST_LOST;
        loop {
            let client = match self.link.client(until).await {
                Ok(client) => client,
                Err(NoClient::Ended { reason }) => {
                    return Err(End::Failed(error::vm_ended(&self.vm, &reason)));
                }
                Err(late @ (NoClient::Late { .. } | NoClient::Foreign { .. })) => {
                    return Err(End::Failed(error::guest_silent(&self.vm, &late.to_string())));
                }
            };
            let opened = match &*opening {
                Opening::Start(start) => client.exec((**start).clone()).await,
                Opening::Attach => {
                    let (stdout_offset, stderr_offset) = (self.stdout, self.stderr);
                    let exec = *self.exec.as_uuid().as_bytes();
                    client.attach(ExecAttach { exec, stdout_offset, stderr_offset }).await
                }
            };
            match opened {
                Ok(handle) => return Ok(handle),
                // The same id is never started twice, so asking again is safe.
                Err(ClientError::Closed { .. }) if Instant::now() < until => {}
                Err(ClientError::Guest(refused)) => match (&*opening, refused.kind) {
                    // The first request arrived, its answer did not.
                    (Opening::Start(_), GuestErrorKind::AlreadyExists) => *opening = Opening::Attach,
                    (Opening::Attach, GuestErrorKind::NotFound) if !started => return Err(End::Unknown),
                    (Opening::Attach, GuestErrorKind::NotFound) => {
                        return Err(End::Failed(error::exec_lost(&self.vm, self.exec)));
                    }
                    _ => {
                        let refused = ClientError::Guest(refused);
                        return Err(End::Failed(error::guest_failure(&self.vm, &refused)));
                    }
                },
                Err(other) => return Err(End::Failed(error::guest_failure(&self.vm, &other))),
            }
        }
    }

    async fn streams(
        &mut self,
        handle: ExecHandle,
        controls: &mut VecDeque<Control>,
        begun: Instant,
    ) -> Break {
        let (sender, events) = handle.split();
        let mut at = Attachment {
            sender: Some(sender),
            sending: None,
            sending_since: Instant::now(),
            events,
            permit: None,
            sent_input: false,
        };
        let mut overdue =
            self.timeout.map(|timeout| begun + timeout + self.core.options.deadlines.exec_backstop);
        let give_up = overdue.map(|at| at + OVERRUN);
        loop {
            at.send_next(controls);
            let stuck =
                (at.sending.is_some() && !controls.is_empty()).then(|| at.sending_since + INPUT_STUCK);
            let watched = self.sink.is_some();
            let ends = Ends::of(self.sink.as_mut());
            tokio::select! {
                biased;
                // 1. Somebody else wants the streams.
                Some(takeover) = self.ways.takeovers.recv() => {
                    if self.take_over(takeover) {
                        return Break::Reattach;
                    }
                    at.permit = None;
                }
                // 2. The session is gone: its process goes or stays, as it said.
                on_drop = session_dropped(ends.events, ends.on_drop) => {
                    (self.sink, at.permit) = (None, None);
                    if on_drop == OnDrop::Kill {
                        controls.push_back(Control::Kill);
                    }
                }
                // 3. Signals overtake input.
                Some(control) = next_of(ends.control) => controls.push_back(control),
                Some(control) = self.ways.door.control.recv() => controls.push_back(control),
                // 4. What is being sent was taken, or the channel is gone.
                (sender, sent) = sent(&mut at.sending) => {
                    at.sender = Some(sender);
                    if let Err(error) = sent {
                        return self.broken(&error, &at);
                    }
                }
                // 5. The process reads nothing, and a signal waits behind its input.
                () = at_time(stuck) => return Break::Reattach,
                // 6. Output and the end, when the session has room for it or nobody reads.
                event = at.events.next(), if !watched || at.permit.is_some() => {
                    match event {
                        Ok(Some(event)) => {
                            let (stdout, stderr) = at.events.offsets();
                            let end = self.deliver(event, at.permit.take());
                            (self.stdout, self.stderr) = (stdout, stderr);
                            if let Some(end) = end {
                                return Break::End(end);
                            }
                        }
                        Ok(None) => return Break::Lost,
                        Err(error) => return self.broken(&error, &at),
                    }
                }
                permit = room(ends.events), if at.permit.is_none() => at.permit = Some(permit),
                // 7. Input, one piece at a time.
                Some(input) = next_of(ends.input), if at.sender.is_some() => at.send_input(input),
                Some(input) = self.ways.door.input.recv(), if at.sender.is_some() => at.send_input(input),
                // 8. The guest should have ended it by now.
                () = at_time(overdue) => {
                    if give_up.is_some_and(|limit| Instant::now() >= limit) || !self.guest_answers().await {
                        let after = begun.elapsed();
                        return Break::End(End::Failed(error::timeout_not_enforced(&self.vm, after)));
                    }
                    overdue = Some(Instant::now() + PROBE);
                }
                // 9. The VM is gone.
                reason = self.link.ended() => {
                    return Break::End(End::Failed(error::vm_ended(&self.vm, &reason)));
                }
            }
        }
    }

    /// Gives the streams to another caller; `true` if they must be read from elsewhere.
    fn take_over(&mut self, takeover: Takeover) -> bool {
        if let Some(old) = self.sink.replace(takeover.sink) {
            // A full buffer means that caller does not read: it finds the channel closed.
            let _ = old.events.try_send(ExecEvent::Detached);
        }
        let moved = (self.stdout, self.stderr) != (takeover.stdout, takeover.stderr);
        (self.stdout, self.stderr) = (takeover.stdout, takeover.stderr);
        moved
    }

    fn deliver(&mut self, event: wire::ExecEvent, permit: Option<OwnedPermit<ExecEvent>>) -> Option<End> {
        let event = match event {
            wire::ExecEvent::Started { pid } => ExecEvent::Started { pid },
            wire::ExecEvent::Output { stream, offset, data } => {
                let (stream, data) = (stream_of(stream), Bytes::from(data));
                if let Some(capture) = &mut self.capture {
                    capture.take(stream, offset, &data);
                }
                ExecEvent::Output { stream, offset, data }
            }
            wire::ExecEvent::Lost { stream, next_offset } => {
                let at = match stream {
                    wire::OutputStream::Stdout => self.stdout,
                    wire::OutputStream::Stderr => self.stderr,
                };
                ExecEvent::Lost { stream: stream_of(stream), bytes: next_offset.saturating_sub(at) }
            }
            wire::ExecEvent::Ended(end) => return Some(End::Ended(end_of(end))),
            wire::ExecEvent::Failed(refused) => {
                let refused = ClientError::Guest(refused);
                return Some(End::Failed(error::guest_failure(&self.vm, &refused)));
            }
        };
        if let Some(permit) = permit {
            permit.send(event);
        }
        None
    }

    fn broken(&self, error: &ClientError, at: &Attachment) -> Break {
        match error {
            // What of the input arrived is not known. A terminal's user sees that; a pipe's reader would not.
            ClientError::Closed { .. } if at.sent_input && !self.pty => {
                Break::End(End::Failed(error::input_lost(&self.vm)))
            }
            ClientError::Closed { .. } | ClientError::Timeout { .. } => Break::Lost,
            ClientError::Guest(_)
            | ClientError::Protocol { .. }
            | ClientError::TooManyStreams { .. }
            | ClientError::Request { .. } => Break::End(End::Failed(error::guest_failure(&self.vm, error))),
        }
    }

    /// Whether the guest says anything at all, asked now.
    async fn guest_answers(&self) -> bool {
        let until = Instant::now() + PROBE;
        let asked = async { self.link.client(until).await.ok()?.info().await.ok() };
        tokio::time::timeout_at(until, asked).await.is_ok_and(|answer| answer.is_some())
    }

    /// The last event goes out at once; it is recorded right after. A daemon that dies between the two finds the
    /// outcome in the guest.
    async fn conclude(&mut self, end: End) {
        self.opening = None;
        let mut history = HistoryEnd::default();
        if let End::Ended(end) = &end {
            history.wall = Some(end.wall);
        }
        let (truncated, unknown) = match &end {
            End::Ended(end) => (end.truncated, false),
            End::Failed(_) => (false, false),
            End::Unknown => (false, true),
        };
        let (event, state, outcome) = match end {
            End::Ended(end) => (ExecEvent::Ended(end), ExecState::Ended(end.status), OperationOutcome::Done),
            End::Failed(failure) => (
                ExecEvent::Failed(failure.clone()),
                ExecState::Failed(failure.clone()),
                OperationOutcome::Failed { failure },
            ),
            End::Unknown => (
                ExecEvent::Failed(error::exec_lost(&self.vm, self.exec)),
                ExecState::Interrupted,
                OperationOutcome::Interrupted { undone: false },
            ),
        };
        let ticket = self.ticket.take();
        if self.keeps {
            if let ExecState::Ended(status) = state {
                self.detail["status"] = json!(status);
            }
            self.shared.execs.update(self.exec, |view| view.state = state);
        }
        if let Some(sink) = self.sink.take() {
            // A session that is gone does not want to know.
            let _ = sink.events.send(event).await;
        }
        if let Some(ticket) = ticket {
            if let Some(capture) = self.capture.take().filter(|capture| !unknown || capture.has_read()) {
                history.output = Some(capture.finish(truncated).await);
            }
            self.core.close_exec(ticket, outcome, self.detail.clone(), history).await;
        }
        self.core.count();
    }
}

impl Attachment {
    /// Begins to send the next control, if nothing is being sent.
    fn send_next(&mut self, controls: &mut VecDeque<Control>) {
        let Some(mut sender) = self.sender.take_if(|_| !controls.is_empty()) else { return };
        let Some(control) = controls.pop_front() else { return };
        self.begin(Box::pin(async move {
            let sent = match control {
                Control::Kill => sender.kill().await,
                Control::Signal(signal) => sender.signal(signal).await,
                Control::Resize(size) => {
                    sender.resize(wire::PtySize { rows: size.rows, cols: size.cols }).await
                }
            };
            (sender, sent)
        }));
    }

    fn send_input(&mut self, input: Input) {
        let Some(mut sender) = self.sender.take() else { return };
        self.sent_input = true;
        self.begin(Box::pin(async move {
            let sent = match input {
                Input::Stdin(data) => sender.stdin(&data).await,
                Input::StdinEnd => sender.stdin_end().await,
            };
            (sender, sent)
        }));
    }

    fn begin(&mut self, sending: BoxFuture<'static, (ExecSender, Result<(), ClientError>)>) {
        self.sending = Some(sending);
        self.sending_since = Instant::now();
    }
}

async fn sent(
    sending: &mut Option<BoxFuture<'static, (ExecSender, Result<(), ClientError>)>>,
) -> (ExecSender, Result<(), ClientError>) {
    match sending {
        None => std::future::pending().await,
        Some(future) => {
            let done = future.await;
            *sending = None;
            done
        }
    }
}

/// The session's ends, apart, for one select; all absent without a session.
struct Ends<'a> {
    events: Option<&'a mpsc::Sender<ExecEvent>>,
    on_drop: Option<&'a watch::Receiver<OnDrop>>,
    control: Option<&'a mut mpsc::Receiver<Control>>,
    input: Option<&'a mut mpsc::Receiver<Input>>,
}

impl<'a> Ends<'a> {
    fn of(sink: Option<&'a mut Sink>) -> Self {
        match sink {
            None => Self { events: None, on_drop: None, control: None, input: None },
            Some(Sink { events, input, control, on_drop }) => Self {
                events: Some(events),
                on_drop: Some(on_drop),
                control: Some(control),
                input: Some(input),
            },
        }
    }
}

async fn session_dropped(
    events: Option<&mpsc::Sender<ExecEvent>>,
    on_drop: Option<&watch::Receiver<OnDrop>>,
) -> OnDrop {
    let (Some(events), Some(on_drop)) = (events, on_drop) else { return std::future::pending().await };
    events.closed().await;
    *on_drop.borrow()
}

/// `None` once the caller let go of that end, which disables the branch.
async fn next_of<T>(receiver: Option<&mut mpsc::Receiver<T>>) -> Option<T> {
    receiver?.recv().await
}

/// Room for one event; never, if the session is gone, which the select sees by itself.
async fn room(events: Option<&mpsc::Sender<ExecEvent>>) -> OwnedPermit<ExecEvent> {
    let Some(events) = events else { return std::future::pending().await };
    match events.clone().reserve_owned().await {
        Ok(permit) => permit,
        Err(_gone) => std::future::pending().await,
    }
}

async fn at_time(at: Option<Instant>) {
    match at {
        None => std::future::pending().await,
        Some(at) => tokio::time::sleep_until(at).await,
    }
}

const fn stream_of(stream: wire::OutputStream) -> OutputStream {
    match stream {
        wire::OutputStream::Stdout => OutputStream::Stdout,
        wire::OutputStream::Stderr => OutputStream::Stderr,
    }
}

const fn end_of(end: wire::ExecEnd) -> ExecEnd {
    ExecEnd {
        status: match end.status {
            wire::ExitKind::Code(code) => ExecStatus::Exited(code),
            wire::ExitKind::Signal(signal) => ExecStatus::Signaled(signal),
            wire::ExitKind::TimedOut => ExecStatus::TimedOut,
        },
        truncated: end.truncated,
        wall: Duration::from_micros(end.wall_us),
        user: Duration::from_micros(end.user_us),
        system: Duration::from_micros(end.system_us),
    }
}
