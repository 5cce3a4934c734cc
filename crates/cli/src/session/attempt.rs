//! One command as a transaction, as the person or program in front of it sees it.
//!
//! ```text
//! stdin --> feed ==> daemon ==> listen --> command: our two streams     check: both to standard error
//!                      ^          |
//!       Ctrl-C: roll back         +--> kept, or undone and why
//! ```
//! Once it has begun we do not leave before the daemon has said what became of it, or [`ROLLBACK_WITHIN`] has passed.

use super::{
    Captured, Sink, Stdin,
    input::{Feeder, Leaving, Message, feed},
};
use crate::{
    context::Context,
    exit_code::{ExitCode, Status},
    failure::{Result, Stop},
    trace::TraceEvent,
    view,
};
use futures::FutureExt;
use offshoot_api::{
    ClientError,
    client::{TryConnection, TryEvent, TryEvents},
    v1::{self, ExitStatus, Problem, RollbackCauseName, TryOutcome, TryPart},
};
use offshoot_types::{ErrorCode, Failure, SnapshotId};
use std::{pin::pin, time::Duration};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

/// How long a rollback may take before we leave it to the daemon.
const ROLLBACK_WITHIN: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Options {
    /// As the person named it.
    pub vm: String,
    pub stdin: Stdin,
    pub json: bool,
    /// It has a time limit, so a guest that stays silent beyond it has exceeded that.
    pub limited: bool,
}

/// What became of it.
#[derive(Debug)]
pub struct Tried {
    pub outcome: TryOutcome,
    pub snapshot: Option<SnapshotId>,
    /// Why the command or the check did not run.
    pub problem: Option<Problem>,
    pub command: Captured,
    pub check: Captured,
    pub truncated: bool,
    /// Whoever read our output went away in the middle.
    unread: bool,
}

impl Tried {
    pub fn status(&self) -> Status {
        if self.outcome.end.committed {
            return Status::DONE;
        }
        let missing = self.problem.as_ref().is_some_and(|problem| problem.code == ErrorCode::ExecFailed);
        match self.outcome.end.cause {
            _ if self.unread => Status::Own(ExitCode::OwnFailure),
            _ if missing => Status::Own(ExitCode::NoSuchProgram),
            Some(RollbackCauseName::Failed) => {
                let said = self.outcome.end.status.map(|code| ExitStatus::Exited { code });
                match self.outcome.status.or(said) {
                    // It failed, whatever the guest calls that.
                    None | Some(ExitStatus::Exited { code: 0 }) => Status::Own(ExitCode::OwnFailure),
                    Some(status) => Status::of_guest(status.into()),
                }
            }
            Some(RollbackCauseName::CheckFailed) => Status::Own(ExitCode::CheckFailed),
            Some(RollbackCauseName::Deadline) => Status::Own(ExitCode::ProgramTimedOut),
            _ => Status::Own(ExitCode::OwnFailure),
        }
    }

    fn tell(&self, context: &Context, vm: &str) {
        if let Some(problem) = &self.problem {
            context.printer.note(&format!("error: {}", crate::printer::visible(&problem.message)));
        }
        let end = view::ended(&self.outcome.end);
        if self.outcome.end.committed {
            TraceEvent::Ended { end: &end }.emit();
        } else {
            context.printer.note(&format!("{end}; `{vm}` is as it was before"));
        }
        if self.truncated {
            context.printer.note("output beyond the limit was dropped");
        }
    }
}

/// Joins the streams until it was kept or undone.
pub async fn attempt(context: &Context, connection: TryConnection, options: Options) -> Result<Tried> {
    let TryConnection { input, events } = connection;
    let (control, orders) = unbounded_channel();
    let feeder = Feeder::new(options.stdin, false, false, orders)?.leaving(Leaving::RollBack);
    let sink = || if options.json { Sink::Kept(Captured::default()) } else { Sink::Passed };
    let listener = Listener {
        context,
        events,
        command: sink(),
        check: sink(),
        control: control.clone(),
        snapshot: None,
        problem: None,
        truncated: false,
        unread: false,
        limited: options.limited,
    };
    let mut feeding = pin!(feed(input, feeder).fuse());
    let mut listening = pin!(listener.listen().fuse());
    let mut deadline = pin!(futures::future::Fuse::terminated());
    let mut interrupted = false;
    loop {
        tokio::select! {
            biased;
            tried = &mut listening => {
                let tried = tried?;
                tried.tell(context, &options.vm);
                return if interrupted { Err(Stop::Interrupted) } else { Ok(tried) };
            }
            // Ends with the escape keys only, and there is no terminal here.
            () = &mut feeding => {}
            _ = context.interrupt.arrived(), if !interrupted => {
                interrupted = true;
                // Fails only once the feeder has ended, when the connection is gone and says so itself.
                let _ = control.send(Message::Leave);
                deadline.set(tokio::time::sleep(ROLLBACK_WITHIN).fuse());
            }
            () = &mut deadline => {
                let vm = &options.vm;
                context.printer.warn(&format!(
                    "the rollback of `{vm}` goes on in the daemon; `offshoot tx list {vm}` shows when it is done"
                ));
                return Err(Stop::Interrupted);
            }
        }
    }
}

