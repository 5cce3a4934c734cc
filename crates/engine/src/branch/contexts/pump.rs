//! Moves one piece of code's events from the guest to whoever holds its session, and records how it ended.
//!
//! ```text
//! open --> (guest) --> select: session dropped, interrupt, event, time, VM gone --> Ended | Failed --> record
//! ```
//! The code belongs to its stream: a channel that is lost interrupts it, so there is nothing to attach to again, and
//! nobody sends code twice. The interpreter and its variables stay.

use crate::{
    CodeEvent, OutputStream,
    branch::transactions::Opening,
    core::Core,
    error,
    history::{Capture, plain_text},
    link::{GuestLink, NoClient},
    operations::Ticket,
};
use bytes::Bytes;
use offshoot_guest_proto::{
    client::{ClientError, CodeHandle},
    message as wire,
};
use offshoot_store::{Durable, HistoryEnd, Tx};
use offshoot_types::{ContextCode, ErrorCode, ExecStatus, Failure, Language, OperationOutcome, VmId, VmName};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc::{self, OwnedPermit},
    time::Instant,
};

/// How long a guest may take from an interrupt to the code's end: it kills an interpreter that does not yield in 2 s.
const OVERRUN: Duration = Duration::from_secs(10);

/// How long a guest that overran a time limit may take to say that it still lives.
const PROBE: Duration = Duration::from_secs(1);

pub(super) struct CodePump {
    pub core: Arc<Core>,
    pub vm: VmId,
    pub name: VmName,
    pub link: GuestLink,
    pub ticket: Ticket,
    /// That its beginning is on disk, before which nobody hears of it.
    pub durable: Option<Durable>,
    /// The journaled code, completed at the end.
    pub detail: Value,
    /// What the history gets.
    pub capture: Capture,
    pub events: mpsc::Sender<CodeEvent>,
    pub interrupts: mpsc::Receiver<()>,
    /// Until it runs, no transaction begins.
    pub opening: Option<Opening>,
    pub code: ContextCode,
}

/// What became of the code.
enum End {
    Ended { interrupted: bool, wall: Duration },
    Failed(Failure),
}

/// What is known of it so far.
#[derive(Debug, Default)]
struct Seen {
    language: Option<Language>,
    created: bool,
    /// The error it raised: its name, and what it says.
    error: Option<(String, String)>,
    /// What it ended in, as text.
    result: Option<String>,
}

impl CodePump {
    pub async fn run(mut self) {
        let closing = self.core.closing.clone();
        let mut seen = Seen::default();
        let end = tokio::select! {
            biased;
            end = self.pump(&mut seen) => end,
            // The stream closes with the handle, and the guest interrupts the code; the ticket says that we are ending.
            () = closing.cancelled() => return,
        };
        self.conclude(end, seen).await;
    }

    async fn pump(&mut self, seen: &mut Seen) -> End {
        let until = Instant::now() + self.core.options.deadlines.reconnect;
        let client = match self.link.client(until).await {
            Ok(client) => client,
            Err(NoClient::Ended { reason }) => return End::Failed(error::vm_ended(&self.name, &reason)),
            Err(late @ (NoClient::Late { .. } | NoClient::Foreign { .. })) => {
                return End::Failed(error::guest_silent(&self.name, &late.to_string()));
            }
        };
        let handle = match client.run_code(message(&self.code)).await {
            Ok(handle) => handle,
            Err(error) => return End::Failed(self.broken(&error, false)),
        };
        if let Some(durable) = self.durable.take()
            && let Err(error) = durable.wait().await
        {
            // The guest interrupts code whose stream is closed.
            return End::Failed(error.into());
        }
        self.events(handle, seen).await
    }

