//! One VMM process: started, watched, asked, ended.
//!
//! ```text
//! spawn --> answers on QMP --> runs --> ended: status + what QMP said of it + last words on the console
//!                               |
//!   stop:  [guest shutdown, grace] -> [QMP quit] -> [TERM] -> [KILL]      each rung timed, logged and reported
//! ```

use super::{
    channel::Channel,
    console,
    files::Files,
    log::KeeperLog,
    qmp::{Command as QmpCommand, Qmp, QmpError},
    spec::{DEVICE_STATE_FD, Spec},
};
use crate::{
    BootStep, Exit, StopReport, StopStep, os,
    process::{Process, ProcessId},
    task::{Task, spawn},
};
use rustix::process::Signal;
use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    process::{Child, ChildStderr, Command},
    sync::{Mutex as AsyncMutex, watch},
    task::JoinHandle,
};

/// Between two looks at a VMM that loads a state, which takes it milliseconds.
const LOOK_AGAIN: Duration = Duration::from_micros(500);
/// An idle VMM answers in a millisecond; `stop` also flushes the data disk.
const CALL: Duration = Duration::from_secs(10);
/// A quitting VMM flushes its disks.
const QUIT: Duration = Duration::from_secs(5);
const TERM: Duration = Duration::from_secs(2);
/// After SIGKILL only the kernel is left to wait for.
const KILL: Duration = Duration::from_secs(10);
/// What the dead VMM left in its pipes is read for this long at most.
const LEFTOVERS: Duration = Duration::from_secs(1);
const STDERR: usize = 8 * 1024;
/// Of the VMM's own words, in a message.
const LAST_LINES: usize = 3;

#[derive(Debug)]
pub(crate) struct Vmm {
    process: Process,
    qmp: Qmp,
    exit: watch::Receiver<Option<Exit>>,
    confined: watch::Receiver<Option<Vec<String>>>,
    stderr: Arc<Mutex<Vec<u8>>>,
    harmless_stderr: Vec<String>,
    /// One climber at a time; the second finds the VMM gone.
    ladder: AsyncMutex<()>,
    log: Arc<KeeperLog>,
}

/// Why the VMM could not be started or never answered.
#[derive(Debug)]
pub(crate) struct StartError {
    pub step: BootStep,
    pub message: String,
}

