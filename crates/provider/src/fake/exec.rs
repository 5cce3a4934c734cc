//! The fake guest's processes: a few builtins that live on when the host leaves.

use crate::task::{Task, spawn};
use offshoot_guest_proto::{
    message::{
        CHUNK, ExecAttach, ExecCommand, ExecEnd, ExecInput, ExecStart, ExecSummary, ExitKind, GuestError,
        GuestErrorKind, OutputStream,
    },
    server::{Detached, ExecInputs, ExecOutputs, ExecPeer},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

/// What is kept for those who attach later.
const RING: usize = 1024 * 1024;
const INPUTS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Execs {
    table: Mutex<HashMap<[u8; 16], Arc<Exec>>>,
}

#[derive(Debug)]
struct Exec {
    pid: u32,
    input: mpsc::Sender<ExecInput>,
    progress: watch::Receiver<Progress>,
    task: Mutex<Option<AbortHandle>>,
}

#[derive(Debug, Default)]
struct Progress {
    stdout: Ring,
    stderr: Ring,
    ended: Option<ExecEnd>,
}

/// The last bytes of a stream.
#[derive(Debug, Default)]
struct Ring {
    /// Bytes of the stream before the first one kept.
    dropped: u64,
    kept: Vec<u8>,
}

impl Ring {
    fn push(&mut self, data: &[u8]) {
        self.kept.extend_from_slice(data);
        let surplus = self.kept.len().saturating_sub(RING);
        self.kept.drain(..surplus);
        self.dropped += surplus as u64;
    }

    fn end(&self) -> u64 {
        self.dropped + self.kept.len() as u64
    }

    fn from(&self, offset: u64) -> &[u8] {
        let skip = usize::try_from(offset.saturating_sub(self.dropped)).unwrap_or(usize::MAX);
        &self.kept[skip.min(self.kept.len())..]
    }
}

/// What a builtin does.
enum Program {
    Exit(i32),
    Print(Vec<u8>),
    Copy,
    Sleep(Duration),
}

impl Program {
    fn parse(command: &ExecCommand) -> Result<Self, GuestError> {
        let words: Vec<&str> = match command {
            ExecCommand::Argv(words) => words.iter().map(String::as_str).collect(),
            ExecCommand::Shell(script) => script.split_whitespace().collect(),
        };
        let name = words.first().map_or("", |path| path.rsplit('/').next().unwrap_or(path));
        let number = |text: Option<&&str>| text.and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
        match (name, &words[1.min(words.len())..]) {
            ("true", _) => Ok(Self::Exit(0)),
            ("false", _) => Ok(Self::Exit(1)),
            ("exit", rest) => Ok(Self::Exit(number(rest.first()) as i32)),
            ("echo", rest) => Ok(Self::Print(format!("{}\n", rest.join(" ")).into_bytes())),
            ("cat", []) => Ok(Self::Copy),
            ("sleep", rest) => Ok(Self::Sleep(Duration::from_secs_f64(number(rest.first()).max(0.0)))),
            ("sh" | "bash", ["-c", script]) => Self::parse(&ExecCommand::Shell((*script).to_owned())),
            _ => Err(GuestError {
                kind: GuestErrorKind::ExecFailed,
                message: format!("execute {:?}: the fake guest has no such program", words.join(" ")),
            }),
        }
    }
}

impl Execs {
    fn table(&self) -> MutexGuard<'_, HashMap<[u8; 16], Arc<Exec>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn start(&self, start: ExecStart, peer: ExecPeer) {
        match self.begin(&start) {
            Ok(exec) => drop(attend(&exec, peer, 0, 0).await),
            Err(error) => peer.fail(error).await,
        }
    }

    fn begin(&self, start: &ExecStart) -> Result<Arc<Exec>, GuestError> {
        let program = match Program::parse(&start.command)? {
            // Its input is empty: it is over at once.
            Program::Copy if !start.stdin => Program::Exit(0),
            program => program,
        };
        let mut table = self.table();
        if table.contains_key(&start.exec) {
            return Err(GuestError {
                kind: GuestErrorKind::AlreadyExists,
                message: "exec: this id was used before".into(),
            });
        }
        let (input, inputs) = mpsc::channel(INPUTS);
        let (publish, progress) = watch::channel(Progress::default());
        let pid = 100 + table.len() as u32;
        let run =
            run(program, start.timeout_ms.map(Duration::from_millis), start.max_output, inputs, publish);
        let task = Mutex::new(Some(spawn(Task::FakeGuest, run).abort_handle()));
        let exec = Arc::new(Exec { pid, input, progress, task });
        table.insert(start.exec, exec.clone());
        Ok(exec)
    }

    pub async fn attach(&self, attach: ExecAttach, peer: ExecPeer) {
        let exec = self.table().get(&attach.exec).cloned();
        match exec {
            Some(exec) => drop(attend(&exec, peer, attach.stdout_offset, attach.stderr_offset).await),
            None => {
                let message = "attach: no such process".to_owned();
                peer.fail(GuestError { kind: GuestErrorKind::NotFound, message }).await;
            }
        }
    }

    pub fn list(&self) -> Vec<ExecSummary> {
        let table = self.table();
        let summary = |(id, exec): (&[u8; 16], &Arc<Exec>)| ExecSummary {
            exec: *id,
            pid: exec.pid,
            ended: exec.progress.borrow().ended,
        };
        table.iter().map(summary).collect()
    }

    pub fn running(&self) -> u32 {
        self.list().iter().filter(|exec| exec.ended.is_none()).count() as u32
    }

    /// The machine is gone, and all that ran in it.
    pub fn kill_all(&self) {
        for exec in self.table().values() {
            if let Some(task) = exec.task.lock().unwrap_or_else(PoisonError::into_inner).take() {
                task.abort();
            }
        }
    }
}

