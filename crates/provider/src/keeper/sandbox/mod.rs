//! A gVisor sandbox: `runsc` and the processes it makes, with the agent inside as their PID 1.
//!
//! ```text
//! keeper --parent of--> runsc run --+-- runsc-sandbox   the kernel in user space, and all of the guest
//!   |  ^                            `-- runsc-gofer     hands it the agent's executable
//!   |  `--- one socket: the agent's standard input and output, relayed to whoever opened the channel
//!   `------ another: pause, resume, checkpoint, kill
//! ```
//! The two processes below `runsc` die with it (parent-death signal), and it with the keeper. The guest writes to
//! memory over the image's read-only root: the layers of its disk are only locked, so that a disk has one VM.

mod control;
mod relay;
mod runsc;
mod state;

use super::{
    child::{Child, LastBytes, Start, blocking},
    console,
    disk::Disk,
    files::Files,
    log::KeeperLog,
    machine::{CallError, Ladder, Machine, StartError, Taken},
    run::{Failed, Given, Journal},
    spec::Spec,
    wire::Checkpoint,
};
use crate::{
    AfterCheckpoint, BootStep, Exit, StopReport, StopStep, os,
    process::{self, Process, ProcessId},
    task::{Task, spawn},
};
use async_trait::async_trait;
use control::Control;
use relay::Relay;
use runsc::{Runsc, Status};
use rustix::process::Signal;
use state::Saved;
use std::{
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    net::UnixStream,
    sync::{Mutex as AsyncMutex, watch},
};

/// Between two looks at a sandbox that starts, which takes it a fifth of a second.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// For the sandbox's kernel to kill the agent.
const QUIT: Duration = Duration::from_secs(5);
/// After SIGKILL only the host's kernel is left to wait for.
const KILL: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Sandbox {
    child: Child,
    companions: Vec<ProcessId>,
    control: Control,
    channel: Relay,
    /// Held by whoever makes the guest stand still or go on.
    disk: AsyncMutex<Disk>,
    /// What its next state is against, and what it continued from.
    saved: Saved,
    /// One climber at a time; the second finds the sandbox gone.
    ladder: AsyncMutex<()>,
    log: Arc<KeeperLog>,
}

pub(super) async fn start(
    spec: &Spec,
    bundle: &Path,
    log: &Arc<KeeperLog>,
    given: Given,
    mut journal: Journal<'_>,
) -> Result<(Box<dyn Machine>, Vec<String>), Failed> {
    let Given { disk, memory, confinement } = given;
    let runsc = Runsc::new(spec, bundle);
    let saved = Saved::new(spec, memory);
    let image = match &spec.restore {
        None => None,
        Some(restore) => Some(saved.lay_out(&restore.device_state, &spec.state_dir).await?),
    };
    let confine = {
        let confinement = confinement.clone();
        move |pid| confinement.lock().unwrap_or_else(PoisonError::into_inner).place(pid)
    };
    let image_path = image.as_ref().map(state::Image::path);
    let (child, channel) = run(spec, &runsc, image_path, journal.files, log, confine)?;
    let ready = async {
        // Whoever finds this knows what to end; the other processes end with it.
        journal.write(child.id(), Vec::new())?;
        let companions = started(&child, &runsc, spec.start_deadline).await?;
        let ids: Vec<ProcessId> = companions.iter().map(|process| process.id().clone()).collect();
        journal.write(child.id(), ids.clone())?;
        let mut limits = child.confined().await?;
        // They were made while the first one was on its way there.
        limits.extend(confinement.lock().unwrap_or_else(PoisonError::into_inner).join(&ids));
        companions.into_iter().for_each(|process| child.accompany(process));
        let control = runsc.control().map_err(|error| {
            StartError::new(BootStep::Vmm, "cannot find the way to the sandbox's kernel", error)
        })?;
        Ok((ids, limits, control))
    };
    let ready = ready.await;
    drop(image);
    match ready {
        Ok((companions, limits, control)) => {
            let (disk, ladder, log) = (AsyncMutex::new(disk), AsyncMutex::new(()), log.clone());
            let sandbox = Sandbox { child, companions, control, channel, disk, saved, ladder, log };
            Ok((Box::new(sandbox), limits))
        }
        Err(error) => {
            let killed = async { child.signal(Signal::KILL).map_err(|error| error.to_string()) };
            let ended = Ladder::new(&child, log).climb(StopStep::Kill, KILL, killed).await;
            let exit = ended.map(|report| report.exit);
            Err(Failed { error, exit, vmm_stderr: child.stderr_lines() })
        }
    }
}