    async fn events(&mut self, mut handle: CodeHandle, seen: &mut Seen) -> End {
        // An event is taken from the guest once there is room for it, so a caller that does not read slows the code down.
        let mut permit: Option<OwnedPermit<CodeEvent>> = None;
        // What is large is taken by the caller before anything else is taken from the guest.
        let mut large = false;
        let mut attended = true;
        let mut overdue: Option<Instant> = None;
        let mut give_up: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = self.events.closed(), if attended => {
                    attended = false;
                    permit = None;
                    if let Err(error) = handle.interrupt().await {
                        return End::Failed(self.broken(&error, seen.language.is_some()));
                    }
                    give_up = Some(Instant::now() + OVERRUN);
                }
                Some(()) = self.interrupts.recv() => {
                    if let Err(error) = handle.interrupt().await {
                        return End::Failed(self.broken(&error, seen.language.is_some()));
                    }
                    give_up = give_up.or(Some(Instant::now() + OVERRUN));
                }
                room = room(&self.events, large), if attended && permit.is_none() => {
                    // None means that the session is gone, which the first branch sees.
                    permit = room;
                }
                event = handle.next(), if !attended || permit.is_some() => {
                    let event = match event {
                        Ok(Some(event)) => event,
                        Ok(None) => {
                            let problem = "the guest ended the stream before the code had ended";
                            return End::Failed(Failure::new(ErrorCode::Guest, problem));
                        }
                        Err(error) => return End::Failed(self.broken(&error, seen.language.is_some())),
                    };
                    if let (wire::CodeEvent::Started { .. }, None, Some(timeout)) = (&event, overdue, self.code.timeout) {
                        // The guest interrupts when it is time. This is for one that does not.
                        overdue = Some(Instant::now() + timeout + self.core.options.deadlines.exec_backstop);
                    }
                    match self.judge(event, seen) {
                        Ok(event) => {
                            if let Some(permit) = permit.take() {
                                large = is_large(&event);
                                permit.send(event);
                            }
                        }
                        Err(end) => return end,
                    }
                }
                () = at_time(overdue) => {
                    overdue = None;
                    if let Err(error) = handle.interrupt().await {
                        return End::Failed(self.broken(&error, true));
                    }
                    // A guest that says nothing at all will not end it either.
                    let patience = if self.guest_answers().await { OVERRUN } else { Duration::ZERO };
                    give_up = give_up.or(Some(Instant::now() + patience));
                }
                // Only while its end would be seen: a caller that does not read holds up nobody but itself.
                () = at_time(give_up), if !attended || permit.is_some() => return End::Failed(error::code_not_interrupted(&self.name, &self.code.context)),
                reason = self.link.ended() => return End::Failed(error::vm_ended(&self.name, &reason)),
            }
        }
    }

    /// Whether the guest says anything at all, asked now.
    async fn guest_answers(&self) -> bool {
        let until = Instant::now() + PROBE;
        let asked = async { self.link.client(until).await.ok()?.info().await.ok() };
        tokio::time::timeout_at(until, asked).await.is_ok_and(|answer| answer.is_some())
    }

    /// What an event means to the caller, or how it all ended.
    fn judge(&mut self, event: wire::CodeEvent, seen: &mut Seen) -> Result<CodeEvent, End> {
        match event {
            wire::CodeEvent::Started { language, pid, created, count } => {
                self.opening = None;
                let language = language.into();
                (seen.language, seen.created) = (Some(language), created);
                Ok(CodeEvent::Started { language, pid, created, count })
            }
            wire::CodeEvent::Output { stream, data } => {
                let stream = match stream {
                    wire::OutputStream::Stdout => OutputStream::Stdout,
                    wire::OutputStream::Stderr => OutputStream::Stderr,
                };
                let data = Bytes::from(data);
                self.capture.append(stream, &data);
                Ok(CodeEvent::Output { stream, data })
            }
            wire::CodeEvent::Display { mime, id, update } => Ok(CodeEvent::Display { mime, id, update }),
            wire::CodeEvent::Value { mime } => {
                seen.result = plain_text(&mime);
                Ok(CodeEvent::Value { mime })
            }
            wire::CodeEvent::Error { name, message, traceback } => {
                seen.error = Some((name.clone(), message.clone()));
                Ok(CodeEvent::Error { name, message, traceback })
            }
            wire::CodeEvent::Ended { interrupted, wall_us } => {
                Err(End::Ended { interrupted, wall: Duration::from_micros(wall_us) })
            }
            wire::CodeEvent::Failed(refused) => {
                Err(End::Failed(error::guest_failure(&self.name, &ClientError::Guest(refused))))
            }
        }
    }

    /// The connection or the guest failed. Code is never sent again: whether it ran cannot be told.
    fn broken(&self, error: &ClientError, started: bool) -> Failure {
        match error {
            ClientError::Closed { .. } => error::code_lost(&self.name, &self.code.context, started),
            _ => error::guest_failure(&self.name, error),
        }
    }

    /// The last event goes out at once; it is recorded right after, in one write with the note of the context.
    async fn conclude(self, end: End, seen: Seen) {
        let Self { core, vm, ticket, mut detail, capture, events, opening, code, .. } = self;
        drop(opening);
        let mut history = HistoryEnd {
            language: seen.language.map(|language| language.to_string()),
            result: seen.result,
            ..HistoryEnd::default()
        };
        let (event, outcome) = match end {
            End::Ended { interrupted, wall } => {
                let error = seen.error.as_ref().map(|(name, _)| name);
                detail["end"] = json!({ "interrupted": interrupted, "error": error });
                (history.wall, history.interrupted) = (Some(wall), interrupted);
                (CodeEvent::Ended { interrupted, wall }, OperationOutcome::Done)
            }
            End::Failed(failure) => {
                (CodeEvent::Failed(failure.clone()), OperationOutcome::Failed { failure })
            }
        };
        let (operation, made) = (ticket.id(), seen.language.filter(|_| seen.created));
        // To the history, code that raised an error has failed.
        let status = ExecStatus::Exited(i32::from(seen.error.is_some()));
        let ran = seen.language.is_some();
        history.error = seen.error.map(|(name, message)| match message.is_empty() {
            true => name,
            false => format!("{name}: {message}"),
        });
        // What it said is in its place before anybody can read that it ended.
        let recorded = async {
            history.output = Some(capture.finish(false).await);
            let also = move |tx: &Tx<'_>| {
                tx.step_done(operation, 0, Some(&detail))?;
                tx.put_history(operation, &history)?;
                if ran {
                    tx.exec_ended(operation, status)?;
                }
                match made {
                    Some(language) => tx.put_context(vm, &code.context, language),
                    None => Ok(()),
                }
            };
            core.close_with(ticket, outcome, also).await
        };
        // A session that is gone does not want to know.
        let (_, _) = tokio::join!(events.send(event), recorded);
    }
}

/// Room for an event; behind a large one, once there is nothing else. `None` where nobody listens any more.
async fn room(events: &mpsc::Sender<CodeEvent>, after_large: bool) -> Option<OwnedPermit<CodeEvent>> {
    if after_large {
        drop(events.reserve_many(events.max_capacity()).await.ok()?);
    }
    events.clone().reserve_owned().await.ok()
}

fn is_large(event: &CodeEvent) -> bool {
    match event {
        CodeEvent::Display { mime, .. } | CodeEvent::Value { mime } => {
            mime.values().map(String::len).sum::<usize>() > wire::MAX_PART
        }
        _ => false,
    }
}

async fn at_time(at: Option<Instant>) {
    match at {
        None => std::future::pending().await,
        Some(at) => tokio::time::sleep_until(at).await,
    }
}

fn message(code: &ContextCode) -> wire::RunCode {
    wire::RunCode {
        context: code.context.to_string(),
        language: code.language.map(Into::into),
        code: code.code.clone(),
        timeout_ms: code.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        user: code.user.clone(),
        cwd: code.cwd.clone(),
        context_env: code.context_env.clone(),
        env: code.env.clone(),
        existing: code.existing,
    }
}
