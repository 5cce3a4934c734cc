//! One process of the fake guest: a state that is stepped, so that it can be stored at any moment and taken up again.

use super::{
    bytes,
    program::{Builtin, Command},
    stillness::moving,
    world::World,
};
use offshoot_guest_proto::message::{ExecEnd, ExecInput, ExitKind};
use serde::{Deserialize, Serialize};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

/// What is kept of each stream for those who attach later.
const RING: usize = 1024 * 1024;

/// The last bytes of a stream.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Ring {
    /// Bytes of the stream before the first one kept.
    pub dropped: u64,
    #[serde(with = "bytes")]
    kept: Vec<u8>,
}

impl Ring {
    fn push(&mut self, data: &[u8]) {
        self.kept.extend_from_slice(data);
        let surplus = self.kept.len().saturating_sub(RING);
        self.kept.drain(..surplus);
        self.dropped += surplus as u64;
    }

    pub fn end(&self) -> u64 {
        self.dropped + self.kept.len() as u64
    }

    pub fn from(&self, offset: u64) -> &[u8] {
        let skip = usize::try_from(offset.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        &self.kept[skip.min(self.kept.len())..]
    }
}

#[derive(Debug, Clone)]
pub(super) struct Process {
    pub pid: u32,
    pub user: String,
    /// As a list of processes shows it.
    pub command: String,
    pub stdout: Ring,
    pub stderr: Ring,
    pub ended: Option<ExecEnd>,
    script: VecDeque<Command>,
    status: i32,
    max_output: Option<u64>,
    truncated: bool,
    begun: Instant,
    /// Set while it sleeps.
    wakes_at: Option<Instant>,
    dies_at: Option<Instant>,
}

/// A process as it is stored: what is a moment in a running one is a span here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct StoredProcess {
    pid: u32,
    user: String,
    command: String,
    stdout: Ring,
    stderr: Ring,
    ended: Option<ExecEnd>,
    script: VecDeque<Command>,
    status: i32,
    max_output: Option<u64>,
    truncated: bool,
    ran: Duration,
    wakes_in: Option<Duration>,
    dies_in: Option<Duration>,
}

/// What a process waits for.
enum Doing {
    Sleeping(Instant),
    Reading,
    Ended,
}

impl Process {
    pub fn new(
        pid: u32,
        (user, command): (String, String),
        script: VecDeque<Command>,
        timeout: Option<Duration>,
        max_output: Option<u64>,
    ) -> Self {
        let begun = Instant::now();
        Self {
            pid,
            user,
            command,
            stdout: Ring::default(),
            stderr: Ring::default(),
            ended: None,
            script,
            status: 0,
            max_output,
            truncated: false,
            begun,
            wakes_at: None,
            dies_at: timeout.and_then(|timeout| begun.checked_add(timeout)),
        }
    }

    pub fn store(&self) -> StoredProcess {
        let now = Instant::now();
        let left = |at: Instant| at.saturating_duration_since(now);
        StoredProcess {
            pid: self.pid,
            user: self.user.clone(),
            command: self.command.clone(),
            stdout: self.stdout.clone(),
            stderr: self.stderr.clone(),
            ended: self.ended,
            script: self.script.clone(),
            status: self.status,
            max_output: self.max_output,
            truncated: self.truncated,
            ran: self.begun.elapsed(),
            wakes_in: self.wakes_at.map(left),
            dies_in: self.dies_at.map(left),
        }
    }

    pub fn restore(stored: StoredProcess) -> Self {
        let now = Instant::now();
        let at = |left: Duration| now.checked_add(left);
        Self {
            pid: stored.pid,
            user: stored.user,
            command: stored.command,
            stdout: stored.stdout,
            stderr: stored.stderr,
            ended: stored.ended,
            script: stored.script,
            status: stored.status,
            max_output: stored.max_output,
            truncated: stored.truncated,
            begun: now.checked_sub(stored.ran).unwrap_or(now),
            wakes_at: stored.wakes_in.and_then(at),
            dies_at: stored.dies_in.and_then(at),
        }
    }

