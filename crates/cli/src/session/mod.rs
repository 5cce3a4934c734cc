//! One process in a VM, as the person or program in front of it sees it.
//!
//! ```text
//! stdin --(thread)--> [escape keys] --+                      +--> stdout, stderr (or kept, for --json)
//! SIGWINCH --> size ------------------+--> feed ==> daemon ==> listen --> started, lost, ended
//!                                     |                      |
//!               signal, kill, leave --+<-- wind_down         +--> reader gone: kill
//! ```
//! Interrupted before the process runs, we leave, and the daemon takes back what it had begun. Interrupted later,
//! the process gets the same signal; after 5 s its whole tree is killed. A second signal ends this program at
//! once: a VM of `run` is then destroyed because its connection closes, a process of `exec` runs on.

pub mod attempt;
pub mod code;
mod document;
mod escape;
mod input;
mod output;
pub mod race;

pub use document::Program;
pub use input::Stdin;
pub use output::{CAPTURE_LIMIT, Captured, Sink, Text};

use crate::{
    context::Context,
    exit_code::ExitCode,
    failure::{Result, Stop},
    interrupt::Signal,
    progress::Progress,
    terminal::Raw,
    trace::TraceEvent,
};
use futures::{FutureExt, future::FusedFuture};
use input::{Feeder, Message, feed};
use offshoot_api::{
    ClientError,
    client::{ExecConnection, ExecEvent, ExecEvents},
    v1::{Ended, ExitStatus, ProgressState, Started, StepProgress},
};
use offshoot_types::{ErrorCode, ExecStatus, Failure};
use std::{cell::Cell, pin::pin, time::Duration};
use tokio::{
    sync::mpsc::{UnboundedSender, unbounded_channel},
    time::Instant,
};

/// How long a process may go on after it was sent a signal on behalf of its user.
const GRACE: Duration = Duration::from_secs(5);
/// How long the daemon may take to end, or take back, what it was told to.
const END_WITHIN: Duration = Duration::from_secs(20);

/// How the streams of this program and of the process are joined.
#[derive(Debug)]
pub struct Options {
    pub stdin: Stdin,
    /// The process has a pseudo-terminal: pass on changes of the window's size.
    pub pty: bool,
    /// Switch our terminal to raw mode, with `Enter ~ .` as the way out.
    pub raw: bool,
    pub sink: Sink,
    /// What the person is told while nothing runs yet.
    pub waiting_for: String,
    /// The process has a time limit, so a guest that stays silent beyond it has exceeded that.
    pub limited: bool,
}

/// What became of it.
#[derive(Debug)]
pub struct Finished {
    pub started: Option<Started>,
    pub ended: Ended,
    pub captured: Captured,
}

impl Finished {
    pub fn status(&self) -> ExecStatus {
        self.ended.status.into()
    }
}

/// Joins the streams until the process has ended.
pub async fn drive(context: &Context, connection: ExecConnection, options: Options) -> Result<Finished> {
    let raw = if options.raw { Some(Raw::enter()?) } else { None };
    let (input, events) = connection.split();
    let (control, orders) = unbounded_channel();
    let runs = Cell::new(false);
    let feeder = Feeder::new(options.stdin, options.raw, options.pty, orders)?;
    let listener = Listener {
        context,
        events,
        sink: options.sink,
        control: control.clone(),
        runs: &runs,
        started: None,
        limited: options.limited,
        up: true,
        progress: context.printer.progress(options.waiting_for),
    };
    let mut feeding = pin!(feed(input, feeder).fuse());
    let mut listening = pin!(listener.listen().fuse());

    let finished = tokio::select! {
        biased;
        finished = &mut listening => finished,
        () = &mut feeding => {
            // The escape keys: the process was killed, and its end is all there is to wait for.
            TraceEvent::ProcessKilled.emit();
            let _ = tokio::time::timeout(END_WITHIN, &mut listening).await;
            Err(Stop::Interrupted)
        }
        signal = context.interrupt.arrived() => {
            wind_down(signal, &runs, &control, &mut listening, &mut feeding).await;
            Err(Stop::Interrupted)
        }
    };
    drop(raw);
    let finished = finished?;
    if finished.ended.status == ExitStatus::TimedOut {
        context.printer.note("the program's time was up: it was killed with all it had started");
    }
    if finished.ended.truncated {
        context.printer.note("output beyond the limit was dropped");
    }
    Ok(finished)
}

