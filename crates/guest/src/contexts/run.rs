//! One piece of code, from its turn to its end.
//!
//! ```text
//! (variables lent) --> Running --end--> what is in the pipes is passed on --> Value | Error --> Ended
//!    |--something is shown--> what is in the pipes, then that, is passed on before anything else is taken; the code
//!    |                        waits until the pipes are read: what it writes next comes behind
//!    |--timeout, interrupt, host left--> SIGINT, again every 200 ms --2 s--> killed --> Error --> Ended
//!    `--the interpreter ends, or speaks nonsense--------------------------> killed --> Error --> Ended
//! ```
//! While the host takes no output, none is read, so the code waits; interrupts and the timeout go on counting.

use super::{
    answer::Answer,
    interpreter::{Interpreter, Live, read_pipe},
};
use crate::freeze::Freezer;
use offshoot_guest_proto::message::{
    CodeEvent, EXIT_STATUS, GuestError, GuestErrorKind, INTERPRETER_DIED, INTERPRETER_KILLED, Language,
    OutputStream,
};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{OwnedMutexGuard, mpsc},
    time::{Instant, sleep_until, timeout},
};

/// From the first interrupt to the kill.
const YIELD: Duration = Duration::from_secs(2);
/// An interrupt that comes before the interpreter has begun with the code, or that the code has caught, is repeated.
const REPEAT: Duration = Duration::from_millis(200);
const READ: usize = 64 * 1024;
/// For an idle interpreter to take variables into its environment.
const LENDING: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Run {
    pub turn: OwnedMutexGuard<Option<Interpreter>>,
    pub created: bool,
    pub code: String,
    /// In the environment for this code only.
    pub env: BTreeMap<String, String>,
    pub timeout: Option<Duration>,
}