/// The process of `runsc`, and the way to the agent.
fn run(
    spec: &Spec,
    runsc: &Runsc,
    image: Option<&Path>,
    files: &Files,
    log: &Arc<KeeperLog>,
    confine: impl FnOnce(i32) -> Vec<String> + Send + 'static,
) -> Result<(Child, Relay), StartError> {
    let error = |what: &'static str| move |error: io::Error| StartError::new(BootStep::Vmm, what, error);
    let (ours, theirs) = UnixStream::pair().map_err(error("cannot make the channel"))?;
    let (console, said) = UnixStream::pair().map_err(error("cannot make the console"))?;
    let theirs = blocking(theirs).map_err(error("cannot pass the channel to the sandbox"))?;
    let output = theirs.try_clone().map_err(error("cannot pass the channel to the sandbox"))?;
    let said = blocking(said).map_err(error("cannot pass the console to the sandbox"))?;
    let mut command = runsc.start(image);
    command.stdin(theirs).stdout(output).stderr(said);
    os::without_membarrier(&mut command);

    let last_words = Arc::new(Mutex::new(None));
    let stderr = LastBytes::default();
    // The agent's console and the words of `runsc` itself are one stream.
    let reader = {
        let (path, words, log, kept) = (files.console_log(), last_words.clone(), log.clone(), stderr.clone());
        async move {
            if let Err(error) = console::drain_and_keep(console, &path, words, |data| kept.push(data)).await {
                log.line(format_args!("console: {error}"));
            }
        }
    };
    let judge = move |status| judge(status, last_words.lock().ok().and_then(|words| words.clone()));
    let child = Child::start(Start {
        command,
        passed: Vec::new(),
        confine,
        readers: vec![spawn(Task::Console, reader)],
        stderr,
        harmless_stderr: spec.harmless_stderr.clone(),
        judge,
        log: log.clone(),
    })?;
    Ok((child, Relay::new(ours)))
}