/// Passes streams both ways until the process has ended or the host has left.
async fn attend(exec: &Exec, peer: ExecPeer, stdout: u64, stderr: u64) -> Result<(), Detached> {
    let (mut inputs, mut outputs) = peer.split();
    outputs.started(exec.pid).await?;
    let sending = send_output(exec, outputs, stdout, stderr);
    let receiving = async {
        loop {
            let input: Result<ExecInput, Detached> = ExecInputs::next(&mut inputs).await;
            match input {
                // A process that has ended reads no more.
                Ok(input) => drop(exec.input.send(input).await),
                Err(left) => return Err(left),
            }
        }
    };
    tokio::select! {
        sent = sending => sent,
        left = receiving => left,
    }
}

async fn send_output(
    exec: &Exec,
    mut outputs: ExecOutputs,
    stdout: u64,
    stderr: u64,
) -> Result<(), Detached> {
    let mut progress = exec.progress.clone();
    let mut offsets = [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)];
    loop {
        let (pieces, ended) = {
            let now = progress.borrow_and_update();
            let pieces = offsets.map(|(stream, offset)| {
                let ring = if stream == OutputStream::Stdout { &now.stdout } else { &now.stderr };
                let data = ring.from(offset);
                (stream, offset, ring.dropped.max(offset), data[..data.len().min(CHUNK)].to_vec(), ring.end())
            });
            let all_sent = pieces.iter().all(|(.., data, _)| data.is_empty());
            (pieces, now.ended.filter(|_| all_sent))
        };
        let mut sent = false;
        for (index, (stream, offset, start, data, _)) in pieces.into_iter().enumerate() {
            if start > offset {
                outputs.lost(stream, start).await?;
            }
            offsets[index].1 = start + data.len() as u64;
            if !data.is_empty() {
                sent = true;
                outputs.output(stream, start, data).await?;
            }
        }
        if let Some(end) = ended {
            return outputs.ended(end).await;
        }
        if !sent && progress.changed().await.is_err() {
            // Its machine is gone; so will the channel be.
            return std::future::pending().await;
        }
    }
}

async fn run(
    program: Program,
    timeout: Option<Duration>,
    max_output: Option<u64>,
    mut inputs: mpsc::Receiver<ExecInput>,
    publish: watch::Sender<Progress>,
) {
    let begun = Instant::now();
    let mut truncated = false;
    let status = {
        let mut write = |data: &[u8]| {
            publish.send_modify(|progress| {
                let room = max_output.map_or(u64::MAX, |max| max.saturating_sub(progress.stdout.end()));
                let fits = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
                truncated |= fits < data.len();
                progress.stdout.push(&data[..fits]);
            });
        };
        let work = async {
            match program {
                Program::Exit(code) => ExitKind::Code(code),
                Program::Print(text) => {
                    write(&text);
                    ExitKind::Code(0)
                }
                Program::Copy => loop {
                    match inputs.recv().await {
                        Some(ExecInput::Stdin(data)) => write(&data),
                        Some(ExecInput::StdinEnd) | None => break ExitKind::Code(0),
                        Some(input) => {
                            if let Some(killed) = fatal(&input) {
                                break killed;
                            }
                        }
                    }
                },
                Program::Sleep(time) => {
                    let killed = async {
                        loop {
                            match inputs.recv().await.as_ref().map(fatal) {
                                Some(Some(killed)) => return killed,
                                Some(None) => {}
                                None => std::future::pending().await,
                            }
                        }
                    };
                    tokio::select! {
                        () = tokio::time::sleep(time) => ExitKind::Code(0),
                        killed = killed => killed,
                    }
                }
            }
        };
        match timeout {
            None => work.await,
            Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or(ExitKind::TimedOut),
        }
    };
    let wall_us = begun.elapsed().as_micros() as u64;
    let end = ExecEnd { status, truncated, wall_us, user_us: 0, system_us: 0 };
    publish.send_modify(|progress| progress.ended = Some(end));
}

/// The signals that end a builtin.
fn fatal(input: &ExecInput) -> Option<ExitKind> {
    match input {
        ExecInput::Kill => Some(ExitKind::Signal(libc::SIGKILL)),
        ExecInput::Signal(signal @ (libc::SIGTERM | libc::SIGINT | libc::SIGKILL | libc::SIGHUP)) => {
            Some(ExitKind::Signal(*signal))
        }
        ExecInput::Signal(_) | ExecInput::Resize(_) | ExecInput::Stdin(_) | ExecInput::StdinEnd => None,
    }
}