enum Outcome {
    /// Its end, with the status bash gives.
    Ended(i32),
    /// The interpreter has ended.
    Died,
    /// It did not yield, or said nonsense.
    Killed { why: &'static str },
}

/// What is known of the code before its outcome.
#[derive(Debug, Default)]
struct Seen {
    /// To be told before anything else is.
    shown: VecDeque<CodeEvent>,
    conclusion: Option<CodeEvent>,
    interrupted: bool,
}

type Events = mpsc::Sender<CodeEvent>;

impl Run {
    /// Runs the code to its end, whoever listens.
    pub async fn drive(mut self, events: Events, mut interrupts: mpsc::Receiver<()>, freezer: Arc<Freezer>) {
        let Some(interpreter) = self.turn.as_mut() else { return };
        let live = Arc::clone(&interpreter.live);
        let begun = Instant::now();
        let handed_over = match self.env.is_empty() {
            true => interpreter.run(&self.code),
            false => match timeout(LENDING, interpreter.lend(&self.env)).await {
                Ok(lent) => lent.and_then(|()| interpreter.run(&self.code)),
                Err(_late) => Err(io::ErrorKind::TimedOut.into()),
            },
        };
        if let Err(error) = handed_over {
            // It cannot take code any more: the next one gets another interpreter.
            drop(live.kill());
            *self.turn = None;
            let message = format!("run code: {error}");
            let failed = CodeEvent::Failed(GuestError { kind: GuestErrorKind::Other, message });
            // A host that left has no use for it.
            let _left = events.send(failed).await;
            return;
        }
        let started = CodeEvent::Started {
            language: live.language,
            pid: live.pid.cast_unsigned(),
            created: self.created,
            count: interpreter.count,
        };
        // A host that has left is noticed below.
        let _left = events.send(started).await;
        let mut seen = Seen::default();
        let deadline = self.timeout.and_then(|after| begun.checked_add(after));
        let watched = watch(interpreter, &events, &mut interrupts, &freezer, deadline, &mut seen);
        let outcome = watched.await;
        if !matches!(outcome, Outcome::Ended(_)) {
            // Empty already: as wanted.
            drop(live.kill());
            live.exited().await;
            *self.turn = None;
        }
        let Seen { mut shown, conclusion, interrupted } = seen;
        // What was shown in time is not lost with the interpreter.
        shown.extend(rest(&live));
        for event in shown {
            // A host that has left has no use for it, and neither has the next code.
            let _left = events.send(event).await;
        }
        let conclusion = conclude(&live, outcome, conclusion);
        // Back to rest before the end is told: the next code finds the context idle.
        drop(self.turn);
        if let Some(conclusion) = conclusion {
            let _left = events.send(conclusion).await;
        }
        let wall_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let _left = events.send(CodeEvent::Ended { interrupted, wall_us }).await;
    }
}

async fn watch(
    interpreter: &mut Interpreter,
    events: &Events,
    interrupts: &mut mpsc::Receiver<()>,
    freezer: &Freezer,
    deadline: Option<Instant>,
    seen: &mut Seen,
) -> Outcome {
    let Seen { shown, conclusion, interrupted } = seen;
    let live = Arc::clone(&interpreter.live);
    let mut next_interrupt: Option<Instant> = None;
    let mut kill_at: Option<Instant> = None;
    let mut left = false;
    // The code may have closed its ends.
    let mut open = [true; 2];
    let mut interruptible = true;
    loop {
        let has_room = left || events.capacity() > 0;
        if left {
            shown.clear();
        }
        let behind = !shown.is_empty();
        let mut ask = false;
        tokio::select! {
            biased;
            room = events.reserve(), if behind => match (room, shown.pop_front()) {
                (Ok(room), Some(event)) => room.send(event),
                // It has left, which is noticed below.
                _ => shown.clear(),
            },
            answer = interpreter.answer(), if !behind => match answer {
                Ok(Answer::Display { serial, event }) => {
                    // The interpreter has written all that it wrote before, and writes nothing until it is told.
                    shown.extend(rest(&live));
                    shown.push_back(event);
                    if interpreter.told(serial).is_err() && live.exit().is_none() {
                        return Outcome::Killed { why: "it shows things and does not listen" };
                    }
                }
                Ok(Answer::End { status }) => return Outcome::Ended(status),
                Ok(Answer::Conclusion(event)) => *conclusion = Some(event),
                Err(_nonsense) if live.exit().is_some() => return Outcome::Died,
                // A socket ends a moment before the process does.
                Err(_nonsense) => {
                    return match tokio::time::timeout(REPEAT, live.exited()).await {
                        Ok(_exit) => Outcome::Died,
                        Err(_alive) => Outcome::Killed { why: "it said what is no answer" },
                    };
                }
            },
            _exit = live.exited() => return Outcome::Died,
            _ = live.pipes[0].readable(), if !behind && has_room && open[0] => open[0] = pass_on(&live, 0, events),
            _ = live.pipes[1].readable(), if !behind && has_room && open[1] => open[1] = pass_on(&live, 1, events),
            _ = events.reserve(), if !behind && !has_room => {}
            () = events.closed(), if !left => {
                left = true;
                ask = true;
            }
            request = interrupts.recv(), if interruptible => match request {
                Some(()) => ask = true,
                None => interruptible = false,
            },
            () = until(deadline), if kill_at.is_none() => ask = true,
            () = until(next_interrupt) => ask = true,
            () = until(kill_at) => {
                return Outcome::Killed { why: "it did not yield to an interrupt within 2 s" };
            }
        }
        if ask {
            // Never before it has reseeded itself after a restore.
            freezer.running().await;
            *interrupted = true;
            live.interrupt();
            next_interrupt = Some(Instant::now() + REPEAT);
            kill_at.get_or_insert(Instant::now() + YIELD);
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];

/// Takes what is there; answers whether more may come. There is room for it, unless the host has left.
fn pass_on(live: &Live, index: usize, events: &Events) -> bool {
    let Some(data) = read_pipe(&live.pipes[index]) else { return false };
    if !data.is_empty() {
        let _left = events.try_send(CodeEvent::Output { stream: STREAMS[index], data });
    }
    true
}

/// What is in the pipes now: what children of the code go on writing is not part of it.
fn rest(live: &Live) -> Vec<CodeEvent> {
    let mut found = Vec::new();
    for (pipe, stream) in live.pipes.iter().zip(STREAMS) {
        let mut rest =
            rustix::io::ioctl_fionread(pipe).map_or(0, |count| usize::try_from(count).unwrap_or(0));
        while rest > 0 {
            let mut data = vec![0; rest.min(READ)];
            let Ok(count @ 1..) = rustix::io::read(pipe, &mut data) else { break };
            data.truncate(count);
            rest -= count;
            found.push(CodeEvent::Output { stream, data });
        }
    }
    found
}

fn conclude(live: &Live, outcome: Outcome, conclusion: Option<CodeEvent>) -> Option<CodeEvent> {
    let language = match live.language {
        Language::Python => "python",
        Language::Javascript => "javascript",
        Language::Bash => "bash",
    };
    let error = |name: &str, message: String| {
        Some(CodeEvent::Error { name: name.to_owned(), message, traceback: String::new() })
    };
    match outcome {
        Outcome::Ended(0) => conclusion,
        Outcome::Ended(status) => error(EXIT_STATUS, format!("exit status {status}")),
        Outcome::Killed { why } => error(
            INTERPRETER_KILLED,
            format!("the {language} interpreter was killed, for {why}; its variables are gone"),
        ),
        Outcome::Died => {
            let how = live.exit().map(|exit| ExitStatus::from_raw(exit.reaped.status));
            let how = match how.map(|status| (status.code(), status.signal())) {
                Some((Some(code), _)) => format!("ended with status {code}"),
                Some((_, Some(signal))) => format!("was ended by signal {signal}"),
                _ => "ended".to_owned(),
            };
            error(INTERPRETER_DIED, format!("the {language} interpreter {how}; its variables are gone"))
        }
    }
}
