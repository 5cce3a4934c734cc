//! One QEMU process: started, watched, asked, ended.
//!
//! ```text
//! spawn --> answers on QMP --> runs --> ended: status + what QMP said of it + last words on the console
//!                               |
//!   stop:  [guest shutdown, grace] -> [QMP quit] -> [TERM] -> [KILL]      each rung timed, logged and reported
//! ```

use super::{
    channel::Channel,
    child::{Child, LEFTOVERS, LastBytes, Start, blocking},
    console,
    files::Files,
    log::KeeperLog,
    machine::{CallError, Ladder, StartError},
    qmp::{Command as QmpCommand, Qmp, QmpError},
    spec::{DEVICE_STATE_FD, Spec},
};
use crate::{
    BootStep, Exit, StopReport, StopStep,
    process::ProcessId,
    task::{Task, spawn},
};
use rustix::process::Signal;
use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    net::UnixStream,
    sync::{Mutex as AsyncMutex, watch},
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

#[derive(Debug)]
pub(crate) struct Vmm {
    child: Child,
    qmp: Qmp,
    /// One climber at a time; the second finds the VMM gone.
    ladder: AsyncMutex<()>,
    log: Arc<KeeperLog>,
}

impl From<QmpError> for CallError {
    fn from(error: QmpError) -> Self {
        match error {
            QmpError::Timeout { after, .. } => Self::Late { after },
            QmpError::Refused { .. } => Self::Refused(error.to_string()),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl Vmm {
    /// Must be called on the thread that lives as long as the keeper. `state` is what the VMM is to continue from: its
    /// device state, and the complete memory it maps if that is not zeros. `confine` is given its pid on a thread of its
    /// own, and answers what limits it.
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
        let (complaints, stderr_theirs) =
            UnixStream::pair().map_err(error("cannot make the VMM's standard error"))?;
        let (channel, channel_theirs) = Channel::bind(&files.channel_socket())
            .map_err(|e| StartError::new(BootStep::Channel, "cannot make the channel socket", e))?;
        let pass = error("cannot pass sockets to the VMM");
        let theirs = |stream: UnixStream| stream.into_std().map(OwnedFd::from);
        let passed = [theirs(qmp_theirs), theirs(serial_theirs), Ok(channel_theirs)]
            .into_iter()
            .chain(state.into_iter().map(Ok))
            .collect::<io::Result<Vec<OwnedFd>>>()
            .map_err(pass)?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(blocking(stderr_theirs).map_err(pass)?);

        let last_words = Arc::new(Mutex::new(None));
        let stderr = LastBytes::default();
        let (qmp, qmp_reader) = Qmp::new(qmp);
        let console = {
            let (path, words, log) = (files.console_log(), last_words.clone(), log.clone());
            async move {
                if let Err(error) = console::drain(serial, &path, words).await {
                    log.line(format_args!("console: {error}"));
                }
            }
        };
        let readers = vec![
            spawn(Task::Console, console),
            spawn(Task::Qmp, qmp_reader),
            spawn(Task::VmmStderr, stderr.clone().follow(complaints)),
        ];
        let shutdown = qmp.shutdown_cause();
        let judge = move |status| {
            let guest = shutdown.borrow().as_ref().is_some_and(|cause| cause.guest);
            judge(status, guest, last_words.lock().ok().and_then(|words| words.clone()))
        };
        let harmless_stderr = spec.harmless_stderr.clone();
        let start =
            Start { command, passed, confine, readers, stderr, harmless_stderr, judge, log: log.clone() };
        let child = Child::start(start)?;
        Ok((Self { child, qmp, ladder: AsyncMutex::new(()), log }, channel))
    }

    pub fn id(&self) -> &ProcessId {
        self.child.id()
    }

    pub fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.child.exit()
    }

    pub fn stderr_lines(&self) -> Vec<String> {
        self.child.stderr_lines()
    }

    /// See [`Child::confined`].
    pub async fn confined(&self) -> Result<Vec<String>, StartError> {
        self.child.confined().await
    }

    /// Waits until the VMM answers: then its devices exist. No CPU runs yet.
    pub async fn ready(&self, deadline: Duration) -> Result<(), StartError> {
        let answer = self.call(QmpCommand::Capabilities, deadline).await;
        answer.map_err(|error| match error {
            CallError::Ended(exit) => self.child.ended(&format!("the VMM ended at once ({exit:?})")),
            error => StartError::new(BootStep::Vmm, "the VMM does not answer", error),
        })
    }

    /// Lets the CPUs run for the first time.
    pub async fn go(&self) -> Result<(), StartError> {
        self.resume().await.map_err(|error| match error {
            CallError::Ended(exit) => self.child.ended(&format!("the VMM ended at its start ({exit:?})")),
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
                Err(self.child.ended(&format!("the VMM could not load the device state ({exit:?})")))
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
        match self.child.ended_within(LEFTOVERS).await {
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
        match self.child.ended_within(patience).await {
            Some(exit) => Err(CallError::Ended(exit)),
            None => Err(error.into()),
        }
    }

    /// Ends the VMM. `None` if it outlived every rung, which only a process stuck in the kernel does.
    pub async fn stop(&self, grace: Duration) -> Option<StopReport> {
        let _climbing = self.ladder.lock().await;
        let mut ladder = Ladder::new(&self.child, &self.log);
        // A guest whose CPUs stand still will not power off, however long one waits.
        let paused = !self.child.has_ended() && matches!(self.is_paused().await, Ok(true));
        let grace = if paused { Duration::ZERO } else { grace };
        if (!grace.is_zero() || self.child.has_ended())
            && let Some(report) = ladder.climb(StopStep::GuestShutdown, grace, async { Ok(()) }).await
        {
            return Some(report);
        }
        let quit = async { self.qmp.call(QmpCommand::Quit, QUIT).await.map(drop).map_err(|e| e.to_string()) };
        if let Some(report) = ladder.climb(StopStep::VmmQuit, QUIT, quit).await {
            return Some(report);
        }
        for (step, signal, limit) in
            [(StopStep::Term, Signal::TERM, TERM), (StopStep::Kill, Signal::KILL, KILL)]
        {
            let signalled = async { self.child.signal(signal).map_err(|e| e.to_string()) };
            if let Some(report) = ladder.climb(step, limit, signalled).await {
                return Some(report);
            }
        }
        None
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