/// Waits until the agent was started in the sandbox, or goes on in it; answers the processes the sandbox is made of.
async fn started(child: &Child, runsc: &Runsc, deadline: Duration) -> Result<Vec<Process>, StartError> {
    let until = Instant::now() + deadline;
    loop {
        if child.has_ended() {
            return Err(child.ended("the sandbox ended at once"));
        }
        match runsc.status() {
            Ok(Some(Status::Running)) => break,
            Ok(_) => {}
            Err(error) => {
                return Err(StartError::new(BootStep::Vmm, "cannot read the sandbox's state", error));
            }
        }
        if Instant::now() >= until {
            return Err(StartError {
                step: BootStep::Vmm,
                message: format!("the sandbox had not started after {deadline:?}"),
            });
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let found = process::children(child.id().pid);
    found.map_err(|error| StartError::new(BootStep::Vmm, "cannot find the sandbox's processes", error))
}

fn judge(status: io::Result<ExitStatus>, last_words: Option<String>) -> Exit {
    let Ok(status) = status else { return Exit::Code(-1) };
    match (status.code(), status.signal(), last_words) {
        (_, None, Some(line)) => Exit::GuestPanic { line },
        // `runsc` ends as its PID 1 did, which ends by itself only when the guest powers off.
        (Some(0), _, None) => Exit::PoweredOff,
        (Some(code), ..) => Exit::Code(code),
        (None, Some(signal), _) => Exit::Signal(signal),
        (None, None, _) => Exit::Code(-1),
    }
}

impl Sandbox {
    /// The end of the sandbox explains a failed call better than the call's own error.
    async fn unless_ended<T>(
        &self,
        call: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, CallError> {
        match call.await {
            Ok(value) => Ok(value),
            Err(error) => match self.child.ended_within(super::child::LEFTOVERS).await {
                Some(exit) => Err(CallError::Ended(exit)),
                None => Err(error),
            },
        }
    }

    /// With the disk held: nobody else pauses or resumes meanwhile.
    async fn take(&self, plan: &Checkpoint, disk: &mut Disk) -> Result<Taken, CallError> {
        if !plan.memory {
            let said = "there is no state of the disk alone: what this VM has written lies in its memory";
            return Err(CallError::Refused(said.into()));
        }
        let next = disk.take(&plan.next_layer)?;
        let ran = !self.control.is_still()?;
        let raw = self.saved.raw(&plan.dir)?;
        let begun = Instant::now();
        let stood = async {
            self.unless_ended(self.control.hold()).await?;
            self.unless_ended(self.control.checkpoint(raw.files())).await?;
            Ok(raw)
        };
        let raw: Result<_, CallError> = stood.await;
        if let (Ok(_), Some(next)) = (&raw, next) {
            disk.put_on_top(next);
        }
        let goes_on = ran && (raw.is_err() || plan.then == AfterCheckpoint::Continue);
        if goes_on {
            disk.in_use();
            let resumed = self.unless_ended(self.control.let_go()).await;
            if let Err(error) = &resumed {
                self.log.line(format_args!("the sandbox was told to go on and does not: {error}"));
            }
            // Of two failures the first one says why.
            if raw.is_ok() {
                resumed?;
            }
        }
        let paused = if ran { begun.elapsed() } else { Duration::ZERO };
        let (mut said, delta) = self.saved.collect(raw?, &plan.dir).await?;
        said.paused_us = paused.as_micros() as u64;
        Ok(Taken { said, delta: Some(delta), held: ran && !goes_on })
    }
}

#[async_trait]
impl Machine for Sandbox {
    fn id(&self) -> &ProcessId {
        self.child.id()
    }

    fn companions(&self) -> Vec<ProcessId> {
        self.companions.clone()
    }

    fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.child.exit()
    }

    fn stderr_lines(&self) -> Vec<String> {
        self.child.stderr_lines()
    }

    async fn reopen_channel(&self) -> io::Result<OwnedFd> {
        self.channel.reopen().await
    }

    async fn pause(&self) -> Result<(), CallError> {
        let _disk = self.disk.lock().await;
        self.unless_ended(self.control.hold()).await
    }

    async fn resume(&self) -> Result<(), CallError> {
        let mut disk = self.disk.lock().await;
        disk.in_use();
        self.unless_ended(self.control.let_go()).await
    }

    async fn is_paused(&self) -> Result<bool, CallError> {
        let _disk = self.disk.lock().await;
        self.control.is_still()
    }

    async fn checkpoint(&self, plan: &Checkpoint) -> Result<Taken, CallError> {
        let mut disk = self.disk.lock().await;
        let taken = self.take(plan, &mut disk).await;
        match &taken {
            Ok(taken) => self.log.line(format_args!("state taken: {:?}", taken.said)),
            Err(error) => self.log.line(format_args!("no state was taken: {error}")),
        }
        taken
    }

    async fn restack(&self, layers: &[PathBuf]) -> Result<(), CallError> {
        self.disk.lock().await.relock(layers)
    }

    async fn stop(&self, grace: Duration) -> Option<StopReport> {
        let _climbing = self.ladder.lock().await;
        let mut ladder = Ladder::new(&self.child, &self.log);
        // A guest that stands still will not power off, however long one waits, nor let itself be killed from inside.
        let paused = !self.child.has_ended() && !matches!(self.control.is_still(), Ok(false));
        let grace = if paused { Duration::ZERO } else { grace };
        if (!grace.is_zero() || self.child.has_ended())
            && let Some(report) = ladder.climb(StopStep::GuestShutdown, grace, async { Ok(()) }).await
        {
            return Some(report);
        }
        let quit = async { self.control.kill().await.map_err(|error| error.to_string()) };
        if !paused && let Some(report) = ladder.climb(StopStep::VmmQuit, QUIT, quit).await {
            return Some(report);
        }
        let killed = async { self.child.signal(Signal::KILL).map_err(|error| error.to_string()) };
        ladder.climb(StopStep::Kill, KILL, killed).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_ends_as_its_first_process_unless_that_had_last_words() {
        let code = |code: i32| Ok(ExitStatus::from_raw(code << 8));
        let fatal = || Some("offshoot-guest: fatal: x".to_owned());
        assert_eq!(judge(code(0), None), Exit::PoweredOff);
        assert_eq!(judge(code(137), None), Exit::Code(137));
        assert!(matches!(judge(code(0), fatal()), Exit::GuestPanic { .. }));
        assert_eq!(
            judge(Ok(ExitStatus::from_raw(9)), fatal()),
            Exit::Signal(9),
            "killed by us, whatever it said"
        );
    }
}
