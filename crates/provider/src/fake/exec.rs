//! The fake guest's processes, which live on when the host leaves.

use super::{
    process::{Process, StoredProcess, run},
    program::parse,
    world::World,
};
use crate::task::{Task, spawn};
use offshoot_guest_proto::{
    message::{
        CHUNK, ExecAttach, ExecCommand, ExecInput, ExecStart, ExecSummary, GuestError, GuestErrorKind,
        MAX_SURVEY_COMMAND, OutputStream, ProcessInfo,
    },
    server::{Detached, ExecInputs, ExecOutputs, ExecPeer},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
};

const INPUTS: usize = 16;

type Id = [u8; 16];

#[derive(Debug)]
pub(super) struct Execs {
    world: Arc<World>,
    table: Mutex<BTreeMap<Id, Arc<Exec>>>,
}

#[derive(Debug)]
struct Exec {
    input: mpsc::Sender<ExecInput>,
    process: Arc<watch::Sender<Process>>,
    task: AbortHandle,
}

impl Exec {
    fn start(world: &Arc<World>, process: Process) -> Arc<Self> {
        let (input, inputs) = mpsc::channel(INPUTS);
        let process = Arc::new(watch::Sender::new(process));
        let running = run(world.clone(), process.clone(), inputs);
        let task = spawn(Task::FakeGuest, running).abort_handle();
        Arc::new(Self { input, process, task })
    }
}

impl Execs {
    pub fn new(world: Arc<World>) -> Self {
        Self { world, table: Mutex::default() }
    }

    /// Processes as they were stored go on, unless the guest stands still.
    pub fn restore(world: Arc<World>, stored: BTreeMap<String, StoredProcess>) -> Option<Self> {
        let mut table = BTreeMap::new();
        for (id, process) in stored {
            let id = *uuid::Uuid::parse_str(&id).ok()?.as_bytes();
            table.insert(id, Exec::start(&world, Process::restore(process)));
        }
        Some(Self { world, table: Mutex::new(table) })
    }

    pub fn store(&self) -> BTreeMap<String, StoredProcess> {
        let stored = |(id, exec): (&Id, &Arc<Exec>)| {
            (uuid::Uuid::from_bytes(*id).to_string(), exec.process.borrow().store())
        };
        self.table().iter().map(stored).collect()
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<Id, Arc<Exec>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn start(&self, start: ExecStart, peer: ExecPeer) {
        match self.begin(&start) {
            Ok(exec) => drop(attend(&exec, peer, 0, 0).await),
            Err(error) => peer.fail(error).await,
        }
    }

    fn begin(&self, start: &ExecStart) -> Result<Arc<Exec>, GuestError> {
        let script = parse(&start.command, start.stdin)?;
        let mut table = self.table();
        if table.contains_key(&start.exec) {
            return Err(GuestError {
                kind: GuestErrorKind::AlreadyExists,
                message: "exec: this id was used before".into(),
            });
        }
        let pid = 100 + table.len() as u32;
        let timeout = start.timeout_ms.map(Duration::from_millis);
        let shown = (start.user.clone(), shown(&start.command));
        let exec = Exec::start(&self.world, Process::new(pid, shown, script, timeout, start.max_output));
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
        let summary = |(id, exec): (&Id, &Arc<Exec>)| {
            let process = exec.process.borrow();
            let [stdout, stderr] = [&process.stdout, &process.stderr].map(|ring| ring.end());
            ExecSummary { exec: *id, pid: process.pid, ended: process.ended, stdout, stderr }
        };
        table.iter().map(summary).collect()
    }

    pub fn running(&self) -> u32 {
        self.processes().len() as u32
    }

    /// Those that have not ended.
    pub fn processes(&self) -> Vec<ProcessInfo> {
        let running = |exec: &Arc<Exec>| {
            let process = exec.process.borrow();
            process.ended.is_none().then(|| ProcessInfo {
                pid: process.pid,
                parent: 1,
                user: process.user.clone(),
                command: process.command.clone().into_bytes(),
            })
        };
        self.table().values().filter_map(running).collect()
    }

    /// The machine is gone, and all that ran in it.
    pub fn kill_all(&self) {
        for exec in self.table().values() {
            exec.task.abort();
        }
    }
}

/// The command line, as a list of processes shows it.
fn shown(command: &ExecCommand) -> String {
    let line = match command {
        ExecCommand::Argv(words) => words.join(" "),
        ExecCommand::Shell(script) => format!("/bin/bash -c {script}"),
    };
    line.chars().take(MAX_SURVEY_COMMAND / 4).collect()
}

/// Passes streams both ways until the process has ended or the host has left.
async fn attend(exec: &Exec, peer: ExecPeer, stdout: u64, stderr: u64) -> Result<(), Detached> {
    let (mut inputs, mut outputs) = peer.split();
    let pid = exec.process.borrow().pid;
    outputs.started(pid).await?;
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
        biased;
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
    let mut process = exec.process.subscribe();
    let mut offsets = [(OutputStream::Stdout, stdout), (OutputStream::Stderr, stderr)];
    loop {
        let (pieces, ended) = {
            let now = process.borrow_and_update();
            let pieces = offsets.map(|(stream, offset)| {
                let ring = if stream == OutputStream::Stdout { &now.stdout } else { &now.stderr };
                let data = ring.from(offset);
                (stream, offset, ring.dropped.max(offset), data[..data.len().min(CHUNK)].to_vec())
            });
            let all_sent = pieces.iter().all(|(.., data)| data.is_empty());
            (pieces, now.ended.filter(|_| all_sent))
        };
        let mut sent = false;
        for (index, (stream, offset, start, data)) in pieces.into_iter().enumerate() {
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
        if !sent && process.changed().await.is_err() {
            // Its machine is gone; so will the channel be.
            return std::future::pending().await;
        }
    }
}