/// Signal, patience, force, until there is nothing left to wait for.
async fn wind_down<T>(
    signal: Signal,
    runs: &Cell<bool>,
    control: &UnboundedSender<Message>,
    listening: &mut (impl FusedFuture<Output = T> + Unpin),
    feeding: &mut (impl FusedFuture<Output = ()> + Unpin),
) {
    let number = signal.number();
    let ladder: &[(Message, Duration)] = if runs.get() {
        &[(Message::Signal(number), GRACE), (Message::Kill, END_WITHIN), (Message::Leave, Duration::ZERO)]
    } else {
        &[(Message::Leave, END_WITHIN)]
    };
    for (order, patience) in ladder {
        match order {
            Message::Signal(number) => TraceEvent::SignalForwarded { number: *number }.emit(),
            Message::Kill => TraceEvent::ProcessKilled.emit(),
            Message::Leave => {}
        }
        // Fails only once the feeder has ended, when the process was already killed.
        let _ = control.send(*order);
        let deadline = Instant::now() + *patience;
        loop {
            tokio::select! {
                biased;
                _ = &mut *listening => return,
                () = &mut *feeding => {}
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
    }
}

/// The direction from the process to us.
struct Listener<'a> {
    context: &'a Context,
    events: ExecEvents,
    sink: Sink,
    control: UnboundedSender<Message>,
    runs: &'a Cell<bool>,
    started: Option<Started>,
    limited: bool,
    /// Nothing of ours is under way any more: the VM is up.
    up: bool,
    progress: Progress,
}

impl Listener<'_> {
    async fn listen(mut self) -> Result<Finished> {
        // Until the process runs there may be a boot to watch; from then on the screen is the process's.
        let waiting = std::mem::replace(&mut self.progress, self.context.printer.progress(""));
        let early = waiting.during(self.until_started(&waiting)).await;
        drop(waiting);
        let ended = match early {
            Ok(Some(ended)) => ended,
            Ok(None) => {
                self.runs.set(true);
                self.until_ended().await?
            }
            Err(error) => return Err(self.classify(error)),
        };
        TraceEvent::ProcessEnded(&ended).emit();
        // A VM of its own goes with the process; `None` is the daemon's word that it has gone.
        while self.events.next().await?.is_some() {}
        Ok(Finished { started: self.started, ended, captured: self.sink.captured() })
    }

    /// Returns when the process runs, or with its end if it was all too quick.
    async fn until_started(&mut self, progress: &Progress) -> Result<Option<Ended>, ClientError> {
        while let Some(event) = self.events.next().await? {
            match event {
                ExecEvent::Progress(step) => {
                    tell(&step);
                    if matches!(step.step.as_str(), "create" | "boot") {
                        self.up = step.step == "boot" && step.state == ProgressState::Done;
                    }
                    if step.state == ProgressState::Begun {
                        progress.message(step.step);
                    }
                }
                ExecEvent::Started(started) => {
                    TraceEvent::ProcessStarted(&started).emit();
                    self.started = Some(started);
                    return Ok(None);
                }
                ExecEvent::Ended(ended) => return Ok(Some(ended)),
                // Nothing can be said by a process that has not started.
                ExecEvent::Output(..) | ExecEvent::Lost(_) | ExecEvent::Detached => {}
            }
        }
        Ok(None)
    }

    async fn until_ended(&mut self) -> Result<Ended> {
        let mut gone: Option<(Stop, Instant)> = None;
        loop {
            let event = match &gone {
                None => self.events.next().await,
                Some((_, deadline)) => {
                    tokio::time::timeout_at(*deadline, self.events.next()).await.unwrap_or(Ok(None))
                }
            };
            let event = match (event, gone) {
                (Ok(Some(ExecEvent::Ended(_)) | None) | Err(_), Some((stop, _))) => return Err(stop),
                (Err(error), None) => return Err(self.classify(error)),
                (Ok(None), None) => return Err(early_end()),
                (Ok(Some(ExecEvent::Ended(ended))), None) => return Ok(ended),
                (Ok(Some(event)), still) => {
                    gone = still;
                    event
                }
            };
            match event {
                ExecEvent::Output(stream, bytes) if gone.is_none() => {
                    if let Err(stop) = self.sink.write(&self.context.printer, stream, &bytes).await {
                        // Nobody reads any more, so nobody needs the process either.
                        let _ = self.control.send(Message::Kill);
                        gone = Some((stop, Instant::now() + END_WITHIN));
                    }
                }
                ExecEvent::Lost(lost) => {
                    self.context.printer.warn(&format!("{} bytes of {:?} were lost", lost.bytes, lost.stream))
                }
                ExecEvent::Detached => return Err(detached()),
                ExecEvent::Progress(step) => tell(&step),
                ExecEvent::Output(..) | ExecEvent::Started(_) | ExecEvent::Ended(_) => {}
            }
        }
    }

    /// A failure that is the program's has the status a shell would report for it.
    fn classify(&self, error: ClientError) -> Stop {
        match error.code() {
            // The guest did not keep the limit, but it has passed.
            ErrorCode::Timeout if self.limited && self.up => Stop::program(error, ExitCode::ProgramTimedOut),
            ErrorCode::ExecFailed => Stop::program(error, ExitCode::NoSuchProgram),
            _ => error.into(),
        }
    }
}

fn tell(step: &StepProgress) {
    match step.state {
        ProgressState::Begun => TraceEvent::StepBegun { step: &step.step }.emit(),
        ProgressState::Done => {
            TraceEvent::StepDone { step: &step.step, took_ms: step.duration_ms }.emit();
        }
    }
}

fn early_end() -> Stop {
    Failure::new(ErrorCode::Internal, "the daemon ended the stream without saying how the process ended")
        .into()
}

fn detached() -> Stop {
    Failure::new(ErrorCode::Interrupted, "the process runs on, but another caller has its streams now")
        .hint("`offshoot exec NAME --attach EXEC` takes them back")
        .into()
}