impl StartError {
    fn new(step: BootStep, what: &str, error: impl std::fmt::Display) -> Self {
        Self { step, message: format!("{what}: {error}") }
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the VMM has ended")]
    Ended(Exit),
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Asked for what cannot be.
    #[error("{0}")]
    Refused(String),
    /// The host failed us.
    #[error("{0}")]
    Failed(String),
}

impl CallError {
    pub fn failed(what: &str, error: &io::Error) -> Self {
        Self::Failed(format!("cannot {what}: {error}"))
    }
}

impl Vmm {
    /// Must be called on the thread that lives as long as the keeper: see [`os::bind_to_this_thread`]. `state` is what
    /// the VMM is to continue from: its device state, and the complete memory it maps if that is not zeros. `confine`
    /// is given its pid on a thread of its own, and answers what limits it.
    pub fn start(
        spec: &Spec,
        files: &Files,
        state: Vec<OwnedFd>,
        log: Arc<KeeperLog>,
        confine: impl FnOnce(i32) -> Vec<String> + Send + 'static,
    ) -> Result<(Self, Channel), StartError> {
        let error = |what: &'static str| move |error: io::Error| StartError::new(BootStep::Vmm, what, error);
        let (qmp, qmp_theirs) = UnixStream::pair().map_err(error("cannot make the control connection"))?;
        let (serial, serial_theirs) = UnixStream::pair().map_err(error("cannot make the console"))?;
        let (channel, channel_theirs) = Channel::bind(&files.channel_socket())
            .map_err(|e| StartError::new(BootStep::Channel, "cannot make the channel socket", e))?;
        let theirs = |stream: UnixStream| stream.into_std().map(OwnedFd::from);
        let passed = [theirs(qmp_theirs), theirs(serial_theirs), Ok(channel_theirs)]
            .into_iter()
            .chain(state.into_iter().map(Ok))
            .collect::<io::Result<Vec<OwnedFd>>>()
            .map_err(error("cannot pass sockets to the VMM"))?;

        let mut child = {
            let mut command = std::process::Command::new(&spec.program);
            command
                .args(&spec.arguments)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::piped());
            os::bind_to_this_thread(&mut command, passed).map_err(error("cannot prepare the VMM"))?;
            // The command holds the VMM's ends of the sockets; they close with this block.
            let spawned = Command::from(command).spawn();
            spawned.map_err(|e| {
                StartError::new(BootStep::Vmm, &format!("cannot run `{}`", spec.program.display()), e)
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

        let last_words = Arc::new(Mutex::new(None));
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let (qmp, qmp_reader) = Qmp::new(qmp);
        let readers = Readers {
            console: spawn(Task::Console, {
                let (path, words, log) = (files.console_log(), last_words.clone(), log.clone());
                async move {
                    if let Err(error) = console::drain(serial, &path, words).await {
                        log.line(format_args!("console: {error}"));
                    }
                }
            }),
            qmp: spawn(Task::Qmp, qmp_reader),
            stderr: child.stderr.take().map(|pipe| spawn(Task::VmmStderr, keep_last(pipe, stderr.clone()))),
        };
        let (publish, exit) = watch::channel(None);
        let shutdown = qmp.shutdown_cause();
        let exit_log = log.clone();
        let mut placed = confined.clone();
        spawn(Task::VmmExit, async move {
            // A process that is not reaped keeps its pid: nobody else is moved in its place. An error: nobody moves it.
            let _ = placed.wait_for(Option::is_some).await;
            let status = child.wait().await;
            readers.finish().await;
            let guest = shutdown.borrow().as_ref().is_some_and(|cause| cause.guest);
            let words = last_words.lock().ok().and_then(|words| words.clone());
            let exit = judge(status, guest, words);
            exit_log.line(format_args!("VMM ended: {exit:?}"));
            publish.send_replace(Some(exit));
        });
        let vmm = Self {
            process,
            qmp,
            exit,
            confined,
            stderr,
            harmless_stderr: spec.harmless_stderr.clone(),
            ladder: AsyncMutex::new(()),
            log,
        };
        Ok((vmm, channel))
    }

    pub fn id(&self) -> &ProcessId {
        self.process.id()
    }

    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }

    pub fn stderr_lines(&self) -> Vec<String> {
        let mut lines = self.stderr.lock().map(|bytes| console::last_lines(&bytes)).unwrap_or_default();
        lines.retain(|line| !self.harmless_stderr.contains(line));
        lines
    }

    /// Waits until the VMM is where its limits hold; answers them, and what is missing.
    pub async fn confined(&self) -> Result<Vec<String>, StartError> {
        let mut confined = self.confined.clone();
        let placed = confined.wait_for(Option::is_some).await;
        placed.ok().and_then(|report| report.clone()).ok_or_else(|| StartError {
            step: BootStep::Keeper,
            message: "the VMM could not be put into its control groups".into(),
        })
    }

    /// Waits until the VMM answers: then its devices exist. No CPU runs yet.
    pub async fn ready(&self, deadline: Duration) -> Result<(), StartError> {
        let answer = self.call(QmpCommand::Capabilities, deadline).await;
        answer.map_err(|error| match error {
            CallError::Ended(exit) => self.ended(&format!("the VMM ended at once ({exit:?})")),
            error => StartError::new(BootStep::Vmm, "the VMM does not answer", error),
        })
    }

    /// Lets the CPUs run for the first time.
    pub async fn go(&self) -> Result<(), StartError> {
        self.resume().await.map_err(|error| match error {
            CallError::Ended(exit) => self.ended(&format!("the VMM ended at its start ({exit:?})")),
            error => StartError::new(BootStep::Vmm, "the VMM does not let its CPUs run", error),
        })
    }

    /// Loads the device state that was passed.
    pub async fn load(&self, deadline: Duration) -> Result<(), StartError> {
        let load = async {
            self.ask(QmpCommand::MigrateIncoming { uri: format!("fd:{DEVICE_STATE_FD}") }).await?;
            while self.unless_ended(self.qmp.status(CALL)).await?.is_loading() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Ok(())
        };
        match tokio::time::timeout(deadline, load).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(CallError::Ended(exit))) => {
                Err(self.ended(&format!("the VMM could not load the device state ({exit:?})")))
            }
            Ok(Err(error)) => {
                Err(StartError::new(BootStep::Vmm, "the VMM could not load the device state", error))
            }
            Err(_elapsed) => Err(StartError {
                step: BootStep::Vmm,
                message: format!("the VMM had not loaded the device state after {deadline:?}"),
            }),
        }
    }

    /// In the VMM's own words.
    fn ended(&self, what: &str) -> StartError {
        let lines = self.stderr_lines();
        let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("; ");
        let said = if last.is_empty() { "it said nothing".to_owned() } else { last };
        StartError::new(BootStep::Vmm, what, said)
    }

    pub async fn pause(&self) -> Result<(), CallError> {
        self.call(QmpCommand::Stop, CALL).await
    }

    pub async fn resume(&self) -> Result<(), CallError> {
        self.call(QmpCommand::Cont, CALL).await
    }

    pub async fn is_paused(&self) -> Result<bool, CallError> {
        Ok(!self.unless_ended(self.qmp.status(CALL)).await?.running)
    }

    pub async fn ask(&self, command: QmpCommand) -> Result<(), CallError> {
        self.call(command, CALL).await
    }

    /// A failure of the host's on the VMM: its end, if there was one, explains it better.
    pub async fn explain(&self, what: &str, error: &io::Error) -> CallError {
        match self.ended_within(LEFTOVERS).await {
            Some(exit) => CallError::Ended(exit),
            None => CallError::failed(what, error),
        }
    }

    async fn call(&self, command: QmpCommand, deadline: Duration) -> Result<(), CallError> {
        self.unless_ended(async { self.qmp.call(command, deadline).await.map(drop) }).await
    }