/// The direction from the daemon to us.
struct Listener<'a> {
    context: &'a Context,
    events: TryEvents,
    command: Sink,
    check: Sink,
    control: UnboundedSender<Message>,
    snapshot: Option<SnapshotId>,
    problem: Option<Problem>,
    truncated: bool,
    unread: bool,
    limited: bool,
}

impl Listener<'_> {
    async fn listen(mut self) -> Result<Tried> {
        loop {
            let event = match self.events.next().await {
                Ok(Some(event)) => event,
                Ok(None) => return Err(early_end()),
                Err(error) => return Err(self.classify(error)),
            };
            match event {
                TryEvent::Begun { transaction, snapshot } => {
                    TraceEvent::Begun { transaction }.emit();
                    self.snapshot = Some(snapshot);
                }
                TryEvent::Started { .. } => {}
                TryEvent::Output { part, stream, data } if !self.unread => {
                    self.write(part, stream, &data).await;
                }
                TryEvent::Output { .. } => {}
                TryEvent::Lost { stream, bytes, .. } => {
                    self.context.printer.warn(&format!("{bytes} bytes of {stream:?} were lost"));
                }
                TryEvent::PartEnded { truncated, .. } => self.truncated |= truncated,
                TryEvent::PartFailed { problem, .. } => self.problem = Some(problem),
                TryEvent::Ended(outcome) => {
                    return Ok(Tried {
                        outcome,
                        snapshot: self.snapshot,
                        problem: self.problem,
                        command: self.command.captured(),
                        check: self.check.captured(),
                        truncated: self.truncated,
                        unread: self.unread,
                    });
                }
            }
        }
    }

    /// What the check prints is about the command, not its output.
    async fn write(&mut self, part: TryPart, stream: v1::Stream, data: &[u8]) {
        let (sink, stream) = match (part, &self.check) {
            (TryPart::Command, _) => (&mut self.command, stream),
            (TryPart::Check, Sink::Passed) => (&mut self.check, v1::Stream::Stderr),
            (TryPart::Check, Sink::Kept(_)) => (&mut self.check, stream),
        };
        if sink.write(&self.context.printer, stream, data).await.is_err() {
            // Nobody reads any more: as if the person had left.
            self.unread = true;
            let _ = self.control.send(Message::Leave);
        }
    }

    fn classify(&self, error: ClientError) -> Stop {
        match error.code() {
            ErrorCode::Timeout if self.limited => Stop::program(error, ExitCode::ProgramTimedOut),
            ErrorCode::ExecFailed => Stop::program(error, ExitCode::NoSuchProgram),
            ErrorCode::Unavailable if self.snapshot.is_some() => error
                .into_failure()
                .hint("what was tried is rolled back, by the next daemon if this one has ended")
                .into(),
            _ => error.into(),
        }
    }
}

fn early_end() -> Stop {
    Failure::new(ErrorCode::Internal, "the daemon ended the stream without saying what became of it").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use offshoot_types::{RollbackCause, TransactionEnd, TransactionId};

    fn tried(end: TransactionEnd, status: Option<ExitStatus>) -> Tried {
        Tried {
            outcome: TryOutcome { transaction: TransactionId::new(), end: end.into(), status },
            snapshot: None,
            problem: None,
            command: Captured::default(),
            check: Captured::default(),
            truncated: false,
            unread: false,
        }
    }

    fn number(cause: RollbackCause, status: Option<ExitStatus>) -> u8 {
        tried(TransactionEnd::RolledBack { cause }, status).status().number()
    }

    #[test]
    fn what_was_rolled_back_never_exits_with_success() {
        let ok = Some(ExitStatus::Exited { code: 0 });
        assert_eq!(tried(TransactionEnd::Committed, ok).status().number(), 0);
        assert_eq!(number(RollbackCause::Failed { status: 7 }, Some(ExitStatus::Exited { code: 7 })), 7);
        assert_eq!(number(RollbackCause::Failed { status: 7 }, None), 7);
        assert_eq!(
            number(RollbackCause::Failed { status: 137 }, Some(ExitStatus::Signaled { signal: 9 })),
            137
        );
        assert_eq!(number(RollbackCause::Failed { status: 0 }, ok), 125, "a guest that lies about it");
        assert_eq!(number(RollbackCause::CheckFailed { status: 3 }, ok), 1);
        assert_eq!(number(RollbackCause::Deadline, None), 124);
        for cause in [
            RollbackCause::Asked,
            RollbackCause::Denied,
            RollbackCause::GuestCrashed,
            RollbackCause::CallerLeft,
            RollbackCause::DaemonDied,
        ] {
            assert_eq!(number(cause, ok), 125);
        }
    }

    #[test]
    fn a_command_that_is_not_there_exits_127() {
        let mut missing =
            tried(TransactionEnd::RolledBack { cause: RollbackCause::Failed { status: 127 } }, None);
        let failure = Failure::new(ErrorCode::ExecFailed, "no program `frob` in the VM");
        missing.problem = Some(failure.into());
        assert_eq!(missing.status().number(), 127);
    }
}
