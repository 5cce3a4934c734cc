//! One process under a keeper: started, watched, ended. What it is asked, and how, is for whoever started it.
//!
//! ```text
//! spawn --> runs --> ended: status, judged by its owner together with its last words on the console
//! ```

use super::{console, log::KeeperLog, machine::StartError};
use crate::{
    BootStep, Exit, os,
    process::{Process, ProcessId},
    task::{Task, spawn},
};
use rustix::process::Signal;
use std::{
    io,
    os::fd::OwnedFd,
    path::Path,
    process::{Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    net::UnixStream,
    process,
    sync::watch,
    task::JoinHandle,
};

/// What the dead process left in its pipes is read for this long at most.
pub(super) const LEFTOVERS: Duration = Duration::from_secs(1);
/// For the kernel to end what was killed.
const DEATH: Duration = Duration::from_secs(10);
const STDERR: usize = 8 * 1024;
/// Of the process's own words, in a message.
const LAST_LINES: usize = 3;

/// The last bytes of a stream.
#[derive(Debug, Clone, Default)]
pub(super) struct LastBytes(Arc<Mutex<Vec<u8>>>);

impl LastBytes {
    pub fn push(&self, data: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend_from_slice(data);
        let surplus = kept.len().saturating_sub(STDERR);
        kept.drain(..surplus);
    }

    fn lines(&self) -> Vec<String> {
        console::last_lines(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Follows a stream to its end.
    pub async fn follow(self, mut stream: impl AsyncRead + Unpin) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer).await {
            self.push(&buffer[..length]);
        }
    }
}

/// A socket as a process expects its standard streams to be.
pub(super) fn blocking(stream: UnixStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

/// What a process is started with.
pub(super) struct Start<C, J> {
    /// Its standard streams are set.
    pub command: Command,
    /// What it gets as descriptors 3, 4, ...
    pub passed: Vec<OwnedFd>,
    /// Is given its pid on a thread of its own, and answers what limits it.
    pub confine: C,
    /// The tasks that read what it says; they end when it does.
    pub readers: Vec<JoinHandle<()>>,
    pub stderr: LastBytes,
    /// What it prints on every start and means nothing by.
    pub harmless_stderr: Vec<String>,
    /// What its end means.
    pub judge: J,
    pub log: Arc<KeeperLog>,
}

#[derive(Debug)]
pub(super) struct Child {
    process: Process,
    exit: watch::Receiver<Option<Exit>>,
    confined: watch::Receiver<Option<Vec<String>>>,
    stderr: LastBytes,
    harmless_stderr: Vec<String>,
    companions: Companions,
}

/// Processes it has made that are part of it: its end is told once they are gone, too.
type Companions = Arc<Mutex<Vec<Process>>>;

impl Child {
    /// Must be called on the thread that lives as long as the keeper: see [`os::bind_to_this_thread`].
    pub fn start<C, J>(start: Start<C, J>) -> Result<Self, StartError>
    where
        C: FnOnce(i32) -> Vec<String> + Send + 'static,
        J: FnOnce(io::Result<ExitStatus>) -> Exit + Send + 'static,
    {
        let Start { mut command, passed, confine, readers, stderr, harmless_stderr, judge, log } = start;
        let program = command.get_program().to_owned();
        let mut child = {
            command.env_clear().current_dir("/");
            os::bind_to_this_thread(&mut command, passed)
                .map_err(|error| StartError::new(BootStep::Vmm, "cannot prepare the VMM", error))?;
            // The command holds the child's ends of the sockets; they close with this block.
            let spawned = process::Command::from(command).spawn();
            spawned.map_err(|e| {
                StartError::new(BootStep::Vmm, &format!("cannot run `{}`", Path::new(&program).display()), e)
            })?
        };
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        let found = ProcessId::of(pid).and_then(|id| id.find());
        let process = match found {
            Ok(Some(process)) => process,
            Ok(None) => return Err(gone_at_once(&mut child)),
            Err(e) => {
                let _ = child.start_kill();
                return Err(StartError::new(BootStep::Vmm, "cannot watch the VMM", e));
            }
        };
        log.line(format_args!("VMM started, pid {pid}"));
        let (confining, confined) = watch::channel(None);
        tokio::task::spawn_blocking(move || confining.send_replace(Some(confine(pid))));

        let (publish, exit) = watch::channel(None);
        let mut placed = confined.clone();
        let companions = Companions::default();
        let others = companions.clone();
        spawn(Task::VmmExit, async move {
            // A process that is not reaped keeps its pid: nobody else is moved in its place. An error: nobody moves it.
            let _ = placed.wait_for(Option::is_some).await;
            let status = child.wait().await;
            let ending = tokio::task::spawn_blocking(move || end(&others));
            let finished = async {
                for reader in readers {
                    let _ = reader.await;
                }
            };
            let _ = tokio::time::timeout(LEFTOVERS, finished).await;
            for survivor in ending.await.unwrap_or_default() {
                log.line(format_args!("process {} of the VMM survived SIGKILL", survivor.pid));
            }
            let exit = judge(status);
            log.line(format_args!("VMM ended: {exit:?}"));
            publish.send_replace(Some(exit));
        });
        Ok(Self { process, exit, confined, stderr, harmless_stderr, companions })
    }

    pub fn id(&self) -> &ProcessId {
        self.process.id()
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        self.process.signal(signal)
    }

    /// A process that ends with this one.
    pub fn accompany(&self, process: Process) {
        self.companions.lock().unwrap_or_else(PoisonError::into_inner).push(process);
    }

    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    pub fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    pub fn stderr_lines(&self) -> Vec<String> {
        let mut lines = self.stderr.lines();
        lines.retain(|line| !self.harmless_stderr.contains(line));
        lines
    }

    /// Waits until it is where its limits hold; answers them, and what is missing.
    pub async fn confined(&self) -> Result<Vec<String>, StartError> {
        let mut confined = self.confined.clone();
        let placed = confined.wait_for(Option::is_some).await;
        placed.ok().and_then(|report| report.clone()).ok_or_else(|| StartError {
            step: BootStep::Keeper,
            message: "the VMM could not be put into its control groups".into(),
        })
    }

    /// In its own words.
    pub fn ended(&self, what: &str) -> StartError {
        let lines = self.stderr_lines();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("; ");
        let said = if last.is_empty() { "it said nothing".to_owned() } else { last };
        StartError::new(BootStep::Vmm, what, said)
    }

    pub async fn ended_within(&self, limit: Duration) -> Option<Exit> {
        let mut exit = self.exit.clone();
        let ended = tokio::time::timeout(limit, exit.wait_for(Option::is_some)).await;
        match ended {
            Ok(Ok(exit)) => exit.clone(),
            _ => None,
        }
    }
}

/// Ends what a process left behind, and answers what it could not end. Blocks.
fn end(companions: &Companions) -> Vec<ProcessId> {
    let left = std::mem::take(&mut *companions.lock().unwrap_or_else(PoisonError::into_inner));
    for process in &left {
        // One that cannot be signalled is seen to live below.
        let _ = process.signal(Signal::KILL);
    }
    left.into_iter().filter(|process| !process.wait(DEATH)).map(|process| process.id().clone()).collect()
}

fn gone_at_once(child: &mut process::Child) -> StartError {
    let status = child.try_wait();
    StartError { step: BootStep::Vmm, message: format!("the VMM ended at once ({status:?})") }
}