    fn end(&mut self, status: ExitKind) {
        if self.ended.is_none() {
            let wall_us = self.begun.elapsed().as_micros() as u64;
            let truncated = self.truncated;
            self.ended = Some(ExecEnd { status, truncated, wall_us, user_us: 0, system_us: 0 });
        }
    }

    fn write(&mut self, data: &[u8], error: &[u8]) {
        for (data, to_error) in [(data, false), (error, true)] {
            let written = self.stdout.end() + self.stderr.end();
            let room = self.max_output.map_or(u64::MAX, |max| max.saturating_sub(written));
            let fits = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
            self.truncated |= fits < data.len();
            let ring = if to_error { &mut self.stderr } else { &mut self.stdout };
            ring.push(&data[..fits]);
        }
    }

    /// Goes on until it must wait.
    fn advance(&mut self, world: &World) -> Doing {
        while self.ended.is_none() {
            let Some(command) = self.script.front().cloned() else {
                self.end(ExitKind::Code(self.status));
                break;
            };
            if !command.wanted(self.status) {
                self.script.pop_front();
                continue;
            }
            match command.builtin {
                Builtin::Sleep(time) => {
                    let now = Instant::now();
                    let until = *self.wakes_at.get_or_insert_with(|| now.checked_add(time).unwrap_or(now));
                    if now < until {
                        return Doing::Sleeping(until);
                    }
                    self.wakes_at = None;
                    self.next(0);
                }
                Builtin::Copy => return Doing::Reading,
                Builtin::Exit(status) => self.end(ExitKind::Code(status.unwrap_or(self.status))),
                _ => {
                    let (output, error, status) = command.run(world);
                    self.write(&output, &error);
                    self.next(status);
                }
            }
        }
        Doing::Ended
    }

    fn next(&mut self, status: i32) {
        self.script.pop_front();
        self.status = status;
    }

    fn input(&mut self, input: &ExecInput) {
        let reads = self.script.front().is_some_and(|command| command.builtin == Builtin::Copy);
        match input {
            ExecInput::Kill => self.end(ExitKind::Signal(libc::SIGKILL)),
            ExecInput::Signal(signal @ (libc::SIGTERM | libc::SIGINT | libc::SIGKILL | libc::SIGHUP)) => {
                self.end(ExitKind::Signal(*signal));
            }
            ExecInput::Stdin(data) if reads => self.write(data, b""),
            ExecInput::StdinEnd if reads => self.next(0),
            ExecInput::Signal(_) | ExecInput::Resize(_) | ExecInput::Stdin(_) | ExecInput::StdinEnd => {}
        }
    }
}

/// Runs a process to its end.
pub(super) async fn run(
    world: Arc<World>,
    process: Arc<watch::Sender<Process>>,
    mut inputs: mpsc::Receiver<ExecInput>,
) {
    let mut still = world.still.subscribe();
    loop {
        let step = || {
            let mut doing = Doing::Ended;
            process.send_modify(|process| doing = process.advance(&world));
            doing
        };
        let wakes_at = match moving(&mut still, step).await {
            Doing::Ended => return,
            Doing::Sleeping(until) => Some(until),
            Doing::Reading => None,
        };
        let dies_at = process.borrow().dies_at;
        let event = tokio::select! {
            biased;
            () = until(dies_at) => None,
            () = until(wakes_at) => continue,
            input = inputs.recv() => match input {
                Some(input) => Some(input),
                // Nobody can write to it any more: only its time is left.
                None => {
                    tokio::select! {
                        biased;
                        () = until(dies_at) => None,
                        () = until(wakes_at) => continue,
                    }
                }
            },
        };
        let apply = || {
            process.send_modify(|process| match &event {
                Some(input) => process.input(input),
                None => process.end(ExitKind::TimedOut),
            });
        };
        moving(&mut still, apply).await;
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