    /// The end of the VMM explains a failed call better than the call's own error.
    async fn unless_ended<T>(&self, call: impl Future<Output = Result<T, QmpError>>) -> Result<T, CallError> {
        let error = match call.await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        let patience = if matches!(error, QmpError::Timeout { .. }) { Duration::ZERO } else { LEFTOVERS * 2 };
        match self.ended_within(patience).await {
            Some(exit) => Err(CallError::Ended(exit)),
            None => Err(error.into()),
        }
    }

    /// Ends the VMM. `None` if it outlived every rung, which only a process stuck in the kernel does.
    pub async fn stop(&self, grace: Duration) -> Option<StopReport> {
        let _climbing = self.ladder.lock().await;
        let mut steps = Vec::new();
        // A guest whose CPUs stand still will not power off, however long one waits.
        let paused = self.exit.borrow().is_none() && matches!(self.is_paused().await, Ok(true));
        let rungs = [
            (StopStep::GuestShutdown, if paused { Duration::ZERO } else { grace }),
            (StopStep::VmmQuit, QUIT),
            (StopStep::Term, TERM),
            (StopStep::Kill, KILL),
        ];
        for (step, limit) in rungs {
            if step == StopStep::GuestShutdown && limit.is_zero() && self.exit.borrow().is_none() {
                continue;
            }
            let begun = Instant::now();
            let asked = match step {
                StopStep::GuestShutdown => Ok(()),
                StopStep::VmmQuit => {
                    self.qmp.call(QmpCommand::Quit, limit).await.map(drop).map_err(|e| e.to_string())
                }
                StopStep::Term => self.process.signal(Signal::TERM).map_err(|e| e.to_string()),
                StopStep::Kill => self.process.signal(Signal::KILL).map_err(|e| e.to_string()),
            };
            let left = if asked.is_ok() { limit.saturating_sub(begun.elapsed()) } else { LEFTOVERS };
            let exit = self.ended_within(left).await;
            let took = begun.elapsed();
            steps.push((step, took));
            let outcome = if exit.is_some() { "the VMM ended" } else { "no effect" };
            let said = asked.err().map(|error| format!(" ({error})")).unwrap_or_default();
            self.log.line(format_args!("stop: {step:?} for {took:?}: {outcome}{said}"));
            if let Some(exit) = exit {
                return Some(StopReport { steps, exit });
            }
        }
        None
    }

    async fn ended_within(&self, limit: Duration) -> Option<Exit> {
        let mut exit = self.exit.clone();
        let ended = tokio::time::timeout(limit, exit.wait_for(Option::is_some)).await;
        match ended {
            Ok(Ok(exit)) => exit.clone(),
            _ => None,
        }
    }
}

fn gone_at_once(child: &mut Child) -> StartError {
    let status = child.try_wait();
    StartError { step: BootStep::Vmm, message: format!("the VMM ended at once ({status:?})") }
}

/// The tasks that read from the VMM; they end when it does.
struct Readers {
    console: JoinHandle<()>,
    qmp: JoinHandle<()>,
    stderr: Option<JoinHandle<()>>,
}

impl Readers {
    async fn finish(self) {
        let all = async {
            let _ = self.console.await;
            let _ = self.qmp.await;
            if let Some(stderr) = self.stderr {
                let _ = stderr.await;
            }
        };
        let _ = tokio::time::timeout(LEFTOVERS, all).await;
    }
}

fn judge(status: io::Result<ExitStatus>, guest_asked: bool, last_words: Option<String>) -> Exit {
    let Ok(status) = status else { return Exit::Code(-1) };
    match (status.code(), status.signal(), last_words) {
        // A panicked guest resets its machine, which ends the VMM as a power-off does.
        (Some(0), _, Some(line)) => Exit::GuestPanic { line },
        (Some(0), _, None) if guest_asked => Exit::PoweredOff,
        (Some(code), ..) => Exit::Code(code),
        (None, Some(signal), _) => Exit::Signal(signal),
        (None, None, _) => Exit::Code(-1),
    }
}

/// Keeps the last bytes of a stream.
async fn keep_last(mut pipe: ChildStderr, kept: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = pipe.read(&mut buffer).await {
        if let Ok(mut kept) = kept.lock() {
            kept.extend_from_slice(&buffer[..length]);
            let surplus = kept.len().saturating_sub(STDERR);
            kept.drain(..surplus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_judged_by_status_then_last_words_then_who_asked() {
        let code = |code: i32| Ok(ExitStatus::from_raw(code << 8));
        let panic = || Some("Kernel panic - not syncing: x".to_owned());
        assert_eq!(judge(code(0), true, None), Exit::PoweredOff);
        assert_eq!(judge(code(0), false, None), Exit::Code(0), "we told it to quit");
        assert!(matches!(judge(code(0), true, panic()), Exit::GuestPanic { .. }));
        assert_eq!(
            judge(code(1), true, panic()),
            Exit::Code(1),
            "the VMM failed, whatever the guest printed"
        );
        assert_eq!(judge(Ok(ExitStatus::from_raw(9)), false, panic()), Exit::Signal(9));
    }
}
